"""A program looks for no garbage while it imports, and a report needs no diffusers."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextvars import copy_context

from apdm.core.quick_imports import allow_quick_imports, quick_imports


def test_a_caller_of_the_python_api_keeps_its_search_for_garbage() -> None:
    frozen = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.isenabled() and gc.get_freeze_count() == frozen


def test_a_program_looks_for_no_garbage_in_the_block_and_again_after_it() -> None:
    def program() -> tuple[bool, bool]:
        allow_quick_imports()
        with quick_imports():
            inside = gc.isenabled()
        return inside, gc.isenabled()

    assert copy_context().run(program) == (False, True)


def test_what_reads_results_imports_no_diffusers() -> None:
    code = "import sys, apdm.jobs.report, apdm.jobs.compare; print('diffusers' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert said.stdout == "False\n"
