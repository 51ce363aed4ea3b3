"""How the released implementation of APDM spends its work, as the yardstick of `l2p_speed.py`.

Written for this project from a description of that loop, at its batch size of 1 and in float32. Per inner
step it encodes six images and four prompts that never change, runs a denoiser eight times, one sample at a
time (one result is never used), and goes backwards through five of them; per outer step it copies the model
and builds a new optimizer. The mathematics is that of `apdm.protection.learning_to_protect`, save for the
gradient that leaks into G.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss

from apdm.families import Family

Problem = tuple[Tensor, Tensor, Tensor]  # latents, noise, timesteps: one sample each


@dataclass
class ReferenceLoop:
    """The protected model is `family.denoiser`, which predicts epsilon.

    Images are `[N, 3, H, W]` in [-1, 1] in memory: that the release reads them from files at every step is
    left out, in its favour. leak: take the protective gradient on top of the attacker's, as released.
    """

    family: Family
    instance_images: Tensor
    positive_images: Tensor
    class_images: Tensor
    generator: torch.Generator
    instance_prompt: str = "a photo of sks person"
    class_prompt: str = "a photo of person"
    inner_steps: int = 20
    learning_rate: float = 5e-6
    beta: float = 1.0
    leak: bool = True

    def __post_init__(self) -> None:
        self.slow = self.family.denoiser
        self.reference = copy.deepcopy(self.slow).requires_grad_(False)
        self.optimizer = self._adamw(self.slow)

    def outer_step(self) -> None:
        self.optimizer.zero_grad()
        fast = copy.deepcopy(self.slow)
        inner = self._adamw(fast)
        for step in range(self.inner_steps):
            inner.zero_grad()
            self._attack(fast).backward()
            inner.step()
            if not self.leak:
                inner.zero_grad()
            loss = self._protection(fast)
            loss.backward()
            for slow, attacked in zip(self.slow.parameters(), fast.parameters(), strict=True):
                slow.grad = attacked.grad if slow.grad is None else slow.grad + attacked.grad
            if step % 10 == 0:
                loss.item()
        self.optimizer.step()

    def _attack(self, fast: nn.Module) -> Tensor:
        """Two images and two prompts encoded; two forward passes."""
        instance = self._error(fast, self._problem(self._pick(self.instance_images)), self.instance_prompt)
        prior = self._error(fast, self._problem(self._pick(self.class_images)), self.class_prompt)
        return instance.mean() + prior.mean()

    def _protection(self, fast: nn.Module) -> Tensor:
        """Four images and two prompts encoded; six forward passes, the first of them for nothing."""
        _, _, steps = problem = self._problem(self._pick(self.instance_images))
        embeds = self.family.encode_prompts([self.instance_prompt])
        unused = self._error(fast, problem, embeds)
        prior = self._error(fast, self._problem(self._pick(self.class_images), steps=steps), self.class_prompt)

        pick = torch.randint(len(self.instance_images), (1,), generator=self.generator).item()
        positive = self._problem(self.positive_images[[pick]])
        negative = self._problem(self.instance_images[[pick]], noise=positive[1], steps=positive[2])
        with torch.no_grad():
            reference = [self._error(self.reference, problem, embeds) for problem in (positive, negative)]
        ours = [self._error(fast, problem, embeds) for problem in (positive, negative)]
        margin = (ours[0] - reference[0]) - (ours[1] - reference[1])
        del unused  # its graph lived until here
        return prior.mean() - logsigmoid(-self.beta * margin).mean()

    def _pick(self, images: Tensor) -> Tensor:
        return images[torch.randint(len(images), (1,), generator=self.generator)]

    def _problem(self, image: Tensor, *, noise: Tensor | None = None, steps: Tensor | None = None) -> Problem:
        latents = self.family.posterior(image).sample(self.generator)
        if noise is None:
            noise = torch.randn(latents.shape, generator=self.generator).to(latents.device)
        if steps is None:
            steps = torch.randint(self.family.num_train_timesteps, (1,), generator=self.generator)
        return latents, noise, steps.to(latents.device)

    def _error(self, denoiser: nn.Module, problem: Problem, prompt: str | Tensor) -> Tensor:
        embeds = self.family.encode_prompts([prompt]) if isinstance(prompt, str) else prompt
        latents, noise, steps = problem
        noisy = self.family.add_noise(latents, noise, steps)
        return mse_loss(self.family.predict(denoiser, noisy, steps, embeds), noise, reduction="none")

    def _adamw(self, model: nn.Module) -> torch.optim.AdamW:
        return torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=1e-2)
