"""Commands of `apdm` in the tests' own process: importing the libraries takes a new one longer than most tests."""

from __future__ import annotations

from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from subprocess import CompletedProcess

from apdm.cli import main


def run_here(*words: str) -> CompletedProcess[str]:
    """Run `apdm` with these words, and return what it said."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(words)
    return CompletedProcess(words, code, out.getvalue(), err.getvalue())
