"""The plan of `apdm harden`: what it says before its long work. A dry run adds rows of its own."""

from __future__ import annotations

from pathlib import Path

import torch

from apdm.audit.inputs.plan import Drawing
from apdm.config import AuditOptions, HardenConfig
from apdm.config.prompts import quoted
from apdm.core.terminal import count
from apdm.data.photo_captions import Captions
from apdm.data.subjects import SAFE
from apdm.distributed.launch import EngineKind
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import IMAGES, MODEL, REPORT, SINGLE_FILE
from apdm.families import Family
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.inputs import HardenInputs
from apdm.jobs.planning.plan import Rows, audited_face_rows, face_rows, layers_text, photo_notes
from apdm.jobs.planning.texts import (
    captions_text,
    device_text,
    foreseen,
    held_out_text,
    model_text,
    people_text,
    prompts_text,
    sets_text,
    unreliable_text,
)

PRECISIONS = {"no": "float32", "bf16": "bfloat16 in forward and backward passes, float32 weights"}
PRECISIONS["fp16"] = PRECISIONS["bf16"].replace("bfloat16", "float16")


def harden_plan(
    config: HardenConfig,
    inputs: HardenInputs,
    checkpoint: Checkpoint | None,
    *,
    kind: EngineKind,
    processes: ProcessGroup,
    device: torch.device,
) -> Rows:
    """Return the plan of a hardening run.

    Args:
        checkpoint: the checkpoint that the run goes on from; None if it starts from the beginning.
    """
    photos, output = inputs.photos.instance, Path(config.output_dir)
    *fewer, steps = sorted({*(config.variety.inner_steps or [config.l2p.inner_steps])})
    attacker = f"a simulated attacker of {''.join(f'{one} or ' for one in fewer)}{count(steps, 'step')} in each"
    schedule = f", learning rate {config.lr_scheduler}" * (config.lr_scheduler != "constant")
    if config.pool.size:
        attacker = f"a pool of {count(config.pool.size + config.pool.benign_size, 'simulated attacker')}"
    afterwards = ["protects the photos"] * config.image_layer.enabled
    afterwards += [attacks_text(config.audit)] * config.audit.enabled
    made = [str(output / MODEL)]
    made += [_single_file_text(output / SINGLE_FILE, inputs.start)] * config.single_file
    made += [str(output / IMAGES)] * config.image_layer.enabled
    made += [str(output / REPORT)] * config.audit.enabled
    column = str(config.variety.caption_column)
    captions: list[Captions] = [{column: own} for own in inputs.photos.captions.values()]
    captions += inputs.audit_inputs.subjects.captions if inputs.audit_inputs is not None else []
    doubts: list[str] = []
    if config.audit.enabled and (audited := inputs.audit_inputs) is not None:
        drawn = config.audit.seeds * Drawing.of(config.audit, config.instance_prompt).number
        classes = config.audit.num_class_images
        doubts = foreseen(audited.judges, audited.subjects, pictures=drawn, class_pictures=classes)
    return {
        "model": model_text(config.pretrained_model_name_or_path, inputs.start),
        "original": config.reference_model_name_or_path,
        "people": people_text(list(photos)),
        "photos": harden_photos_text(config, inputs),
        "sets": sets_text(config.instance_data_dir, config, config.audit if config.audit.enabled else None),
        "pairs": pairs_text(inputs),
        "consenting": people_text(list(inputs.consenting.instance)),
        "earlier": people_text(list(inputs.earlier.instance)),
        "captions": captions_text(captions),
        **photo_notes(*config.photo_folders.values(), captions=captions),
        **harden_face_rows(inputs),
        "against": layers_text(config, inputs.photo_job) if inputs.photo_job else None,
        "memory": inputs.photo_job.memory_text if inputs.photo_job else None,
        "prompts": prompts_text(config.instance_prompt, config.class_prompt),
        "asked": quoted(config.audit.prompts) if config.audit.enabled else None,
        "steps": f"{count(config.max_train_steps, 'outer step')}, {attacker}{schedule}"
        + (f"; {checkpoint.step} are done" if checkpoint is not None else ""),
        "class": f"{count(inputs.own_class_pictures, 'picture')} of your own"
        if inputs.own_class_pictures
        else f"{count(config.num_class_images, 'picture')}, drawn first where they are missing",
        "afterwards": ", ".join(afterwards),
        "unreliable": unreliable_text(doubts),
        "device": device_text(device, processes.size, kind),
        "precision": PRECISIONS[config.mixed_precision],
        "output": ", ".join(made),
        "files": None if config.save_dtype else files_text(inputs.base),
    }


def _single_file_text(path: Path, model: Family) -> str:
    """The single file that will be written, and whether it holds less than the whole pipeline."""
    layout = model.single_file_layout
    return f"{path} (the {model.denoiser_name} alone)" if layout and not layout.holds_pipeline else str(path)


def attacks_text(options: AuditOptions) -> str:
    """How long the audit at the end attacks which model, and how often."""
    longest, nominal = options.max_train_steps, options.nominal_step or options.max_train_steps
    whom = f"both models for {count(longest, 'step')}"
    if nominal < longest:
        whom = f"the base for {count(nominal, 'step')} and the hardened model for {longest}"
    return f"attacks {whom}, {count(options.seeds, 'seed')}"


def harden_photos_text(config: HardenConfig, inputs: HardenInputs) -> str:
    """How many photos there are and, if some are held out, what is done with which."""
    learnt = sum(map(len, inputs.photos.instance.values()))
    source = f"in {config.photo_source}, as squares of {config.resolution} pixels"
    if not inputs.held_out or inputs.audit_inputs is None:
        return f"{count(learnt, 'photo')} {source}"
    counts = inputs.audit_inputs.subjects.counts
    whom = " from hardening and attacker"
    text = f"{count(learnt + sum(counts.held_out.values()), 'photo')} {source}; {held_out_text(counts, whom)}"
    return text + "; all are protected" * (inputs.photo_job is not None)


def pairs_text(inputs: HardenInputs) -> str:
    """Where the partners of the protected photos come from."""
    given = sum(len(images) for group in (inputs.photos, inputs.earlier) for images in group.safe.values())
    parts = [f"{count(given, 'partner')} in {SAFE}/"] * bool(given)
    parts += [f"{count(inputs.drawn_partners, 'partner')}, drawn by the base model"] * bool(inputs.drawn_partners)
    return "; ".join(parts) or "none: random class pictures are the partners of the photos"


def harden_face_rows(inputs: HardenInputs) -> Rows:
    """Return rows about the faces in the photos: as the photo protection sees them, else as the audit does."""
    rows = face_rows(inputs.photo_job) if inputs.photo_job else {}
    if not rows and inputs.audit_inputs:
        rows = audited_face_rows(inputs.audit_inputs.subjects.sets, inputs.audit_inputs.judges)
    return rows


def files_text(base: Family) -> str | None:
    """How the exported weights are stored, if not in float32 under plain names: as those of the base."""
    dtype = base.dtypes.get(base.denoiser_name, torch.float32)
    if dtype == torch.float32 and base.saved_variant is None:
        return None
    variant = f", with the names of the variant {base.saved_variant} where it has them" if base.saved_variant else ""
    return f"in {str(dtype).removeprefix('torch.')}, as those of the base{variant}"
