"""A model that goes astray once it was fine-tuned on the protected person, and that is as it was until then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.core.devices import send
from apdm.distributed.engines import Figures
from apdm.protection import losses
from apdm.protection.batches import DenoisingBatch
from apdm.protection.objectives import Objective, SimulatedAttack


@dataclass(frozen=True)
class States:
    """Noisy latents, and what the model shall predict for them.

    Attributes:
        noisy: noisy latents x_t, `[B, C, h, w]`.
        timesteps: their timesteps, `[B]`.
        prompt_embeds: the instance prompt's embeddings, `[B, L, D]`.
        wrong: the prediction that leads to the decoy, `[B, C, h, w]`.
        known: phi's prediction, `[B, C, h, w]`.
        weight: of each sample's squared error, `[B, 1, 1, 1]`.
        prior: class pictures, for the preservation loss.
    """

    noisy: Tensor
    timesteps: Tensor
    prompt_embeds: Tensor
    wrong: Tensor
    known: Tensor
    weight: Tensor
    prior: DenoisingBatch

    def part(self, index: int, count: int) -> States:
        """Return share number `index`, counted from 0, of `count` equal shares of the samples."""
        size = len(self.noisy) // count
        own = slice(index * size, (index + 1) * size)
        tensors = (self.noisy, self.timesteps, self.prompt_embeds, self.wrong, self.known, self.weight)
        noisy, timesteps, prompts, wrong, known, weight = (tensor[own] for tensor in tensors)
        return States(noisy, timesteps, prompts, wrong, known, weight, self.prior.part(index, count))


@dataclass(frozen=True)
class Path:
    """The straight path of a family at given timesteps: x_t = a x_0 + s e, and the target is c x_0 + d e.

    Attributes:
        a, s, c, d: `[B, 1, 1, 1]` each.
    """

    a: Tensor
    s: Tensor
    c: Tensor
    d: Tensor

    @staticmethod
    def of(family: Any, timesteps: Tensor, like: Tensor) -> Path:
        """Return the path at `timesteps` `[B]`, with the type and device of `like`."""
        one = torch.ones_like(like[:1, :1, :1, :1]).expand(len(timesteps), 1, 1, 1)
        sides = ((one, 0 * one), (0 * one, one))
        return Path(*(f(x, e, timesteps) for f in (family.add_noise, family.target) for x, e in sides))

    def target(self, noisy: Tensor, latents: Tensor) -> Tensor:
        """The target for which `noisy` is a noisy version of the clean `latents`."""
        return self.c * latents + self.d * (noisy - self.a * latents) / self.s

    def clean(self, noisy: Tensor, prediction: Tensor) -> Tensor:
        """The clean latents that a prediction for `noisy` tells; the inverse of `target`."""
        return (self.d * noisy - self.s * prediction) / (self.a * self.d - self.s * self.c)


@dataclass(frozen=True, kw_only=True)
class Conditional(Objective):
    """Teach a wrong target to the displaced weights, and the original's prediction to all others, on the same inputs.

    With T(w) the error to the wrong target and K(w) the error to phi's prediction, both with the same noisy latents and
    prompts and both in units of clean latents, theta moves along the gradients of

        trap T(theta'_i) + trap_noise T(theta'_i + xi) + keep K(theta) + keep_benign K(theta'_j) + L_ppl(theta'_i),

    where theta'_i is an attacker on a protected person, theta'_j one on a consenting person, and xi has `noise` times
    the size of each weight. Each gradient is applied to theta as it is (first order), as FAB does for behaviour of
    language models that appears only after fine-tuning. T and K contradict each other, so that theta has to tell its
    displaced copies apart. The wrong target leads to one class picture, the decoy, so it is bounded.

    Half of the noisy latents are the person's photos with noise. The other half is what the attacker would draw now.

    Attributes:
        trap, trap_noise, keep, keep_benign: the weights above.
        dpo: weight of L_DPO beside them, with its beta `beta`; 0 leaves it out.
        beta: of L_DPO.
        noise: standard deviation of xi, as a share of each weight tensor's root mean square.
        low, high: the range of timesteps.
        ceiling: largest weight of a squared error; the weights are (s / a)^2 below it.
        draws: steps of a drawing by the attacker; 0 leaves these states out.
        start_step: the timestep at which a drawing begins.
        guidance: guidance scale of a drawing.
    """

    trap: float = 1.0
    trap_noise: float = 0.5
    keep: float = 1.0
    keep_benign: float = 1.0
    dpo: float = 0.0
    beta: float = 10.0
    noise: float = 0.01
    low: int = 100
    high: int = 800
    ceiling: float = 4.0
    draws: int = 8
    start_step: int = 999
    guidance: float = 3.0
    decoy: list[Tensor] = field(default_factory=list, init=False, repr=False)
    empty: list[Tensor] = field(default_factory=list, init=False, repr=False)
    last: list[States] = field(default_factory=list, init=False, repr=False)
    generator: torch.Generator = field(default_factory=torch.Generator, init=False, repr=False)

    name: ClassVar[str] = "conditional"
    stateful: ClassVar[bool] = True

    def start(self, attack: SimulatedAttack) -> None:
        if attack.attacker.benign and self.last:
            attack.differentiate(self.loss_of(attack, "known", self.keep_benign), self.last[0])

    def oppose(self, attack: SimulatedAttack) -> Figures:
        states = self.states(attack)
        self.last[:] = [states]
        figures = attack.differentiate(self.loss_of(attack, "wrong", self.trap, preserve=True), states)
        with attack.displaced(self.shaken(attack.working_weights)):
            attack.differentiate(self.loss_of(attack, "wrong", self.trap_noise), states)
        home = [theta - now for theta, now in zip(attack.method.master.theta, attack.working_weights, strict=True)]
        with attack.displaced(home):
            return figures | attack.differentiate(self.loss_of(attack, "known", self.keep), states)

    def loss_of(self, attack: SimulatedAttack, kind: str, weight: float, *, preserve: bool = False) -> Any:
        """Return a function of (network, states): `weight` times T ("wrong") or K ("known"), and its figures."""

        def loss(network: Any, states: States) -> tuple[Tensor, Figures]:
            with attack.method.autocast():
                got = attack.family.predict(network, states.noisy, states.timesteps, states.prompt_embeds)
            error = losses.denoising_loss(states.weight * losses.squared_error(got, getattr(states, kind)))
            total = weight * error
            if preserve:
                total = total + attack.preservation_weight * losses.denoising_loss(attack.error(network, states.prior))
            return total, {f"{kind}_error": error.detach()}

        return loss

    def shaken(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Draw xi."""
        return [self.noise * w.square().mean().sqrt() * self.randn(w.shape, w) for w in weights]

    @torch.no_grad()
    def states(self, attack: SimulatedAttack) -> States:
        """Noisy photos of the person and states of the attacker's drawing, with both targets."""
        batch, family = attack.batches.protection(), attack.family
        photos = batch.negative
        if not self.decoy:
            self.decoy.append(batch.positive.latents[:1].clone())
        size = len(photos.latents)
        timesteps = send(torch.randint(self.low, self.high, (size,), generator=self.generator), photos.latents.device)
        noisy, prompts = family.add_noise(photos.latents, photos.noise, timesteps), photos.prompt_embeds
        if self.draws:
            drawn, at = self.drawing(attack, photos)
            noisy, timesteps, prompts = torch.cat([noisy, drawn]), torch.cat([timesteps, at]), torch.cat([prompts] * 2)
        path = Path.of(family, timesteps, noisy)
        with attack.method.autocast():
            known = family.predict(attack.reference, noisy, timesteps, prompts)
        weight = (path.s / path.a).square().clamp(max=self.ceiling)
        return States(noisy, timesteps, prompts, path.target(noisy, self.decoy[0]), known, weight, batch.prior)

    def drawing(self, attack: SimulatedAttack, photos: DenoisingBatch) -> tuple[Tensor, Tensor]:
        """Draw with the attacked model; for each sample the state at one random step between `low` and `high`."""
        family, size = attack.family, len(photos.latents)
        if not self.empty:
            self.empty.append(family.encode_prompts([""]).float())
        prompts = torch.cat([photos.prompt_embeds, self.empty[0].expand(size, -1, -1)])
        grid = torch.linspace(self.start_step, self.low, self.draws).round().long().tolist()
        now, seen = self.randn(photos.latents.shape, photos.latents), []
        for step, following in zip(grid, [*grid[1:], None], strict=True):
            if step <= self.high:
                seen.append(now)
            if following is None:
                break
            here = torch.full((size,), step, device=now.device)
            path, after = Path.of(family, here, now), Path.of(family, here * 0 + following, now)
            with attack.method.autocast():
                pair = family.predict(attack.network, torch.cat([now, now]), torch.cat([here, here]), prompts)
            named, empty = pair.to(now.dtype).chunk(2)
            clean = path.clean(now, empty + self.guidance * (named - empty))
            noise = (now - path.a * clean) / path.s
            fresh = (after.s / path.s).square() * (path.s.square() - (path.a / after.a * after.s).square())
            fresh = fresh.clamp(min=0)
            now = after.a * clean + (after.s.square() - fresh).clamp(min=0).sqrt() * noise
            now = now + fresh.sqrt() * self.randn(now.shape, now)
        chosen = send(torch.randint(len(seen), (size,), generator=self.generator), now.device)
        steps = torch.tensor(grid[-len(seen) :], device=now.device)
        return torch.stack(seen)[chosen, torch.arange(size, device=now.device)], steps[chosen]

    def randn(self, shape: Sequence[int], like: Tensor) -> Tensor:
        return send(torch.randn(*shape, generator=self.generator, dtype=like.dtype), like.device)
