"""Projected gradient ascent on photos (Madry et al. 2018): the one loop under every method of the image layer.

A method is a handful of calls of `PGD.ascend` with its own objective, and whatever it does to its surrogates in
between. What must never differ between methods lives here: the step, the ball and the valid range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

# Photos [3, H, W] in [0, 1] and their numbers -> what to raise, one value per photo, [B].
Objective = Callable[[list[Tensor], list[int]], Tensor]
Progress = Callable[[Mapping[str, Tensor]], None]  # detached scalars, still on their device
Update = Literal["sign", "normalised"]


class PGD:
    """A subject's photos, moved up one objective after another inside a ball around the originals.

    Photos may differ in size. The ball is always that around the original photo: where a later method starts from an
    earlier one's result, pixels that lie farther out already may stay there, and none may go farther.

    Args:
        originals: N photos [3, H, W] in [0, 1].
        epsilon: radius of the ball in the maximum norm, in [0, 1] pixel units.
        step_size: of one step, in the same units: exactly that per pixel for "sign", its root mean square for
            "normalised".
        start: where to begin; default: at the originals.
        reach: how far from where it began a pixel may go, in the same units, so that no more of an earlier method is
            undone; None: anywhere in the ball.
        update: "sign" of the gradient, or the gradient "normalised" to root mean square 1.
        momentum: share of the earlier steps' direction that is kept (MI-FGSM, Dong et al. 2018); 0: none.
        batch_size: photos per call of the objective.
        callback: called after each step with the objective's mean.
    """

    def __init__(
        self,
        originals: Sequence[Tensor],
        *,
        epsilon: float,
        step_size: float,
        start: Sequence[Tensor] | None = None,
        reach: float | None = None,
        update: Update = "sign",
        momentum: float = 0.0,
        batch_size: int = 4,
        callback: Progress | None = None,
    ) -> None:
        self.originals = list(originals)
        self.starts = self.originals if start is None else list(start)
        self.reach = 1.0 if reach is None else reach
        self.epsilon, self.step_size, self.update, self.momentum = epsilon, step_size, update, momentum
        self.batch_size, self.callback = batch_size, callback
        self.photos = [photo.detach().clone() for photo in self.starts]
        self.velocity = [torch.zeros_like(photo) for photo in self.photos] if momentum else []

    def bounds(self, i: int) -> tuple[Tensor, Tensor]:
        """Lowest and highest values of photo `i`; not kept, because photos may be large."""
        original, start = self.originals[i], self.starts[i]
        low = torch.minimum(original - self.epsilon, start).maximum(start - self.reach)
        high = torch.maximum(original + self.epsilon, start).minimum(start + self.reach)
        return low.clamp_(min=0), high.clamp_(max=1)

    def ascend(self, objective: Objective, steps: int) -> None:
        """Take `steps` steps up the objective with every photo.

        Raises:
            FloatingPointError: a gradient is not finite.
        """
        sound = []  # looked at once, after the steps: sign(NaN) is 0, so that photos alone would not tell
        for _ in range(steps):
            values = []
            for start in range(0, len(self.photos), self.batch_size):
                which = list(range(start, min(start + self.batch_size, len(self.photos))))
                leaves = [self.photos[i].requires_grad_() for i in which]
                value = objective(leaves, which)
                gradients = torch.autograd.grad(value.sum(), leaves)
                for i, gradient in zip(which, gradients, strict=True):
                    self.photos[i] = self._moved(i, gradient)
                values.append(value.detach())
                sound += [gradient.isfinite().all() for gradient in gradients]
            if self.callback is not None:
                self.callback({"objective": torch.cat(values).mean()})
        if sound and not torch.stack(sound).all():
            raise FloatingPointError("a photo's gradient is not finite: the surrogate has diverged, lower its rate")

    @torch.no_grad()
    def _moved(self, i: int, gradient: Tensor) -> Tensor:
        if self.momentum:
            gradient = self.velocity[i].mul_(self.momentum).add_(gradient / gradient.abs().mean().clamp(min=1e-30))
        if self.update == "sign":
            direction = gradient.sign()
        else:
            direction = gradient / gradient.square().mean().sqrt().clamp(min=1e-30)
        moved = self.photos[i].detach() + self.step_size * direction
        return moved.clamp_(*self.bounds(i))
