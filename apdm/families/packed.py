"""Flow matching over packed latents: what the families of FLUX have in common."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pixel_shuffle

from apdm.families.flow_matching import FlowMatching

PACK = 2  # latents are packed in squares of this side


class PackedFlow(FlowMatching):
    """A transformer that takes latents packed two by two, and is told noise levels in place of timesteps."""

    @property
    def latent_channels(self) -> int:
        """Channels of the latents before they are packed."""
        return self.denoiser.config.in_channels // PACK**2

    @property
    def told_timesteps(self) -> int:
        """As `Family.told_timesteps`: a share of 1."""
        return 1

    @property
    def size_multiple(self) -> int:
        """As `Family.size_multiple`, in pixels: latents are packed two by two."""
        return self.vae_scale * PACK


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """Latents `[B, C, 2 * height, 2 * width]` of packed tokens `[B, height * width, 4 * C]`."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), PACK)
