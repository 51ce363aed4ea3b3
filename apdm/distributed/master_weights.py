"""theta, the protected weights: the slow path of Learning to Protect.

The model itself holds theta', which the simulated attacker moves many times per outer step. What the outer
step needs besides lives here: float32 masters of theta, the accumulated gradient G and the outer AdamW. Over
several processes theta and its AdamW are shared out. All memory is allocated once; an outer step copies
nothing but numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from apdm.core.adamw import MOMENTS, make_adamw
from apdm.core.errors import UserError
from apdm.distributed.processes import ProcessGroup


class FastWeights(Protocol):
    """What theta must know of the engine that runs theta' (`apdm.distributed.engines`).

    fast: theta' as this process holds it, tensors or shards of them. moves_fast: whether attackers move it. shapes: of
    the whole parameters. begin: an attacker, new or not. written: to be called when `fast` was overwritten from
    outside. whole: a parameter from all processes' shards. part: the reverse.
    """

    fast: list[Tensor]
    moves_fast: bool
    shapes: list[torch.Size]
    processes: ProcessGroup

    def begin(self, *, new: bool = True) -> None: ...
    def written(self) -> None: ...
    def whole(self, index: int, shard: Tensor) -> Tensor: ...
    def part(self, index: int, whole: Tensor) -> Tensor: ...


class SlowWeights:
    """theta beside the model that holds theta', tensor by tensor as the engine holds theta' itself.

    engine: runs theta'; its values at construction are theta's start. max_grad_norm: bound on the norm of G before
    the outer step; 0 is off. The remaining arguments are the outer AdamW's, as `make_adamw` takes them.
    """

    def __init__(self, engine: FastWeights, *, max_grad_norm: float = 0.0, **adamw: float) -> None:
        self.engine, self.fast, self.max_grad_norm = engine, engine.fast, max_grad_norm
        self.theta = self._masters()
        for theta in self.theta:
            theta.grad = torch.zeros_like(theta)
        self.gradient = self._accumulator()
        self.optimizer = make_adamw(self.theta, **adamw)

    @torch.no_grad()
    def begin(self, *, new: bool = True) -> None:
        """Start an outer step: theta' <- theta, G <- 0, and an attacker, whose state the caller brings if not new."""
        self.restore()
        self.engine.begin(new=new)
        torch._foreach_zero_(self.gradient)

    @torch.no_grad()
    def restore(self, theta: Sequence[Tensor] | None = None) -> None:
        """theta' <- theta, in place: the model is then the protected one. Between outer steps only: G may go.

        theta: something else that is laid out like it, such as its average.
        """
        torch._foreach_copy_(self.fast, list(theta or self.theta))
        self.engine.written()

    @torch.no_grad()
    def depart(self, offset: Sequence[Tensor]) -> None:
        """theta' <- theta + offset, an attacker's standing; G is kept."""
        torch._foreach_copy_(self.fast, self.theta)
        torch._foreach_add_(self.fast, list(offset))
        self.engine.written()

    @torch.no_grad()
    def measure(self, offset: Sequence[Tensor]) -> None:
        """offset <- theta' - theta."""
        torch._foreach_copy_(list(offset), self.fast)
        torch._foreach_sub_(list(offset), self.theta)

    @torch.no_grad()
    def accumulate(self, gradient: Sequence[Tensor], scale: GradScaler | None = None) -> None:
        """G <- G + gradient, one tensor per parameter.

        scale: what the gradient is still multiplied by. It is divided in place, and left out if it is not finite.
        """
        if scale is None or not scale.is_enabled():
            torch._foreach_add_(self.gradient, list(gradient))
            return
        # The sum as a step of an optimizer: a fused one leaves it out on the device, and nothing waits.
        adder = SGD(self.gradient, lr=1.0, maximize=True, fused=True)
        for total, part in zip(self.gradient, gradient, strict=True):
            total.grad = part
        scale.unscale_(adder)
        scale.step(adder)
        scale.update()
        adder.zero_grad()

    @torch.no_grad()
    def step(self, *, divisor: float = 1.0) -> Tensor:
        """theta <- AdamW(theta, G / divisor), clipped if so asked. Returns the norm before clipping.

        A norm that is not finite leaves theta and its moments as they were: the caller decides what to do.
        """
        self._reduce()
        gradient = [theta.grad for theta in self.theta if theta.grad is not None]
        if divisor != 1.0:
            torch._foreach_div_(gradient, divisor)
        norm = torch.nn.utils.get_total_norm(gradient)
        if self.engine.processes.size > 1:
            norm = self.engine.processes.sum(norm.square()).sqrt()
        if not norm.isfinite():  # the one time an outer step waits for the device
            return norm
        if self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.theta, self.max_grad_norm, norm)
        self.optimizer.step()
        return norm

    # -- checkpoints: whole tensors on the CPU, one per parameter, whatever the layout -------------------------

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Tensors laid out like theta, whole. Every process must call it; only the main one gets them."""
        whole = (self.engine.whole(i, tensor.detach()) for i, tensor in enumerate(tensors))
        return self._on_main(whole)

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Fill tensors laid out like theta from whole ones, without communication."""
        for i, (whole, tensor) in enumerate(zip(wholes, into, strict=True)):
            tensor.copy_(self.engine.part(i, whole))

    def state(self) -> Iterator[tuple[str, list[Tensor]]]:
        """All that a run needs to go on after an outer step, gathered name by name; see `gather`."""
        yield "theta", self.gather(self.theta)
        if self.optimizer.state:
            for name in MOMENTS:
                yield name, self.gather([self.optimizer.state[theta][name] for theta in self.theta])

    @property
    def steps(self) -> int:
        """Outer steps that the outer AdamW has taken."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    @torch.no_grad()
    def load(self, read: Callable[[str], list[Tensor]], steps: int) -> None:
        """Take theta and the outer AdamW from `read(name)` for the names of `state`, without communication.

        The model has theta only after `begin` or `restore`. Raises UserError if the state is of another model.
        """
        theta = read("theta")
        if [t.shape for t in theta] != self.engine.shapes:
            raise UserError("the checkpoint's weights have other shapes than this model's: resume with the same model")
        self.scatter(theta, self.theta)
        if steps:
            moments: dict[int, dict[str, Tensor]] = {
                i: {"step": torch.tensor(float(steps)), **{name: torch.empty_like(theta) for name in MOMENTS}}
                for i, theta in enumerate(self.theta)
            }
            for name in MOMENTS:
                self.scatter(read(name), [state[name] for state in moments.values()])
            self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    # -- what a layout decides ---------------------------------------------------------------------------------

    def _masters(self) -> list[Tensor]:
        return [_master(p, copy=self.engine.moves_fast) for p in self.fast]

    def _accumulator(self) -> list[Tensor]:
        return [theta.grad for theta in self.theta if theta.grad is not None]

    def _reduce(self) -> None:
        """G into theta's .grad, summed or averaged over the processes; here it is there already."""

    def _on_main(self, whole: Iterable[Tensor]) -> list[Tensor]:
        kept = []
        for w in whole:  # one by one: beside the copies on the CPU there is only one of them
            if self.engine.processes.is_main:
                kept.append(w.cpu())
        return kept


class FlatSlowWeights(SlowWeights):
    """theta where every process holds theta' whole: one flat float32 piece of it per process, and its AdamW.

    G stays local through an outer step and is reduced once, at its end. The buffer of G also carries theta back to
    the model, when G is spent.
    """

    def _masters(self) -> list[Tensor]:
        processes, sizes = self.engine.processes, [p.numel() for p in self.fast]
        piece = -(-sum(sizes) // processes.size)
        dtype = torch.promote_types(self.fast[0].dtype, torch.float32)
        self.flat = torch.zeros(piece * processes.size, dtype=dtype, device=self.fast[0].device)
        self.mine = slice(processes.index * piece, (processes.index + 1) * piece)
        torch._foreach_copy_(self._views(self.flat), [p.detach() for p in self.fast])
        return [_master(self.flat[self.mine])]

    def _accumulator(self) -> list[Tensor]:
        return self._views(self.flat)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parameters inside a flat buffer, which ends in padding."""
        sizes = [p.numel() for p in self.fast]
        return [v.view_as(p) for v, p in zip(flat[: sum(sizes)].split(sizes), self.fast, strict=True)]

    def _spread(self, piece: Tensor, flat: Tensor) -> list[Tensor]:
        """Everybody's pieces in `flat`; returned as parameters."""
        if self.engine.processes.size > 1:
            dist.all_gather_single(flat, piece.contiguous())
        else:
            flat.copy_(piece)
        return self._views(flat)

    @torch.no_grad()
    def restore(self, theta: Sequence[Tensor] | None = None) -> None:
        torch._foreach_copy_(self.fast, self._spread((theta or self.theta)[0].detach(), self.flat))
        self.engine.written()

    @torch.no_grad()
    def depart(self, offset: Sequence[Tensor]) -> None:
        spread = self._spread(self.theta[0] + offset[0], torch.empty_like(self.flat))
        torch._foreach_copy_(self.fast, spread)
        self.engine.written()

    @torch.no_grad()
    def measure(self, offset: Sequence[Tensor]) -> None:
        start = 0
        for p in self.fast:
            low, high = max(start, self.mine.start), min(start + p.numel(), self.mine.stop)
            if low < high:
                ours = offset[0][low - self.mine.start : high - self.mine.start]
                ours.copy_(p.view(-1)[low - start : high - start])
            start += p.numel()
        offset[0].sub_(self.theta[0])

    def _reduce(self) -> None:
        grad = self.theta[0].grad
        if grad is None:
            raise RuntimeError("theta has lost its gradient")
        if self.engine.processes.size > 1:
            dist.reduce_scatter_single(grad, self.flat)
            grad.div_(self.engine.processes.size)
        else:
            grad.copy_(self.flat)

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self._on_main(self._spread(tensors[0].detach(), torch.empty_like(self.flat)))

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        flat = torch.zeros_like(self.flat)
        torch._foreach_copy_(self._views(flat), list(wholes))
        into[0].copy_(flat[self.mine])


def _master(value: Tensor, *, copy: bool = True) -> Tensor:
    return nn.Parameter(value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=copy))
