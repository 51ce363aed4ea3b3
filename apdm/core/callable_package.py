"""Packages that are also functions of the Python API: `apdm.audit(...)` and `apdm.report(...)`."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """The class of a package whose name is also that of a function in `apdm`.

    Importing such a package replaces the function of the same name. So the package passes a call on to the function.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return import_module("apdm")._functions[self.__name__.rpartition(".")[2]](*arguments, **options)
