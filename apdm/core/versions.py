"""Versions of everything that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

from apdm import __version__

PACKAGES = (
    *("accelerate", "datasets", "diffusers", "numpy", "peft"),
    *("pillow", "safetensors", "scipy", "torch", "transformers"),
)


def package_versions() -> dict[str, str]:
    """Versions of this package, of Python and of every installed library a result depends on."""
    versions = {"apdm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
