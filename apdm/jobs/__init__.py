"""The jobs: one module per command, with everything that the command does from start to end."""

# Every command and every function of the Python API imports `apdm.jobs` before the libraries.
import apdm.core.quiet  # noqa: F401
