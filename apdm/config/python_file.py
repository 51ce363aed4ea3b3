"""Runs a Python file of the user's as a module."""

from __future__ import annotations

import os
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from types import ModuleType

from apdm.core.errors import UserError, one_line


def run_as_module(path: Path) -> ModuleType:
    """Run a Python file as a module, once for each content of the file.

    The module has a name of its own, made from the file's place and content. So two files may have the same name, or
    that of a module of Python, and a file that was changed in a notebook is another module.

    Raises:
        UserError: it cannot be run. The message names the line.
    """
    source, place = path.read_bytes(), str(path.absolute())
    name = f"{path.stem}_{sha256(os.fsencode(place) + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = place
    sys.modules[name] = module  # dataclasses and pickle look a class's module up by name
    try:
        exec(compile(source, place, "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception | SystemExit):  # Ctrl-C
            raise
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == place]
        where = f", line {lines[-1]}" if lines else ""
        said = one_line(error)
        raise UserError(f"{path}{where}: it cannot be loaded: {type(error).__name__}: {said}") from error
    return module
