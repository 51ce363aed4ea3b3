"""Inner loops give work to the device and do not wait for it; `helpers/device_traffic.py` says how that is found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from device_traffic import DEVICE, DeviceTraffic, WaitedForDevice
from tiny_pipelines import BUILDERS
from torch import Tensor

from apdm.attacks import Material, fine_tuning
from apdm.attacks.registry import make
from apdm.config import HardenConfig, ImageLayerConfig, L2PConfig, PreservationConfig
from apdm.config.groups.image_layer import TransformConfig
from apdm.data.transforms import RandomTransform
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.faces import Face, load_encoders
from apdm.families import Family, Posterior, load_family
from apdm.image_layer import pgd as pgd_module
from apdm.image_layer.pgd import PGD
from apdm.image_layer.protections import make_protection
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels, IdentityObjective
from apdm.jobs.hardening.training import Training
from apdm.protection.subject_data import SubjectData

KINDS = sorted(set(BUILDERS) - {"sd21"})  # which is as sd15
PROMPTS = ["a photo of sks person", "a photo of person"]


@pytest.fixture(scope="module")
def on_device(folders: Callable[[str], Path]) -> Callable[[str], tuple[Family, Tensor]]:
    """on_device(kind) -> that family on the device, and its embeddings of PROMPTS."""

    def load(kind: str) -> tuple[Family, Tensor]:
        family = load_family(folders(kind))
        with torch.no_grad():
            embeds = family.encode_prompts(PROMPTS).to(DEVICE)
        if kind == "flux2":  # before the first step, transformers looks at the mask of its faster attention
            family.pipeline.text_encoder.set_attn_implementation("eager")
        for part in family.pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(DEVICE)
        return family, embeds

    return load


def latents(family: Family, count: int) -> Posterior:
    side = 16 // family.vae_scale
    mean = torch.empty(count, family.pipeline.vae.config.latent_channels, side, side, device=DEVICE)
    return Posterior(mean, mean)


class Watch:
    """Watches from the end of the first step, which makes optimizers' states and copies tables, on."""

    def __init__(self) -> None:
        self.steps = 0
        self.stack = ExitStack()

    def __call__(self, *_: Any) -> None:
        if not self.steps:
            self.stack.enter_context(DeviceTraffic())
        self.steps += 1


@pytest.fixture
def watch() -> Iterator[Watch]:
    found = Watch()
    with found.stack:
        yield found
    assert found.steps > 1


@pytest.mark.parametrize(("kind", "lora"), [("sd15", 1.0), *((kind, 0.0) for kind in KINDS)])
def test_the_inner_loop_of_learning_to_protect(
    on_device: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch, kind: str, lora: float
) -> None:
    family, embeds = on_device(kind)
    config = HardenConfig(
        pretrained_model_name_or_path="-",
        instance_data_dir="-",
        output_dir="-",
        train_batch_size=2,
        gradient_accumulation_steps=2 if kind == "sd15" else 1,
        l2p=L2PConfig(inner_steps=1, max_grad_norm=1.0, lora_share=lora),
        preservation=PreservationConfig(anchor_weight=1.0),
    )
    data = SubjectData(
        latents(family, 3), latents(family, 4), embeds[:1], embeds[1:], family.draw_timesteps, anchor_prompts=embeds
    )
    hardened = family.with_denoiser(type(family.denoiser).from_config(family.denoiser.config).to(DEVICE))
    reference = family.denoiser.requires_grad_(False)
    training = Training(config, Accelerator(cpu=True), SINGLE_PROCESS, reference, hardened, {"s": [data]}, {})
    training.method.callback = watch
    # Whether G is finite is looked at once in an outer step; this test is about the steps within it.
    monkeypatch.setattr(training.master, "step", lambda divisor=1.0: torch.zeros(()))
    training.method.outer_step(training._next_attacker())
    training.method.outer_step(training._next_attacker())


# Z-Image's pipeline cannot read prompts on the meta device: it takes the tokens out by a mask. Its `predict` waits once
# in each call, for the lengths of the prompts. The meta device has none, so this is not seen here.
TRAINED = [kind for kind in KINDS if kind != "zimage"]


@pytest.mark.parametrize(("kind", "spec"), [("sd15", "lora:rank=2"), *((kind, "dreambooth") for kind in TRAINED)])
def test_the_training_steps_of_attacks(
    on_device: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch, kind: str, spec: str
) -> None:
    family, _ = on_device(kind)
    monkeypatch.setattr(fine_tuning, "read_losses", lambda *_: None)  # which looks at many steps at once
    attack = make(spec, instance_prompt=PROMPTS[0], class_prompt=PROMPTS[1], max_train_steps=2, train_batch_size=2)
    attack.run(family, Material(latents(family, 3), latents(family, 3)), callback=watch)


# Not attacks that learn a word: peft itself copies the numbers of the new tokens to the device in every step.
@pytest.mark.parametrize("spec", ["adaptive", "lora:train_text_encoder=true"])
def test_the_training_steps_of_further_attacks(
    on_device: Any, watch: Watch, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    family, _ = on_device("sd15")
    monkeypatch.setattr(fine_tuning, "read_losses", lambda *_: None)
    attack = make(spec, instance_prompt=PROMPTS[0], class_prompt=PROMPTS[1], max_train_steps=2)
    attack.run(family, Material(latents(family, 3), latents(family, 3)), callback=watch)


def task_of(family: Family, embeds: Tensor, watch: Watch, *, size: tuple[int, int] = (16, 16)) -> ProtectionTask:
    return ProtectionTask(
        family=family,
        originals=[torch.empty(3, *size, device=DEVICE) for _ in range(3)],
        prompt_embeds=embeds[:1],
        class_prompt_embeds=embeds[1:],
        prior=latents(family, 3),
        resolution=16,
        generator=torch.Generator().manual_seed(0),
        callback=watch,
        prompt=PROMPTS[0],
        class_prompt=PROMPTS[1],
    )


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PGD.ascend` without its one look at all gradients of an ascent."""
    monkeypatch.setattr(pgd_module, "check_finite", lambda *_: None)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("method", ["aspl", "encoder", "disdiff", "dladiff", "anti_diffusion", "pap"])
def test_the_steps_of_photo_protections(on_device: Any, watch: Watch, method: str) -> None:
    family, embeds = on_device("sd15")
    config = ImageLayerConfig(method=method)
    task = replace(task_of(family, embeds, watch, size=(20, 16)), transform=some_transform())
    if method != "encoder":
        task = replace(task, originals=[photo[:, :16] for photo in task.originals])
    protection: Any = make_protection(config)
    short = {
        name: 2 if name == "ascent_steps" else 1 for name in vars(protection) if name.endswith(("steps", "rounds"))
    }
    pgd = protection.loop(task.originals, epsilon=0.1, step_size=0.01, momentum=0.9, batch_size=2, callback=watch)
    replace(protection, **short).protect(task, pgd)


def some_transform() -> RandomTransform:
    shares = {f"{name}_probability": 0.25 for name in ("jpeg", "resize", "blur", "noise")}
    return RandomTransform(TransformConfig(**shares, blur_sigma=[0.5, 1.0]))


@pytest.mark.usefixtures("unread")
def test_the_steps_of_the_zero_shot_layer(watch: Watch) -> None:
    faces = FaceModels(Somewhere(), copy.deepcopy(load_encoders(["portrait-a"])))
    photos = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    objective = IdentityObjective(
        photos, faces, torch.Generator().manual_seed(0), transform=some_transform(), margin=4.0
    )  # on the CPU, where detectors work
    objective.targets = [[replace(t, clean=t.clean.to(DEVICE)) for t in targets] for targets in objective.targets]
    faces.to(DEVICE)
    originals = [photo.to(DEVICE) for photo in photos]
    PGD(originals, epsilon=0.1, step_size=0.01, callback=watch).ascend(objective.loss, 3)


class Somewhere:
    """A detector that finds one face in every photo."""

    def detect(self, photo: Tensor) -> list[Face]:
        landmarks = torch.tensor([[20.0, 24], [44, 24], [32, 36], [24, 46], [40, 46]], dtype=torch.float64)
        return [Face((10.0, 10.0, 54.0, 54.0), landmarks, 1.0)]


def test_what_waits_is_found() -> None:
    there, here = torch.empty(4, device=DEVICE), torch.zeros(4)
    waiting: list[Callable[[], object]] = [
        lambda: here.to(DEVICE),
        lambda: there.copy_(here),
        lambda: there + here,
        lambda: there[torch.tensor([0, 1])],
        lambda: torch.randn(2, generator=torch.Generator(), device=DEVICE),
        lambda: there.sum().item(),
        there.cpu,
        lambda: bool(there.sum() > 0),
    ]
    for action in waiting:
        with DeviceTraffic(), pytest.raises((WaitedForDevice, RuntimeError, NotImplementedError)):
            action()
    with DeviceTraffic():
        assert (here.to(DEVICE, non_blocking=True) + 1.5 * there + torch.tensor(2.0)).device == DEVICE
