"""Two runs never work in one folder, and a run that was killed blocks nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir
from apdm.core.lock import locked

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from contextlib import ExitStack
from apdm.core.files import claim_output_dir
held = ExitStack()
claim_output_dir(sys.argv[1], True, until=held)
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_claimed_by_one_process_at_a_time_and_a_killed_one_lets_it_go(tmp_path: Path) -> None:
    output = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, output], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    for overwrite in (False, True):
        with pytest.raises(UserError, match="another run is at work in .*/run: wait until it ends"):
            claim_output_dir(output, overwrite)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    claim_output_dir(output)


def test_a_claim_ends_with_its_job_also_in_one_process(tmp_path: Path) -> None:
    with ExitStack() as held:
        claim_output_dir(tmp_path / "run", until=held)
        with pytest.raises(UserError, match="another run is at work"):
            claim_output_dir(tmp_path / "run")
    claim_output_dir(tmp_path / "run")


def test_who_may_wait_goes_on_when_the_other_has_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def other() -> None:
        with locked(tmp_path, waiting="waiting for the folder"):
            done.set()

    with locked(tmp_path), caplog.at_level("INFO", logger="apdm"):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.1)
    thread.join(timeout=10)
    assert done.is_set() and "waiting for the folder" in caplog.text
