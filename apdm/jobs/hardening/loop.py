"""The loop over outer steps, with progress bar, tracker, validation and checkpoints. It handles interruptions too."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from apdm.config import HardenConfig
from apdm.core.disk import CannotWrite
from apdm.core.errors import Interrupted, UserError
from apdm.core.logging import get_logger
from apdm.core.signals import Stop, how_to_go_on
from apdm.core.terminal import progress_bar
from apdm.distributed.trackers import Tracker
from apdm.jobs.hardening.checkpoint import Checkpoint
from apdm.jobs.hardening.keeper import Keeper
from apdm.jobs.hardening.training import Counters, Training
from apdm.jobs.hardening.validation import Validator

logger = get_logger(__name__)

REQUIRED_PROBES = 2  # how many probes in a row must show no more likeness than strangers before training may stop


class Trained(NamedTuple):
    """A finished training.

    Attributes:
        steps: number of outer steps done.
        checkpoint: the folder of the newest checkpoint; None if none could be written.
        seconds: time of all outer steps, with validations and checkpoints; None if an earlier run took some of them.
    """

    steps: int
    checkpoint: Path | None
    seconds: float | None


def run_training(
    training: Training,
    validator: Validator,
    device: torch.device,
    tracker: Tracker | None,
    *,
    facts: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    stop: Stop,
) -> Trained:
    """Run the outer steps, from `checkpoint` or from the start. Afterwards theta is in the model.

    Args:
        training: the parts of the method.
        validator: draws pictures and runs the probe; only the main process calls it.
        device: where the validator draws.
        facts: facts about models and photos, to be stored in checkpoints.
        checkpoint: the checkpoint to resume from; None to start from the beginning.

    Returns:
        The number of outer steps done, including those before the checkpoint, the newest checkpoint, and the time.

    Raises:
        UserError: a loss or gradient is not finite. The weights of the last good step are saved in the output folder.
        Interrupted: the user asked to stop, and a checkpoint was written.
    """
    config, processes = training.config, training.processes
    output = Path(config.output_dir)
    counters = training.load(checkpoint) if checkpoint else Counters()
    keeper = Keeper(
        training,
        output,
        facts=facts,
        limit=config.checkpoints_total_limit,
        newest=checkpoint.folder if checkpoint else None,
    )
    steps = range(counters.step + 1, config.max_train_steps + 1)
    if _is_protected(config, counters):
        steps = range(0)
    started = time.perf_counter()
    every, total = config.checkpointing_steps, config.max_train_steps
    with progress_bar(steps, desc="harden", unit="step", initial=counters.step, total=total) as bar:
        for step in bar:
            figures = training.outer_step()
            if fault := training.find_fault(figures):
                _stop_with_last_good_weights(output, training, counters.step, fault)
            counters.step = step
            shown = {name: f"{figures[name]:.4f}" for name in ("instance_loss", "protection_loss") if name in figures}
            bar.set_postfix(shown, refresh=False)
            try:
                _validate_and_log(training, validator, device, tracker, counters, figures)
            except CannotWrite as fault:
                raise keeper.rescue(counters, fault) from None
            protected = _is_protected(config, counters)
            over = protected or step == config.max_train_steps
            interrupted = any(processes.mean([float(stop.asked)]))
            if interrupted or (every and step % every == 0 and not over):
                keeper.save(counters)
            if interrupted:
                raise Interrupted(
                    f"after outer step {step}, with a checkpoint in {output}; {how_to_go_on()}",
                    number=stop.number,
                    reported_by_other_process=not processes.is_main,
                )
            if over:
                save_last(keeper, counters)
            if protected:
                break
    training.publish()
    return Trained(counters.step, keeper.newest, None if checkpoint else time.perf_counter() - started)


def save_last(keeper: Keeper, counters: Counters) -> None:
    """Save the training before the model is exported, so that nothing that happens from now on can lose it.

    A disk that has no room for the checkpoint may have room for the model, which is smaller. So that is tried anyway.
    """
    try:
        keeper.save(counters)
    except CannotWrite as fault:
        logger.warning("%s; the model is exported all the same", fault)


def _validate_and_log(
    training: Training,
    validator: Validator,
    device: torch.device,
    tracker: Tracker | None,
    counters: Counters,
    figures: Mapping[str, float],
) -> None:
    """Validate if it is time, count quiet probes, and report the figures. Raises CannotWrite if a disk is full."""
    config, processes, step = training.config, training.processes, counters.step
    if config.validation.steps and step % config.validation.steps == 0:
        training.publish()
        measured, quiet = processes.broadcast(partial(_validate, validator, step, device))
        counters.quiet_probes = counters.quiet_probes + 1 if quiet else 0
        figures = {**figures, **measured}
    if config.report_to:
        processes.on_main(lambda: tracker.numbers(figures, step) if tracker is not None else None)


def _validate(validator: Validator, step: int, device: torch.device) -> tuple[dict[str, float], bool]:
    denoiser: Any = validator.family.denoiser
    home = next(denoiser.parameters()).device  # the CPU, if the engine shards the model
    denoiser.to(device)
    measured = validator(step)
    denoiser.to(home)
    return measured


def _is_protected(config: HardenConfig, counters: Counters) -> bool:
    """Whether the training may stop: the user asked for that, and enough probe attacks in a row have failed."""
    return config.validation.stop_when_protected and counters.quiet_probes >= REQUIRED_PROBES


def _stop_with_last_good_weights(output: Path, training: Training, done: int, fault: tuple[str, str]) -> None:
    training.publish()
    kept = output / f"model-after-{done}-steps"

    def tell() -> None:
        training.hardened.denoiser.requires_grad_(False)
        training.hardened.save(kept)
        what, mend = fault
        raise UserError(f"{what} in outer step {done + 1}; the weights of step {done} are in {kept}; {mend}")

    training.processes.on_main(tell)
