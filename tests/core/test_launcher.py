"""Variables of a launcher count only if all of them are there; what is left over is told or ignored."""

from __future__ import annotations

import os

import pytest
from real_signals import LAUNCHED

from apdm.core.errors import UserError
from apdm.core.launcher import check_launch, is_launched, is_main_process, processes_here


@pytest.fixture(autouse=True)
def nothing_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHED:
        monkeypatch.setenv(name, "")  # so that what the tested code removes is put back
        monkeypatch.delenv(name)


def test_all_variables_together_are_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    assert check_launch() == 2 and is_launched() and not is_main_process()
    assert processes_here() == 2


@pytest.mark.parametrize(
    "left",
    [
        {},
        {"RANK": "1"},
        {"LOCAL_RANK": "0"},
        {"LOCAL_WORLD_SIZE": "8"},
        {"WORLD_SIZE": ""},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"MASTER_ADDR": "node-7", "MASTER_PORT": "none"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "3"},
    ],
)
def test_what_says_nothing_of_other_processes_is_ignored(monkeypatch: pytest.MonkeyPatch, left: dict[str, str]) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() and processes_here() == 1
    assert check_launch() == 1
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} & set(os.environ)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE 2, but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT; unset"),
        ({"WORLD_SIZE": "two"}, 'WORLD_SIZE "two", which is no number'),
        ({**LAUNCHED, "LOCAL_RANK": "gpu0"}, 'LOCAL_RANK "gpu0", which is no number'),
        ({**LAUNCHED, "RANK": "2"}, "RANK 2, but WORLD_SIZE 2"),
        ({**LAUNCHED, "MASTER_PORT": "123456"}, "MASTER_PORT 123456, which is no port"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "ACCELERATE_USE_DEEPSPEED, but no launcher"),
        ({"ACCELERATE_USE_FSDP": "1"}, "ACCELERATE_USE_FSDP, but no launcher"),
    ],
)
def test_what_makes_no_sense_is_told_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], words: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as told:
        check_launch()
    assert "unset" in str(told.value) and "launch/" in str(told.value)
