"""The probe's decision on pictures of the bundled drawn people."""

import numpy as np
import pytest
import torch
from torch import Tensor

from apdm.attacks.dreambooth import DreamBooth
from apdm.audit.inputs.people import AuditSubjects, Person
from apdm.faces.portrait import PortraitEncoder, PortraitFaceScore
from apdm.families.base import uniform_timesteps
from apdm.families.posterior import Posterior
from apdm.jobs.auditing.inputs import AuditInputs
from apdm.jobs.hardening.probe import Probe
from apdm.metrics.judges import Judges
from apdm.portraits.drawing import render_person
from apdm.portraits.people import circumstance, identity
from apdm.protection.subject_data import SubjectData


def portraits(seed: int, photos: range) -> Tensor:
    pictures = [np.asarray(render_person(identity(seed), circumstance(seed, photo))) for photo in photos]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("person", "faces", "like_strangers"), [(7, 8, False), (8, 8, True), (7, 1, False)])
def test_a_probe_that_mostly_draws_no_face_is_judged_by_the_faces_that_it_draws(
    person: int, faces: int, like_strangers: bool
):
    latents, prompt = Posterior(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)), torch.zeros(1, 1, 4)
    data = SubjectData(
        latents, latents, prompt, prompt, lambda count, generator: uniform_timesteps(9, count, generator)
    )
    protected = Person(id="s01", photos=portraits(7, range(2)) * 2 - 1, references=portraits(7, range(10, 14)) * 2 - 1)
    strangers = torch.cat([portraits(seed, range(1)) for seed in range(30, 50)]) * 2 - 1
    judges = Judges([PortraitEncoder("portrait-a")], PortraitFaceScore(), None)
    attack = DreamBooth(instance_prompt="a photo of sks person", class_prompt="a photo of person")
    subjects = AuditSubjects([protected], [], strangers)
    inputs = AuditInputs(subjects=subjects, judges=judges, photo_attacks=None)
    probe = Probe(attack, data, "s01", inputs, 0.1)
    drawn = portraits(person, range(20, 28))
    drawn[faces:] = 0.5  # grey
    figures, quiet = probe.measure(drawn)
    assert figures["probe_face_rate"] == faces / 8
    assert quiet is like_strangers
