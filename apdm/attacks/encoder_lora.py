"""Contrastive Adversarial Training (CAT, 2025): the attacker trains the VAE's encoder to see through photo protections.

A protection that pushes a photo's latents away works only on the published encoder. This attack trains the encoder
until protected photos have latents that decode to what the photos show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from apdm.attacks import Material
from apdm.attacks.lora import with_adapter
from apdm.attacks.parts.latents import decode_latents, encode_again
from apdm.attacks.staged import Staged
from apdm.core.devices import send
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.lora_layers import layer_names, lora_parameters


@dataclass(frozen=True, kw_only=True)
class EncoderLoRA(Staged):
    """Train a LoRA on all layers of the VAE's encoder until photos reconstruct, then run `attack`.

    Class pictures, which nobody protected, must reconstruct too. This keeps the latents where the denoiser knows them.
    The decoder is frozen, because it defines which latent belongs to which picture.

    Attributes:
        vae_steps: number of training steps of the encoder.
        vae_learning_rate: learning rate of the encoder.
        vae_rank: rank of the LoRA.
        vae_batch_size: photos per step, and as many class pictures.
    """

    vae_steps: int = 500
    vae_learning_rate: float = 1e-4
    vae_rank: int = 64
    vae_batch_size: int = 4

    name: ClassVar[str] = "encoder_lora"

    @property
    def assumes(self) -> str:
        """What the attacker must have, as half a sentence for the report."""
        return "the weights, photos and a GPU that trains the autoencoder's encoder"

    @property
    def own_samples(self) -> int:
        """The photos and class pictures that the encoder is trained on."""
        return self.vae_steps * self.vae_batch_size * 2

    def own_passes(self, photos: float) -> float:
        """0, because the VAE alone is trained and the denoiser is not called; see `Staged.own_passes`."""
        return 0

    def prepare(self, model: Family, material: Material) -> tuple[Family, Material]:
        """Train the encoder and encode the material with it.

        Raises:
            UserError: the material has no photos or no class pictures.
        """
        if material.photos is None or material.class_images is None:
            raise UserError("the attack encoder_lora needs photos and class pictures; give it both")
        vae = with_adapter(
            model.pipeline.vae,
            encoder_layers(model.pipeline.vae),
            rank=self.vae_rank,
            lora_alpha=None,
            seed=self.seed,
        )
        own = model.replace(vae=vae)
        self._reconstruct(vae, material.photos, decode_latents(model, material.class_images) * 2 - 1)
        vae.requires_grad_(False)
        return own, encode_again(material, model, own)

    def _reconstruct(self, vae: Any, photos: Tensor, pictures: Tensor) -> None:
        """Minimise the mean squared error of D(E(x)) over photos and pictures, `[N, 3, H, W]` in [-1, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        sets = [images.to(vae.device, vae.dtype) for images in (photos, pictures)]
        optimizer = torch.optim.AdamW(lora_parameters(vae), lr=self.vae_learning_rate)
        for _ in range(self.vae_steps):
            chosen = [torch.randint(len(images), (self.vae_batch_size,), generator=generator) for images in sets]
            wanted = torch.cat([images[send(index, vae.device)] for images, index in zip(sets, chosen, strict=True)])
            mse_loss(vae.decode(vae.encode(wanted).latent_dist.mean).sample, wanted).backward()
            optimizer.step()
            optimizer.zero_grad()


def encoder_layers(vae: Any) -> list[str]:
    """Names of all linear and convolution layers between a picture and the distribution of its latents."""
    return [name for name in layer_names(vae) if name.startswith(("encoder.", "quant_conv"))]
