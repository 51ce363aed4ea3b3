"""The options of `apdm perturb`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.groups.job import JobConfig


@dataclass(frozen=True, kw_only=True)
class PerturbConfig(JobConfig):
    """Protect photos before they are posted, against fine-tuning and against zero-shot adapters."""
