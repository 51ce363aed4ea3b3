"""What a run will take and leave, as rows of a dry run's plan: memory and operations by count, pictures, disk, files.

`apdm.jobs.planning.memory` says what is counted and what is estimated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from time import perf_counter

import torch

from apdm.attacks import Attack
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.purify import passes_per_photo
from apdm.attacks.registry import make_purifier
from apdm.attacks.staged import stages
from apdm.config import AuditOptions, HardenConfig
from apdm.core.devices import is_accelerator
from apdm.core.disk import amount, free_space, require_parts
from apdm.core.logging import get_logger
from apdm.core.memory import total_memory
from apdm.core.terminal import count as count_of
from apdm.data.separate_photos import PhotoSet
from apdm.distributed.recompute import passes_of_training
from apdm.export import layout
from apdm.families import Family
from apdm.jobs.photos.job import PhotoJob
from apdm.jobs.planning.memory import (
    OVERHEAD,
    SAMPLES,
    Pass,
    activations,
    count,
    forward_pass,
    frozen,
    seeing,
)

logger = get_logger(__name__)

SPEED = 100e12  # operations per second, for which the plan says the time
SIDE = 1024  # of the matrices that a CPU is timed with
MAPS = 4  # copies of the attention maps in a step of the photos: two maps, their difference and a gradient
ATTACKED_COPIES = 4  # the attacked copy, its gradient and AdamW's two moments


@torch.no_grad()
def cost_of_pass(base: Family, instance_prompt: str, resolution: int, *, half: bool) -> Pass:
    """Count a forward pass for one picture of this side. The text encoders are tried on the instance prompt."""
    embeds = base.encode_prompts([instance_prompt])
    with torch.enable_grad():
        return forward_pass(base, resolution, embeds, half=half)


def harden_memory(config: HardenConfig, base: Family, cost: Pass, device: torch.device, processes: int) -> str:
    """Say what training holds on the device and in main memory."""
    counted = count(base.denoiser, config, type(base))
    on_device = sum({**counted.device, **counted.passing}.values())
    if not config.memory.offload:
        on_device += frozen(base)
    photos = -(-config.train_batch_size // (config.gradient_accumulation_steps * processes))
    graph = activations(cost, config, _copy(base), photos)
    main = sum(counted.main.values())
    whole = on_device + graph + OVERHEAD
    text = f"{amount(whole)} on the device: {amount(on_device)} counted, {amount(graph)} of activations estimated, "
    return (
        f"{text}{amount(OVERHEAD)} assumed"
        + f"; {amount(main)} in main memory" * bool(main)
        + _beside(whole, device, main=main)
    )


def audit_memory(
    options: AuditOptions,
    base: Family,
    cost: Pass,
    device: torch.device,
    *,
    attacks: Iterable[Attack] = (),
    models: int = 2,
    shared: bool = True,
) -> str:
    """Say what the nominal attack of an audit holds on the device, and what text encoders that are trained add to it.

    An attack that trains adapters or a word copies the text encoders too. It is left out, because it holds less than
    the nominal attack: no gradient and no moments of the denoiser.

    Args:
        cost: a forward pass in float32.
        models: how many models are audited.
        shared: whether they share all parts but the denoiser.
    """
    copies = 1 + ATTACKED_COPIES  # the other models wait in main memory
    kept = cost.outside + cost.largest if options.gradient_checkpointing else cost.saved
    graph = round(kept * 2 * options.train_batch_size / SAMPLES)
    text_copies = ATTACKED_COPIES if any(map(_trains_whole_text, attacks)) else 0
    return _held(base, copies, text_copies, graph, device, others=1 if shared else models)


def _trains_whole_text(attack: Attack) -> bool:
    last = stages(attack)[-1]
    return isinstance(last, DreamBooth) and last.train_text_encoder


def _held(base: Family, copies: int, text_copies: int, graph: int, device: torch.device, *, others: int = 1) -> str:
    """Say what is on the device: copies of what is trained, the other parts (`others` times) and the graph."""
    text = text_copies * _text_copy(base) if text_copies else 0
    whole = copies * _copy(base) + text + frozen(base) * others + graph + OVERHEAD
    encoders = f", {text_copies} of the text encoders ({amount(text)})" * bool(text_copies)
    denoisers = "1 copy" if copies == 1 else f"{copies} copies"
    return (
        f"{amount(whole)} on the device: {denoisers} of the denoiser{encoders} and the other parts, "
        f"{amount(graph)} of activations estimated, {amount(OVERHEAD)} assumed" + _beside(whole, device)
    )


@torch.no_grad()
def photo_memory(job: PhotoJob, base: Family, cost: Pass, device: torch.device) -> str:
    """Say what the photo protection holds on the device. `cost` is a forward pass in float32.

    Left out, because they are small beside the rest: the photos (the row about them says more), and what surrogates
    learn, clean photos among it, which are kept as latents of some 16 kB for a photo of 512 pixels.
    """
    layer, one = job.protection.fine_tuning, cost.saved / SAMPLES
    if layer is None:
        return _held(base, 1, 0, 0, device)
    # A step of the photos goes through the VAE too.
    embeds = base.encode_prompts([job.instance_prompt])
    seen = seeing(base, job.resolution, embeds, max_positions=layer.attention_positions)
    step = (one + seen.encoder + MAPS * seen.maps) * layer.batch_size
    graph = round(max(one * layer.pictures_at_once, step))
    return _held(base, 1 + layer.protection.surrogate_copies, layer.text_encoder_copies, graph, device)


def photos_kept(sets: Iterable[PhotoSet]) -> str:
    """Say what photos hold in main memory during the whole run, in 8 bits. Photos that are in two sets count once."""
    kept = {images.data_ptr(): images.nbytes for photos in sets for images in photos.images}
    return f"{amount(sum(kept.values()))} in main memory"


def work(cost: Pass, parts: Mapping[str, float], device: torch.device | None = None) -> str:
    """Say how many operations the parts of a run take, and how long at `SPEED`; on a CPU also how long there at least.

    Args:
        cost: one forward pass.
        parts: {part of the run: number of forward passes}.
        device: where the run works; None if that is not known.
    """
    listed = [f"{_number(passes * cost.operations)} {name}" for name, passes in parts.items() if passes]
    if not listed:
        return "none that is counted"
    operations = sum(parts.values()) * cost.operations
    told = f"{', '.join(listed)}: {time_for(operations)}"
    if device is None or is_accelerator(device) or operations < cpu_speed():  # less than a second says nothing
        return told
    return f"{told}, {_time(operations / cpu_speed())} or more on this CPU"


@cache
def cpu_speed() -> float:
    """Operations per second of a large float32 product on this CPU. Networks reach less."""
    left, right = torch.ones(SIDE, SIDE), torch.ones(SIDE, SIDE)
    seconds = []
    for _ in range(3):  # the first one is slow
        start = perf_counter()
        left @ right
        seconds.append(perf_counter() - start)
    return 2 * SIDE**3 / min(seconds)


def time_for(operations: float) -> str:
    """Say how long some operations take at `SPEED`."""
    return f"{_time(operations / SPEED)} at {SPEED / 1e12:.0f} TFLOP/s"


def training_passes(config: HardenConfig) -> float:
    """Forward passes of the training, in which a backward pass counts as two; a mean where attackers are drawn."""
    l2p, pool, variety = config.l2p, config.pool, config.variety
    priors = variety.prior_loss_weights or [l2p.prior_loss_weight]
    trained = passes_of_training(recomputed=config.gradient_checkpointing)
    step = trained * (1 + fmean(map(bool, priors)))  # a photo, and a class picture if there are some
    protective = 3 * trained + 2  # theta' is trained on three samples, and phi goes forwards on two
    if pool.size:
        # A turn ends with one protective gradient. For a benign attacker this is the gradient of its own loss.
        benign = pool.benign_size / (pool.size + pool.benign_size)
        turn = pool.stride * step + (1 - benign) * protective + benign * step
    else:
        turn = fmean(variety.inner_steps or [l2p.inner_steps]) * (step + protective)
    anchor = 2 * (trained + 1) if config.preservation.anchor_weight else 0  # phi goes forwards on 2 samples too
    return config.max_train_steps * config.train_batch_size * (turn + anchor)


def photo_passes(job: PhotoJob) -> dict[str, float]:
    """Forward passes of the photo protection for all people, in which a backward pass counts as two.

    The zero-shot layer passes through networks for faces alone, which are not counted.
    """
    name = "for the photos" + " (the zero-shot layer is not counted)" * (job.protection.zero_shot is not None)
    layer = job.protection.fine_tuning
    return {name: sum(layer.protection.passes(len(photos)) for photos in job.photos.values()) if layer else 0}


def variety_passes(changes: Iterable[str], photos: int) -> float:
    """Forward passes with which the changes of `variety.photos` draw so many photos again."""
    return photos * sum(passes_per_photo(make_purifier(spec)) for spec in changes)


def drawing_passes(
    pictures: float, num_inference_steps: float, guidance_scale: float, family: Family | None = None
) -> float:
    """Forward passes of drawing some pictures. With guidance each step has two in most families.

    Args:
        family: the model that draws; None if it is not known.
    """
    guided = 2 if guidance_scale > 1 else 1
    return pictures * num_inference_steps * (guided if family is None else family.step_passes(guidance_scale))


def disk(output: Path, parts: Mapping[str, int]) -> str:
    """Say how much disk some files need at most. Raises UserError if there is less."""
    listed = require_parts(output, parts)
    return f"{amount(sum(parts.values()))} needed ({listed}), {amount(free_space(output))} free"


def pictures_drawn(class_pictures: int, partners: int) -> str:
    """Say how many pictures the base model draws before the training."""
    counts = {"class picture": class_pictures, "partner": partners}
    parts = [f"{number} {name}" + "s" * (number != 1) for name, number in counts.items() if number]
    return f"{' and '.join(parts)} of the base model" if parts else "nothing new"


def written(config: HardenConfig, *, partners: bool) -> str:
    """The names of what a hardening run writes into its output folder. `partners` are drawn ones."""
    names = [layout.CONFIG, f"{layout.MODEL}/", layout.MANIFEST]
    names += [f"{layout.CLASS_IMAGES}/"] * (config.class_data_dir is None)
    names += [f"{layout.PARTNERS}/"] * partners
    names += ["checkpoint-<step>/"] * bool(config.checkpointing_steps) + [layout.SINGLE_FILE] * config.single_file
    names += [f"{layout.SAMPLES}/"] * bool(config.validation.steps)
    names += [f"{config.logging_dir}/"] * bool(config.report_to)
    names += [f"{layout.IMAGES}/", layout.PERTURBATION] * config.image_layer.enabled
    if config.audit.enabled:
        names += [layout.RESULTS, layout.REPORT, f"{layout.PICTURES}/", f"{layout.CELLS}/"]
        names += [f"{layout.ATTACKER_CLASS_IMAGES}/"] + [f"{layout.PHOTO_CELLS}/"] * config.image_layer.enabled
    return f"{', '.join(sorted(names))} in {config.output_dir}"


def _copy(base: Family) -> int:
    return 4 * sum(weight.numel() for weight in base.denoiser.parameters())


def _text_copy(base: Family) -> int:
    return 4 * sum(weight.numel() for encoder in base.text_encoders().values() for weight in encoder.parameters())


def _beside(needed: float, device: torch.device, *, main: float = 0) -> str:
    """A remark that the device, or the machine's main memory, has less than is needed; empty if there is enough.

    Args:
        needed: bytes on the device.
        device: the device. A CPU has main memory alone.
        main: bytes in main memory besides.
    """
    places = [(main, total_memory(), "main memory", "set memory.offload to false, or use a machine with more")]
    if is_accelerator(device):
        mend = "choose a --preset, more processes with FSDP2 or ZeRO-3, or another device"
        places.append((needed, torch.accelerator.get_memory_info(device)[1], str(device), mend))
    else:
        places = [(needed + main, total_memory(), "main memory", "use a machine with more")]
    remark = ""
    for taken, total, place, mend in places:
        if total is not None and taken > total:
            logger.warning("by count %s are needed, and %s has %s: %s", amount(taken), place, amount(total), mend)
            remark += f"; {place} has {amount(total)}"
    return remark


def _number(operations: float) -> str:
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12)):
        if operations >= 0.1 * size:
            return f"{operations / size:.2f} {unit}"
    return f"{operations / 1e9:.2f} GFLOP"


def _time(seconds: float) -> str:
    if seconds >= 48 * 3600:
        return f"{seconds / (24 * 3600):.0f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    if seconds >= 60:
        return f"{seconds / 60:.1f} minutes"
    return count_of(round(seconds), "second") if seconds >= 1 else "less than a second"
