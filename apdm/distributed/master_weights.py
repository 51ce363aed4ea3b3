"""theta, the protected weights, kept as float32 master weights.

The model itself holds theta', the working weights, which the simulated attacker moves many times per outer step. What
the outer step needs besides is kept here: float32 master weights of theta, the accumulated gradient G, and the outer
AdamW. If several processes train, they share theta and its AdamW out. All memory is allocated once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from apdm.core.adamw import MOMENTS, create_state, make_adamw
from apdm.core.errors import UserError
from apdm.distributed.working_weights import WorkingWeights


class MasterWeights:
    """theta, laid out tensor by tensor like the working weights.

    Args:
        working: the model's parameters. Their values at construction are theta's start.
        max_grad_norm: largest norm of G; a longer G is shortened before the outer step. 0 switches this off.
        adamw: options of the outer AdamW, as `make_adamw` takes them.

    Attributes:
        theta: the master weights of this process.
        gradient: G, the sum of the protective gradients of one outer step.
    """

    def __init__(self, working: WorkingWeights, *, max_grad_norm: float = 0.0, **adamw: float) -> None:
        self.working, self.max_grad_norm = working, max_grad_norm
        self.theta = self._make_theta()
        # The gradient that the outer AdamW sees. In some layouts G itself is summed elsewhere.
        self.theta_gradient = [self._make_theta_gradient(theta) for theta in self.theta]
        for theta, gradient in zip(self.theta, self.theta_gradient, strict=True):
            theta.grad = gradient
        self.gradient = self._make_gradient()
        self.optimizer = make_adamw(self.theta, **adamw)

    @torch.no_grad()
    def begin(self) -> None:
        """Start an outer step: theta' <- theta and G <- 0."""
        self.restore()
        torch._foreach_zero_(self.gradient)

    @torch.no_grad()
    def restore(self, theta: Sequence[Tensor] | None = None) -> None:
        """theta' <- theta, in place, so that the model is the protected one. This may overwrite G.

        Args:
            theta: other values laid out like theta, such as its running average.
        """
        torch._foreach_copy_(self.working.tensors, list(theta or self.theta))
        self.working.after_write()

    @torch.no_grad()
    def apply_offset(self, offset: Sequence[Tensor]) -> None:
        """theta' <- theta + offset. G is kept."""
        torch._foreach_copy_(self.working.tensors, self.theta)
        torch._foreach_add_(self.working.tensors, list(offset))
        self.working.after_write()

    @torch.no_grad()
    def compute_offset(self, offset: Sequence[Tensor]) -> None:
        """offset <- theta' - theta, written into tensors that are laid out like theta."""
        torch._foreach_copy_(list(offset), self.working.tensors)
        torch._foreach_sub_(list(offset), self.theta)

    @torch.no_grad()
    def accumulate(self, gradient: Sequence[Tensor], scale: GradScaler | None = None) -> None:
        """G <- G + gradient.

        Args:
            gradient: one tensor per parameter, laid out like the working weights.
            scale: the loss scale by which the gradient is still multiplied. The gradient is divided by it in place, and
                left out if it is not finite.
        """
        if scale is None or not scale.is_enabled():
            torch._foreach_add_(self.gradient, list(gradient))
            return
        # The sum is done as a step of an optimizer: a fused optimizer skips it on the device, so nothing waits.
        adder = SGD(self.gradient, lr=1.0, maximize=True, fused=True)
        for total, part in zip(self.gradient, gradient, strict=True):
            total.grad = part
        scale.unscale_(adder)
        scale.step(adder)
        scale.update()
        adder.zero_grad()

    @torch.no_grad()
    def step(self, *, divisor: float = 1.0) -> Tensor:
        """theta <- AdamW(theta, G / divisor), with G clipped if that was asked for.

        If the norm of G is not finite, theta and its moments stay as they were, and the caller decides what to do.

        Returns:
            The norm of G / divisor before clipping, a scalar.
        """
        self._reduce_gradient()
        gradient = self.theta_gradient
        if divisor != 1.0:
            torch._foreach_div_(gradient, divisor)
        norm = torch.nn.utils.get_total_norm(gradient)
        if self.working.processes.size > 1:
            norm = self.working.processes.sum(norm.square()).sqrt()
        if not norm.isfinite():  # the one time an outer step waits for the device
            return norm
        if self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.theta, self.max_grad_norm, norm)
        self.optimizer.step()
        return norm

    # -- checkpoints: whole tensors on the CPU, one per parameter, whatever the layout ---------------------------

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Whole tensors of something laid out like theta. Every process must call it; only the main one gets them."""
        return self._on_main(self.working.gather(i, tensor.detach()) for i, tensor in enumerate(tensors))

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Fill tensors that are laid out like theta from whole ones, without communication."""
        for i, (whole, tensor) in enumerate(zip(wholes, into, strict=True)):
            tensor.copy_(self.working.shard(i, whole))

    def state(self) -> Iterator[tuple[str, list[Tensor]]]:
        """(name, whole tensors) of all that a run needs in order to go on after an outer step. Collective."""
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
        """Take theta and the outer AdamW's state from a checkpoint, without communication.

        The model gets theta only with the next `begin` or `restore`.

        Args:
            read: gives the whole tensors of one of the names of `state`.
            steps: outer steps that the checkpoint's AdamW had taken.

        Raises:
            UserError: the checkpoint is of another model.
        """
        theta = read("theta")
        if [t.shape for t in theta] != self.working.shapes:
            raise UserError("the checkpoint's weights have other shapes than this model's: resume with the same model")
        self.scatter(theta, self.theta)
        if steps:
            create_state(self.optimizer, self.theta)
            for name in MOMENTS:
                self.scatter(read(name), [self.optimizer.state[theta][name] for theta in self.theta])
            for state in self.optimizer.state.values():
                state["step"].fill_(steps)

    # -- what a layout decides -------------------------------------------------------------------------------------

    def _make_theta(self) -> list[Tensor]:
        return [master_copy(p, copy=self.working.moved_by_attackers) for p in self.working.tensors]

    def _make_theta_gradient(self, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    def _make_gradient(self) -> list[Tensor]:
        return self.theta_gradient

    def _reduce_gradient(self) -> None:
        """Put G, averaged over the processes, into `theta_gradient`. In this layout it is there already."""

    def _on_main(self, wholes: Iterable[Tensor]) -> list[Tensor]:
        kept = []
        for whole in wholes:  # one by one: beside the copies on the CPU there is only one of them
            if self.working.processes.is_main:
                kept.append(whole.cpu())
        return kept


class FlatMasterWeights(MasterWeights):
    """theta where every process holds the working weights whole: one flat float32 piece of it per process.

    G stays in each process through an outer step and is averaged over the processes once, at its end. The buffer of G
    also carries theta back to the model, after G was used.
    """

    def _make_theta(self) -> list[Tensor]:
        processes, tensors = self.working.processes, self.working.tensors
        sizes = [p.numel() for p in tensors]
        piece = -(-sum(sizes) // processes.size)
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        self.flat = torch.zeros(piece * processes.size, dtype=dtype, device=tensors[0].device)
        self.own = slice(processes.index * piece, (processes.index + 1) * piece)
        torch._foreach_copy_(self._views(self.flat), [p.detach() for p in tensors])
        return [master_copy(self.flat[self.own])]

    def _make_gradient(self) -> list[Tensor]:
        return self._views(self.flat)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parameters inside a flat buffer, which ends in padding."""
        sizes = [p.numel() for p in self.working.tensors]
        return [v.view_as(p) for v, p in zip(flat[: sum(sizes)].split(sizes), self.working.tensors, strict=True)]

    def _all_gather(self, piece: Tensor, flat: Tensor) -> list[Tensor]:
        """Collect all processes' pieces in `flat`; returns them as views of the parameters' shapes."""
        if self.working.processes.size > 1:
            dist.all_gather_single(flat, piece.contiguous())
        else:
            flat.copy_(piece)
        return self._views(flat)

    @torch.no_grad()
    def restore(self, theta: Sequence[Tensor] | None = None) -> None:
        torch._foreach_copy_(self.working.tensors, self._all_gather((theta or self.theta)[0].detach(), self.flat))
        self.working.after_write()

    @torch.no_grad()
    def apply_offset(self, offset: Sequence[Tensor]) -> None:
        moved = self._all_gather(self.theta[0] + offset[0], torch.empty_like(self.flat))
        torch._foreach_copy_(self.working.tensors, moved)
        self.working.after_write()

    @torch.no_grad()
    def compute_offset(self, offset: Sequence[Tensor]) -> None:
        start = 0
        for p in self.working.tensors:
            low, high = max(start, self.own.start), min(start + p.numel(), self.own.stop)
            if low < high:
                part = offset[0][low - self.own.start : high - self.own.start]
                part.copy_(p.view(-1)[low - start : high - start])
            start += p.numel()
        offset[0].sub_(self.theta[0])

    def _reduce_gradient(self) -> None:
        gradient = self.theta_gradient[0]
        if self.working.processes.size > 1:
            dist.reduce_scatter_single(gradient, self.flat)
            gradient.div_(self.working.processes.size)
        else:
            gradient.copy_(self.flat)

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self._on_main(self._all_gather(tensors[0].detach(), torch.empty_like(self.flat)))

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        flat = torch.zeros_like(self.flat)
        torch._foreach_copy_(self._views(flat), list(wholes))
        into[0].copy_(flat[self.own])


class OffloadedMasterWeights(MasterWeights):
    """theta of a single process in main memory, where the outer AdamW is computed too.

    G is summed on the device. In every outer step G goes to main memory and theta comes back, once each.
    """

    def _make_theta(self) -> list[Tensor]:
        return [nn.Parameter(_in_main_memory(master_copy(p, copy=False).detach())) for p in self.working.tensors]

    def _make_theta_gradient(self, theta: Tensor) -> Tensor:
        return _in_main_memory(torch.zeros_like(theta))

    def _make_gradient(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.working.tensors]

    @torch.no_grad()
    def apply_offset(self, offset: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.working.tensors, torch._foreach_add(self.theta, list(offset)))
        self.working.after_write()

    def _reduce_gradient(self) -> None:
        torch._foreach_copy_(self.theta_gradient, self.gradient)


def make_master_weights(working: WorkingWeights, *, offload: bool = False, **options: float) -> MasterWeights:
    """theta in the layout that suits the working weights.

    Args:
        offload: keep theta and the outer AdamW in main memory; for one process only.
        options: max_grad_norm and the options of the outer AdamW.
    """
    if offload:
        return OffloadedMasterWeights(working, **options)
    if working.replicated and working.processes.size > 1:
        return FlatMasterWeights(working, **options)
    return MasterWeights(working, **options)


def master_copy(value: Tensor, *, copy: bool = True) -> Tensor:
    """`value` as a float32 parameter (or float64, if it is). copy: in memory of its own even if it is float32."""
    return nn.Parameter(value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=copy))


def _in_main_memory(tensor: Tensor) -> Tensor:
    """A copy in main memory, pinned if there is an accelerator that may fetch it."""
    copied = tensor.to("cpu", copy=True)
    return copied.pin_memory() if torch.accelerator.is_available() else copied
