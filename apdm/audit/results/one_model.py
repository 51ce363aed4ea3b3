"""The results of attacks on one model alone: the content of attack.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apdm.audit.results.common import ModelFile, PhotoCounts, Prompts, SchemaNumber
from apdm.audit.results.models import AttackRow
from apdm.metrics.judges import JudgesDescription
from apdm.metrics.utility import StrangersLikeness


@dataclass(frozen=True, kw_only=True)
class AttackResults:
    """The content of attack.json: what attacks made of one model.

    Attributes:
        command: the command line, if there was one.
        package: {library: version}.
        model: the attacked model.
        subjects: ids of the people.
        photos: how many photos of each were attacked, and how many were held out.
        prompts: what the attacks learn, and what they are asked for.
        judges: the networks that gave the figures.
        strangers: {encoder: likeness by chance}; None if the model draws no faces and there were no photos
            of strangers.
        attacks: one row for each attack and person. `model` is "base" in each, as in an audit of this model as base.
            Likeness is a cosine in [-1, 1], and rates are shares in [0, 1].
    """

    schema: SchemaNumber
    kind: Literal["attack"]
    command: str | None
    package: dict[str, str]
    model: ModelFile
    subjects: list[str]
    photos: PhotoCounts
    prompts: Prompts
    judges: JudgesDescription
    strangers: dict[str, StrangersLikeness] | None
    attacks: list[AttackRow]

    @property
    def encoders(self) -> list[str]:
        """The names of the likeness encoders."""
        return [encoder.name for encoder in self.judges.encoders]
