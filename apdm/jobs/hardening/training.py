"""The training of a run: it builds the parts of Learning to Protect from the options, and runs outer steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import Module

from apdm.config import HardenConfig
from apdm.core.errors import UserError
from apdm.distributed.engines import Engine, shard
from apdm.distributed.graphs import Graphs, can_record
from apdm.distributed.launch import PLAIN, SHARDED, engine_kind, make_autocast, make_compiler, make_engine
from apdm.distributed.lora import AdapterOptions
from apdm.distributed.master_weights import make_master_weights
from apdm.distributed.optimizers import OPTIMIZERS
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.recompute import enable_gradient_checkpointing
from apdm.distributed.reference import Bfloat16Reference
from apdm.distributed.schedule import CONSTANT, learning_rates
from apdm.families import Family
from apdm.jobs.hardening.checkpoint import Checkpoint, Section, fingerprint
from apdm.protection.attacker_pool import AttackerPool
from apdm.protection.attackers import FreshAttacker, SimulatedAttacker, SimulatedAttackers
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import SubjectVariants


@dataclass
class Counters:
    """The progress of a run between two outer steps.

    Attributes:
        step: number of outer steps done.
        quiet_probes: how many of the latest probe attacks in a row reached no more likeness than strangers have.
    """

    step: int = 0
    quiet_probes: int = 0


class Training:
    """The weights theta, theta' and phi, the engine, the simulated attackers, and the run's random generator.

    Args:
        accelerator: the accelerator that was launched.
        reference: phi, the frozen original denoiser.
        hardened: the family whose denoiser is trained.
        people: data of the protected people.
        benign: data of people who consent, for benign attackers.
        earlier: data of people whom the model already protects; None if there are none.
    """

    def __init__(
        self,
        config: HardenConfig,
        accelerator: Accelerator,
        processes: ProcessGroup,
        reference: Module,
        hardened: Family,
        people: SubjectVariants,
        benign: SubjectVariants,
        earlier: SubjectVariants | None = None,
    ) -> None:
        self.config, self.processes, self.hardened = config, processes, hardened
        self.generator = torch.Generator().manual_seed(config.seed)
        kind = engine_kind(accelerator)
        self.sharded = kind in SHARDED
        if config.channels_last:  # a convolution gives its output the memory format of its weights
            networks: tuple[Any, ...] = (hardened.denoiser, reference)
            for network in networks:
                network.to(memory_format=torch.channels_last)
        self.engine = self._make_engine(accelerator)
        self.master = make_master_weights(
            self.engine.working,
            offload=config.memory.offload,
            max_grad_norm=config.max_grad_norm,
            **adamw_options(config),
        )
        self.learning_rate = learning_rates(
            config.lr_scheduler,
            config.learning_rate,
            steps=config.max_train_steps,
            warmup_steps=config.lr_warmup_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
        self.average = [theta.detach().clone() for theta in self.master.theta] if config.ema_decay else []
        reference = self._place_reference(reference, accelerator)
        if compiled := make_compiler(accelerator):
            self.engine.compile(compiled)
            reference = compiled(reference)
        if config.cuda_graphs and kind in PLAIN and can_record(accelerator.device, self.hardened.denoiser):
            graphs = Graphs(accelerator.device)
            self.engine.compile(graphs)
            reference = graphs(reference)
        self.inner_figures: list[Mapping[str, Tensor]] = []
        self.method = self._make_method(reference, accelerator)
        self.attackers = self._make_attackers(people, earlier)
        self.benign_attackers = self._make_attackers(benign) if config.pool.benign_size else None
        self.pool = self._make_pool() if config.pool.size else None

    def outer_step(self) -> dict[str, float]:
        """Run one outer step against the next attacker.

        Returns:
            {name: figure}, averaged over the inner steps and over the processes; and the present loss scales and the
            learning rate, if they change.
        """
        self.inner_figures.clear()
        rate = self.learning_rate(self.method.done)
        self.master.set_learning_rate(rate)
        report = self.method.outer_step(self._next_attacker())
        if self.average:
            theta = [theta.detach() for theta in self.master.theta]
            torch._foreach_lerp_(self.average, theta, 1 - self.config.ema_decay)
        values = summarize(self.inner_figures, report)
        means = dict(zip(values, self.processes.mean(list(values.values())), strict=True))
        means |= {"learning_rate": rate} if self.config.lr_scheduler != CONSTANT else {}
        return means | {f"{name}_loss_scale": scale.get_scale() for name, scale in self.engine.loss_scales.items()}

    def count_people_without_attacker(self) -> int:
        """Return the number of people on whom no simulated attacker will have trained by the end of the run."""
        steps = self.config.max_train_steps
        attackers = steps if self.pool is None else self.pool.count_attackers(steps)
        return len(self.attackers.people) - self.attackers.count_people(attackers)

    def find_fault(self, figures: Mapping[str, float]) -> tuple[str, str] | None:
        """Check whether the training can continue after an outer step.

        If loss scales are in use, a loss that is not finite is not a fault, because its gradient was skipped.

        Args:
            figures: what `outer_step` returned.

        Returns:
            What is wrong, and how the user can mend it; None if nothing is wrong.
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
        """Copy theta, or its running average if there is one, into the model that draws pictures and is exported.

        All processes must call this, between two outer steps. If the engine shards the weights, only the main process
        gets the complete model.
        """
        shown = self.average or self.master.theta
        self.master.restore(shown)
        if self.sharded:
            theta = self.master.gather(shown)
            for parameter, value in zip(self.hardened.denoiser.parameters(), theta, strict=False):
                parameter.copy_(value)

    # -- checkpoints -------------------------------------------------------------------------------------------

    def facts(self, counters: Counters) -> dict[str, Any]:
        """Return the part of the run's state that is not tensors, for the JSON file of a checkpoint."""
        return {
            **asdict(counters),
            "outer_steps": self.master.steps,
            "generator": self.generator.get_state().numpy().tobytes().hex(),
            "turns": [source.turn for source in self._sources()],
            "pool": self.pool.counters() if self.pool is not None else None,
            "loss_scales": {name: scale.state_dict() for name, scale in self.engine.loss_scales.items()},
            "config": fingerprint(self.config),
            "processes": self.processes.size,
        }

    def sections(self) -> Iterator[Section]:
        """Yield a checkpoint's tensors: theta, its AdamW moments, its running average, and the attackers of the pool.

        Every process must call this. Only the main process gets the tensors.
        """
        for name, tensors in self.master.state():
            yield Section(name, tensors)
        if self.average:
            yield Section("average", self.master.gather(self.average))
        if self.pool is not None:
            for name, tensors, keys in self.pool.state(self.engine, self.master):
                yield Section(name, tensors, keys)

    def load(self, checkpoint: Checkpoint) -> Counters:
        """Restore the state of the run that wrote `checkpoint`. Every process must call this.

        Returns:
            The run's progress.

        Raises:
            UserError: the checkpoint was written for another model, or the objective cannot be resumed.
        """
        return self.processes.all_or_raise(lambda: self._load(checkpoint))

    def _load(self, checkpoint: Checkpoint) -> Counters:
        facts = checkpoint.facts
        if self.method.objective.stateful:
            raise UserError(
                f"the objective {self.method.objective.name} keeps a state that checkpoints do not hold; start anew"
            )
        self.master.load(checkpoint.read, facts["outer_steps"])
        self.method.done = facts["step"]
        if self.average:
            self.master.scatter(checkpoint.read("average"), self.average)
        for source, turn in zip(self._sources(), facts["turns"], strict=True):
            source.turn = turn
        if self.pool is not None:
            self.pool.load(facts["pool"], checkpoint.read, self.engine, self.master)
        for name, scale in self.engine.loss_scales.items():
            if state := facts["loss_scales"].get(name):  # none if the run began in another precision
                scale.load_state_dict(state)
        self.generator.set_state(torch.frombuffer(bytearray.fromhex(facts["generator"]), dtype=torch.uint8))
        return Counters(facts["step"], facts["quiet_probes"])

    # -- the parts -----------------------------------------------------------------------------------------------

    def _make_engine(self, accelerator: Accelerator) -> Engine:
        config, l2p, adamw = self.config, self.config.l2p, adamw_options(self.config)
        model = self.hardened.denoiser.requires_grad_(True)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        adapter = None
        if l2p.lora_share:
            adapter = AdapterOptions(
                rank=l2p.lora_rank,
                layers=self.hardened.lora_layers(model, l2p.lora_target),
                make_optimizer=partial(OPTIMIZERS["adamw"], learning_rate=l2p.lora_learning_rate, **adamw),
                generator=self.generator,
                single_copy=l2p.lora_share == 1 and not config.ema_decay,
            )
        return make_engine(
            accelerator,
            model,
            partial(OPTIMIZERS[l2p.optimizer], learning_rate=l2p.learning_rate, **adamw),
            self.processes,
            block_names=self.hardened.block_names,
            max_grad_norm=l2p.max_grad_norm,
            accumulation=config.gradient_accumulation_steps,
            micro_batch_size=config.train_batch_size // (self.processes.size * config.gradient_accumulation_steps),
            mixed_precision=config.mixed_precision,
            independent=l2p.attackers == "independent",
            adapter=adapter,
        )

    def _place_reference(self, reference: Module, accelerator: Accelerator) -> Module:
        if self.sharded:
            return shard(copy.deepcopy(reference), accelerator.device, self.hardened.block_names)
        if self.config.memory.reference_dtype == "bfloat16":
            return Bfloat16Reference(reference, accelerator.device)
        return reference

    def _make_method(self, reference: Any, accelerator: Accelerator) -> LearningToProtect:
        config, figures = self.config, self.inner_figures
        return LearningToProtect(
            self.hardened,
            self.engine,
            reference,
            self.master,
            make_objective(config.objective),
            accumulate=config.l2p.accumulate,
            evaluate=config.l2p.evaluate,
            preservation_weight=config.preservation.weight,
            anchor_weight=config.preservation.anchor_weight,
            benign_weight=config.pool.benign_weight,
            outer_steps=config.max_train_steps,
            autocast=make_autocast(config.mixed_precision, accelerator),
            # This must not refer to `self`: the reference cycle would keep theta and all moments in memory after the
            # training.
            callback=lambda step, values: figures.append(values),
        )

    def _make_attackers(self, people: SubjectVariants, earlier: SubjectVariants | None = None) -> SimulatedAttackers:
        """Return the source of attackers that train on these people. All sources use the run's one generator."""
        config, l2p, variety = self.config, self.config.l2p, self.config.variety
        return SimulatedAttackers(
            people,
            self.generator,
            learning_rates=variety.learning_rates or [l2p.learning_rate],
            steps=variety.inner_steps or [config.pool.depth if config.pool.size else l2p.inner_steps],
            prior_loss_weights=variety.prior_loss_weights or [l2p.prior_loss_weight],
            lora_share=0 if config.pool.size else l2p.lora_share,  # a pool itself chooses who trains an adapter
            batch_size=config.train_batch_size,
            earlier=earlier,
            earlier_every=config.rehearsal_every,
            processes=self.processes,
        )

    def _make_pool(self) -> AttackerPool:
        options = self.config.pool
        return AttackerPool.start(
            self.attackers,
            self.benign_attackers,
            size=options.size,
            benign_size=options.benign_size,
            stride=options.stride,
            lora_share=self.config.l2p.lora_share,
        )

    def _next_attacker(self) -> SimulatedAttacker:
        if self.pool is not None:
            return self.pool.next()
        plan = self.attackers.next()
        return FreshAttacker(plan, self.attackers.batches(plan))

    def _sources(self) -> list[SimulatedAttackers]:
        return [source for source in (self.attackers, self.benign_attackers) if source is not None]


def adamw_options(config: HardenConfig) -> dict[str, float]:
    """Return the options that the attacker's AdamW and the outer AdamW share: all but the learning rate."""
    return {
        "adam_beta1": config.adam_beta1,
        "adam_beta2": config.adam_beta2,
        "adam_weight_decay": config.adam_weight_decay,
        "adam_epsilon": config.adam_epsilon,
    }


def summarize(inner: Sequence[Mapping[str, Tensor]], outer: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means of the inner steps' figures, and the outer step's own figures, as Python numbers.

    All figures are copied from the device together, so that the CPU waits for the device only once.

    Args:
        inner: {name: scalar} of each inner step.
        outer: {name: scalar} of the outer step.
    """
    seen: dict[str, list[Tensor]] = {}
    for figures in inner:
        for name, value in figures.items():
            seen.setdefault(name, []).append(value)
    everything = {name: torch.stack(values).mean().float() for name, values in seen.items()}
    everything |= {name: value.float() for name, value in outer.items()}
    if len({value.device for value in everything.values()}) > 1:  # the norm of a G in main memory is there too
        everything = {name: value.cpu() for name, value in everything.items()}
    return dict(zip(everything, torch.stack(list(everything.values())).tolist(), strict=True))
