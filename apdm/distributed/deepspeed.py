"""DeepSpeed's ZeRO as an engine: stages 1, 2 and 3, with or without the attacker's optimizer in CPU memory.

DeepSpeed wraps the model and the attacker's optimizer, and takes the attacker's steps: one call for the backward pass,
one for the step. It shards AdamW's moments, and in stage 3 the weights themselves; the classes of weights below read
and write these shards. theta, G and the outer AdamW stay ours (`apdm.distributed.master_weights`).

All code that is specific to DeepSpeed is in this file. Besides DeepSpeed's public functions, this file uses some
attributes that DeepSpeed does not document. Of its package it uses `ops.__compatible_ops__`. Of a ZeRO-3 parameter it
uses `ds_tensor`, the parameter's shard. Of the optimizer of DeepSpeed's engine it uses `optimizer` (the AdamW that
DeepSpeed was given), `zero_grad`, `override_loss_scale`, `fp32_partitioned_groups_flat` (stage 3) and
`_lazy_init_hp_params_optimizer_state` (stages 1 and 2). All of them exist in DeepSpeed 0.19.8.
`tests/distributed/test_engines.py` fails if one of them stops working.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apdm.core.adamw import create_state
from apdm.core.errors import UserError
from apdm.distributed.engines import Engine
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer, TrainedWeights, WorkingWeights

BUCKET = 50_000_000  # numbers in a gradient bucket
BUILD_MEND = "install g++, ninja and Python's header files, or launch with launch/ddp.yaml"
Autocast = Callable[[], AbstractContextManager[Any]]


def require_deepspeed() -> None:
    """Check that DeepSpeed is installed, and keep it from compiling an operator at its first start on CPUs.

    The operator serves tensor parallelism alone, which is not used here. To compile it takes half a minute, a compiler
    and ninja.

    Raises:
        UserError: DeepSpeed is missing.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError('the launcher asks for DeepSpeed, which is not installed: pip install "apdm[deepspeed]"')
    if not torch.accelerator.is_available():
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def build_fault(error: Exception) -> UserError | None:
    """Return what to tell the user if DeepSpeed could not build an operator; None if `error` is about other things."""
    text = str(error)
    if not any(words in text for words in ("JIT load", "building extension", "Ninja is required")):
        return None
    causes = [line.strip() for line in text.splitlines() if "error:" in line] or text.splitlines()
    return UserError(f"DeepSpeed cannot build an operator: {causes[0]}; {BUILD_MEND}")


class InAutocast(nn.Module):
    """A module whose forward pass runs in `autocast`. Without this, DeepSpeed would switch autocast off."""

    def __init__(self, module: nn.Module, autocast: Autocast) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast():
            return self.module(*args, **kwargs)


class ZeroEngine(Engine):
    """ZeRO stages 1 and 2: every process holds all of theta', and one part of the attacker's AdamW moments.

    In stage 2, every process also keeps only one part of the attacker's gradients. The defender's gradient is computed
    with the model itself and not with DeepSpeed's wrapper, so DeepSpeed communicates nothing for it. G is averaged over
    the processes once per outer step.

    Args:
        model: the denoiser to train.
        make_optimizer: makes the attacker's optimizer.
        config: DeepSpeed's configuration. Only its `zero_optimization` is used; this class sets everything else.
        micro_batch_size: samples that one process puts through the model at once.
        autocast: makes the context of each of the attacker's forward passes.
        options: further arguments of `Engine`.

    Raises:
        UserError: DeepSpeed replaced the attacker's AdamW by another optimizer, or cannot build an operator.
    """

    zero_options: ClassVar[Mapping[str, Any]] = {}  # of DeepSpeed's `zero_optimization`, in place of the user's

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        *,
        config: dict[str, Any],
        micro_batch_size: int,
        autocast: Autocast,
        **options: Any,
    ) -> None:
        super().__init__(model, make_optimizer, **options)
        import deepspeed

        optimizer = self.full.optimizer
        # Every setting is given explicitly, because DeepSpeed's defaults do not fit: gradients are clipped at 1, and
        # gradient buckets hold 500 million numbers (2 GB) for a model of any size.
        bucket = {"reduce_bucket_size": min(BUCKET, sum(p.numel() for p in self.working.parameters))}
        config = {
            "zero_optimization": {**bucket, **config["zero_optimization"], **self.zero_options},
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # use torch's AdamW, as the other engines do
            "steps_per_print": 2**31,
        }
        try:
            engine, _, _, _ = deepspeed.initialize(
                model=InAutocast(model, autocast), optimizer=optimizer, config=config
            )
        except RuntimeError as error:
            raise build_fault(error) or error from None
        if engine.optimizer.optimizer is not optimizer:
            raise UserError("DeepSpeed replaced the attacker's AdamW; use the DeepSpeed version in constraints.txt")
        self.engine: Any = engine
        self._take_over(optimizer)
        self.full.attack_network = engine

    def _take_over(self, optimizer: Optimizer) -> None:
        """Make `working` and `full` anew, which know where DeepSpeed keeps the weights and the moments."""
        self.working = ZeroWorkingWeights(self.model, self.processes)
        self.full = ZeroTrainedWeights(self.working, optimizer, self.model, self.engine)

    def _scale_by(self, scale: float) -> None:
        """Set DeepSpeed's loss scale. DeepSpeed multiplies the loss by it, and divides the gradient by it again.

        The attacker's scale must be copied from the device for this, which waits for the device. That costs nothing
        more, because DeepSpeed waits for the gradient's norm in every step.
        """
        if self.attack_scale.is_enabled():
            self.engine.optimizer.override_loss_scale(scale)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self._scale_by(self.attack_scale.get_scale())
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def _step(self, trained: TrainedWeights) -> None:
        # DeepSpeed took the step in `_backward`. It silently skips a step whose gradient is not finite. Without
        # DeepSpeed, such a step makes theta' NaN, and the job stops with an error. So theta' is made NaN here too.
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            return
        if self.attack_scale.is_enabled():
            self.attack_scale.judge(torch.as_tensor(norm, device=self.working.tensors[0].device))
        elif not torch.as_tensor(norm).isfinite():
            with torch.no_grad():
                self.working.tensors[0].fill_(float("nan"))

    def _clear(self, trained: TrainedWeights) -> None:
        """Do nothing, because DeepSpeed clears the gradients itself."""


class ZeroWorkingWeights(WorkingWeights):
    """The working weights in stages 1 and 2: whole parameters. DeepSpeed keeps float32 copies of them besides."""

    def after_write(self) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for p in self.parameters:
            safe_set_full_fp32_param(p, p.data)


class ZeroTrainedWeights(TrainedWeights):
    """All weights of the model, with AdamW's moments in DeepSpeed's flat partitions."""

    def __init__(self, working: WorkingWeights, optimizer: Optimizer, network: nn.Module, engine: Any) -> None:
        super().__init__(working.parameters, working.names, optimizer, network, processes=working.processes)
        self.working, self.engine = working, engine

    def create_moments(self) -> None:
        create_state(self.optimizer, [p for group in self.optimizer.param_groups for p in group["params"]])
        self.engine.optimizer._lazy_init_hp_params_optimizer_state()  # links the parameters with the moments

    def _gather_moment(self, parameter: Tensor, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, name)

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, whole, name)


class Zero3Engine(ZeroEngine):
    """ZeRO stage 3: the parameters and theta are sharded too.

    The backward pass averages the gradient over the processes, for the defender as for the attacker. So G needs no
    further averaging.
    """

    # By default DeepSpeed keeps small parameters whole. Such a parameter would not change when its shard is written to.
    zero_options = {"stage3_param_persistence_threshold": 0}
    working: FlatShards

    def _take_over(self, optimizer: Optimizer) -> None:
        # The present `working` was made before DeepSpeed sharded the parameters, so it has the shapes of whole ones.
        self.working = FlatShards(self.model, self.processes, self.working.shapes)
        self.full = Zero3TrainedWeights(self.working, optimizer, self.model, self.engine)
        self.full.defence_network = self.engine

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        from deepspeed.utils import safe_get_local_grad

        self._scale_by(1.0)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.defence_scale.scale(loss), scale_wrt_gas=False)
        shards = [safe_get_local_grad(p).clone() for p in self.working.parameters]
        self.engine.optimizer.zero_grad()
        for i, piece in enumerate(shards):
            piece[self.working.real_size(i) :] = 0  # the padding may hold any numbers
        return shards


class FlatShards(WorkingWeights):
    """The working weights in stage 3: each process holds an equal share of every parameter's numbers.

    A parameter is flattened and cut into as many shards of equal length as there are processes. The end is padded.
    """

    replicated = False

    def __init__(self, model: nn.Module, processes: ProcessGroup, shapes: list[torch.Size]) -> None:
        super().__init__(model, processes)
        self.shapes = shapes
        parameters: list[Any] = self.parameters
        self.tensors = [p.ds_tensor.data for p in parameters]

    def real_size(self, index: int) -> int:
        """Return how many numbers in this process's shard of parameter `index` are not padding."""
        size = self.tensors[index].numel()
        return max(0, min(size, self.shapes[index].numel() - self.processes.index * size))

    def after_write(self) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        for p, piece in zip(self.parameters, self.tensors, strict=True):
            safe_set_local_fp32_param(p, piece)
        if torch.accelerator.is_available():  # DeepSpeed gathers shards on another stream, which does not wait for this
            torch.accelerator.current_stream().synchronize()

    def gather(self, index: int, shard: Tensor) -> Tensor:
        flat = torch.empty(shard.numel() * self.processes.size, dtype=shard.dtype, device=shard.device)
        self.processes.all_gather(shard, flat)
        shape = self.shapes[index]
        return flat[: shape.numel()].view(shape)

    def shard(self, index: int, whole: Tensor) -> Tensor:
        piece, size = torch.zeros_like(self.tensors[index]), self.tensors[index].numel()
        start, real = self.processes.index * size, self.real_size(index)
        piece[:real] = whole.reshape(-1)[start : start + real]
        return piece


class Zero3TrainedWeights(ZeroTrainedWeights):
    """All weights of the model, with AdamW's moments sharded as stage 3 shards the weights."""

    def create_moments(self) -> None:
        create_state(self.optimizer, self.engine.optimizer.fp32_partitioned_groups_flat)

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self.working.shard(index, whole), name)
