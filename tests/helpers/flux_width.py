"""diffusers' reader of FLUX.1's single files for models of any width: it takes FLUX's own width for granted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import pytest
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

WIDTH = 3072  # of FLUX.1, which stands in diffusers' code as a number


@contextmanager
def any_width() -> Iterator[None]:
    """Within this context diffusers' own code reads the width from the file instead of knowing it."""
    entry = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    read = entry["checkpoint_mapping_fn"]

    def read_any(checkpoint: dict[str, Any], **options: Any) -> dict[str, Any]:
        width = checkpoint["img_in.weight"].shape[0]
        constants = tuple(width if value == WIDTH else value for value in read.__code__.co_consts)
        return FunctionType(read.__code__.replace(co_consts=constants), read.__globals__)(checkpoint, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(entry, "checkpoint_mapping_fn", read_any)
        yield
