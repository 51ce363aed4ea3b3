"""CAT (Contrastive Adversarial Training, 2025): an autoencoder that sees protected photos as what they show.

Protections that push a photo's latents away rely on the attacker's encoder being the published one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from apdm.attacks import Material
from apdm.attacks.lora import adapted
from apdm.attacks.parts import decoded, encoded_anew, with_vae
from apdm.attacks.staged import Staged
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.lora_layers import layers, lora_parameters


@dataclass(frozen=True, kw_only=True)
class EncoderLoRA(Staged):
    """A LoRA on all layers of the VAE's encoder, trained until the attacker's photos reconstruct; then `attack`.

    Pictures of the class, which nobody protected, must reconstruct too, so that latents stay where the denoiser knows
    them. The decoder is frozen: it is what says where latents should be.
    """

    vae_steps: int = 500
    vae_learning_rate: float = 1e-4
    vae_rank: int = 64
    vae_batch_size: int = 4

    name: ClassVar[str] = "encoder_lora"

    @property
    def assumes(self) -> str:
        return "the weights, photos and a GPU that trains the autoencoder's encoder"

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        if material.photos is None or material.class_images is None:
            raise UserError("the attack on the encoder needs photos, and pictures of the class: give it both")
        vae = adapted(model.pipeline.vae, encoder_layers(model.pipeline.vae), self.vae_rank, None, self.seed)
        own = with_vae(model, vae)
        self._reconstruct(vae, material.photos, decoded(model, material.class_images) * 2 - 1)
        vae.requires_grad_(False)
        return own, encoded_anew(material, model, own)

    def _reconstruct(self, vae: Any, photos: Tensor, pictures: Tensor) -> None:
        """Minimise the mean squared error of D(E(x)) over photos and pictures, `[N, 3, H, W]` in [-1, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        sets = [some.to(vae.device, vae.dtype) for some in (photos, pictures)]
        optimizer = torch.optim.AdamW(lora_parameters(vae), lr=self.vae_learning_rate)
        for _ in range(self.vae_steps):
            chosen = [torch.randint(len(some), (self.vae_batch_size,), generator=generator) for some in sets]
            wanted = torch.cat([some[index] for some, index in zip(sets, chosen, strict=True)])
            mse_loss(vae.decode(vae.encode(wanted).latent_dist.mean).sample, wanted).backward()
            optimizer.step()
            optimizer.zero_grad()


def encoder_layers(vae: Any) -> list[str]:
    """All layers from the picture to the latents' distribution."""
    return [name for name in layers(vae) if name.startswith(("encoder.", "quant_conv"))]
