"""Writing a family as a diffusers pipeline folder, in the float types and under the names that it was read with."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.families.pipeline_folder import HALF, read_files, weight_files, write_pipeline


class Saver(ABC):
    """The part of `apdm.families.base.Family` that writes a pipeline folder. There its attributes are explained."""

    pipeline: Any
    source: Path | None
    configurations: Path | None
    dtypes: Mapping[str, torch.dtype]
    variant: str | None
    denoiser_name: ClassVar[str]

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The part that is trained."""

    @property
    def single_file_markers(self) -> tuple[str, ...]:
        """Names of the tensors without content by which UIs see in a single file what the model predicts."""
        return ()

    def with_denoiser_saved_in(self, dtype: torch.dtype) -> Self:
        """The same family, whose denoiser `save` writes in another float type. All parts are shared.

        A variant such as fp16 is left behind if the denoiser was read from it and its type is another: then all files
        get plain names.
        """
        changed = copy.copy(self)
        changed.dtypes = {**self.dtypes, self.denoiser_name: dtype}
        return changed

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the denoiser's weights to the float type that `save` writes, so that an audit sees what is shipped."""
        dtype = self.dtypes.get(self.denoiser_name)
        if dtype is not None:
            for weight in self.denoiser.parameters():
                weight.copy_(weight.to(dtype))

    def save(self, directory: Path | str, *, variant: str | None = None) -> None:
        """Write a diffusers pipeline folder. All weights are written as safetensors.

        All files except the denoiser's weights are copied from `source`: tokenizer, safety checker, configurations. The
        weights of a single file are written from memory, and the rest is copied from `configurations`.
        The denoiser's weights are written in the float type that they had in the files they came from, and all files
        get the names of the variant that was read. The folder is written under a temporary name and renamed when it is
        complete, so `directory` is never half written.

        Args:
            directory: the folder to write. An existing folder is replaced.
            variant: "fp16" or "bf16" writes all weights in that type and under that variant's file names. A part that
                has such files in `source` is copied from them.

        Raises:
            UserError: the variant is unknown.
        """
        if variant not in (None, *HALF):
            raise UserError(f"variant {variant!r} cannot be written; choose {' or '.join(HALF)}")
        half = HALF.get(variant or "")

        def converted(name: str, module: Any) -> Any:
            dtype = half or self.dtypes.get(name, module.dtype)
            return module if dtype == module.dtype else _converted_copy(module, dtype)

        names = {part: variant or self._saved_variant_of(part) for part in self.pipeline.components}
        copied: dict[str, list[Path]] = {}
        for part, name in names.items():
            # Files of a variant that was not read may hold other weights than the model in memory.
            if self.source and part != self.denoiser_name:
                files = weight_files(self.source / part, name)
                copied[part] = files if variant or files == read_files(self.source / part, self.variant) else []
        write_pipeline(
            self.pipeline,
            Path(directory),
            configurations=self.configurations,
            copied=copied,
            variants=names,
            convert=converted,
        )

    @property
    def saved_variant(self) -> str | None:
        """The variant with which the folder that `save` writes is loaded; None if its files have plain names."""
        return self.variant if any(map(self._saved_variant_of, self.pipeline.components)) else None

    def _saved_variant_of(self, part: str) -> str | None:
        """The variant in a part's file names. Files that are called fp16 must not hold another type.

        The denoiser alone can have got another type than its files had. If it had plain names, the other parts keep
        theirs: text encoders are published as fp16 beside a transformer in bfloat16.
        """
        in_other_type = HALF.get(self.variant or "") not in (None, self.dtypes.get(self.denoiser_name))
        return None if in_other_type and self._variant_of(self.denoiser_name) else self._variant_of(part)

    def _variant_of(self, part: str) -> str | None:
        """The variant of the files that a part was read from."""
        has_variant = self.source is not None and weight_files(self.source / part, self.variant)
        return self.variant if has_variant else None


def _converted_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU in another float type. Each weight is converted while it is copied, to save memory."""

    def converted(tensor: Tensor) -> Tensor:
        data = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

    # deepcopy uses the objects in its memo instead of copying them.
    return copy.deepcopy(module, {id(t): converted(t) for t in chain(module.parameters(), module.buffers())})
