"""`python -m apdm` is the `apdm` command."""

import sys

from apdm.cli import main

sys.exit(main())
