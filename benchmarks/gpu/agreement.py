"""The accelerator computes what the CPU computes, on the miniature world, and neither waits nor keeps memory.

Differences are lengths, in units of the path that the CPU's weights or photos went: another order of summation moves
the end of a path a little, a mistake moves it by the path's own length. Adam's epsilon is 1e-4, because with 1e-8 it
turns the rounding of gradients that should be zero into whole steps.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.lora import LoRA
from apdm.config import HardenConfig, ImageLayerConfig, L2PConfig, PoolConfig, PreservationConfig, load_config
from apdm.config.groups.image_layer import DLADiffConfig
from apdm.faces import load_detector, load_encoders
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.image_layer.layers import FineTuningLayer, Layer, ZeroShotLayer
from apdm.image_layer.protections import make_protection
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels
from apdm.jobs.harden import harden
from apdm.jobs.hardening.training import Training
from apdm.portraits import PIPELINE
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import DEFENCE, write_subjects
from benchmarks import architectures, memory
from benchmarks.attacks import portraits
from benchmarks.gpu import device
from benchmarks.gpu.record import Figure, Work, at_least, at_most, plain

PROMPTS: dict[str, Any] = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
FLOAT32, BFLOAT16 = 0.01, 0.2  # shares of the path
ROOT = Path(__file__).resolve().parents[2]
UNET = Path("model/unet/diffusion_pytorch_model.safetensors")


def measurements(folder: Path, *, tiny: bool) -> Mapping[str, Work]:
    few, steps = (1, 2) if tiny else (3, 4)
    attacks: dict[str, FineTuning] = {
        "DreamBooth": DreamBooth(**PROMPTS, max_train_steps=steps, adam_epsilon=1e-4),
        "LoRA": LoRA(**PROMPTS, max_train_steps=steps, adam_epsilon=1e-4),
    }
    layers = {"fine-tuning layer": fine_tuning_layer(steps), "zero-shot layer": zero_shot_layer(steps)}
    return {
        "Learning to Protect, float32": partial(protect_agrees, "no", few, FLOAT32),
        "Learning to Protect, float32, recomputed": partial(
            protect_agrees, "no", few, FLOAT32, gradient_checkpointing=True
        ),
        "Learning to Protect, float32, channels_last": partial(protect_agrees, "no", few, FLOAT32, channels_last=True),
        "resumed after SIGKILL": partial(resumed_after_kill, 2 if tiny else 12, tiny=tiny),
        "Learning to Protect, bf16": partial(protect_agrees, "bf16", few, BFLOAT16),
        "Learning to Protect, float32, without CUDA graphs": partial(
            protect_agrees, "no", few, FLOAT32, cuda_graphs=False
        ),
        **{f"{name}, float32": partial(attack_agrees, attack) for name, attack in attacks.items()},
        **{f"{name}, float32": partial(photos_agree, layer) for name, layer in layers.items()},
        "sampling, float32": partial(pictures_agree, steps),
        "waits in Learning to Protect": protect_waits,
        **{f"waits in {name}": partial(attack_waits, attack) for name, attack in attacks.items()},
        **{f"waits in the {name}": partial(photos_wait, layer) for name, layer in layers.items()},
        "memory after the job": memory_returns,
    }


def path_share(ours: Sequence[Tensor], theirs: Sequence[Tensor], start: Sequence[Tensor]) -> float:
    """How far two ends of a path lie apart, in units of the length of the second one's path."""

    def distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
        pairs = zip(one, other, strict=True)
        return float(torch.stack([(a.cpu().double() - b.cpu().double()).square().sum() for a, b in pairs]).sum().sqrt())

    return distance(ours, theirs) / distance(theirs, start)


# -- Learning to Protect ---------------------------------------------------------------------------------------


def configuration(precision: Any) -> HardenConfig:
    """Everything that an outer step may have: a pool with LoRA attackers, an anchor, accumulation, clipping."""
    return replace(
        memory.configuration("none"),
        train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-4,
        adam_epsilon=1e-4,
        max_grad_norm=0.05,
        mixed_precision=precision,
        l2p=L2PConfig(learning_rate=1e-4, max_grad_norm=0.05, lora_share=0.5, lora_learning_rate=1e-3),
        pool=PoolConfig(size=2, benign_size=1, benign_data_dir="-", depth=6, stride=2),
        preservation=PreservationConfig(anchor_weight=2.0),
    )


def training(config: HardenConfig, where: torch.device) -> Training:
    family = load_family(PIPELINE)
    family.pipeline.to(where)
    return memory.prepare(family, config, device.accelerator_on(where))


@cache
def protected(
    precision: str, steps: int, where: torch.device, **changes: bool
) -> tuple[list[Tensor], list[Tensor], int | None]:
    """theta at the start and after some outer steps, on the CPU, and how many passes were replayed.

    Args:
        changes: options.
    """
    ran = training(replace(configuration(precision), **changes), where)  # type: ignore[arg-type]
    start = [theta.detach().cpu().clone() for theta in ran.master.theta]
    for _ in range(steps):
        ran.outer_step()
    graphs = getattr(ran.method.reference, "graphs", None)
    replays = None if graphs is None else graphs.replays
    return start, [theta.detach().cpu().clone() for theta in ran.master.theta], replays


def protect_agrees(precision: str, steps: int, bound: float, **changes: bool) -> Mapping[str, Figure]:
    start, theirs, _ = protected("no", steps, device.CPU)
    with device.exact_float32() if precision == "no" else nullcontext():
        _, ours, replays = protected(precision, steps, device.device(), **changes)
    found = {f"difference after {steps} outer steps": at_most(path_share(ours, theirs, start), bound, "of the path")}
    if replays is not None:
        found["passes replayed as CUDA graphs"] = at_least(replays, 1)
    return found


def protect_waits() -> Mapping[str, Figure]:
    """Algorithm 1, without a pool, whose attackers are asked for their number of steps once in their turn."""
    config = replace(configuration("bf16"), pool=PoolConfig(), l2p=L2PConfig(inner_steps=3, max_grad_norm=0.05))
    ran, waits = training(config, device.device()), device.Waits()
    step = ran.master.step

    def outer(**options: Any) -> Tensor:
        with waits.ignored():
            return step(**options)

    ran.master.step = outer  # type: ignore[method-assign]
    ran.outer_step()  # the first step makes the optimizers' states
    with waits.watched():
        ran.method.outer_step(ran._next_attacker())
    return found(waits)


def memory_returns() -> Mapping[str, Figure]:
    """What a second run leaves behind; a first one leaves the libraries' workspaces."""
    left = []
    for _ in range(2):
        device.free()
        before = device.allocated()
        training(configuration("bf16"), device.device()).outer_step()
        device.free()
        left.append(device.allocated() - before)
    return {"bytes kept": at_most(left[-1] if device.device() != device.CPU else None, 1e6)}


def found(waits: device.Waits, allowed: int = 0) -> Mapping[str, Figure]:
    places = ", ".join(f"{place} x {count}" for place, count in sorted(waits.places.items())[:6])
    count = sum(waits.places.values()) if waits.told else None
    return {f"waits {f'({places})' if places else ''}".strip(): at_most(count, allowed)}


# -- attacks, photos, pictures ----------------------------------------------------------------------------------


def material(family: Family) -> Material:
    photos = portraits(PROTECTED_PEOPLE.start, DEFENCE) * 2 - 1
    latents = encode_images(family, photos)
    return Material(latents, latents)


@cache
def miniature(where: torch.device) -> Family:
    family = load_family(PIPELINE)
    family.pipeline.to(where)
    return family


def attack_agrees(attack: FineTuning) -> Mapping[str, Figure]:
    ends = []
    known = material(miniature(device.CPU))
    for where in (device.CPU, device.device()):
        family = miniature(where)
        own = Material(known.instance.to(where), known.instance.to(where))
        with device.exact_float32():
            attacked = attack.begin(family, own)
            start = [p.detach().cpu().clone() for p in attacked.parameters]
            attack.train(attacked, own)
        ends.append([p.detach().cpu() for p in attacked.parameters])
    theirs, ours = ends
    share = path_share(ours, theirs, start)
    return {f"difference after {attack.max_train_steps} steps": at_most(share, FLOAT32, "of the path")}


def attack_waits(attack: FineTuning) -> Mapping[str, Figure]:
    """The last two steps: the first ones make the optimizer's state, and record the passes."""
    waits, family = device.Waits(), miniature(device.device())
    watch = waits.watched()

    def step(count: int, _: Any) -> None:
        if count == max(1, attack.max_train_steps - 2):
            watch.__enter__()
        elif count == attack.max_train_steps:
            watch.__exit__(None, None, None)

    attack.run(family, material(family), callback=step)
    return found(waits)


def fine_tuning_layer(steps: int) -> Layer:
    """DLADiff with one round. Its steps are normalised, so that a small difference does not turn a pixel's sign."""
    options = DLADiffConfig(
        static_steps=2, rounds=1, attention_steps=steps, conditional_steps=steps, surrogate_steps=1, batch_size=2
    )
    protection = make_protection(ImageLayerConfig(method="dladiff", dladiff=options))
    return FineTuningLayer(protection=protection, epsilon=8 / 255, step_size=1 / 255, update="normalised")


def zero_shot_layer(steps: int) -> Layer:
    faces = FaceModels(load_detector("portrait"), load_encoders(["portrait-a"]))
    return ZeroShotLayer(faces=faces, epsilon=8 / 255, step_size=1 / 255, max_steps=steps, margin=4.0)


def protect_photos(layer: Layer, where: torch.device, waits: device.Waits | None = None) -> list[Tensor]:
    """Photos after a layer; with `waits`, all is watched but the layer's preparations and the looks at its success."""
    family = miniature(where)
    if isinstance(layer, ZeroShotLayer):
        layer.faces.to(where)
    with torch.no_grad():
        prompts = family.encode_prompts(list(PROMPTS.values())).float()
    watch = None if waits is None else waits.watched()
    told: list[Any] = []

    def progress(values: Mapping[str, Tensor]) -> None:
        told.append(values)
        if watch is not None and len(told) == 1:
            watch.__enter__()
        elif watch is not None and len(told) == layer.total_steps:
            watch.__exit__(None, None, None)

    task = ProtectionTask(
        family=family,
        originals=[photo.to(where) for photo in portraits(PROTECTED_PEOPLE.start, DEFENCE)[:2]],
        prompt_embeds=prompts[:1],
        class_prompt_embeds=prompts[1:],
        prior=None,
        resolution=64,
        generator=torch.Generator().manual_seed(0),
        callback=progress,
    )
    return layer.apply(task, task.originals)


def photos_agree(layer: Layer) -> Mapping[str, Figure]:
    start = list(portraits(PROTECTED_PEOPLE.start, DEFENCE)[:2])
    with device.exact_float32():
        theirs, ours = (protect_photos(layer, where) for where in (device.CPU, device.device()))
    # Where a layer moves pixels by the sign of a gradient, the few gradients near zero go either way.
    bound = FLOAT32 if isinstance(layer, FineTuningLayer) else BFLOAT16
    return {
        f"difference after {layer.total_steps} steps": at_most(path_share(ours, theirs, start), bound, "of the path")
    }


def photos_wait(layer: Layer) -> Mapping[str, Figure]:
    waits = device.Waits()
    protect_photos(layer, device.device(), waits)
    # DLADiff ascends twice in a round, and looks at all gradients at the end of each ascent.
    return found(waits, allowed=2 if isinstance(layer, FineTuningLayer) else 0)


def pictures_agree(steps: int) -> Mapping[str, Figure]:
    with device.exact_float32():
        theirs, ours = (
            miniature(where).sample(
                [PROMPTS["class_prompt"]] * 4, seed=0, num_inference_steps=5 * steps, guidance_scale=3.0
            )
            for where in (device.CPU, device.device())
        )
    difference = (ours - theirs).abs()
    return {
        "mean difference of a pixel": at_most(float(difference.mean()), 1e-3, "of the range"),
        "largest difference of a pixel": plain(float(difference.max()), "of the range"),
    }


# -- the job ----------------------------------------------------------------------------------------------------


def resumed_after_kill(steps: int, *, tiny: bool) -> Mapping[str, Figure]:
    """A run that is killed and goes on, against one that nobody disturbed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_subjects(folder / "people", protected=1, others=0, consenting=1, strangers=0)
        model = PIPELINE
        if tiny:
            model = folder / "model"
            architectures.family(architectures.TINY).pipeline.save_pretrained(model)
        words = job_options(model, folder / "people", steps)
        killed = folder / "killed"
        process = subprocess.Popen(
            [sys.executable, "-m", "apdm", "harden", *words, "--output_dir", str(killed)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not (killed / "checkpoint-000001").exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        last = max((int(path.name.split("-")[1]) for path in killed.glob("checkpoint-*")), default=0)
        ends = []
        for output in (folder / "straight", killed):
            device.accelerator_on(device.device())
            harden(load_config(HardenConfig, [*words, "--output_dir", str(output)]))
            ends.append(load_file(output / UNET))
        ends.append(load_file(model / UNET.relative_to("model")))
    straight, resumed, start = ([weights[name] for name in sorted(weights)] for weights in ends)
    return {
        "outer steps done when it was killed": Figure(
            last, f"of {steps}", "fewer than all", code != 0 and last < steps
        ),
        "difference at the end": at_most(path_share(resumed, straight, start), FLOAT32, "of the path"),
    }


def job_options(model: Path, people: Path, steps: int) -> list[str]:
    options: dict[str, Any] = {
        "pretrained_model_name_or_path": model,
        "instance_data_dir": people / "protected",
        "pool.benign_data_dir": people / "consenting",
        "resolution": 64,
        "max_train_steps": steps,
        "num_class_images": 2,
        "num_inference_steps": 2,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-4,
        "l2p.inner_steps": 1,
        "pool.size": 2,
        "pool.benign_size": 1,
        "pool.stride": 1,
        "checkpointing_steps": 1,
        "num_threads": torch.get_num_threads(),
        "resume_from_checkpoint": "latest",
    }
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]
