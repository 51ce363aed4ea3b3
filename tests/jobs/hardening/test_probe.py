"""The probe's decision on pictures of the bundled drawn people."""

import numpy as np
import pytest
import torch
from torch import Tensor

from apdm.attacks.dreambooth import DreamBooth
from apdm.audit.inputs.people import AuditSubjects, Person
from apdm.config import HardenConfig, make_config
from apdm.faces.portrait import PortraitEncoder, PortraitFaceScore
from apdm.families.base import uniform_timesteps
from apdm.families.posterior import Posterior
from apdm.jobs.auditing.inputs import AuditInputs
from apdm.jobs.hardening.probe import Probe, make_probe
from apdm.metrics.judges import Judges
from apdm.portraits.drawing import render_person
from apdm.portraits.people import circumstance, identity
from apdm.protection.subject_data import SubjectData


def portraits(seed: int, photos: range) -> Tensor:
    pictures = [np.asarray(render_person(identity(seed), circumstance(seed, photo))) for photo in photos]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def latents_of_nobody() -> SubjectData:
    latents, prompt = Posterior(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)), torch.zeros(1, 1, 4)
    return SubjectData(
        latents, latents, prompt, prompt, lambda count, generator: uniform_timesteps(9, count, generator)
    )


def inputs(*, strangers: int, judges: Judges | None = None) -> AuditInputs:
    def drawn(person: int, numbers: range) -> Tensor:
        return (portraits(person, numbers) * 255).round().byte()

    another = Person(id="s00", photos=drawn(8, range(2)), references=drawn(8, range(10, 14)))
    protected = Person(id="s01", photos=drawn(7, range(2)), references=drawn(7, range(10, 14)))
    others = torch.cat([drawn(seed, range(1)) for seed in range(30, 30 + strangers)]) if strangers else None
    judges = judges or Judges([PortraitEncoder("portrait-a")], PortraitFaceScore(), None)
    return AuditInputs(subjects=AuditSubjects([another, protected], [], others), judges=judges, photo_attacks=None)


@pytest.mark.parametrize("strangers", [20, 0])
@pytest.mark.parametrize(("person", "faces", "like_strangers"), [(7, 8, False), (8, 8, True), (7, 1, False)])
def test_a_probe_that_mostly_draws_no_face_is_judged_by_the_faces_that_it_draws(
    person: int, faces: int, like_strangers: bool, strangers: int
):
    attack = DreamBooth(instance_prompt="a photo of sks person", class_prompt="a photo of person")
    probe = Probe(attack, latents_of_nobody(), "s01", inputs(strangers=strangers), 0.1)
    drawn = portraits(person, range(20, 28))
    drawn[faces:] = 0.5  # grey
    figures, quiet = probe.measure(drawn)
    assert figures["probe_face_rate"] == faces / 8
    assert quiet is like_strangers


def test_a_probe_fails_only_if_no_encoder_exceeds_strangers_by_more_than_the_margin():
    attack = DreamBooth(instance_prompt="a photo of sks person", class_prompt="a photo of person")
    judges = Judges([PortraitEncoder("portrait-a"), PortraitEncoder("portrait-b")], None, None)
    people, drawn = inputs(strangers=0, judges=judges), portraits(7, range(20, 28))
    figures, _ = Probe(attack, latents_of_nobody(), "s01", people, 0).measure(drawn)
    low, high = sorted(figures.values())
    assert set(figures) == {"probe_likeness/portrait-a", "probe_likeness/portrait-b"} and 0 < low < high
    for margin, like_strangers in ((low / 2, False), ((low + high) / 2, False), (high + 1e-6, True)):
        probe = Probe(attack, latents_of_nobody(), "s01", people, margin)
        assert probe.measure(drawn) == (figures, like_strangers)


def test_a_probe_attacks_the_first_person_as_the_audit_does():
    options = {
        **{"instance_prompt": "a photo of t@t man", "class_prompt": "a photo of a man", "seed": 9},
        **{"validation.steps": 1, "validation.probe_steps": 7, "audit.max_likeness_over_strangers": 0.2},
        **{"audit.learning_rate": 3e-6, "audit.train_batch_size": 3, "audit.prior_loss_weight": 0.5},
        "audit.gradient_checkpointing": True,
    }
    given = {"pretrained_model_name_or_path": "m", "instance_data_dir": "i", "output_dir": "o"}
    config = make_config(HardenConfig, {**given, **options})
    own, people = latents_of_nobody(), inputs(strangers=2)
    data = {"s02": [latents_of_nobody()], "s01": [own, latents_of_nobody()]}
    probe = make_probe(config, people, data)
    assert probe is not None and probe.data is own and probe.margin == 0.2
    assert probe.attack == DreamBooth(
        instance_prompt="a photo of t@t man",
        class_prompt="a photo of a man",
        learning_rate=3e-6,
        max_train_steps=7,
        train_batch_size=3,
        prior_loss_weight=0.5,
        gradient_checkpointing=True,
        seed=9,
    )
    assert make_probe(config, None, data) is None
    assert make_probe(make_config(HardenConfig, given), people, data) is None
