"""`python -m apdm` is the `apdm` command."""

from apdm.cli import console

console()
