"""A run killed twenty times ends with the weights of one that nobody touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_run import POOL, arguments, equal, weights, write_people

ROOT = Path(__file__).parents[2]
KILLS = 20


def test_a_run_killed_at_twenty_random_moments_ends_with_the_same_weights(tiny_pipeline: Path, tmp_path: Path) -> None:
    options = arguments(tiny_pipeline, write_people(tmp_path / "people"), tmp_path, max_train_steps=8, **POOL)
    command = [sys.executable, "tests/helpers/killed.py", str(KILLS), str(tmp_path), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert len(told["kills"]) == KILLS
    # Kills fell before the first checkpoint, between checkpoints, or after the last: not all at one place.
    assert len({step for _, step in told["kills"]}) >= 3
    straight = weights(tmp_path / "straight")
    for run in range(told["runs"]):
        assert equal(straight, weights(tmp_path / f"killed-{run}"))
    print(told)
