"""The ways in which an exported model is loaded. The model card shows them, and `apdm verify` tries each of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch

from apdm.families import Family
from apdm.families.pipeline_folder import loadable_variants, stored_dtype, weight_files
from apdm.families.single_file.read import parts_left_out

DTYPES = {torch.float16: "torch.float16", torch.bfloat16: "torch.bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Loading:
    """One way to load an exported model with diffusers.

    Attributes:
        what: what is loaded, for headings and messages.
        pipeline_class: the diffusers pipeline class.
        method: the class's method, "from_pretrained" or "from_single_file".
        path: what it reads: a name in the folder where model and single file lie.
        config: the folder with the configurations, if a single file is read. It lies there too.
        variant: which weight files of a pipeline folder are read.
        dtype: float type to load in; None is diffusers' default, float32.
        without: parts that diffusers must be told to leave out.
        left_in_training: parts that must be set to evaluation mode afterwards.
    """

    what: str
    pipeline_class: str
    method: str
    path: str
    config: str | None = None
    variant: str | None = None
    dtype: torch.dtype | None = None
    without: tuple[str, ...] = ()
    left_in_training: tuple[str, ...] = ()

    def code(self) -> str:
        """The way as Python code, for the folder in which model and single file lie."""
        options = [f'"{self.path}"']
        options += [f'{name}="{value}"' for name in ("config", "variant") if (value := getattr(self, name))]
        options += [f"{part}=None" for part in self.without]
        options += [f"dtype={DTYPES[self.dtype]}"] if self.dtype else []
        lines = ["import torch"] if self.dtype else []
        lines += [
            f"from diffusers import {self.pipeline_class}",
            "",
            f"pipeline = {self.pipeline_class}.{self.method}({', '.join(options)})",
        ]
        lines += [
            f"pipeline.{part}.eval()  # diffusers leaves it in training mode, where dropout changes the prompt"
            for part in self.left_in_training
        ]
        return "\n".join(lines)

    def load(self, root: Path) -> Any:
        """Load the model from the folder `root` with the calls that `code` shows, without the network."""
        options: dict[str, Any] = {"local_files_only": True, **dict.fromkeys(self.without)}
        if self.config:
            options["config"] = str(root / self.config)
        else:
            options |= {"variant": self.variant, "use_safetensors": True}
        load = getattr(getattr(diffusers, self.pipeline_class), self.method)
        pipeline = load(str(root / self.path), dtype=self.dtype, **options)
        for part in self.left_in_training:
            getattr(pipeline, part).eval()
        return pipeline


def ways_to_load(
    family: Family, folder: Path, *, name: str, single_file: Collection[torch.dtype | None] | None
) -> list[Loading]:
    """All ways to load an exported model.

    Args:
        name: the folder's published name. The single file has the same name.
        single_file: the float types of the weights in the single file; None if there is no single file.

    Returns:
        One way for each variant that is complete in the folder, the plain files first, and one for the single file.
    """
    kind = type(family.pipeline).__name__
    modules = [name for name, part in family.pipeline.components.items() if isinstance(part, torch.nn.Module)]

    def dtypes(variant: str | None) -> set[torch.dtype | None]:
        parts = [folder / name for name in modules]
        return {stored_dtype(weight_files(part, variant) or weight_files(part, None)) for part in parts}

    without = parts_left_out(folder)
    ways = [
        Loading(
            what=f"the variant {variant} of the pipeline folder" if variant else "the pipeline folder",
            pipeline_class=kind,
            method="from_pretrained",
            path=name,
            variant=variant,
            dtype=common_half(dtypes(variant)),
            without=tuple(part for part in without if family.pipeline.components.get(part) is None),
        )
        for variant in loadable_variants(folder)
    ]
    layout = family.single_file_layout
    if single_file is not None and layout is not None:
        left = [part for part in layout.left_in_training if getattr(family.pipeline, part) is not None]
        ways.append(
            Loading(
                what="the single file",
                pipeline_class=kind,
                method="from_single_file",
                path=f"{name}.safetensors",
                config=name,
                dtype=common_half(single_file),
                without=tuple(without),
                left_in_training=tuple(left),
            )
        )
    return ways


def common_half(dtypes: Collection[torch.dtype | None]) -> torch.dtype | None:
    """The half-precision type that all weights have; None if there is none."""
    (first, *others) = {*dtypes} or {None}
    return first if first in DTYPES and not others else None
