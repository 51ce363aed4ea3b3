"""How much memory there is: of the machine, and within the limits of control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from apdm.core import memory


def test_memory_is_that_of_machine_and_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  7 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    assert (memory.available_memory(), memory.total_memory()) == (7 * 1024, 9 * 1024)
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/memory.max").write_text("max\n")
    (tmp_path / "a/memory.max").write_text("5000\n")
    (tmp_path / "a/memory.current").write_text("3000\n")
    (tmp_path / "a/memory.stat").write_text("anon 5\ninactive_file 400\n")
    assert (memory.available_memory(), memory.total_memory()) == (2400, 5000)
