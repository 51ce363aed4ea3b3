"""What every family has in common: latents, sampling with paired seeds, and writing.

Two things are the same in all of them, so that nothing outside needs to know a family:

* Prompt embeddings are one opaque tensor `[B, L, D]`. A family whose denoiser also takes a pooled vector puts it in as
  one more row, with zeros up to D, and takes it off again in `predict`. Rows of two prompts stay comparable, and a
  tensor per prompt can be cached, expanded and concatenated by whoever has it.
* Timesteps are whole numbers 0 .. num_train_timesteps - 1, from hardly any noise to hardly any picture. A family whose
  denoiser is told something else, such as a noise level, looks it up.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from apdm.core.errors import UserError
from apdm.families.folder import write_pipeline
from apdm.families.posterior import Posterior

DrawTimesteps = Callable[[int, torch.Generator], Tensor]  # count -> [count], on the generator's device


def uniform_timesteps(total: int, count: int, generator: torch.Generator) -> Tensor:
    """`[count]` whole numbers below `total`, all alike."""
    return torch.randint(total, (count,), generator=generator, device=generator.device)


class Family(ABC):
    """A diffusers pipeline seen through what a method needs of it.

    Everything but the denoiser is frozen here. Gradients still flow through VAE and text encoders to images, and to a
    text encoder that an attack makes trainable again.

    pipeline: any pipeline in memory. source: the folder it was read from, where there is one; `save` then copies from
    it everything but the denoiser. dtypes: of each part's weights in the files they came from, in which `save` writes
    them; what is not named is written as it is.
    Raises UserError for a denoiser that predicts something unknown, or takes more than latents.
    """

    pipeline_name: ClassVar[str]  # diffusers' class
    denoiser_name: ClassVar[str]  # the part that is trained, under the pipeline's own name for it
    other_parts: ClassVar[tuple[str, ...]]  # what else the pipeline cannot do without
    # In the names of the denoiser's weights: where it reads the prompt, and where it makes keys and values of it.
    cross_attention: ClassVar[tuple[str, ...]]
    keys_and_values: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        pipeline: Any,
        *,
        source: Path | None = None,
        dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
    ) -> None:
        self.pipeline = pipeline
        self.source = source
        self.dtypes = dtypes
        self.num_train_timesteps: int = pipeline.scheduler.config.num_train_timesteps
        self.vae_scale: int = pipeline.vae_scale_factor
        self._check()
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.denoiser_name:
                part.eval().requires_grad_(False)  # diffusers leaves the T5 of a single file in training mode
        pipeline.set_progress_bar_config(disable=True)

    def _check(self) -> None:
        taken, given = self._channels, self.pipeline.vae.config.latent_channels
        if taken != given:
            raise UserError(
                f"{self._where}: the {self.denoiser_name} takes {taken} channels where the vae gives {given}: "
                "use a text-to-image model, not an inpainting one"
            )

    @property
    def _channels(self) -> int:
        """Of the latents that the denoiser takes."""
        return self.denoiser.config.in_channels

    @property
    def _where(self) -> str:
        return str(self.source or "this pipeline")

    @property
    def denoiser(self) -> Any:
        """The part that is trained."""
        return getattr(self.pipeline, self.denoiser_name)

    def with_denoiser(self, denoiser: nn.Module) -> Self:
        """This family with another denoiser, e.g. an attacked copy; the rest is shared."""
        return self.replace(**{self.denoiser_name: denoiser})

    def replace(self, **parts: Any) -> Self:
        """This family with other parts under the pipeline's names for them; the rest is shared.

        Only another denoiser keeps the source folder, from which `save` would copy everything else.
        """
        # A pipeline is a bag of parts: in a shallow copy some can be others without a new construction.
        pipeline = copy.copy(self.pipeline)
        pipeline.register_modules(**parts)
        source = self.source if set(parts) <= {self.denoiser_name} else None
        return type(self)(pipeline, source=source, dtypes=self.dtypes)

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Sides of pictures must be multiples of this many pixels."""

    # -- prompts and latents ---------------------------------------------------------------------------------

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings `[B, L, D]`; prompts beyond the encoder's length are cut, as the pipeline does."""

    def posterior(self, images: Tensor) -> Posterior:
        """Encode images `[B, 3, H, W]` in [-1, 1]. H and W must be multiples of `vae_scale`."""
        vae = self.pipeline.vae
        encoded = vae.encode(images.to(vae.device, vae.dtype))
        if "latents" in encoded:  # AutoencoderTiny has one latent per image, and no spread
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        else:
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
        dtype = torch.promote_types(vae.dtype, torch.float32)
        return Posterior((mean.to(dtype) - shift) * scale, std.to(dtype) * scale)

    def decode(self, latents: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [0, 1], float32, of latents `[B, C, h, w]` in the denoiser's scale."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        images = vae.decode(latents.to(vae.device, vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    # -- diffusion -------------------------------------------------------------------------------------------

    @property
    def draw_timesteps(self) -> DrawTimesteps:
        """How training draws timesteps, by default uniformly. It holds no pipeline and goes between processes."""
        return partial(uniform_timesteps, self.num_train_timesteps)

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """`x_t`: all `[B, C, h, w]` but timesteps, `[B]` in 0 .. num_train_timesteps - 1."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should say of `x_t`, `[B, C, h, w]`."""

    @abstractmethod
    def predict(self, denoiser: Any, noisy: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The denoiser's answer, `[B, C, h, w]`. denoiser: this family's, a copy or a wrapper of it."""

    # -- sampling --------------------------------------------------------------------------------------------

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
        """Draw one image per prompt with the pipeline's scheduler: `[B, 3, H, W]` in [0, 1], on the CPU.

        Image i starts from its own CPU generator: `seed[i]`, or `seed + i`. Its noise depends on neither the
        batch, the model nor the device, so images of two models pair up. The safety checker is not run: an
        evaluation must see what the model draws.

        face_embeds: `[D]`, one person for all prompts, for an adapter of FaceID's kind that is loaded in the pipeline.
        pipeline_options: more of the pipeline's own arguments, the same for every picture.
        """
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds")
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
                    guidance_scale=guidance_scale,
                    height=height,
                    width=width,
                    output_type="latent",
                ).images
            images.append(self.decode(self.drawn_latents(latents, height, width)).cpu())
        return torch.cat(images)

    def drawn_latents(self, drawn: Tensor, height: int | None, width: int | None) -> Tensor:
        """Latents `[B, C, h, w]` as the pipeline hands them out."""
        return drawn

    @abstractmethod
    def prompt_inputs(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The pipeline's arguments for these prompts, and for none of guidance's sake."""

    def _sampling_precision(self) -> torch.autocast:
        """Autocast where the frozen parts are in half precision, since the denoiser's weights never are."""
        encoder = self.pipeline.text_encoder
        return torch.autocast(encoder.device.type, encoder.dtype, enabled=encoder.dtype != self.denoiser.dtype)

    # -- files -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def round_weights(self) -> None:
        """Round the denoiser to the float type that `save` writes it in, so that what is judged is what ships."""
        dtype = self.dtypes.get(self.denoiser_name)
        if dtype is not None:
            for weight in self.denoiser.parameters():
                weight.copy_(weight.to(dtype))

    def save(self, directory: Path | str, *, variant: str | None = None) -> None:
        """Write a pipeline folder with safetensors only; variant "fp16" writes half-precision files.

        Everything but the denoiser's weights is copied as it was in `source`: tokenizer, safety checker,
        configuration. The denoiser's have the float type that they had in the files they came from. The folder is
        written beside `directory` and takes its place, whole, when it is complete.
        """
        if variant not in (None, "fp16", "bf16"):
            raise UserError(f"cannot write variant {variant!r}: fp16 and bf16 are known")
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(variant or "")

        def converted(name: str, module: Any) -> Any:
            dtype = half or self.dtypes.get(name, module.dtype)
            return module if dtype == module.dtype else _converted_copy(module, dtype)

        write_pipeline(
            self.pipeline,
            Path(directory),
            source=self.source,
            changed={self.denoiser_name},
            variant=variant,
            convert=converted,
        )


def append_pooled(embeds: Tensor, pooled: Tensor) -> Tensor:
    """Token embeddings `[B, L, D]` with a pooled vector `[B, P]` in as many rows below as it needs."""
    width = embeds.shape[2]
    rows = pad(pooled, (0, -pooled.shape[1] % width)).unflatten(1, (-1, width))
    return torch.cat([embeds, rows.to(embeds.dtype)], dim=1)


def split_pooled(embeds: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The two that `append_pooled` joined; `width` is P."""
    rows = -(-width // embeds.shape[2])
    return embeds[:, :-rows], embeds[:, -rows:].flatten(1)[:, :width]


def adapter_input(embeds: Tensor, *, guided: bool) -> list[Tensor]:
    """One person's `[D]` as the pipeline takes it, zeros first for guidance: `[1 or 2, 1, 1, D]` for its one adapter.

    The pipeline gives all rows to every picture of a batch, so that they must be one person's.
    """
    one = embeds[None, None, None]
    return [torch.cat([torch.zeros_like(one), one]) if guided else one]


def _converted_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy on the CPU in another float type, made without a second copy in the old one."""

    def converted(tensor: Tensor) -> Tensor:
        data = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data

    # deepcopy takes what its memo already holds instead of copying it.
    return copy.deepcopy(module, {id(t): converted(t) for t in chain(module.parameters(), module.buffers())})
