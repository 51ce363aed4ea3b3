"""What a pickle would run when it is loaded is never run, even where pickles are allowed."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apdm.attacks.parts.adapter_file import AdapterFile
from apdm.core.errors import UserError
from apdm.faces.load import load_encoder
from apdm.families.stored_file import read_header
from apdm.metrics.inception import Inception

READERS: dict[str, Callable[[Path], object]] = {
    "weights of a pipeline": read_header,
    "adapter": lambda file: AdapterFile.read(file, allow_pickle=True),
    "face recogniser": lambda file: load_encoder(f"{file}=0.5", allow_pickle=True),
    "Inception": lambda file: Inception(file, allow_pickle=True),
}


class Harmful:
    """A value whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("kind", READERS)
def test_a_pickle_with_code_is_refused_and_its_code_does_not_run(kind: str, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "more": Harmful(tmp_path / "made")}, tmp_path / "file.pt")
    with pytest.raises(UserError, match=r"file\.pt"):
        READERS[kind](tmp_path / "file.pt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "made").is_dir()  # so its code is one that works
