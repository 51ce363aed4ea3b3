"""How many threads a process uses unless it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from real_signals import LAUNCHED

from apdm.core import cpus


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*cpus.ASKED, *LAUNCHED):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"MKL_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "3", **LAUNCHED}, 3),
        ({}, 8),
        (LAUNCHED, 4),
        ({"OMP_NUM_THREADS": "many"}, 8),
        ({"OMP_NUM_THREADS": "0"}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 8),  # left over
    ],
)
def test_what_the_user_asks_for_comes_first_and_then_the_share_of_the_processors(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], threads: int
) -> None:
    monkeypatch.setattr(cpus, "available_cpus", lambda: 8)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cpus.default_threads() == threads


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({"a/b/cpu.max": "200000 100000\n"}, 2),
        ({"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "20000 100000\n"}, 1),  # seen from inside a container
        ({"a/b/cpu.cfs_quota_us": "-1\n", "a/b/cpu.cfs_period_us": "100000\n"}, None),
        ({"a/b/cpu.cfs_quota_us": "300000\n", "a/b/cpu.cfs_period_us": "100000\n"}, 3),
        ({"a/b/cpu.max": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_control_group_and_of_those_around_it_counts(
    tmp_path: Path, files: dict[str, str], limit: int | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpus._limit(tmp_path, "/a/b") == limit


def test_the_processors_of_this_process_are_no_more_than_it_may_run_on() -> None:
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))
