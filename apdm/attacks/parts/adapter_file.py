"""Files of FaceID and InstantID adapters: IP-Adapters for the embedding of a face. Their keys tell them apart."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apdm.core.errors import UserError

PARTS = ("image_proj", "ip_adapter")
FACEID_PLUS_KEY = "perceiver_resampler.proj_in.weight"
DEPTH = 4  # blocks of a resampler; diffusers takes no other number
# The tensors of image_proj: {name: one letter for each dimension}. Equal letters stand for equal sizes. d is the size
# of an embedding, w the size of a token.
FACEID = {
    "proj.0.weight": "hd",
    "proj.0.bias": "h",
    "proj.2.weight": "th",
    "proj.2.bias": "t",
    "norm.weight": "w",
    "norm.bias": "w",
}
ENDS = {
    "latents": "1qh",
    "proj_in.weight": "hd",
    "proj_in.bias": "h",
    "proj_out.weight": "wh",
    "proj_out.bias": "w",
    "norm_out.weight": "w",
    "norm_out.bias": "w",
}
BLOCK = {
    "0.norm1.weight": "h",
    "0.norm1.bias": "h",
    "0.norm2.weight": "h",
    "0.norm2.bias": "h",
    "0.to_q.weight": "ih",
    "0.to_kv.weight": "kh",
    "0.to_out.weight": "hi",
    "1.0.weight": "h",
    "1.0.bias": "h",
    "1.1.weight": "fh",
    "1.3.weight": "hf",
}
RESAMPLER = ENDS | {f"layers.{i}.{key}": sides for i in range(DEPTH) for key, sides in BLOCK.items()}


@dataclass(frozen=True)
class AdapterFile:
    """An adapter's file as diffusers' `load_ip_adapter` takes it.

    Attributes:
        name: the file's name.
        state: the weights. state["image_proj"] makes tokens of an embedding, state["ip_adapter"] attends to the tokens.
        is_resampler: whether a resampler makes the tokens, as in InstantID. In FaceID two linear layers make them.
        dimension: the size of an embedding.
        width: the size of a token.
    """

    name: str
    state: Mapping[str, dict[str, Tensor]]
    is_resampler: bool
    dimension: int
    width: int

    @staticmethod
    def read(path: Path, *, allow_pickle: bool = False) -> AdapterFile:
        """Read an adapter's file.

        Args:
            path: a .safetensors file, or a pickle (.bin, .pt).
            allow_pickle: whether pickles are read, with torch's restricted unpickler.

        Raises:
            UserError: the file is a pickle and pickles are not allowed, the file is damaged, or it is no adapter of
                FaceID's or InstantID's kind.
        """
        state = _state(path, allow_pickle)
        projection = state["image_proj"]
        if FACEID_PLUS_KEY in projection:
            raise UserError(
                f"{path.name} is FaceID Plus, which takes a CLIP embedding beside the face's; "
                "name a plain FaceID or an InstantID adapter"
            )
        is_resampler = "latents" in projection
        sizes = _sizes(
            projection, RESAMPLER if is_resampler else FACEID, f"{path.name} is no FaceID or InstantID adapter"
        )
        return AdapterFile(path.name, state, is_resampler, sizes["d"], sizes["w"])

    def check_fits(self, denoiser: Any) -> None:
        """Raise UserError unless the adapter was made for a denoiser of this shape."""
        width = denoiser.config.cross_attention_dim
        if self.width != width:
            raise UserError(
                f"{self.name} is for text embeddings of {self.width} numbers, this model has {width}; "
                "name an adapter for this model"
            )
        # The format numbers all attention layers from 0, and every second one is cross-attention.
        names = [name.removesuffix(".processor") for name in denoiser.attn_processors]
        for i, name in enumerate(name for name in names if name.endswith("attn2")):
            for part in ("to_k", "to_v"):
                key, wanted = f"{2 * i + 1}.{part}_ip.weight", getattr(denoiser.get_submodule(name), part).weight.shape
                given = self.state["ip_adapter"].get(key)
                if given is None or given.shape != wanted:
                    found = "missing" if given is None else str(list(given.shape))
                    raise UserError(
                        f"{self.name} is for another model: ip_adapter.{key} is {found}, "
                        f"this model's attention takes {list(wanted)}"
                    )


def _sizes(weights: Mapping[str, Tensor], sides: Mapping[str, str], wrong: str) -> dict[str, int]:
    """Find the size that each letter of `sides` stands for.

    Args:
        weights: {name: tensor}.
        sides: {name: one letter for each dimension}.
        wrong: the beginning of the error message.

    Raises:
        UserError: the names differ, or the sizes do not go together.
    """
    for verb, keys in (("lacks", sides.keys() - weights.keys()), ("has", weights.keys() - sides.keys())):
        if keys:
            raise UserError(f"{wrong}: it {verb} image_proj.{min(keys)}")
    sizes = {"1": 1}
    for key, letters in sides.items():
        shape = list(weights[key].shape)
        fits = len(shape) == len(letters)
        if not fits or any(sizes.setdefault(side, n) != n for side, n in zip(letters, shape, strict=True)):
            raise UserError(f"{wrong}: its image_proj.{key} is {shape}, which does not fit the other weights")
    # diffusers assumes these ratios between sizes.
    for side, times, other in (("k", 2, "i"), ("f", 4, "h")) if "q" in sizes else (("t", 4, "w"),):
        if sizes[side] != times * sizes[other]:
            raise UserError(f"{wrong}: a size in image_proj is {sizes[side]}, not {times} times {sizes[other]}")
    return sizes


def _state(path: Path, allow_pickle: bool) -> dict[str, dict[str, Tensor]]:
    """Read the file's two parts. A pickle holds them as dictionaries, a safetensors file as prefixes of names."""
    is_pickle = path.suffix != ".safetensors"
    if is_pickle and not allow_pickle:
        raise UserError(f"{path.name} is a pickle, which can run code; allow pickles, or save it as .safetensors")
    try:
        if is_pickle:
            held = torch.load(path, map_location="cpu", weights_only=True)
            return {part: dict(held[part]) for part in PARTS}
        flat = load_file(path)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path.name} cannot be read as an adapter ({type(error).__name__}); replace it") from None
    return {
        part: {key.removeprefix(f"{part}."): value for key, value in flat.items() if key.startswith(f"{part}.")}
        for part in PARTS
    }
