"""The training of a run: Learning to Protect step by step, and what of it must survive a kill."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from apdm.config import HardenConfig
from apdm.core.adamw import make_adamw
from apdm.core.errors import Interrupted, UserError
from apdm.core.signals import Stop
from apdm.core.terminal import progress_bar
from apdm.distributed.engines import shard
from apdm.distributed.launch import RESUME, SHARDED, autocast, compiler, kind_of, make_engine
from apdm.distributed.offload import Bfloat16, LeanSlowWeights
from apdm.distributed.optimizers import OPTIMIZERS
from apdm.distributed.processes import ProcessGroup
from apdm.families import Family
from apdm.jobs import checkpoint as checkpoints
from apdm.jobs.checkpoint import Checkpoint, Section, fingerprint
from apdm.jobs.validation import Validator
from apdm.protection.attacker_pool import AttackerPool
from apdm.protection.attackers import Attackers, People
from apdm.protection.learning_to_protect import LearningToProtect

# Of `l2p.`: what the algorithm does not know of.
ENGINE_OPTIONS = (
    *("learning_rate", "max_grad_norm", "attackers", "optimizer"),
    *("lora_share", "lora_rank", "lora_target", "lora_learning_rate"),
)


@dataclass
class Counters:
    """Where a run stands between two outer steps."""

    step: int = 0
    quiet_probes: int = 0


class Training:
    """theta, theta' and phi in the engine that was launched, the attackers, and their one source of randomness."""

    def __init__(
        self,
        config: HardenConfig,
        accelerator: Accelerator,
        processes: ProcessGroup,
        reference: Module,
        hardened: Family,
        people: People,
        benign: People,
        earlier: People | None = None,
    ) -> None:
        self.config, self.processes, self.hardened = config, processes, hardened
        self.path: list[Mapping[str, Tensor]] = []
        path = self.path  # not by way of self: a cycle would keep theta and all moments when training is over
        adamw: dict[str, Any] = {
            "adam_beta1": config.adam_beta1,
            "adam_beta2": config.adam_beta2,
            "adam_weight_decay": config.adam_weight_decay,
            "adam_epsilon": config.adam_epsilon,
        }
        model = hardened.denoiser.requires_grad_(True)
        if config.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        inner = partial(OPTIMIZERS[config.l2p.optimizer], learning_rate=config.l2p.learning_rate, **adamw)
        adapter = partial(make_adamw, learning_rate=config.l2p.lora_learning_rate, **adamw)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.engine = make_engine(
            config,
            accelerator,
            model,
            inner,
            processes,
            make_adapter_optimizer=adapter,
            generator=self.generator,
            family=hardened,
        )
        memory, make_slow = config.memory, self.engine.slow_weights
        if memory.offload or memory.narrow_gradient:
            make_slow = partial(LeanSlowWeights, self.engine, offload=memory.offload, narrow=memory.narrow_gradient)
        self.slow = make_slow(max_grad_norm=config.max_grad_norm, learning_rate=config.learning_rate, **adamw)
        self.average = [theta.detach().clone() for theta in self.slow.theta] if config.ema_decay else []
        self.sharded = kind_of(accelerator) in SHARDED
        if self.sharded:
            reference = shard(copy.deepcopy(reference), accelerator.device, hardened.block_names)
        elif memory.reference_dtype == "bfloat16":
            reference = Bfloat16(reference, accelerator.device)
        if compiled := compiler(accelerator):
            self.engine.compile(compiled)
            reference = compiled(reference)
        options = asdict(config.l2p)
        for elsewhere in ENGINE_OPTIONS:
            del options[elsewhere]
        self.method = LearningToProtect(
            hardened,
            self.engine,
            reference,
            self.slow,
            **options,
            objective=config.objective,
            ascent_limit=config.ascent_limit,
            beta=config.dpo.beta,
            reduction=config.dpo.reduction,
            preservation_weight=config.preservation.weight,
            anchor_weight=config.preservation.anchor_weight,
            autocast=autocast(config, accelerator),
            callback=lambda step, values: path.append(values),
        )
        self.attackers = self._line(people, earlier)
        self.friends = self._line(benign) if config.pool.benign_size else None
        self.pool = self._pool() if config.pool.size else None

    def outer_step(self) -> dict[str, float]:
        """One outer step against the next attacker; the processes' mean figures."""
        self.path.clear()
        if self.pool is not None:
            report = self.pool.outer_step()
        else:
            plan = self.attackers.next()
            self.engine.set_learning_rate(plan.learning_rate)
            self.engine.set_low_rank(plan.low_rank)
            self.method.inner_steps, self.method.prior_loss_weight = plan.steps, plan.prior_loss_weight
            report = self.method.outer_step(self.attackers.batches(plan))
        if self.average:
            torch._foreach_lerp_(self.average, [theta.detach() for theta in self.slow.theta], 1 - self.config.ema_decay)
        values = _summary(self.path, report)
        means = dict(zip(values, self.processes.mean(list(values.values())), strict=True))
        return means | {f"{name}_loss_scale": scale.get_scale() for name, scale in self.engine.loss_scales.items()}

    def unmet(self) -> int:
        """How many people no attacker will have been simulated for when the run is over."""
        steps = self.config.max_train_steps
        return len(self.attackers.people) - self.attackers.met(steps if self.pool is None else self.pool.lives(steps))

    def fault(self, figures: Mapping[str, float]) -> tuple[str, str] | None:
        """What in an outer step's figures forbids to go on, and how to mend it.

        Under loss scales a loss may overflow now and then, for its gradient was left out.
        """
        scales = [scale.get_scale() for scale in self.engine.loss_scales.values()]
        if scales and min(scales) < 1:
            return "float16 overflows at any loss scale", "go on from a checkpoint with mixed_precision bf16 or no"
        decisive = [figures["gradient_norm"]] if scales else figures.values()
        if all(math.isfinite(figure) for figure in decisive):
            return None
        return "the loss is not finite", "lower l2p.learning_rate or learning_rate, or clip with l2p.max_grad_norm"

    @torch.no_grad()
    def publish(self) -> None:
        """theta, or its average, into the model that is drawn with and exported, on the main process; between outer
        steps."""
        shown = self.average or self.slow.theta
        self.slow.restore(shown)
        if self.sharded:
            theta = self.slow.gather(shown)
            for parameter, value in zip(self.hardened.denoiser.parameters(), theta, strict=False):
                parameter.copy_(value)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def facts(self, counters: Counters) -> dict[str, Any]:
        """What a checkpoint's JSON file says of this run."""
        return {
            **asdict(counters),
            "outer_steps": self.slow.steps,
            "generator": self.generator.get_state().numpy().tobytes().hex(),
            "turns": [line.turn for line in self._lines()],
            "pool": self.pool.counters() if self.pool is not None else None,
            "loss_scales": {name: scale.state_dict() for name, scale in self.engine.loss_scales.items()},
            "config": fingerprint(self.config),
            "processes": self.processes.size,
        }

    def sections(self) -> Iterator[Section]:
        for name, tensors in self.slow.state():
            yield Section(name, tensors)
        if self.average:
            yield Section("average", self.slow.gather(self.average))
        if self.pool is not None:
            for name, tensors, keys in self.pool.state():
                yield Section(name, tensors, keys)

    def load(self, checkpoint: Checkpoint) -> Counters:
        """Stand where the run stood that wrote `checkpoint`. Raises UserError if it is of another model."""
        if self.pool is not None:
            # One step, undone by what follows, makes an optimizer's state, in whatever form the engine keeps it.
            for first in {attacker.plan.low_rank: attacker for attacker in self.pool.attackers}.values():
                self.engine.set_low_rank(first.plan.low_rank)
                for _ in range(16):  # a loss scale may leave out the first ones
                    self.method.personalize(first.line.batches(first.plan).personalization())
                    if self.engine.steps():
                        break
        return self.processes.all_or_raise(lambda: self._read(checkpoint))

    def _read(self, checkpoint: Checkpoint) -> Counters:
        facts = checkpoint.facts
        self.slow.load(checkpoint.read, facts["outer_steps"])
        if self.average:
            self.slow.scatter(checkpoint.read("average"), self.average)
        for line, turn in zip(self._lines(), facts["turns"], strict=True):
            line.turn = turn
        if self.pool is not None:
            self.pool.load(facts["pool"], checkpoint.read)
        for name, scale in self.engine.loss_scales.items():
            if state := facts["loss_scales"].get(name):  # none where the run began in another precision
                scale.load_state_dict(state)
        self.generator.set_state(torch.frombuffer(bytearray.fromhex(facts["generator"]), dtype=torch.uint8))
        return Counters(facts["step"], facts["quiet_probes"])

    # -- attackers ---------------------------------------------------------------------------------------------

    def _line(self, people: People, earlier: People | None = None) -> Attackers:
        """Attackers of these people. All draw from one generator, the same in every process."""
        config = self.config
        return Attackers(
            people,
            self.generator,
            learning_rate=config.l2p.learning_rate,
            steps=config.pool.depth if config.pool.size else config.l2p.inner_steps,
            prior_loss_weight=config.l2p.prior_loss_weight,
            lora_share=0 if config.pool.size else config.l2p.lora_share,
            batch_size=config.train_batch_size,
            variety=config.variety,
            earlier=earlier,
            earlier_every=config.rehearsal_every,
            processes=self.processes,
        )

    def _lines(self) -> list[Attackers]:
        return [line for line in (self.attackers, self.friends) if line is not None]

    def _pool(self) -> AttackerPool:
        options = self.config.pool
        return AttackerPool.start(
            self.method,
            self.attackers,
            self.friends,
            size=options.size,
            benign_size=options.benign_size,
            stride=options.stride,
            benign_weight=options.benign_weight,
            lora_share=self.config.l2p.lora_share,
        )


def protect(
    config: HardenConfig,
    accelerator: Accelerator,
    processes: ProcessGroup,
    training: Training,
    validator: Validator | None,
    *,
    output: Path,
    facts: Mapping[str, Any],
    checkpoint: Checkpoint | None,
    stop: Stop,
) -> int:
    """Learning to Protect from `checkpoint` or the start; returns outer steps done, theta being published.

    validator: on the main process. facts: of model and photos, to be kept in checkpoints.

    Raises:
        UserError: a loss or gradient is not finite; the weights of the last good step are kept beside the output.
        Interrupted: somebody asked for it, and a checkpoint is written.
    """
    counters = training.load(checkpoint) if checkpoint else Counters()
    if config.report_to:
        accelerator.init_trackers("apdm")

    def save() -> None:
        written = {**training.facts(counters), **facts}
        processes.all_or_raise(
            lambda: checkpoints.write(
                output,
                written,
                training.engine.names,
                training.sections(),
                main=processes.is_main,
                limit=config.checkpoints_total_limit,
            )
        )

    steps = range(counters.step + 1, config.max_train_steps + 1)
    if _enough(validator, counters, processes):
        steps = range(0)
    bar = progress_bar(
        steps,
        desc="harden",
        unit="step",
        initial=counters.step,
        total=config.max_train_steps,
        shown=accelerator.is_main_process,
    )
    every = config.checkpointing_steps
    for step in bar:
        values = training.outer_step()
        if fault := training.fault(values):
            _stop(output, processes, training, counters.step, fault)
        counters.step = step
        shown = {name: f"{values[name]:.4f}" for name in ("instance_loss", "protection_loss") if name in values}
        bar.set_postfix(shown, refresh=False)
        if config.validation.steps and step % config.validation.steps == 0:
            training.publish()
            figures, counters.quiet_probes = processes.broadcast(
                partial(_validate, validator, step, accelerator.device)
            )
            values |= figures
        if config.report_to:
            accelerator.log(values, step=step)
        enough = _enough(validator, counters, processes)
        over = enough or step == config.max_train_steps
        asked = any(processes.mean([float(stop.asked)]))
        # Image layer and audit are long too, and when they are killed the training is not to be done again.
        last = over and (every or config.image_layer.enabled or config.audit.enabled)
        if asked or last or (every and step % every == 0):
            save()
        if asked:
            interrupted = Interrupted(f"after outer step {step}, with a checkpoint in {output}; {RESUME}")
            interrupted.reported_by_other_process = not processes.is_main
            raise interrupted
        if enough:
            break
    bar.close()
    training.publish()
    return counters.step


def _validate(validator: Validator | None, step: int, device: torch.device) -> tuple[dict[str, float], int]:
    if validator is None:
        raise RuntimeError("validation runs where the validator is")
    denoiser: Any = validator.family.denoiser
    home = next(denoiser.parameters()).device  # the CPU, where the engine shards the model
    denoiser.to(device)
    figures = validator(step)
    denoiser.to(home)
    return figures, validator.quiet_probes


def _enough(validator: Validator | None, counters: Counters, processes: ProcessGroup) -> bool:
    """Whether the probe attack has been stopped often enough, as the main process's validator says."""
    if validator is not None:
        validator.quiet_probes = counters.quiet_probes
    return any(processes.mean([float(validator is not None and validator.enough)]))


def _summary(path: Sequence[Mapping[str, Tensor]], report: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over the inner path, and the outer step's own figures: the only host sync of an outer step."""
    means = {name: torch.stack([values[name] for values in path]).mean() for name in path[0]} if path else {}
    everything = {**means, **report}
    return dict(zip(everything, torch.stack([v.float().cpu() for v in everything.values()]).tolist(), strict=True))


def _stop(output: Path, processes: ProcessGroup, training: Training, done: int, fault: tuple[str, str]) -> None:
    training.publish()
    kept = output / f"model-after-{done}-steps"

    def tell() -> None:
        training.hardened.denoiser.requires_grad_(False)
        training.hardened.save(kept)
        what, mend = fault
        raise UserError(f"{what} in outer step {done + 1}; the weights of step {done} are in {kept}; {mend}")

    processes.on_main(tell)
