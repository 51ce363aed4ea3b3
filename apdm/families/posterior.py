"""The latent distribution that a VAE gives for images. It is computed once and sampled as often as needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apdm.core.devices import send


@dataclass(frozen=True)
class Posterior:
    """The VAE's Gaussian q(z | x) for N images, already in the scale that the denoiser works in.

    Sampling from it is the same as encoding the image again for each draw, without the cost.

    Args:
        mean: `[N, C, h, w]`, float32.
        std: standard deviation, `[N, C, h, w]`, float32. It is zero for a VAE that encodes without randomness.
    """

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Any) -> Posterior:
        """The posterior of a part of the images; `index` is anything that indexes the first axis of a tensor."""
        if isinstance(index, Tensor):
            index = send(index, self.mean.device)
        return Posterior(self.mean[index], self.std[index])

    def to(self, device: torch.device | str) -> Posterior:
        """The same posterior on another device."""
        return Posterior(self.mean.to(device), self.std.to(device))

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """Draw one latent per image.

        Args:
            generator: draws the noise, on its own device. Without one, torch's global generator is used.
            noise: standard normal noise `[N, C, h, w]` to use instead of drawing it.

        Returns:
            Latents `[N, C, h, w]`.
        """
        if noise is None:
            device = generator.device if generator else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * send(noise, self.mean.device)

    @staticmethod
    def cat(parts: Sequence[Posterior]) -> Posterior:
        """Join posteriors along the axis of images."""
        return Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))
