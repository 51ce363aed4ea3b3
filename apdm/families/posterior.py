"""What a VAE says of images, drawn from as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Posterior:
    """What the VAE says of N images: a Gaussian for each latent, already in the denoiser's scale.

    mean, std: `[N, C, h, w]` float32. Encoding an image once and drawing from this afterwards is the same as
    encoding it anew for each draw.
    """

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def __getitem__(self, index: Any) -> Posterior:
        return Posterior(self.mean[index], self.std[index])

    def to(self, device: torch.device | str) -> Posterior:
        return Posterior(self.mean.to(device), self.std.to(device))

    def sample(self, generator: torch.Generator | None = None, *, noise: Tensor | None = None) -> Tensor:
        """One latent per image, `[N, C, h, w]`, from standard normal noise or from a generator."""
        if noise is None:
            device = generator.device if generator else self.mean.device
            noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device, non_blocking=True)

    @staticmethod
    def cat(parts: Sequence[Posterior]) -> Posterior:
        return Posterior(torch.cat([p.mean for p in parts]), torch.cat([p.std for p in parts]))
