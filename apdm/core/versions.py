"""The versions of this package, of Python, and of the libraries that a result depends on."""

from __future__ import annotations

import platform

VERSION = "0.1.0"

# The libraries whose versions are stored with every result.
LIBRARIES = (
    *("accelerate", "datasets", "diffusers", "numpy", "peft"),
    *("pillow", "safetensors", "scipy", "torch", "transformers"),
)


def package_versions() -> dict[str, str]:
    """Return {name: version} of this package, of Python and of every installed library that a result depends on."""
    from importlib import metadata  # takes long to import, and `import apdm` must not

    versions = {"apdm": VERSION, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
