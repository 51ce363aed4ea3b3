"""theta, the protected weights, kept as float32 master weights.

The model itself holds theta', the working weights, which the simulated attacker changes many times per outer step. This
file keeps what the outer step needs besides: the float32 master weights of theta, the accumulated gradient G, and the
outer AdamW, which is the optimizer that moves theta. If several processes train, each keeps one part of theta and of
the outer AdamW. All memory is allocated once.

Three classes keep theta and G in different places:

MasterWeights            theta and G like the working weights: whole tensors, or this process's shards of them
FlatMasterWeights        theta: this process's part of one flat tensor; G: whole, until the outer step averages it
OffloadedMasterWeights   theta in main memory; G on the device

Below, a list of tensors is "laid out like theta" if it has as many tensors as theta, of the same shapes. "Laid out like
the working weights" has the corresponding meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from apdm.core.adamw import MOMENTS, create_state, make_adamw
from apdm.core.errors import UserError
from apdm.distributed.working_weights import WorkingWeights


class MasterWeights:
    """theta, with one tensor for each tensor of the working weights, of the same shape.

    Args:
        working: the model's parameters. Their present values become the first theta.
        max_grad_norm: G is scaled down to this norm before the outer step if its norm is larger. 0 switches this off.
        adamw: options of the outer AdamW; see `make_adamw`.

    Attributes:
        theta: the master weights of this process.
        gradient: G, the sum of the protective gradients of one outer step.
    """

    def __init__(self, working: WorkingWeights, *, max_grad_norm: float = 0.0, **adamw: float) -> None:
        self.working, self.max_grad_norm = working, max_grad_norm
        self.theta = self._make_theta()
        # The gradient that the outer AdamW uses. Some subclasses sum G in other tensors.
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
        """Copy theta into the model: theta' <- theta, in place. This may overwrite G.

        Args:
            theta: other values to copy instead, laid out like theta, such as the running average of theta.
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
            scale: the loss scale by which the gradient is still multiplied; None if there is none. The gradient is
                divided by the scale in place. If it is not finite, G does not change.
        """
        if scale is None or not scale.is_enabled():
            torch._foreach_add_(self.gradient, list(gradient))
            return
        # An optimizer's step computes the sum. A fused optimizer can skip its step on the device, so the CPU does not
        # wait to learn whether the gradient is finite.
        adder = SGD(self.gradient, lr=1.0, maximize=True, fused=True)
        for total, part in zip(self.gradient, gradient, strict=True):
            # A fused step reads both in the order of their memory, in which convolutions may differ.
            total.grad = part if part.stride() == total.stride() else torch.empty_like(total).copy_(part)
        scale.unscale_(adder)
        scale.step(adder)
        scale.update()
        adder.zero_grad()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the outer AdamW for its next steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    @torch.no_grad()
    def step(self, *, divisor: float = 1.0) -> Tensor:
        """Move theta: theta <- AdamW(theta, G / divisor), with G clipped to `max_grad_norm`.

        If the norm of G is not finite, theta and its moments do not change. The caller must check the returned norm.

        Args:
            divisor: number of gradients in G if theta moves along their mean, 1 if it moves along their sum.

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
        if not norm.isfinite():  # here the CPU waits for the device; before, only `PooledAttacker.save_state` may do so
            return norm
        if self.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(self.theta, self.max_grad_norm, norm)
        self.optimizer.step()
        return norm

    # -- checkpoints: whole tensors on the CPU, one per parameter, the same for every layout ---------------------

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return whole tensors, on the CPU, from `tensors` that are laid out like theta.

        Every process must call this. The main process gets the tensors; the others get an empty list.
        """
        return self._on_main(self.working.gather(i, tensor.detach()) for i, tensor in enumerate(tensors))

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        """Copy this process's part of the whole tensors into `into`. The processes do not communicate.

        Args:
            wholes: one whole tensor per parameter.
            into: tensors that are laid out like theta.
        """
        for i, (whole, tensor) in enumerate(zip(wholes, into, strict=True)):
            tensor.copy_(self.working.shard(i, whole))

    def state(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield (name, whole tensors) of theta and of the outer AdamW's moments, for a checkpoint.

        Every process must call this. The main process gets the tensors; the others get empty lists.
        """
        yield "theta", self.gather(self.theta)
        if self.optimizer.state:
            for name in MOMENTS:
                yield name, self.gather([self.optimizer.state[theta][name] for theta in self.theta])

    @property
    def steps(self) -> int:
        """Number of steps that the outer AdamW has taken."""
        states = list(self.optimizer.state.values())
        return int(states[0]["step"]) if states else 0

    @torch.no_grad()
    def load(self, read: Callable[[str], list[Tensor]], steps: int) -> None:
        """Restore theta and the outer AdamW's state from a checkpoint. The processes do not communicate.

        The model itself changes only when `begin` or `restore` is called next.

        Args:
            read: returns the whole tensors of a name that `state` yielded.
            steps: number of steps that the checkpoint's AdamW had taken.

        Raises:
            UserError: the checkpoint was written for another model.
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

    # -- what subclasses change ------------------------------------------------------------------------------------

    def _make_theta(self) -> list[Tensor]:
        return [master_copy(p, copy=self.working.moved_by_attackers) for p in self.working.tensors]

    def _make_theta_gradient(self, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    def _make_gradient(self) -> list[Tensor]:
        return self.theta_gradient

    def _reduce_gradient(self) -> None:
        """Put G, averaged over the processes, into `theta_gradient`. In this class it is already there."""

    def _on_main(self, wholes: Iterable[Tensor]) -> list[Tensor]:
        kept = []
        for whole in wholes:  # one by one, so that the device holds only one whole tensor at a time
            if self.working.processes.is_main:
                kept.append(whole.cpu())
        return kept


class FlatMasterWeights(MasterWeights):
    """theta for several processes that each hold all working weights: every process keeps one flat float32 part of it.

    All numbers of theta, tensor after tensor, are one flat tensor, which is padded and cut into equal parts. With two
    processes and parameters of 4 and 3 numbers, process 0 keeps numbers 0 to 3, and process 1 numbers 4 to 6 and one
    zero. `theta` is a list of this one part.

    `flat` is a buffer of the size of all parts. During an outer step every process sums its own G in it. At the end of
    the outer step G is averaged over the processes, once. After that, theta is gathered in the same buffer before it is
    copied into the model.
    """

    def _make_theta(self) -> list[Tensor]:
        processes, tensors = self.working.processes, self.working.tensors
        piece = -(-sum(p.numel() for p in tensors) // processes.size)
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        self.flat = torch.zeros(piece * processes.size, dtype=dtype, device=tensors[0].device)
        self.own = slice(processes.index * piece, (processes.index + 1) * piece)
        torch._foreach_copy_(self._views(self.flat), [p.detach() for p in tensors])
        return [master_copy(self.flat[self.own])]

    def _make_gradient(self) -> list[Tensor]:
        return self._views(self.flat)

    def _views(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat tensor, with the shapes of the parameters. The padding at the end is left out."""
        sizes = [p.numel() for p in self.working.tensors]
        return [v.view_as(p) for v, p in zip(flat[: sum(sizes)].split(sizes), self.working.tensors, strict=True)]

    def _own_part(self, wholes: Sequence[Tensor]) -> Tensor:
        """Return this process's part of whole tensors, which may lie on other devices."""
        flat = torch.zeros_like(self.flat)
        torch._foreach_copy_(self._views(flat), list(wholes))
        return flat[self.own]

    def _all_gather(self, part: Tensor, flat: Tensor) -> list[Tensor]:
        """Gather the parts of all processes in `flat`. Returns views of `flat` with the shapes of the parameters."""
        self.working.processes.all_gather(part, flat)
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
        torch.sub(self._own_part(self.working.tensors), self.theta[0], out=offset[0])

    def _reduce_gradient(self) -> None:
        self.working.processes.mean_scattered(self.flat, self.theta_gradient[0])

    @torch.no_grad()
    def gather(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return self._on_main(self._all_gather(tensors[0].detach(), torch.empty_like(self.flat)))

    @torch.no_grad()
    def scatter(self, wholes: Sequence[Tensor], into: Sequence[Tensor]) -> None:
        into[0].copy_(self._own_part(wholes))


class OffloadedMasterWeights(MasterWeights):
    """theta in main memory, for a single process. The outer AdamW also runs there, on the CPU.

    G is summed on the device. In every outer step, G is copied to main memory once, and theta is copied back once.
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
    """Make the master weights in the layout that fits the working weights.

    Args:
        working: the model's parameters.
        offload: keep theta and the outer AdamW in main memory. This works for a single process only.
        options: max_grad_norm, and the options of the outer AdamW.
    """
    if offload:
        return OffloadedMasterWeights(working, **options)
    if working.replicated and working.processes.size > 1:
        return FlatMasterWeights(working, **options)
    return MasterWeights(working, **options)


def master_copy(value: Tensor, *, copy: bool = True) -> Tensor:
    """Return `value` as a float32 parameter; a float64 value stays float64.

    Args:
        copy: give the parameter its own memory even if `value` already has the right type.
    """
    return nn.Parameter(value.detach().to(torch.promote_types(value.dtype, torch.float32), copy=copy))


def _in_main_memory(tensor: Tensor) -> Tensor:
    """Return a copy in main memory. If there is an accelerator, the memory is pinned, so that transfers are fast."""
    copied = tensor.to("cpu", copy=True)
    return copied.pin_memory() if torch.accelerator.is_available() else copied
