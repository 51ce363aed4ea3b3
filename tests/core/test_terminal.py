"""What the command does with the encoding of the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
