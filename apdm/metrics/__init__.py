"""Statistics of pictures: likeness to a person, distances between sets of pictures, intervals, the attacker's cost.

Each statistic is a pure function of numbers. `judges` and `extractors` run the networks that give these numbers.
"""

import apdm.core.quiet  # noqa: F401 (before diffusers and transformers are imported)
