"""How the training runs: in one process or in several, and with float32 master weights."""

import apdm.core.quiet  # noqa: F401 (before diffusers and transformers are imported)
