"""Drawing images with a model family. Images that two models draw with the same seed can be compared one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


class Sampler(ABC):
    """The part of `apdm.families.base.Family` that samples images with the diffusers pipeline.

    Attributes:
        pipeline: the diffusers pipeline.
        drawing: options of `sample` (guidance_scale, num_inference_steps) that win over what it is called with.
    """

    pipeline: Any
    drawing: Mapping[str, Any] = MappingProxyType({})

    @property
    @abstractmethod
    def denoiser(self) -> Any:
        """The part that is trained."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `[B, C, h, w]` as images `[B, 3, H, W]` in [0, 1], float32."""

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 4,
        face_embeds: Tensor | None = None,
        pipeline_options: Mapping[str, Any] = MappingProxyType({}),
    ) -> Tensor:
        """Sample one image per prompt with the pipeline's own scheduler.

        Each image has its own random generator on the CPU. Its noise therefore depends neither on the batch, nor on
        the model, nor on the device, and images that two models sample with the same seed can be compared one by one.
        The safety checker is not run, because an evaluation must see what the model produces.

        Args:
            prompts: one prompt per image.
            seed: image i is seeded with `seed[i]`, or with `seed + i` if a single number is given.
            guidance_scale: weight of classifier-free guidance, as the pipeline takes it; 1 turns it off.
            height, width: size of the images in pixels; by default the model's own.
            batch_size: images per call of the pipeline.
            face_embeds: `[D]`, the embedding of one person for all prompts, if the pipeline has a face adapter.
            pipeline_options: further arguments of the pipeline, the same for every image.

        Returns:
            Images `[B, 3, H, W]` in [0, 1], float32, on the CPU.

        Raises:
            ValueError: there are more or fewer seeds than prompts.
        """
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
        num_inference_steps = self.drawing.get("num_inference_steps", num_inference_steps)
        guidance_scale = self.drawing.get("guidance_scale", guidance_scale)
        images = []
        for start in range(0, len(prompts), batch_size):
            chunk = prompts[start : start + batch_size]
            inputs = self.prompt_inputs(chunk)
            if face_embeds is not None:
                inputs["ip_adapter_image_embeds"] = adapter_input(face_embeds, guided=guidance_scale > 1)
            with self._sampling_precision():
                latents = self.pipeline(
                    **inputs,
                    **pipeline_options,
                    generator=[torch.Generator().manual_seed(s) for s in seeds[start : start + batch_size]],
                    num_inference_steps=num_inference_steps,
                    guidance_scale=self.pipeline_guidance(guidance_scale),
                    height=height,
                    width=width,
                    output_type="latent",
                ).images
            images.append(self.decode(self.drawn_latents(latents, height, width)).cpu())
        return torch.cat(images)

    def step_passes(self, guidance_scale: float) -> int:
        """Forward passes of the denoiser for a picture in one sampling step: guidance adds one for the empty prompt."""
        return 2 if guidance_scale > 1 else 1

    def pipeline_guidance(self, guidance_scale: float) -> float:
        """The pipeline's `guidance_scale` for one of `sample`; they differ where 1 does not turn its guidance off."""
        return guidance_scale

    def drawn_latents(self, drawn: Tensor, height: int | None, width: int | None) -> Tensor:
        """Turn the pipeline's output for `output_type="latent"` into latents `[B, C, h, w]`.

        Args:
            drawn: the pipeline's output.
            height, width: size of the pictures in pixels, as it was given to the pipeline; None if it was not given.
        """
        return drawn

    @abstractmethod
    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments for these prompts: their embeddings and, for guidance, the empty prompt's."""

    def unconditional_embeds(self) -> Tensor | None:
        """What guidance takes for the empty prompt, `[1, L, D]` without pooled vectors; None if it takes nothing."""
        found: Tensor | None = self.prompt_inputs([""]).get("negative_prompt_embeds")
        return found

    def _sampling_precision(self) -> torch.autocast:
        """Autocast to the frozen parts' float type, if it differs from the denoiser's, which is float32."""
        encoder = self.pipeline.text_encoder
        return torch.autocast(encoder.device.type, encoder.dtype, enabled=encoder.dtype != self.denoiser.dtype)


def adapter_input(embeds: Tensor, *, guided: bool) -> list[Tensor]:
    """Give a face embedding the form that diffusers' pipelines take for an IP-Adapter.

    The pipeline applies it to every picture of a batch, so all pictures show the same person.

    Args:
        embeds: one person's embedding, `[D]`.
        guided: whether classifier-free guidance is on. If so, a row of zeros comes first, for the unconditional pass.

    Returns:
        A list with one tensor, `[1 or 2, 1, 1, D]`.
    """
    one = embeds[None, None, None]
    return [torch.cat([torch.zeros_like(one), one]) if guided else one]
