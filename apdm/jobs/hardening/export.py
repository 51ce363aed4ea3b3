"""What a hardening run writes at its end: the model, and what is said and tidied up around it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from apdm.config import HardenConfig, config_hash
from apdm.core.disk import CannotWrite
from apdm.core.files import delete
from apdm.core.logging import get_logger
from apdm.core.model_path import local_model
from apdm.export.layout import MODEL, PARTNERS, PICTURES, REPORT, RESULTS, SINGLE_FILE
from apdm.export.pipeline import export_model
from apdm.families import Family
from apdm.families.pipeline_folder import HALF
from apdm.jobs.hardening import checkpoint as checkpoints
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.inputs import AboutPhotos

logger = get_logger(__name__)

KEPT = 0.9  # the user is warned if rounding keeps less than this share of the weights' changes


def export(
    config: HardenConfig,
    base: Family,
    hardened: Family,
    steps: int,
    device: torch.device,
    *,
    about: AboutPhotos,
) -> float:
    """Write the hardened model, and delete results that an earlier run left in the output folder.

    Args:
        hardened: the family with the hardened denoiser.
        steps: number of outer steps done.
        about: what model card and manifest say about the photos: how they were paired, and which were held out.

    Returns:
        The share of the denoiser's weights that differ from the base's in the exported folder.
    """
    output = Path(config.output_dir)
    for family in (base, hardened):
        family.pipeline.to(device)
        family.denoiser.to(memory_format=torch.contiguous_format)  # what follows works on it as on the exported folder
    hardened.denoiser.requires_grad_(False).eval()
    moved = tell_moved_weights(config, base, hardened)
    hardened.round_weights()
    if hardened.saved_variant:
        logger.info(
            "%s has the file names of the variant %s where the base has them", output / MODEL, hardened.saved_variant
        )
    export_model(
        hardened,
        output / MODEL,
        base_path=base.origin or config.base,
        base_model=config.base if local_model(config.base) is None else None,
        config_hash=config_hash(config),
        method="apdm",
        steps=steps,
        **about,
        save_variant=config.save_variant,
        single_file=config.single_file,
        moved=moved,
    )
    stale = [RESULTS, REPORT, PICTURES]
    stale += [] if config.single_file else [SINGLE_FILE]
    stale += [] if "drawn" in about["pairs"] else [PARTNERS]
    for name in stale:
        delete(output / name)
    return moved


def tell_moved_weights(config: HardenConfig, base: Family, hardened: Family) -> float:
    """Log how many of the denoiser's weights the export changes. Half precision rounds small changes away.

    Args:
        hardened: the family with the hardened denoiser, in the precision of the training.

    Returns:
        The share of the denoiser's weights in the pipeline folder that differ from the base's.
    """
    stored = hardened.dtypes.get(hardened.denoiser_name, torch.float32)
    shares = {
        dtype: moved_share(hardened.denoiser, base.denoiser, dtype)
        for dtype in {torch.float32, stored, HALF.get(config.save_variant or "", stored)}
    }
    for dtype in sorted(shares.keys() - {torch.float32}, key=str):
        lost = shares[dtype] < KEPT * shares[torch.float32]
        message = "in %s, %.1f %% of the denoiser's weights differ from the base; %.1f %% do before they are rounded"
        if lost and dtype == stored:
            message += "; --save_dtype float32 keeps them all"
        log = logger.warning if lost else logger.info
        log(message, str(dtype).removeprefix("torch."), 100 * shares[dtype], 100 * shares[torch.float32])
    return shares[stored]


@torch.no_grad()
def moved_share(denoiser: nn.Module, original: nn.Module, dtype: torch.dtype) -> float:
    """The share of a denoiser's weights that differ from the original's when both are rounded to a float type.

    Args:
        original: the denoiser that it was trained from, on any device.
        dtype: the float type of the exported weights.
    """
    pairs = zip(denoiser.parameters(), original.parameters(), strict=True)
    moved = [(ours.to(dtype) != theirs.to(ours.device).to(dtype)).sum() for ours, theirs in pairs]
    return float(torch.stack(moved).sum()) / sum(weight.numel() for weight in denoiser.parameters())


def name_checkpoint(fault: CannotWrite, checkpoint: Path | None, output: Path) -> CannotWrite:
    """Say in a fault of the export where the training is kept, if its checkpoint is not in the output folder."""
    if checkpoint is None or checkpoint.parent == output:
        return fault
    message = f"{fault}; the training is kept: {checkpoints.how_to_go_on_from(checkpoint, output)}"
    return CannotWrite(message, fault.number, says_how_to_go_on=True)


def delete_last_checkpoint(config: HardenConfig, checkpoint: Path | None, begun_from: Checkpoint | None) -> None:
    """Delete the checkpoint of the last step, if it was saved only in case the export fails.

    Args:
        checkpoint: the checkpoint of the last step; None if it could not be written.
        begun_from: the checkpoint that the run went on from; None if it started from the beginning.
    """
    output = Path(config.output_dir)
    if not (config.checkpointing_steps or config.image_layer.enabled or config.audit.enabled):
        checkpoints.discard(output)
    elsewhere = checkpoint is not None and checkpoint.parent != output
    if checkpoint is not None and elsewhere and (begun_from is None or checkpoint != begun_from.folder):
        delete(checkpoint.parent)
