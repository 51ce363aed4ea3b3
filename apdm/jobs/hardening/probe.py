"""The probe: a short DreamBooth attack during hardening, which measures how well the model is protected so far."""

from __future__ import annotations

from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.audit.checks import higher_likeness
from apdm.config import HardenConfig
from apdm.core.pictures import to_unit
from apdm.families import Family
from apdm.jobs.auditing.inputs import AuditInputs
from apdm.metrics.identity import likeness
from apdm.protection.subject_data import SubjectData, SubjectVariants


class Probe:
    """A short attack on one protected person, and the judges that measure the pictures of the attacker's model.

    Args:
        data: the latents that the attack trains on.
        person: the id of the person, who is one of the protected people of `inputs`.
        inputs: the people and the judges. Without photos of strangers the likeness by chance is taken for 0.
        margin: largest difference of the mean cosine from that of strangers at which the probe counts as failed.
    """

    def __init__(self, attack: DreamBooth, data: SubjectData, person: str, inputs: AuditInputs, margin: float) -> None:
        self.attack, self.data, self.judges, self.margin = attack, data, inputs.judges, margin
        (found,) = (one for one in inputs.subjects.protected if one.id == person)
        self._references = self.judges.embed_person(to_unit(found.references))
        self._chance = {name: 0.0 for name in self.judges.names}
        if inputs.subjects.strangers is not None:
            seen = self.judges.embed_seen(inputs.subjects.strangers)
            self._chance = {name: likeness(of, self._references[name]).mean().item() for name, of in seen.items()}

    def run(self, family: Family) -> Family:
        """Attack a copy of `family`, and return the attacker's model."""
        return self.attack.run(family, Material(self.data.instance, self.data.prior)).model

    def measure(self, images: Tensor) -> tuple[dict[str, float], bool]:
        """Measure the pictures that the attacker's model drew, `[N, 3, H, W]` in [0, 1].

        Returns:
            "probe_likeness/<encoder>", the mean cosine to the attacked person, and "probe_face_rate", the share of
            pictures that show a face, unless the subjects are no people; and whether, for every encoder, the likeness
            exceeds that of strangers by at most the margin, under the worse of the two conventions for pictures
            without a face, as in the audit's verdict.
        """
        features = self.judges.features(images)
        identity = self.judges.identity(features, self._references)
        figures = {f"probe_likeness/{name}": entry.mean for name, entry in identity.items()}
        if features.face_scores is not None:
            figures["probe_face_rate"] = float(features.detected.float().mean())
        like_strangers = all(
            higher_likeness(entry.mean, entry.face_rate) <= self._chance[name] + self.margin
            for name, entry in identity.items()
        )
        return figures, like_strangers


def make_probe(config: HardenConfig, inputs: AuditInputs | None, people: SubjectVariants) -> Probe | None:
    """Return the probe attack on the person whose id comes first among the protected people; None if there is none.

    Args:
        inputs: the people and the judges, which only the main process has.
        people: {subject id: variants of the subject's data} of the protected people.
    """
    if not config.validation.probe_steps or inputs is None:
        return None
    person, variants = sorted(people.items())[0]
    attack = DreamBooth(
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        learning_rate=config.audit.learning_rate,
        max_train_steps=config.validation.probe_steps,
        train_batch_size=config.audit.train_batch_size,
        prior_loss_weight=config.audit.prior_loss_weight,
        gradient_checkpointing=config.audit.gradient_checkpointing,
        seed=config.seed,
    )
    return Probe(attack, variants[0], person, inputs, config.audit.max_likeness_over_strangers)
