"""The jobs: one module per command, with everything that the command does from start to end."""

from apdm.core.libraries import quiet_libraries

# This call is here because every command and every function of the Python API imports `apdm.jobs` before the libraries.
quiet_libraries()
