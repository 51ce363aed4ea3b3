"""One module per command: what it does from start to end."""

from apdm.core.logging import quiet_libraries

# Here, because every command and every function of the Python API imports its job before it imports a library.
quiet_libraries()
