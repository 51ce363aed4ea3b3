"""The ways in which an exported model is loaded. The model card shows them, and `apdm verify` tries each of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from apdm.families import Family
from apdm.families.pipeline_folder import loadable_variants, stored_dtype, weight_files
from apdm.families.single_file.layout import SingleFileLayout
from apdm.families.single_file.read import parts_left_out

SINGLE_FILE = "the single file"
DTYPES = {torch.float16: "torch.float16", torch.bfloat16: "torch.bfloat16"}


@dataclass(frozen=True, kw_only=True)
class DenoiserFile:
    """A single file that holds a denoiser alone.

    Attributes:
        path: its name in the folder where model and single file lie.
        part: the pipeline's name for the denoiser.
        kind: the diffusers class of the denoiser.
    """

    path: str
    part: str
    kind: str


@dataclass(frozen=True, kw_only=True)
class Loading:
    """One way to load an exported model with diffusers.

    Attributes:
        what: what is loaded, for headings and messages.
        pipeline_class: the diffusers pipeline class.
        method: the class's method, "from_pretrained" or "from_single_file".
        path: what it reads: a name in the folder where model and single file lie.
        config: the folder with the configurations, if a whole pipeline is read from a single file. It lies there too.
        denoiser: the denoiser that is read from a single file and replaces the one in `path`; None if none is.
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
    denoiser: DenoiserFile | None = None

    def code(self) -> str:
        """The way as Python code, for the folder in which model and single file lie."""
        options = [f'"{self.path}"']
        options += [f'{name}="{value}"' for name in ("config", "variant") if (value := getattr(self, name))]
        options += [f"{part}=None" for part in self.without]
        options += [f"{self.denoiser.part}={self.denoiser.part}"] if self.denoiser else []
        dtype = [f"dtype={DTYPES[self.dtype]}"] if self.dtype else []
        lines = ["import torch"] if self.dtype else []
        lines += [f"from diffusers import {', '.join([self.pipeline_class, *self._denoiser_class])}", ""]
        if self.denoiser:
            read = [f'"{self.denoiser.path}"', f'config="{self.path}/{self.denoiser.part}"', *dtype]
            lines.append(f"{self.denoiser.part} = {self.denoiser.kind}.from_single_file({', '.join(read)})")
        lines.append(f"pipeline = {self.pipeline_class}.{self.method}({', '.join(options + dtype)})")
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
        if self.denoiser:
            options[self.denoiser.part] = getattr(diffusers, self.denoiser.kind).from_single_file(
                str(root / self.denoiser.path),
                config=str(root / self.path / self.denoiser.part),
                local_files_only=True,
                dtype=self.dtype,
            )
        load = getattr(getattr(diffusers, self.pipeline_class), self.method)
        pipeline = load(str(root / self.path), dtype=self.dtype, **options)
        for part in self.left_in_training:
            getattr(pipeline, part).eval()
        return pipeline

    @property
    def note(self) -> str | None:
        """What a user of the common user interfaces must know about the file; None if there is nothing to know."""
        if self.denoiser is None:
            return None
        return (
            f"In ComfyUI put `{self.denoiser.path}` into `models/diffusion_models`, in Forge into "
            "`models/Stable-diffusion`. Text encoders and VAE are those of the base, each a file of its own there."
        )

    @property
    def _denoiser_class(self) -> list[str]:
        return [self.denoiser.kind] if self.denoiser else []


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
        path = f"{name}.safetensors"
        ways.append(
            _whole(family, layout, ways[0], path, without=without, dtype=common_half(single_file))
            if layout.holds_pipeline
            else _denoiser_alone(family, folder, ways, path, single_file)
        )
    return ways


def _whole(
    family: Family,
    layout: SingleFileLayout,
    folder: Loading,
    path: str,
    *,
    without: Sequence[str],
    dtype: torch.dtype | None,
) -> Loading:
    """The way to load a single file that holds the whole pipeline. `folder` is a way to load the pipeline folder."""
    left = [part for part in layout.left_in_training if getattr(family.pipeline, part) is not None]
    return Loading(
        what=SINGLE_FILE,
        pipeline_class=folder.pipeline_class,
        method="from_single_file",
        path=path,
        config=folder.path,
        dtype=dtype,
        without=tuple(without),
        left_in_training=tuple(left),
    )


def _denoiser_alone(
    family: Family, folder: Path, ways: Sequence[Loading], path: str, dtypes: Collection[torch.dtype | None]
) -> Loading:
    """The way to load a single file that holds the denoiser alone: with all other parts of the pipeline folder.

    These are loaded in the variant whose denoiser has the float type of the file.

    Args:
        ways: the ways to load the pipeline folder.
        dtypes: the float types of the weights in the single file.
    """
    part = family.denoiser_name
    stored = {way: stored_dtype(weight_files(folder / part, way.variant)) for way in ways}
    way = next((way for way in ways if stored[way] in dtypes), ways[0])
    denoiser = DenoiserFile(path=path, part=part, kind=type(family.denoiser).__name__)
    return replace(way, what=f"{SINGLE_FILE}, which holds the {part} alone", denoiser=denoiser)


def common_half(dtypes: Collection[torch.dtype | None]) -> torch.dtype | None:
    """The half-precision type that all weights have; None if there is none."""
    (first, *others) = {*dtypes} or {None}
    return first if first in DTYPES and not others else None
