"""MasaCtrl (Cao et al. 2023): a picture is drawn by another prompt, with the looks of a photo.

The photo is inverted to noise. From this noise two pictures are drawn side by side: the photo once more, with the
prompt that describes it, and the edited one. From step S and layer L on, the self-attention of the edited picture is

    softmax(Q K_s^T / sqrt(d)) V_s

with the queries of the edited picture, and with keys and values of the photo's (mutual self-attention, the paper's
Algorithm 1). So a pose can change, and the person stays.

The photo is drawn without guidance, and its keys and values serve both passes of the edited picture. In the authors'
program it is drawn with guidance, and the pass of the empty prompt takes those of its own. With an empty
`source_prompt`, the default, both are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from apdm.attacks.editing import Editing, repeated
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.attention import lend_self_attention, record_self_attention


@dataclass(frozen=True, kw_only=True)
class MasaCtrl(Editing):
    """Mutual self-attention control. It draws no random numbers, so equal photos and prompts give equal pictures.

    Attributes:
        source_prompt: what the photo shows. The authors leave it empty for real photos.
        start_step: S. From this step on, keys and values are the photo's. Counted from 0.
        start_layer: L. From this self-attention layer on, they are the photo's. Counted from 0, in the denoiser's
            order. The U-Net of Stable Diffusion 1 and 2 has 16 such layers.
    """

    source_prompt: str = ""
    start_step: int = option(4, at_least=0)
    start_layer: int = option(10, at_least=0)

    name: ClassVar[str] = "masactrl"

    def check(self, model: Family) -> None:
        """Check that pictures can be inverted, and that there is such a layer; see `Editing.check`."""
        if not model.takes_ddim:
            raise UserError(f"masactrl inverts photos with DDIM, which {model.name} does not draw with; leave it out")
        layers = model.attention_layers(model.denoiser)
        count = sum(not getattr(layer.module, "is_cross_attention", False) for layer in layers)
        if self.start_layer >= count:
            raise UserError(
                f"masactrl: start_layer is {self.start_layer}, and this model has {count} layers of self-attention, "
                f"counted from 0; write masactrl:start_layer={count // 2}"
            )

    def check_steps(self, num_inference_steps: int) -> None:
        """Check that the photo's keys and values are lent in some step; see `Editing.check_steps`."""
        if self.start_step >= num_inference_steps:
            raise UserError(
                f"masactrl: start_step is {self.start_step}, and a picture is drawn in {num_inference_steps} steps, "
                "counted from 0, so the photo would change nothing; "
                f"write masactrl:start_step={num_inference_steps // 2}"
            )

    @torch.no_grad()
    def draw(
        self,
        model: Family,
        photos: Tensor,
        prompts: Sequence[str],
        *,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        batch_size: int = 4,
        **_: Any,
    ) -> Tensor:
        """Edit photo i modulo N by prompt i. `apdm.attacks.ZeroShot.draw` explains the arguments."""
        self.check(model)
        chosen = repeated(photos, prompts)
        timesteps = torch.linspace(0, model.num_train_timesteps - 1, num_inference_steps + 1).round().int().tolist()
        pictures = []
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            latents = model.posterior(chosen[part] * 2 - 1).mean
            source = _encoded(model, [self.source_prompt] * len(latents))
            target = _encoded(model, prompts[part])
            empty = _encoded(model, [""] * len(latents)) if guidance_scale > 1 else None
            noise = inverted(model, latents, source, timesteps)
            drawn = self._draw(model, noise, source, target, empty, guidance_scale, timesteps)
            pictures.append(model.decode(drawn).cpu())
        return torch.cat(pictures)

    def _draw(
        self,
        model: Family,
        noise: Tensor,
        source: Tensor,
        target: Tensor,
        empty: Tensor | None,
        guidance_scale: float,
        timesteps: Sequence[int],
    ) -> Tensor:
        """Draw the photo and the edited picture side by side, and return the latents of the latter."""
        layers = model.attention_layers(model.denoiser)
        photo = edited = noise
        for number, (start, end) in enumerate(pairwise(reversed(timesteps))):
            with record_self_attention(layers) as kept:
                seen = _predicted(model, photo, start, source)
            last = list(kept)[self.start_layer :] if number >= self.start_step else []
            with lend_self_attention(layers, {name: kept[name] for name in last}):
                if empty is None:
                    wanted = _predicted(model, edited, start, target)
                else:
                    both = _predicted(model, torch.cat([edited, edited]), start, torch.cat([empty, target]))
                    without, towards = both.chunk(2)
                    wanted = without + guidance_scale * (towards - without)
            photo, edited = (model.ddim_step(*pair, start, end) for pair in ((photo, seen), (edited, wanted)))
        return edited


def inverted(model: Family, latents: Tensor, prompt: Tensor, timesteps: Sequence[int]) -> Tensor:
    """Go from pictures to the noise that they are drawn from without guidance (DDIM inversion).

    A step's noise is predicted from the picture before the step, as if it already had the step's noise level. This is
    the usual approximation.

    Args:
        latents: the pictures, `[B, C, h, w]`.
        prompt: the embeddings of what they show, `[B, L, D]`.
        timesteps: from 0 to the last one.
    """
    for start, end in pairwise(timesteps):
        latents = model.ddim_step(latents, _predicted(model, latents, end, prompt), start, end)
    return latents


def _encoded(model: Family, prompts: Sequence[str]) -> Tensor:
    return model.encode_prompts(prompts).to(model.denoiser.dtype)


def _predicted(model: Family, latents: Tensor, timestep: int, prompt: Tensor) -> Tensor:
    denoiser = model.denoiser
    told = torch.full((len(latents),), timestep, device=latents.device)
    return model.predict(denoiser, latents.to(denoiser.dtype), told, prompt).to(latents.dtype)
