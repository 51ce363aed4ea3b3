"""Attacks, photo protections and pictures at the size of Stable Diffusion 1.5 and 512 pixels."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.lora import LoRA
from apdm.config import ImageLayerConfig
from apdm.config.groups.image_layer import DLADiffConfig
from apdm.faces import load_detector, load_encoders
from apdm.families import Family
from apdm.families.encoding import encode_images
from apdm.image_layer.pgd import PGD, PhotoObjective
from apdm.image_layer.protections import make_protection
from apdm.image_layer.protections.dladiff import DLADiff
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels, IdentityObjective
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import DEFENCE
from benchmarks import architectures
from benchmarks.attacks import portraits
from benchmarks.gpu import device
from benchmarks.gpu.agreement import PROMPTS
from benchmarks.gpu.record import Figure, Work, plain

PICTURES = 16  # drawn at once, as the audit does


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    attacks: dict[str, FineTuning] = {
        "DreamBooth": DreamBooth(**PROMPTS, max_train_steps=3 if tiny else 16),
        "LoRA": LoRA(**PROMPTS, max_train_steps=3 if tiny else 16),
    }
    return {
        **{name: partial(attacked, attack, tiny=tiny) for name, attack in attacks.items()},
        "fine-tuning layer, denoising loss": partial(ascended, "denoising", tiny=tiny),
        "fine-tuning layer, attention loss": partial(ascended, "attention", tiny=tiny),
        "zero-shot layer, a bundled encoder": partial(ascended, "faces", tiny=tiny),
        "pictures": partial(drawn, tiny=tiny),
    }


@cache
def model(tiny: bool) -> Family:
    return architectures.family(architectures.TINY if tiny else "sd15", device.device())


def photos(tiny: bool) -> Tensor:
    """Four photos of a drawn person, `[4, 3, R, R]` in [0, 1], on the device."""
    drawn = portraits(PROTECTED_PEOPLE.start, DEFENCE).to(device.device())
    return drawn if tiny else interpolate(drawn, (512, 512), mode="bicubic").clamp(0, 1)


def attacked(attack: FineTuning, *, tiny: bool) -> Mapping[str, Figure]:
    """In float32 at batch 1 with prior preservation, as attacks run. The first steps are left out."""
    family, times = model(tiny), dict[int, float]()
    latents = encode_images(family, photos(tiny) * 2 - 1)

    def step(count: int, _: Any) -> None:
        if count in (2, attack.max_train_steps):
            device.wait()
            times[count] = time.perf_counter()

    attack.run(family, Material(latents, latents), callback=step)
    return {"steps per second": plain((attack.max_train_steps - 2) / (times[attack.max_train_steps] - times[2]), "1/s")}


def ascended(kind: str, *, tiny: bool) -> Mapping[str, Figure]:
    """A step moves all four photos."""
    family, originals, steps = model(tiny), list(photos(tiny)), 1 if tiny else 8
    with torch.no_grad():
        prompts = family.encode_prompts(list(PROMPTS.values())).float()
    task = ProtectionTask(
        family=family,
        originals=originals,
        prompt_embeds=prompts[:1],
        class_prompt_embeds=prompts[1:],
        prior=None,
        resolution=originals[0].shape[-1],
        generator=torch.Generator().manual_seed(0),
    )
    pgd = PGD(originals, epsilon=8 / 255, step_size=1 / 255)
    objective: PhotoObjective
    if kind == "faces":
        faces = FaceModels(load_detector("portrait"), load_encoders(["portrait-a"]))
        faces.to(device.device())
        objective = IdentityObjective(originals, faces, task.generator, margin=4.0).loss
    elif kind == "attention":
        protection = make_protection(ImageLayerConfig(method="dladiff", dladiff=DLADiffConfig()))
        if not isinstance(protection, DLADiff):
            raise TypeError(f"dladiff is a {type(protection).__name__}")
        objective = protection.attention_loss(task, family.denoiser, family.denoiser)
    else:
        objective = task.conditional_loss(family.denoiser)
    family.denoiser.requires_grad_(False)
    pgd.ascend(objective, 1)
    return {"iterations per second": plain(steps / device.seconds(partial(pgd.ascend, objective, steps)), "1/s")}


def drawn(*, tiny: bool) -> Mapping[str, Figure]:
    """In float32 with guidance, 20 steps as in configs/sd15.yaml's audit."""
    family, steps, count = model(tiny), 2 if tiny else 20, 2 if tiny else PICTURES
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 7.5, "batch_size": count}
    family.sample([PROMPTS["instance_prompt"]] * count, seed=0, **{**options, "num_inference_steps": 1})
    taken = device.seconds(lambda: family.sample([PROMPTS["instance_prompt"]] * count, seed=0, **options))
    return {f"pictures of {steps} steps per second": plain(count / taken, "1/s")}
