"""Makes `python -m apdm` the same as the `apdm` command."""

from apdm.cli import console

console()
