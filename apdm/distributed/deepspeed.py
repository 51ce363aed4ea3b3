"""DeepSpeed's ZeRO as an engine: stages 1, 2 and 3, with or without the optimizer in CPU memory.

Everything that is DeepSpeed's lies here. Beside its public functions these attributes are used: `ds_tensor`, a ZeRO-3
parameter's piece, and of the engine `optimizer.optimizer`, the AdamW that it was given, `optimizer.zero_grad` and
`optimizer.override_loss_scale`. All were seen to work with DeepSpeed 0.19.8; `tests/test_engines.py` fails when one no
longer does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from apdm.core.errors import UserError
from apdm.distributed.engines import Engine, MakeOptimizer
from apdm.distributed.master_weights import FlatSlowWeights, SlowWeights

BUCKET = 50_000_000
Autocast = Callable[[], AbstractContextManager[Any]]


class InAutocast(nn.Module):
    """DeepSpeed switches autocast off around its modules; this switches ours on inside."""

    def __init__(self, module: nn.Module, autocast: Autocast) -> None:
        super().__init__()
        self.module, self.autocast = module, autocast

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.autocast():
            return self.module(*args, **kwargs)


class Zero(Engine):
    """Stages 1 and 2: theta' whole in every process, the attacker's AdamW (2: and gradients) in pieces.

    The defender's gradient is taken on the model inside, where DeepSpeed neither sees nor sends anything; G is reduced
    once per outer step. config: DeepSpeed's, with its `zero_optimization`; what concerns the method is set here.
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

        # Everything said outright: left alone, DeepSpeed clips at 1.
        # Its gradient buckets hold 500 million numbers, 2 GB, whatever the model's size.
        bucket = {"reduce_bucket_size": min(BUCKET, sum(p.numel() for p in self.parameters))}
        config = {
            "zero_optimization": {**bucket, **config["zero_optimization"], **self._zero_options()},
            "train_micro_batch_size_per_gpu": micro_batch_size,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # one optimizer everywhere: torch's
            "steps_per_print": 2**31,
        }
        engine, _, _, _ = deepspeed.initialize(
            model=InAutocast(model, autocast), optimizer=self.optimizer, config=config
        )
        if engine.gradient_clipping() != self.max_grad_norm:
            raise UserError(
                f"DeepSpeed clips at {engine.gradient_clipping()} where l2p.max_grad_norm is {self.max_grad_norm}; "
                "remove gradient_clipping from its configuration"
            )
        if engine.optimizer.optimizer is not self.optimizer:
            raise UserError("DeepSpeed replaced the attacker's AdamW; use the DeepSpeed version in constraints.txt")
        self.engine: Any = engine
        self.attacked = engine
        self._prepared()

    def _zero_options(self) -> dict[str, Any]:
        return {}

    def _prepared(self) -> None:
        """DeepSpeed has taken the model over."""

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        return FlatSlowWeights(self, max_grad_norm=max_grad_norm, **adamw)

    def _scale_by(self, scale: float) -> None:
        """DeepSpeed itself multiplies the losses that it gets, and divides the gradient that it clips and steps along.

        The attacker's scale is read from the device for it; DeepSpeed waits for the norm in every step anyway.
        """
        if self.attack_scale.is_enabled():
            self.engine.optimizer.override_loss_scale(scale)

    def _backward(self, loss: Tensor, last: bool) -> None:
        self._scale_by(self.attack_scale.get_scale())
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss, scale_wrt_gas=False)
        self.engine.step()

    def _step(self) -> None:
        # It stepped in `_backward`. A gradient that is not finite it skips in silence; in one process theta' would
        # now be broken, and the outer step with it.
        norm = self.engine.get_global_grad_norm()
        if norm is None:
            return
        if self.attack_scale.is_enabled():
            self.attack_scale.judge(torch.as_tensor(norm, device=self.fast[0].device))
        elif not torch.as_tensor(norm).isfinite():
            self._break()

    @torch.no_grad()
    def _break(self) -> None:
        self.fast[0].fill_(float("nan"))

    def _clear(self) -> None:
        """DeepSpeed does."""

    def written(self) -> None:
        from deepspeed.utils import safe_set_full_fp32_param

        for p in self.parameters:
            safe_set_full_fp32_param(p, p.data)

    def _moment(self, parameter: Tensor, name: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        return safe_get_full_optimizer_state(parameter, name)

    def _set_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        safe_set_full_optimizer_state(parameter, whole, name)


class Zero3(Zero):
    """Stage 3: parameters too, and with them theta, in pieces.

    A parameter's piece is an equal share of its numbers, the last one padded. The defender's backward pass averages
    over the processes, as the attacker's does; nothing else is sent.
    """

    def _zero_options(self) -> dict[str, Any]:
        # A parameter kept whole for its smallness would not see what is written to its piece.
        return {"stage3_param_persistence_threshold": 0}

    def _prepared(self) -> None:
        parameters: list[Any] = self.parameters
        self.fast = [p.ds_tensor.data for p in parameters]
        self.defended = self.engine

    def slow_weights(self, *, max_grad_norm: float = 0.0, **adamw: float) -> SlowWeights:
        return SlowWeights(self, max_grad_norm=max_grad_norm, **adamw)

    def _gradient(self, loss: Tensor) -> Sequence[Tensor]:
        from deepspeed.utils import safe_get_local_grad

        self._scale_by(1.0)
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.backward(self.defence_scale.scale(loss), scale_wrt_gas=False)
        pieces = [safe_get_local_grad(p).clone() for p in self.parameters]
        self.engine.optimizer.zero_grad()
        for i, piece in enumerate(pieces):
            piece[self._real(i) :] = 0  # padding holds whatever was there
        return pieces

    def _real(self, index: int) -> int:
        """How many numbers of this process's piece are not padding."""
        size = self.fast[index].numel()
        return max(0, min(size, self.shapes[index].numel() - self.processes.index * size))

    def written(self) -> None:
        from deepspeed.utils import safe_set_local_fp32_param

        for p, piece in zip(self.parameters, self.fast, strict=True):
            safe_set_local_fp32_param(p, piece)
        if torch.accelerator.is_available():  # DeepSpeed gathers pieces on a stream of its own, which waits for nobody
            torch.accelerator.current_stream().synchronize()

    def whole(self, index: int, shard: Tensor) -> Tensor:
        flat = torch.empty(shard.numel() * self.processes.size, dtype=shard.dtype, device=shard.device)
        if self.processes.size > 1:
            dist.all_gather_single(flat, shard.contiguous())
        else:
            flat.copy_(shard)
        shape = self.shapes[index]
        return flat[: shape.numel()].view(shape)

    def part(self, index: int, whole: Tensor) -> Tensor:
        piece, size = torch.zeros_like(self.fast[index]), self.fast[index].numel()
        start, real = self.processes.index * size, self._real(index)
        piece[:real] = whole.reshape(-1)[start : start + real]
        return piece

    def _set_moment(self, index: int, parameter: Tensor, name: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_local_optimizer_state

        safe_set_local_optimizer_state(parameter, self.part(index, whole), name)
