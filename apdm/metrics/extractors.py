"""Feature networks from a folder or the Hub: DINO compares whole pictures, CLIP also scores how they fit a prompt.

transformers reads them, from safetensors files unless pickles are allowed. The size, mean and standard deviation that
the folder's preprocessor asks for are applied here to tensors. The Inception network of FID is in `inception.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate, normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from apdm.core.errors import UserError, loading_mend, one_line
from apdm.core.model_path import HUB_ID, PICKLES, place_name

# Files of which a folder needs one: what the model is, and how it wants pictures.
CONFIGS = (("config.json",), ("preprocessor_config.json", "processor_config.json"))
EXAMPLES = "a vision model of transformers, such as a copy of facebook/dinov2-small or openai/clip-vit-large-patch14"
TEXTS = ("*.json", "*.txt", "*.model")  # what a folder of transformers holds besides weights


class VisionModel:
    """A vision model of transformers (DINO, DINOv2, ViT) as an extractor: it gives the last layer's class token."""

    is_inception = False

    def __init__(self, place: str | Path, *, allow_pickle: bool = False) -> None:
        """Load the model.

        Args:
            place: a folder, or a name on the Hub.
            allow_pickle: whether .bin files may be read where there is no .safetensors file.

        Raises:
            UserError: the model cannot be found or loaded.
        """
        self.name = place_name(place)
        self.model, self.preprocess = _load(local_copy(place, allow_pickle=allow_pickle), allow_pickle)
        if hasattr(self.model, "get_text_features"):
            raise UserError(f"{place} holds a {type(self.model).__name__} and no vision model; write clip:{place}")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        output = self.model(pixel_values=self.preprocess(images))
        features: Tensor = output.last_hidden_state[:, 0]
        return features.float()


class ClipModel:
    """A CLIP model of transformers: its image features, and how well pictures fit their prompts.

    The score is the cosine of picture and prompt (CLIP score, Hessel 2021, not scaled). The cosine of the features of
    two pictures is known as CLIP-I.
    """

    is_inception = False

    def __init__(self, place: str | Path, *, allow_pickle: bool = False) -> None:
        """Load the model, as `VisionModel` does. Raises UserError also if it reads no text."""
        self.name = place_name(place)
        folder = local_copy(place, allow_pickle=allow_pickle)
        self.model, self.preprocess = _load(folder, allow_pickle)
        if not hasattr(self.model, "get_text_features"):
            raise UserError(f"{place} holds a {type(self.model).__name__}, which reads no text; give a CLIP model")
        self.tokenizer = _read(folder, AutoTokenizer)
        one, other = self._tokens(["a photo of a dog", "a photo of a cat"])["input_ids"]
        if one.equal(other):  # transformers makes up an empty vocabulary where there is none
            raise UserError(f"{place} has no vocabulary, such as tokenizer.json or vocab.json and merges.txt; add it")

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        return _tensor(self.model.get_image_features(pixel_values=self.preprocess(images))).float()

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine [B], in [-1, 1], of each picture of `images` [B, 3, H, W] in [0, 1] with its prompt."""
        text = _tensor(self.model.get_text_features(**self._tokens(prompts)))
        return cosine_similarity(self(images), text.float())

    def pictures(self, images: Tensor) -> Tensor:
        """Unit vectors [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        return normalize(self(images), dim=1)

    @torch.no_grad()
    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Unit vectors [B, D] of texts, in the space of the pictures."""
        return normalize(_tensor(self.model.get_text_features(**self._tokens(prompts))).float(), dim=1)

    def _tokens(self, prompts: Sequence[str]) -> Any:
        length = self.model.config.text_config.max_position_embeddings
        # SigLIP takes the last position as the text's feature, and was trained on texts of full length.
        padding = "max_length" if self.model.config.model_type.startswith("siglip") else "longest"
        return self.tokenizer(list(prompts), padding=padding, truncation=True, max_length=length, return_tensors="pt")


class Preprocess:
    """Prepares pictures as a preprocessor_config.json asks: resize the shorter side, cut the centre, normalise."""

    def __init__(self, processor: Any) -> None:
        """Take sizes, mean and standard deviation from an image processor of transformers. All resize bicubically."""
        size, crop = dict(processor.size or {}), dict(getattr(processor, "crop_size", None) or {})
        self.side = int(size.get("shortest_edge") or size.get("height") or crop["height"])
        self.crop = crop.get("height") if getattr(processor, "do_center_crop", False) else None
        normalised = getattr(processor, "do_normalize", True)
        values = (processor.image_mean, processor.image_std) if normalised else ([0.0] * 3, [1.0] * 3)
        self.mean, self.std = (torch.tensor(each).view(1, 3, 1, 1) for each in values)

    def __call__(self, images: Tensor) -> Tensor:
        """Prepared pictures [B, 3, S, S] of `images` [B, 3, H, W] in [0, 1]."""
        height, width = images.shape[-2:]
        scale = self.side / min(height, width)
        target = (round(height * scale), round(width * scale))
        images = interpolate(images.float(), size=target, mode="bicubic", antialias=True).clamp(0, 1)
        side = self.crop or min(target)
        top, left = (target[0] - side) // 2, (target[1] - side) // 2
        images = images[..., top : top + side, left : left + side]
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


def local_copy(place: str | Path, *, allow_pickle: bool, texts: Sequence[str] = TEXTS) -> Path:
    """Return a local folder or file as it is; a name on the Hub as the folder of the copy in the cache.

    The Hub is asked unless HF_HUB_OFFLINE is set. Then the copy must be in the cache.

    Args:
        allow_pickle: whether pickles may be fetched where there are no safetensors files.
        texts: patterns of the files that are fetched besides the weights.

    Raises:
        UserError: there is no such folder or name, or the Hub cannot be reached.
    """
    if Path(place).exists():
        return Path(place)
    if not HUB_ID.fullmatch(str(place)):
        raise UserError(f"{place} is no folder, no file and no name on the Hub; give one that is")
    weights = ["*.safetensors", *(f"*{suffix}" for suffix in sorted(PICKLES) if allow_pickle)]
    try:
        return Path(snapshot_download(str(place), allow_patterns=[*texts, *weights]))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{place} is not on this machine and the Hub cannot be reached (HF_HUB_OFFLINE forbids it, or there is no "
            f"connection): fetch it first with: hf download {place}, or name a local folder"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{place} cannot be fetched from the Hub: {one_line(error, 200)}") from None


def _load(folder: Path, allow_pickle: bool) -> tuple[Any, Preprocess]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give one that holds a model of transformers")
    if lacking := [" or ".join(names) for names in CONFIGS if not any((folder / name).is_file() for name in names)]:
        raise UserError(f"{folder} has no {lacking[0]}; give the folder of {EXAMPLES}")
    if not allow_pickle and not any(folder.glob("*.safetensors")):
        # Of a model on the Hub, pickles were not fetched.
        held = "holds pickles (.bin), which can run code" if any(folder.glob("*.bin")) else "has no .safetensors file"
        mend = "pass --allow_pickle true to read pickles all the same, or give a model in .safetensors files"
        raise UserError(f"{folder} {held}; {mend}")
    options = {} if allow_pickle else {"use_safetensors": True}
    model, found = _read(folder, AutoModel, output_loading_info=True, **options)
    # Nothing here uses the pooler, and DINO's files have none. What else is missing would stay random, in silence.
    if lacking := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise UserError(
            f"the weights in {folder} are not those of a {type(model).__name__}, which its config.json names: "
            f"{lacking[0]} is missing (of {len(lacking)}); fetch the folder again"
        )
    model.eval().requires_grad_(False)
    processor = _read(folder, AutoImageProcessor)
    try:
        return model, Preprocess(processor)
    except (KeyError, AttributeError, TypeError, ValueError):
        raise UserError(
            f"{folder} prepares pictures in a way that is not understood ({type(processor).__name__}): its "
            "preprocessor_config.json needs size, image_mean and image_std"
        ) from None


def _read(folder: Path, kind: Any, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except Exception as error:  # of damaged files the libraries raise anything
        mend = loading_mend(error, "fetch the folder again")
        raise UserError(f"{folder} cannot be loaded: {one_line(error, 200)}; {mend}") from error


def _tensor(output: Any) -> Tensor:
    """The features, which transformers gives either as a tensor or inside an output object."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found
