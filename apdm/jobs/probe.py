"""The probe: a short DreamBooth attack during hardening, which measures how well the model is protected so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.audit.checks import higher_likeness
from apdm.audit.people import AuditSubjects
from apdm.audit.plan import to_unit
from apdm.families import Family
from apdm.metrics.identity import likeness
from apdm.metrics.judges import Judges
from apdm.protection.subject_data import SubjectData


@dataclass(frozen=True)
class ProbeResult:
    """The measurements of one probe.

    Attributes:
        figures: "probe_likeness/<encoder>", the mean cosine to the attacked person; and "probe_face_rate", the share of
            pictures that show a face, unless the subjects are no people.
        like_strangers: whether, for every encoder, the likeness exceeds the strangers' by at most `Probe.margin`, under
            the worse of the two conventions for pictures without a face, as in the audit's verdict.
    """

    figures: dict[str, float]
    like_strangers: bool


@dataclass(frozen=True)
class Probe:
    """A short attack on one protected person, and the judges that measure the pictures of the attacker's model.

    Attributes:
        attack: the attack.
        data: the latents that the attack trains on.
        judges: the networks that measure the pictures.
        references: {encoder: embeddings `[M, D]` of the person's hold-out photos}.
        chance: {encoder: mean cosine of strangers to the person}. All 0 if there are no photos of strangers.
        margin: largest difference of the mean cosine from `chance` at which the probe counts as failed.
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
        """Make a probe on one protected person.

        Args:
            person: the id of the person.
            data: the latents that the attack trains on.
            attack: the attack.
            subjects: the people of the audit; `person` is one of the protected people.
            judges: the networks that measure the pictures.
            margin: see the attribute.
        """
        (found,) = (one for one in subjects.protected if one.id == person)
        references = judges.embed_person(to_unit(found.references))
        chance = {name: 0.0 for name in judges.names}
        if subjects.strangers is not None:
            strangers = judges.embed_seen(to_unit(subjects.strangers))
            chance = {name: likeness(strangers[name], references[name]).mean().item() for name in judges.names}
        return Probe(attack, data, judges, references, chance, margin)

    def run(self, family: Family) -> Family:
        """Attack a copy of `family`, and return the attacker's model."""
        return self.attack.run(family, Material(self.data.instance, self.data.prior)).model

    def measure(self, images: Tensor) -> ProbeResult:
        """Measure the pictures that the attacker's model drew, `[N, 3, H, W]` in [0, 1]."""
        features = self.judges.features(images)
        identity = self.judges.identity(features, self.references)
        figures = {f"probe_likeness/{name}": entry.mean for name, entry in identity.items()}
        if features.face_scores is not None:
            figures["probe_face_rate"] = float(features.detected.float().mean())
        like_strangers = all(
            higher_likeness(entry.mean, entry.face_rate) <= self.chance[name] + self.margin
            for name, entry in identity.items()
        )
        return ProbeResult(figures, like_strangers)
