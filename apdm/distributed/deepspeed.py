"""DeepSpeed's ZeRO as an engine: stages 1, 2 and 3, with or without the attacker's optimizer in CPU memory.

All code that is specific to DeepSpeed is in this file. Beside DeepSpeed's public functions it uses these attributes:
`ds_tensor`, a ZeRO-3 parameter's shard; and of the engine's optimizer `optimizer` (the AdamW that it was given),
`zero_grad`, `override_loss_scale`, `fp32_partitioned_groups_flat` (stage 3) and
`_lazy_init_hp_params_optimizer_state` (stages 1 and 2). All of them work with DeepSpeed 0.19.8;
`tests/distributed/test_engines.py` fails when one no longer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from apdm.core.adamw import create_state
from apdm.core.errors import UserError
from apdm.distributed.engines import Engine
from apdm.distributed.processes import ProcessGroup
from apdm.distributed.working_weights import MakeOptimizer, TrainedWeights, WorkingWeights

BUCKET = 50_000_000  # numbers in a gradient bucket
Autocast = Callable[[], AbstractContextManager[Any]]


class InAutocast(nn.Module):
    """A module whose forward pass runs in `autocast`. DeepSpeed switches autocast off around the modules it runs."""

    def __init__(self, module: nn.Module, autocast: Autocast) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast():
            return self.module(*args, **kwargs)


class ZeroEngine(Engine):
    """Stages 1 and 2: every process holds theta' whole and a share of the attacker's AdamW (stage 2: of gradients too).

    The defender's gradient is taken on the model itself, where DeepSpeed sees and sends nothing. G is averaged once per
    outer step.

    Args:
        config: DeepSpeed's configuration with its `zero_optimization`. What concerns the method is set here.
        micro_batch_size: samples in one part of one process's batch.
        autocast: entered around the forward pass.
        options: as `Engine` takes them.
    """

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
        # Everything is said explicitly: by default DeepSpeed clips at 1, and its gradient buckets hold 500 million
        # numbers, 2 GB, whatever the model's size.
        bucket = {"reduce_bucket_size": min(BUCKET, sum(p.numel() for p in self.working.parameters))}
        config = {
            "zero_optimization": {**bucket, **config["zero_optimization"], **self._zero_options()},
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # one optimizer everywhere: torch's
            "steps_per_print": 2**31,
        }
        engine, _, _, _ = deepspeed.initialize(model=InAutocast(model, autocast), optimizer=optimizer, config=config)
        if engine.optimizer.optimizer is not optimizer:
            raise UserError("DeepSpeed replaced the attacker's AdamW; use the DeepSpeed version in constraints.txt")
        self.engine: Any = engine
        self.working = self._zero_working()
        self.full = self._zero_trained()
        self.full.attack_network = engine

    def _zero_options(self) -> dict[str, Any]:
        return {}

    def _zero_working(self) -> WorkingWeights:
        return ZeroWorkingWeights(self.model, self.processes)

    def _zero_trained(self) -> TrainedWeights:
        return ZeroTrainedWeights(self.working, self.full.optimizer, self.model, self.engine)

    def _scale_by(self, scale: float) -> None:
        """Tell DeepSpeed the loss scale: it multiplies the loss, and divides the gradient that it clips and applies.

        The attacker's scale has to be read from the device for this; DeepSpeed waits for the norm in every step anyway.
        """
        if self.attack_scale.is_enabled():
            self.engine.optimizer.override_loss_scale(scale)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self._scale_by(self.attack_scale.get_scale())
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def _step(self, trained: TrainedWeights) -> None:
        # DeepSpeed stepped in `_backward`. It silently skips a gradient that is not finite, where one process without
        # DeepSpeed would now have broken theta', and the outer step with it.
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            return
        if self.attack_scale.is_enabled():
            self.attack_scale.judge(torch.as_tensor(norm, device=self.working.tensors[0].device))
        elif not torch.as_tensor(norm).isfinite():
            with torch.no_grad():
                self.working.tensors[0].fill_(float("nan"))

    def _clear(self, trained: TrainedWeights) -> None:
        """DeepSpeed clears gradients itself."""


class ZeroWorkingWeights(WorkingWeights):
    """Whole parameters, beside which DeepSpeed keeps float32 copies of its own."""

    def after_write(self) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for p in self.parameters:
            safe_set_full_fp32_param(p, p.data)


class ZeroTrainedWeights(TrainedWeights):
    """All weights, with AdamW moments in DeepSpeed's flat partitions."""

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
    """Stage 3: parameters and theta are in shards too.

    The defender's backward pass averages over the processes, as the attacker's does; nothing else is sent.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.full.defence_network = self.engine

    def _zero_options(self) -> dict[str, Any]:
        # A parameter that is kept whole because it is small would not see what is written to its shard.
        return {"stage3_param_persistence_threshold": 0}

    def _zero_working(self) -> WorkingWeights:
        # The names and shapes of the whole parameters were read before DeepSpeed cut them.
        return FlatShards(self.model, self.processes, self.working.shapes)

    def _zero_trained(self) -> TrainedWeights:
        return Zero3TrainedWeights(self.working, self.full.optimizer, self.model, self.engine)

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        from deepspeed.utils import safe_get_local_grad

        self._scale_by(1.0)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.defence_scale.scale(loss), scale_wrt_gas=False)
        shards = [safe_get_local_grad(p).clone() for p in self.working.parameters]
        self.engine.optimizer.zero_grad()
        for i, piece in enumerate(shards):
            piece[self.working.real_size(i) :] = 0  # the padding holds whatever was there
        return shards

    working: FlatShards


class FlatShards(WorkingWeights):
    """ZeRO-3's shards: each process holds an equal share of every parameter's numbers, the last share padded."""

    replicated = False

    def __init__(self, model: nn.Module, processes: ProcessGroup, shapes: list[torch.Size]) -> None:
        super().__init__(model, processes)
        self.shapes = shapes
        parameters: list[Any] = self.parameters
        self.tensors = [p.ds_tensor.data for p in parameters]

    def real_size(self, index: int) -> int:
        """How many numbers of this process's shard are not padding."""
        size = self.tensors[index].numel()
        return max(0, min(size, self.shapes[index].numel() - self.processes.index * size))

    def after_write(self) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        for p, piece in zip(self.parameters, self.tensors, strict=True):
            safe_set_local_fp32_param(p, piece)
        if torch.accelerator.is_available():  # DeepSpeed gathers shards on a stream of its own, which waits for nothing
            torch.accelerator.current_stream().synchronize()

    def gather(self, index: int, shard: Tensor) -> Tensor:
        flat = torch.empty(shard.numel() * self.processes.size, dtype=shard.dtype, device=shard.device)
        if self.processes.size > 1:
            dist.all_gather_single(flat, shard.contiguous())
        else:
            flat.copy_(shard)
        shape = self.shapes[index]
        return flat[: shape.numel()].view(shape)

    def shard(self, index: int, whole: Tensor) -> Tensor:
        piece, size = torch.zeros_like(self.tensors[index]), self.tensors[index].numel()
        start, real = self.processes.index * size, self.real_size(index)
        piece[:real] = whole.reshape(-1)[start : start + real]
        return piece


class Zero3TrainedWeights(ZeroTrainedWeights):
    """All weights, with AdamW moments in the shards of stage 3."""

    def create_moments(self) -> None:
        create_state(self.optimizer, self.engine.optimizer.fp32_partitioned_groups_flat)

    def _load_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self.working.shard(index, whole), name)
