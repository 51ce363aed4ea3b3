"""`apdm audit`: models, people and a suite of attacks in; results.json, report.html and an exit code out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks.registry import settings
from apdm.audit import Audit, audit, common_facts, write_results
from apdm.audit.models import load_models
from apdm.audit.people import Folders
from apdm.audit.photo_plan import PhotoPlan
from apdm.audit.store import CellStore
from apdm.audit.suites import AttackFactory, available, chosen, short_of_cost
from apdm.config import AuditJobConfig, AuditOptions, to_yaml
from apdm.core.errors import UserError
from apdm.core.files import MARKER, claim_output_dir, delete, model_hash, write_text
from apdm.core.logging import get_logger
from apdm.core.pictures import grid, save_png, to_pil
from apdm.core.signals import stop_on_signals
from apdm.data.class_images import ClassImages
from apdm.data.subjects import load_images
from apdm.distributed.launch import join_processes
from apdm.export.layout import ATTACKER_CLASS_IMAGES, CELLS, CONFIG, PICTURES, REPORT, RESULTS
from apdm.faces import load_encoders, load_face_score
from apdm.faces.portrait import PortraitFeatures, PortraitReader
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.jobs.prepare import check_resolution, prepare_process
from apdm.jobs.results import AuditResult
from apdm.metrics.judges import Judges
from apdm.report.page import write_report

logger = get_logger(__name__)

COLUMNS = 4
ATTACKER_SEED = 1_000_000  # the attacker draws class pictures of its own, not the defence's


@stop_on_signals("finished cells are kept; the same command goes on")
def audit_models(config: AuditJobConfig, *, command: str | None = None) -> AuditResult:
    """Attack base and hardened model, and judge; the code of `apdm audit` and of `apdm.audit`.

    Args:
        config: the options.
        command: the command line that was given, as results.json tells it.

    Raises:
        UserError: bad input, found before any long work starts.
        Interrupted: the process was asked to stop; finished cells are kept, and the same call goes on from there.
    """
    processes, device = join_processes()
    prepare_process(config.num_threads)
    plan, photos = processes.main_first(lambda: _load(config, command))
    output = processes.broadcast(lambda: _claim(config))
    if processes.is_main and (short := short_of_cost(config, plan.entries)):
        logger.warning(short)
    for model in plan.models.values():
        model.pipeline.to(device)
    prior = processes.main_first(
        lambda: attacker_prior(
            config,
            plan.models["base"],
            output,
            class_prompt=config.class_prompt,
            base_hash=(plan.paths or {})["base"]["sha256"],
            seed=config.seed,
            resolution=config.resolution,
            batch_size=config.sample_batch_size,
            show_progress=processes.is_main,
        )
    )
    plan = replace(plan, class_images=prior)
    store = CellStore(output / CELLS, process=processes.index)
    done = audit(plan, store=store, processes=processes, show_progress=processes.is_main)
    layer = None
    if photos is not None:
        layer = photos.run(
            config, plan.models["base"], prior, plan.judges, plan.subjects, output, common_facts(plan), processes
        )
    results = None
    if done is not None:
        results, pictures = done
        if layer is not None:
            results["image_layer"], pictures = layer[0], pictures | layer[1]
        write_all(results, pictures, output)
    verdict = processes.broadcast(lambda: {} if results is None else results["verdict"])
    return AuditResult(output_dir=output, verdict=verdict, results=results)


def write_all(results: dict[str, Any], pictures: dict[str, Tensor], output: Path) -> None:
    """results.json, the pictures as sheets, and report.html."""
    write_results(results, output / RESULTS)
    for name, images in pictures.items():
        save_png(grid(images, COLUMNS), output / PICTURES / f"{name}.png")
    sheets = {name: [to_pil(image) for image in images] for name, images in pictures.items()}
    write_report(results, output / REPORT, sheets)


def load_judges(options: AuditOptions) -> Judges:
    """Everything that looks at pictures. Raises UserError for what cannot be loaded."""
    from apdm.metrics.extractors import ClipFolder, VisionFolder

    return Judges(
        load_encoders(options.encoders),
        load_face_score(options.face_score),
        PortraitFeatures(),
        dino=VisionFolder(options.dino_dir) if options.dino_dir else None,
        clip=ClipFolder(options.clip_dir) if options.clip_dir else None,
        # Who is drawn can only be read where portraits of the bundled kind are.
        reader=PortraitReader() if options.face_score.startswith("portrait") else None,
    )


def attacker_prior(
    options: AuditOptions,
    base: Family,
    output: Path,
    *,
    class_prompt: str,
    base_hash: str,
    seed: int,
    resolution: int,
    batch_size: int,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    show_progress: bool = True,
) -> Posterior:
    """Latents of the attacker's own class pictures, drawn by the base; how defaults to how the audit draws."""
    recipe = ClassImages(
        prompt=class_prompt,
        model=base_hash,
        seed=seed + ATTACKER_SEED,
        num_inference_steps=num_inference_steps or options.num_inference_steps,
        guidance_scale=options.guidance_scale if guidance_scale is None else guidance_scale,
        resolution=resolution,
    )
    paths = recipe.ensure(
        base,
        output / ATTACKER_CLASS_IMAGES,
        options.num_class_images,
        batch_size=batch_size,
        replace=True,
        show_progress=show_progress,
    )
    with torch.no_grad():
        return encode_images(base, load_images(paths, resolution), batch_size=batch_size)


def _load(config: AuditJobConfig, command: str | None) -> tuple[Audit, PhotoPlan | None]:
    plan = _plan(config, command)
    return plan, PhotoPlan.load(config, plan.models["base"], plan.subjects)


def _plan(config: AuditJobConfig, command: str | None) -> Audit:
    """All that is read, checked before anything is written."""
    entries = chosen(config.suite, config.attacks, config.instance_prompt)
    settings(config.attack_options)
    names = {name: getattr(config, name) for name in ("base", "hardened", "placebo", "sibling", "hardened_sibling")}
    paths = {name: path for name, path in names.items() if path is not None}
    attack_factory = AttackFactory.of(config, config.instance_prompt, config.class_prompt)
    if not available(entries, paths, attack_factory)[0]:
        raise UserError("none of the attacks can run with these models; see apdm audit --help on placebo and sibling")
    folders = Folders.below(config.subjects, config)
    people = folders.load(config.resolution)
    judges = load_judges(config)
    models = load_models(paths, family=config.family, variant=config.variant, allow_pickle=config.allow_pickle)
    check_resolution(models["base"], config.resolution)
    return Audit(
        config=config,
        models=models,
        judges=judges,
        subjects=people.subjects,
        others=people.others,
        strangers=people.strangers,
        consenting=people.consenting,
        entries=entries,
        instance_prompt=config.instance_prompt,
        class_prompt=config.class_prompt,
        seed=config.seed,
        nominal_step=config.nominal_step,
        paths={name: {"path": path, "sha256": model_hash(models[name].source or path)} for name, path in paths.items()},
        command=command,
    )


def _claim(config: AuditJobConfig) -> Path:
    """The output folder, where an audit with the same options goes on. Raises UserError for one that is not ours."""
    output = Path(config.output_dir)
    resolved = to_yaml(replace(config, overwrite_output_dir=False))
    note = output / CONFIG
    same = (output / MARKER).exists() and note.exists() and note.read_text(encoding="utf-8") == resolved
    claim_output_dir(output, overwrite=same or config.overwrite_output_dir)
    for stale in (RESULTS, REPORT, PICTURES):
        delete(output / stale)
    write_text(note, resolved)
    return output
