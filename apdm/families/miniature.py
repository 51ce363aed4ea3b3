"""Recognises the models of the miniature world, whose drawn people only the bundled networks know.

The tokenizer's vocabulary tells: it holds the world's words and little else. Hardening, fine-tuning, other float types
and a change of the file's layout all keep it. Its files are read, and the model itself need not be loaded.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from apdm.portraits import PIPELINE


def is_miniature(model: str | Path, single_file_config: str | Path | None = None) -> bool:
    """Whether a model is of the miniature world. A vocabulary to which words were added counts too.

    Args:
        model: a pipeline folder, a single-file checkpoint, or a name on the Hub, where the miniature world is not.
        single_file_config: for a single file, the folder with its tokenizer.
    """
    folder = Path(single_file_config if single_file_config is not None and Path(model).is_file() else model)
    return any(_words() <= _vocabulary(tokenizer) for tokenizer in sorted(folder.glob("tokenizer*")))


def _vocabulary(folder: Path) -> set[tuple[str, int]]:
    """The vocabulary in a tokenizer's folder: pairs of a token and its number. It is empty if it cannot be read."""
    for name in ("tokenizer.json", "vocab.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            return set((content["model"]["vocab"] if name == "tokenizer.json" else content).items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # T5's is another kind of file
            continue
    return set()


@functools.cache
def _words() -> frozenset[tuple[str, int]]:
    """The vocabulary of the bundled pipeline."""
    return frozenset(_vocabulary(PIPELINE / "tokenizer"))
