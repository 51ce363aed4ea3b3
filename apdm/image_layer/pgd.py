"""Projected gradient ascent on photos (Madry et al. 2018): the one loop that all photo protections share.

A protection calls `PGD.ascend` with its own objectives, and may train its surrogates between the calls. Everything that
must not differ between protections is here: the step, the budget and the valid range of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

# (photos [3, H, W] in [0, 1], their indices) -> the value to increase for each photo, [B].
PhotoObjective = Callable[[list[Tensor], list[int]], Tensor]
Progress = Callable[[Mapping[str, Tensor]], None]  # {name: detached scalar on its device}
Update = Literal["sign", "normalised"]


class PGD:
    """Moves a subject's photos up one objective after another, within a budget around the original photos.

    A step computes the objective and its gradient with respect to each photo, adds `step_size` times a direction to the
    photo, and projects the result back into the allowed values. The photos may differ in size.

    Subclass to change the loop. There are three hooks, called for each photo with its index. The last two are called in
    every step:

    * `initial(index)` returns the photo that the ascent starts from, `[3, H, W]`. It is called once for each photo, at
      the end of `__init__`.
    * `direction(gradient, index)` returns what one step adds to the photo, before it is multiplied by `step_size`. It
      is called without gradients. `gradient` is the gradient of the objective with respect to the photo.
    * `project(photo, index)` returns the nearest allowed photo. It is called without gradients after the photo has
      moved. It may change `photo` in place.

    `self.originals[index]` is the original photo, `self.photos[index]` the photo as it is now. For example, a budget in
    the Euclidean norm in place of the maximum norm:

        class EuclideanPGD(PGD):
            def direction(self, gradient, index):
                return gradient / gradient.norm().clamp(min=1e-30)

            def project(self, photo, index):
                change = photo - self.originals[index]
                change *= (self.epsilon / change.norm().clamp(min=1e-30)).clamp(max=1)
                return (self.originals[index] + change).clamp(0, 1)

    A photo protection uses its own subclass if it names it in `PhotoProtection.loop`. Whatever the subclass does,
    a photo is saved within the budget around the original in the maximum norm.

    Args:
        originals: N photos `[3, H, W]` in [0, 1].
        epsilon: budget, the largest change of a pixel against the original, in [0, 1] pixel units.
        step_size: size of one step, in the same units. With "sign" every pixel moves by exactly this much; with
            "normalised" it is the root mean square of the change.
        start: N photos to start from. Default: the originals. Pixels that are farther than `epsilon` from the original
            may stay where they are, but not move farther away.
        reach: the largest change of a pixel against `start`, in the same units. It limits how much of an earlier
            layer's work can be undone. None: no limit besides `epsilon`.
        update: the direction is the "sign" of the gradient, or the gradient "normalised" to root mean square 1.
        momentum: share of the earlier directions that is kept (MI-FGSM, Dong et al. 2018). 0: none.
        batch_size: photos for which the objective is computed at once.
        callback: called after each step with the mean of the objective.

    Raises:
        ValueError: a photo does not have three dimensions or is not of floating point, `epsilon` or `step_size` is
            not in [0, 1], or there is no such update.
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
        if wrong := [one for one in originals if one.ndim != 3 or not one.is_floating_point()]:
            problem = f"one is {list(wrong[0].shape)} of {wrong[0].dtype}"
            raise ValueError(f"photos must be [3, H, W] of floating point in [0, 1]; {problem}")
        if not (0 <= epsilon <= 1 and 0 <= step_size <= 1):
            problem = "are in [0, 1] pixel units, such as 8/255"
            raise ValueError(f"epsilon and step_size {problem}, not {epsilon:g} and {step_size:g}")
        if update not in get_args(Update):
            raise ValueError(f"update must be one of {', '.join(get_args(Update))}, not {update!r}")
        self.originals = list(originals)
        self.starts = self.originals if start is None else list(start)
        self.reach = 1.0 if reach is None else reach
        self.epsilon, self.step_size, self.update, self.momentum = epsilon, step_size, update, momentum
        self.batch_size, self.callback = batch_size, callback
        self.velocity = [torch.zeros_like(photo) for photo in self.starts] if momentum else []
        self.photos = [self.initial(i) for i in range(len(self.originals))]

    def ascend(self, objective: PhotoObjective, steps: int) -> None:
        """Take steps up the objective with every photo.

        Args:
            objective: takes B photos that require gradients, and their indices; returns B values, `[B]`.

        Raises:
            FloatingPointError: a gradient is not finite.
        """
        finite = []  # checked once after all steps, because reading a value waits for the device
        for _ in range(steps):
            values = []
            for start in range(0, len(self.photos), self.batch_size):
                which = list(range(start, min(start + self.batch_size, len(self.photos))))
                leaves = [self.photos[i].requires_grad_() for i in which]
                value = objective(leaves, which)
                gradients = torch.autograd.grad(value.sum(), leaves)
                for i, gradient in zip(which, gradients, strict=True):
                    self.photos[i] = self._step(gradient, i)
                values.append(value.detach())
                finite += [gradient.isfinite().all() for gradient in gradients]
            if self.callback is not None:
                self.callback({"objective": torch.cat(values).mean()})
        check_finite(finite)

    def initial(self, index: int) -> Tensor:
        """Hook: the photo `[3, H, W]` that the ascent starts from."""
        return self.starts[index].detach().clone()

    def direction(self, gradient: Tensor, index: int) -> Tensor:
        """Hook: what one step adds to the photo, `[3, H, W]`, before it is multiplied by `step_size`."""
        if self.momentum:
            velocity = self.velocity[index].mul_(self.momentum)
            gradient = velocity.add_(gradient / gradient.abs().mean().clamp(min=1e-30))
        if self.update == "sign":
            return gradient.sign()
        return gradient / gradient.square().mean().sqrt().clamp(min=1e-30)

    def project(self, photo: Tensor, index: int) -> Tensor:
        """Hook: the nearest allowed photo `[3, H, W]`."""
        return photo.clamp_(*self.bounds(index))

    def bounds(self, index: int) -> tuple[Tensor, Tensor]:
        """The lowest and the highest allowed value of each pixel of a photo, both `[3, H, W]`."""
        return bounds(self.originals[index], self.starts[index], epsilon=self.epsilon, reach=self.reach)

    @torch.no_grad()
    def _step(self, gradient: Tensor, index: int) -> Tensor:
        moved = self.photos[index] + self.step_size * self.direction(gradient, index)
        return self.project(moved, index)


def bounds(original: Tensor, start: Tensor, *, epsilon: float, reach: float) -> tuple[Tensor, Tensor]:
    """The lowest and the highest allowed value of each pixel, both `[3, H, W]`. `PGD` explains the arguments."""
    low = torch.minimum(original - epsilon, start).maximum(start - reach)
    high = torch.maximum(original + epsilon, start).minimum(start + reach)
    return low.clamp_(min=0), high.clamp_(max=1)


def check_finite(flags: Sequence[Tensor]) -> None:
    """Raise FloatingPointError if a flag is false. A photo would not show a NaN gradient, because its sign is 0."""
    if flags and not torch.stack(list(flags)).all():
        raise FloatingPointError("a photo's gradient is not finite: something diverged, lower the learning rate")
