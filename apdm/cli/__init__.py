"""The `apdm` command. `program` is the way in and out of the process, `commands` holds one function per command."""

from apdm.cli.commands import COMMANDS
from apdm.cli.program import console, leave, main

__all__ = ["COMMANDS", "console", "leave", "main"]
