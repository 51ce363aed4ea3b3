"""The probe: a short DreamBooth attack on the model while it is being hardened, to see whether likeness still comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.audit.people import AuditSubjects
from apdm.audit.plan import to_unit
from apdm.families import Family
from apdm.metrics.judges import Judges
from apdm.protection.subject_data import SubjectData


@dataclass(frozen=True)
class ProbeResult:
    """What a probe shows.

    Attributes:
        figures: likeness to the attacked person by encoder ("probe_likeness/<encoder>") and "probe_face_rate".
        like_strangers: whether by every encoder the likeness is no more than the allowed margin above strangers'.
    """

    figures: dict[str, float]
    like_strangers: bool


@dataclass(frozen=True)
class Probe:
    """A short attack on one protected person, and the judges that look at what comes out.

    Attributes:
        attack: the attack.
        data: the latents that it trains on.
        judges: the networks that look at the pictures.
        references: {encoder: embeddings [M, D] of the person's hold-out photos}.
        chance: {encoder: mean likeness of strangers to the person}; 0 where there are no photos of strangers.
        margin: how much more likeness than strangers have is still like strangers.
    """

    attack: DreamBooth
    data: SubjectData
    judges: Judges
    references: Mapping[str, Tensor]
    chance: Mapping[str, float]
    margin: float

    @staticmethod
    def on(
        person: str, data: SubjectData, attack: DreamBooth, subjects: AuditSubjects, judges: Judges, margin: float
    ) -> Probe:
        """A probe on the protected person with this id."""
        (found,) = (one for one in subjects.protected if one.id == person)
        references = judges.embed(to_unit(found.references))
        chance = {name: 0.0 for name in judges.names}
        if subjects.strangers is not None:
            strangers = judges.features(to_unit(subjects.strangers))
            chance = {name: float(scores.mean()) for name, scores in judges.scores(strangers, references).items()}
        return Probe(attack, data, judges, references, chance, margin)

    def run(self, family: Family) -> Family:
        """Attack a copy of `family`; returns the attacker's model."""
        return self.attack.run(family, Material(self.data.instance, self.data.prior)).model

    def measure(self, images: Tensor) -> ProbeResult:
        """Judge what the attacker's model drew, [N, 3, H, W] in [0, 1]."""
        features = self.judges.features(images)
        identity = self.judges.identity(features, self.references)
        figures = {f"probe_likeness/{name}": entry.mean for name, entry in identity.items()}
        figures["probe_face_rate"] = float(features.detected.float().mean())
        like_strangers = all(entry.mean <= self.chance[name] + self.margin for name, entry in identity.items())
        return ProbeResult(figures, like_strangers)
