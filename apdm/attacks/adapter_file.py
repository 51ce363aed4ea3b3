"""Files of IP-Adapters that are told a face's embedding: FaceID's and InstantID's, told apart by their keys."""

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
PERCEIVER = "perceiver_resampler.proj_in.weight"  # FaceID Plus
DEPTH = 4  # blocks of a resampler; diffusers takes no other number
# What image_proj holds, a letter for each side: d numbers of an embedding, w of a token; equal letters, equal sides.
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
    """An adapter as `load_ip_adapter` takes it: state["image_proj"] makes tokens, state["ip_adapter"] attends to them.

    is_resampler: InstantID's kind, whose tokens a perceiver's queries draw from one embedding; FaceID's is two layers.
    dimension: numbers of an embedding that it takes. width: numbers of a token.
    """

    name: str
    state: Mapping[str, dict[str, Tensor]]
    is_resampler: bool
    dimension: int
    width: int

    @staticmethod
    def read(path: Path, *, allow_pickle: bool = False) -> AdapterFile:
        """Raises UserError for a pickle unless `allow_pickle`, a damaged file, and one of another kind."""
        state = _state(path, allow_pickle)
        projection = state["image_proj"]
        if PERCEIVER in projection:
            raise UserError(
                f"{path.name} is FaceID Plus, which is told a CLIP embedding beside the face's; "
                "name a plain FaceID or an InstantID adapter"
            )
        is_resampler = "latents" in projection
        sizes = _sizes(
            projection, RESAMPLER if is_resampler else FACEID, f"{path.name} is no FaceID or InstantID adapter"
        )
        return AdapterFile(path.name, state, is_resampler, sizes["d"], sizes["w"])

    def check_fits(self, denoiser: Any) -> None:
        """Raise UserError unless it was made for a denoiser of this shape."""
        width = denoiser.config.cross_attention_dim
        if self.width != width:
            raise UserError(
                f"{self.name} is for text embeddings of {self.width} numbers, this model has {width}: "
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
    """What each letter of `sides` stands for. Raises UserError, "wrong: why", for other keys and sides that differ."""
    for verb, keys in (("lacks", sides.keys() - weights.keys()), ("has", weights.keys() - sides.keys())):
        if keys:
            raise UserError(f"{wrong}: it {verb} image_proj.{min(keys)}")
    sizes = {"1": 1}
    for key, letters in sides.items():
        shape = list(weights[key].shape)
        fits = len(shape) == len(letters)
        if not fits or any(sizes.setdefault(side, n) != n for side, n in zip(letters, shape, strict=True)):
            raise UserError(f"{wrong}: its image_proj.{key} is {shape}, which does not go with the other weights")
    # How many times the one side is the other, which diffusers takes for granted.
    for side, times, other in (("k", 2, "i"), ("f", 4, "h")) if "q" in sizes else (("t", 4, "w"),):
        if sizes[side] != times * sizes[other]:
            raise UserError(f"{wrong}: a side of image_proj is {sizes[side]}, not {times} times {sizes[other]}")
    return sizes


def _state(path: Path, allow_pickle: bool) -> dict[str, dict[str, Tensor]]:
    """The file's two parts. Pickles hold them as dictionaries, safetensors as prefixes."""
    is_pickle = path.suffix != ".safetensors"
    if is_pickle and not allow_pickle:
        raise UserError(f"{path.name} is a pickle, which can run code: allow pickles, or save it as .safetensors")
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
