"""What the command does with the encoding of the terminal."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tqdm

from apdm.core.terminal import say_on_stderr

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from apdm.core.terminal import say, use_utf8
use_utf8()
say(sys.getfilesystemencoding(), open("x", "w").encoding.lower(), sys.argv[1], "Jos\\udce9")
"""


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "é ☕"),
        ({"LC_ALL": "C"}, "é ☕"),
        ({"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}, "é ☕"),
        ({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"}, "\\xe9 \\u2615"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "latin-1"}, "\\u2615"),
    ],
)
def test_names_are_read_written_and_printed_whatever_the_locale(tmp_path: Path, changes: dict[str, str], shown: str):
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    words = [sys.executable, "-c", SCRIPT, "é ☕"]
    environment = kept | {"PYTHONPATH": str(ROOT)} | changes
    result = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    names, files, argument, broken = result.stdout.decode("utf-8", "replace").splitlines()
    assert names == files == "utf-8" and argument.endswith(shown) and broken == "Jos\\udce9"


def test_a_line_and_its_end_are_written_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = []

    class Recorder(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return super().write(text)

    monkeypatch.setattr(sys, "stderr", Recorder())
    monkeypatch.setitem(sys.modules, "tqdm", tqdm)
    say_on_stderr("with bars")
    monkeypatch.delitem(sys.modules, "tqdm")
    say_on_stderr("without")
    assert {"with bars\n", "without\n"} <= set(pieces)


@pytest.mark.parametrize(
    ("closed", "command"),
    [("<&-", ["harden", "--help-all"]), (">&-", ["harden", "--help-all"]), ("2>&-", ["harden", "--help-all"])]
    + [("<&- >&- 2>&-", ["env"])],
)
def test_a_program_that_is_started_without_standard_streams_does_its_work(
    tmp_path: Path, closed: str, command: list[str]
) -> None:
    """Printing failed after all the work was done, and the next file that was opened took the stream's number."""
    script = (
        "import sys; from apdm.cli import console; from pathlib import Path; "
        f"sys.exit = lambda code: Path('code').write_text(str(code)); console({command})"
    )
    words = ["sh", "-c", f'exec "$0" "$@" {closed}', sys.executable, "-c", script]
    result = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "code").read_text() == "0"
    assert b"Traceback" not in result.stderr
