"""The main job: subjects and a pipeline in, the same pipeline hardened out, and on request its audit.

`train_apdm.py` and `apdm harden` both end here. This file only joins the parts: what is computed is in `l2p`, what is
written in `export`, what is measured in `audit`.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module
from tqdm.auto import tqdm

from apdm.config import HardenConfig, config_hash, load_config, to_yaml
from apdm.data import Draws, ProtectionData, encode_images
from apdm.errors import UserError
from apdm.export import check_single_file, export_model, export_size, write_manifest
from apdm.families import Family, Posterior
from apdm.files import claim_output_dir, delete, require_disk, write_text
from apdm.l2p import LearningToProtect
from apdm.perturb import FIGURES, IMAGES, PhotoJob
from apdm.pool import AttackerPool
from apdm.prepare import class_posterior, load_base, prepare_process
from apdm.slow_weights import SlowWeights, make_adamw
from apdm.subjects import Subject, find_subjects, load_images
from apdm.validation import Validator


def main(argv: Sequence[str]) -> int:
    """Harden as `argv` says; the command line of `apdm harden`. Returns the exit code."""
    config = load_config(HardenConfig, list(argv))
    harden(config, command="apdm harden " + " ".join(argv))
    return 0


@dataclass(frozen=True)
class Photos:
    """All pictures of a run, read and checked before any long work: subject id -> [N, 3, R, R] in [-1, 1]."""

    instance: dict[str, Tensor]
    safe: dict[str, Tensor]

    @staticmethod
    def load(subjects: Sequence[Subject], resolution: int) -> Photos:
        return Photos(
            {subject.id: load_images(subject.images, resolution) for subject in subjects},
            {subject.id: load_images(subject.safe, resolution) for subject in subjects if subject.safe is not None},
        )


def harden(config: HardenConfig, *, command: str | None = None) -> Path:
    """Run the whole job; returns the output folder. Raises UserError before long work starts if input is bad."""
    prepare_process(config.num_threads)
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_dir=str(Path(config.output_dir) / config.logging_dir),
    )
    if accelerator.num_processes > 1:
        raise UserError("hardening runs in one process so far; launch it with launch/single.yaml")
    photos = Photos.load(find_subjects(config.instance_data_dir), config.resolution)
    consenting = Photos({}, {})
    if config.pool.benign_size and config.pool.benign_data_dir:
        consenting = Photos.load(find_subjects(config.pool.benign_data_dir), config.resolution)
    judged = None
    if config.audit.enabled or config.validation.probe_steps:
        from apdm.judged import JudgedPeople

        judged = JudgedPeople.load(config, list(photos.instance))
    base = load_base(config)
    if config.single_file:
        check_single_file(base.pipeline)
    photo_job = PhotoJob.load(config) if config.image_layer.enabled else None
    if judged is not None and judged.adapter is not None:
        judged.adapter.check(base)
    output = claim_output_dir(config.output_dir, config.overwrite_output_dir)
    needed = export_size(base, save_variant=config.save_variant, single_file=config.single_file)
    require_disk(output, needed)
    write_text(output / "config.yaml", to_yaml(config))

    base.pipeline.to(accelerator.device)
    class_images = class_posterior(config, base, output, show_progress=accelerator.is_main_process)
    hardened = base.with_denoiser(copy.deepcopy(base.denoiser))
    with torch.no_grad():
        data = protection_data(config, base, photos, class_images)
        benign = protection_data(config, base, consenting, class_images)
    validator = Validator(config, hardened, data, judged, output / "samples")
    reference = base.denoiser.eval().requires_grad_(False)
    steps = protect(config, accelerator, reference, hardened, data, benign, validator)
    hardened.round_weights()

    export_model(
        hardened,
        output / "model",
        base_path=base.source or config.pretrained_model_name_or_path,
        config_hash=config_hash(config),
        method="apdm",
        steps=steps,
        save_variant=config.save_variant,
        single_file=config.single_file,
    )
    for stale in ("results.json", "report.html", "pictures", IMAGES, FIGURES):
        delete(output / stale)
    if photo_job is not None:
        photo_job.run(base, output, command=command)
    if config.audit.enabled and judged is not None:
        judged.audit_and_report(base, hardened, output, command=command, photo_job=photo_job)
    write_manifest(output, config_hash=config_hash(config))
    return output


def protection_data(
    config: HardenConfig, base: Family, photos: Photos, class_images: Posterior
) -> dict[str, ProtectionData]:
    """Everything that does not change while hardening, encoded once: subject id -> latents and prompts."""
    prompts = base.encode_prompts([config.instance_prompt, config.class_prompt]).float()
    return {
        subject: ProtectionData(
            instance=encode_images(base, images, batch_size=config.sample_batch_size),
            prior=class_images,
            instance_prompt=prompts[:1],
            class_prompt=prompts[1:],
            draw_timesteps=base.draw_timesteps,
            positive=encode_images(base, photos.safe[subject]) if subject in photos.safe else None,
        )
        for subject, images in photos.instance.items()
    }


def protect(
    config: HardenConfig,
    accelerator: Accelerator,
    reference: Module,
    hardened: Family,
    data: Mapping[str, ProtectionData],
    benign: Mapping[str, ProtectionData],
    validator: Validator,
) -> int:
    """Learning to Protect, subjects in turn; leaves the protected weights in `hardened`, returns outer steps done.

    Raises:
        UserError: a loss or gradient is not finite; the weights of the last good step are kept in `hardened`'s folder.
    """
    model = hardened.denoiser.requires_grad_(True)
    adamw = {
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_weight_decay": config.adam_weight_decay,
        "adam_epsilon": config.adam_epsilon,
    }
    slow = SlowWeights(
        model.parameters(), max_grad_norm=config.max_grad_norm, learning_rate=config.learning_rate, **adamw
    )
    inner = make_adamw(model.parameters(), learning_rate=config.l2p.learning_rate, **adamw)
    path: list[Mapping[str, Tensor]] = []
    options = asdict(config.l2p)
    del options["learning_rate"]  # the inner optimizer has it
    method = LearningToProtect(
        hardened,
        model,
        reference,
        slow,
        inner,
        **options,
        beta=config.dpo.beta,
        reduction=config.dpo.reduction,
        preservation_weight=config.preservation.weight,
        anchor_weight=config.preservation.anchor_weight,
        autocast=accelerator.autocast,
        callback=lambda step, values: path.append(values),
    )
    outer_step = _schedule(config, method, data, benign)
    if config.report_to:
        accelerator.init_trackers("apdm")
    bar = tqdm(
        range(1, config.max_train_steps + 1),
        desc="harden",
        unit="step",
        disable=not accelerator.is_local_main_process,
    )
    done = 0
    for step in bar:
        path.clear()
        report = outer_step()
        values = _summary(path, report)
        if not all(math.isfinite(value) for value in values.values()):
            _stop_on_nan(config, slow, hardened, done)
        done = step
        shown = {name: f"{values[name]:.4f}" for name in ("instance_loss", "protection_loss") if name in values}
        bar.set_postfix(shown, refresh=False)
        if validator.due(step):
            slow.restore()
            values |= validator(step)
        if config.report_to:
            accelerator.log(values, step=step)
        if validator.enough:
            break
    bar.close()
    slow.restore()
    accelerator.end_training()
    model.requires_grad_(False).eval()
    return done


def _schedule(
    config: HardenConfig,
    method: LearningToProtect,
    data: Mapping[str, ProtectionData],
    benign: Mapping[str, ProtectionData],
) -> Callable[[], Mapping[str, Tensor]]:
    """The outer step, subjects taking turns: Algorithm 1, or a pool of attackers. All draws are from one generator."""
    generator = torch.Generator().manual_seed(config.seed)

    def sources(people: Mapping[str, ProtectionData]) -> list[Draws]:
        return [Draws(person, generator, config.train_batch_size) for _, person in sorted(people.items())]

    if not config.pool.size:
        turns = itertools.cycle(sources(data))
        return lambda: method.outer_step(next(turns))
    hostile = itertools.islice(itertools.cycle(sources(data)), config.pool.size)
    friendly = itertools.islice(itertools.cycle(sources(benign)), config.pool.benign_size) if benign else ()
    pool = AttackerPool.start(
        method,
        list(hostile),
        list(friendly),
        learning_rate=config.l2p.learning_rate,
        depth=config.pool.depth,
        stride=config.pool.stride,
        benign_weight=config.pool.benign_weight,
    )
    return pool.outer_step


def _summary(path: Sequence[Mapping[str, Tensor]], report: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over the inner path, and the outer step's own figures: the only host sync of an outer step."""
    means = {name: torch.stack([values[name] for values in path]).mean() for name in path[0]} if path else {}
    everything = {**means, **report}
    return dict(zip(everything, torch.stack([v.float().cpu() for v in everything.values()]).tolist(), strict=True))


def _stop_on_nan(config: HardenConfig, slow: SlowWeights, hardened: Family, done: int) -> None:
    slow.restore()
    kept = Path(config.output_dir) / f"model-after-{done}-steps"
    hardened.denoiser.requires_grad_(False)
    hardened.save(kept)
    raise UserError(
        f"the loss is not finite in outer step {done + 1}; the weights of step {done} are in {kept}; "
        "lower l2p.learning_rate or learning_rate, or clip with l2p.max_grad_norm"
    )
