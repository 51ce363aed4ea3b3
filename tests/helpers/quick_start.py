"""Runs a script with quick imports, as the program `apdm` does: quick_start.py SCRIPT ARGUMENT..."""

import runpy
import sys
from pathlib import Path

from apdm.core.quick_imports import allow_quick_imports, quick_imports

if __name__ == "__main__":
    allow_quick_imports()
    with quick_imports():
        import apdm.jobs.harden  # noqa: F401
    del sys.argv[0]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
