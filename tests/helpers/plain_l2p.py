"""A toy diffusion model, and Learning to Protect written out plainly on it, for tests to compare with."""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apdm.core.adamw import make_adamw
from apdm.distributed.engines import Engine
from apdm.distributed.master_weights import make_master_weights
from apdm.families import Posterior
from apdm.protection.attackers import AttackerPlan, FreshAttacker
from apdm.protection.learning_to_protect import LearningToProtect
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import SubjectData

ADAM = {
    "learning_rate": 2e-3,
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "adam_weight_decay": 0.05,
    "adam_epsilon": 1e-8,
}


class ToyDenoiser(nn.Module):
    """Two layers over a flattened latent of 8 numbers, its time and its prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8 + 1 + 3, 10), nn.Linear(10, 8)

    def forward(self, noisy: Tensor, timesteps: Tensor, prompt: Tensor) -> Tensor:
        inputs = torch.cat([noisy.flatten(1), timesteps[:, None] / 10, prompt.mean(1)], 1)
        return self.second(torch.tanh(self.first(inputs))).view_as(noisy)


class ToyDiffusion:
    """A forward process of ten steps whose target is a velocity, so that it depends on latents and noise."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        angle = (math.pi / 20 * timesteps).view(-1, 1, 1, 1)
        return angle.cos() * latents + angle.sin() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        angle = (math.pi / 20 * timesteps).view(-1, 1, 1, 1)
        return angle.cos() * noise - angle.sin() * latents

    def predict(self, denoiser, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        return denoiser(noisy, timesteps, prompt_embeds)


def draw_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(10, (count,), generator=generator)


def toy_data(paired: bool = True) -> SubjectData:
    generator = torch.Generator().manual_seed(3)

    def images(count: int) -> Posterior:
        mean = torch.randn(count, 2, 2, 2, generator=generator, dtype=torch.get_default_dtype())
        return Posterior(mean, torch.full_like(mean, 0.1))

    prompts = torch.randn(2, 1, 4, 3, generator=generator, dtype=torch.get_default_dtype())
    return SubjectData(images(3), images(7), prompts[0], prompts[1], draw_timesteps, images(3) if paired else None)


def plain_error(weights, batch, i):
    angle = math.pi / 20 * batch.timesteps[i]
    x, noise = batch.latents[i].flatten(), batch.noise[i].flatten()
    noisy = torch.cos(angle) * x + torch.sin(angle) * noise
    inputs = torch.cat([noisy, batch.timesteps[i].view(1) / 10, batch.prompt_embeds[i].mean(0)])
    answer = weights[2] @ torch.tanh(weights[0] @ inputs + weights[1]) + weights[3]
    return (answer - (torch.cos(angle) * noise - torch.sin(angle) * x)) ** 2, answer


def plain_adamw(weights, gradients, state, t):
    lr, b1, b2, decay, eps = ADAM.values()
    for k, (w, g) in enumerate(zip(weights, gradients, strict=True)):
        m, v = state.get(k, (torch.zeros_like(w), torch.zeros_like(w)))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        state[k] = m, v
        weights[k] = w * (1 - lr * decay) - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps)


def plain_clip(gradients, bound):
    norm = sum((g**2).sum() for g in gradients) ** 0.5
    return [g * min(1.0, bound / (norm + 1e-6)) for g in gradients] if bound else gradients


def plain_loop(theta, phi, drawn, outer_steps, *, inner_steps, beta, reduction, evaluate, accumulate,
               prior_loss_weight, preservation_weight, anchor_weight, max_grad_norm, outer_clip):  # fmt: skip
    """Algorithm 1, sample by sample. Returns theta and the last G."""
    attacks, defences, anchors = (iter(drawn[k]) for k in ("personalization", "protection", "anchor"))

    def gradient(loss_of, weights):
        leaves = [w.clone().requires_grad_() for w in weights]
        return list(torch.autograd.grad(loss_of(leaves), leaves))

    def attack_loss(weights, b):
        n = range(len(b.instance.latents))
        error = [plain_error(weights, b.instance, i)[0].mean() for i in n]
        prior = [plain_error(weights, b.prior, i)[0].mean() for i in n]
        return sum(error) / len(n) + prior_loss_weight * sum(prior) / len(n)

    def defence_loss(weights, b):
        total, n = 0.0, len(b.prior.latents)
        for i in range(n):
            margin = plain_error(weights, b.positive, i)[0] - plain_error(phi, b.positive, i)[0]
            margin = margin - (plain_error(weights, b.negative, i)[0] - plain_error(phi, b.negative, i)[0])
            margin = margin.mean() if reduction == "sample" else margin
            total = total + torch.log(1 + torch.exp(beta * margin)).mean() / n
            total = total + preservation_weight * plain_error(weights, b.prior, i)[0].mean() / n
        return total

    def anchor_loss(weights, b):
        n = range(len(b.latents))
        return sum(((plain_error(weights, b, i)[1] - plain_error(phi, b, i)[1]) ** 2).mean() for i in n) / len(n)

    outer_state = {}
    for j in range(1, outer_steps + 1):
        fast, inner_state, total = list(theta), {}, [torch.zeros_like(w) for w in theta]
        if anchor_weight:
            anchor = next(anchors)
            total = [anchor_weight * g for g in gradient(lambda w, b=anchor: anchor_loss(w, b), fast)]
        for i in range(1, inner_steps + 1):
            attack, defence = next(attacks), next(defences)
            before = gradient(lambda w, b=defence: defence_loss(w, b), fast)
            g = plain_clip(gradient(lambda w, b=attack: attack_loss(w, b), fast), max_grad_norm)
            plain_adamw(fast, g, inner_state, i)
            after = gradient(lambda w, b=defence: defence_loss(w, b), fast)
            total = [t + d for t, d in zip(total, before if evaluate == "before" else after, strict=True)]
        total = [t / inner_steps for t in total] if accumulate == "mean" else total
        total = plain_clip(total, outer_clip)
        plain_adamw(theta, total, outer_state, j)
    return theta, total


def toy_protector(*, objective: str = "dpo", max_grad_norm: float = 0.0, outer_clip: float = 0.0, **options):
    """Learning to Protect on the toy, with theta a little away from phi."""
    torch.manual_seed(0)
    reference = ToyDenoiser().requires_grad_(False)
    model = copy.deepcopy(reference).requires_grad_(True)
    with torch.no_grad():  # theta that is not phi: DPO must see the difference
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    engine = Engine(model, partial(make_adamw, **ADAM), max_grad_norm=max_grad_norm)
    master = make_master_weights(engine.working, max_grad_norm=outer_clip, **ADAM)
    return LearningToProtect(ToyDiffusion(), engine, reference, master, make_objective(objective), **options)


def fresh(source, *, inner_steps: int = 4, prior_loss_weight: float = 1.0, **plan) -> FreshAttacker:
    """Algorithm 1's attacker who draws from `source`."""
    plan = {"learning_rate": ADAM["learning_rate"], "steps": inner_steps, **plan}
    return FreshAttacker(AttackerPlan(person=0, variant=0, prior_loss_weight=prior_loss_weight, **plan), source)


class Recorded:
    """Hands out what a source gives and remembers it."""

    def __init__(self, source) -> None:
        self.source = source
        self.drawn: dict[str, list[Any]] = {"personalization": [], "protection": [], "anchor": []}

    def __getattr__(self, kind):
        def draw():
            self.drawn[kind].append(getattr(self.source, kind)())
            return self.drawn[kind][-1]

        return draw


class Given:
    """A source that hands out the given protection batch."""

    def __init__(self, protection) -> None:
        self.batch = protection

    def protection(self):
        return self.batch
