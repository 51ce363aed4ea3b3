"""The versions of this package, of Python, and of the libraries that a result depends on."""

from __future__ import annotations

import platform
from functools import cache

VERSION = "0.1.0"

# The libraries whose versions are stored with every result.
LIBRARIES = (
    *("accelerate", "datasets", "diffusers", "numpy", "peft"),
    *("pillow", "safetensors", "scipy", "torch", "transformers"),
)


def package_versions() -> dict[str, str]:
    """Return {name: version} of this package, of Python and of every installed library that a result depends on."""
    installed = {name: version for name in LIBRARIES if (version := _installed(name)) is not None}
    return {"apdm": VERSION, "python": platform.python_version(), **installed}


@cache
def _installed(library: str) -> str | None:
    """The version of a library, or None if it is not installed. It is looked up once, which takes a millisecond."""
    from importlib import metadata  # takes long to import, and `import apdm` must not

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None
