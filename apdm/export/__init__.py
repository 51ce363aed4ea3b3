"""Writing of everything that a run ships: the pipeline folder, the single file, the model card, the manifest."""

import apdm.core.quiet  # noqa: F401 (before diffusers and transformers are imported)
