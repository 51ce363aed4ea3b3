"""DiffEdit (Couairon et al. 2023): find where a prompt asks for another picture, and draw only that place again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline
from torch import Tensor

from apdm.attacks.editing import Editing, repeated
from apdm.attacks.purify import check_strength
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.families import Family

NEEDED = ("vae", "text_encoder", "tokenizer", "unet")


@dataclass(frozen=True, kw_only=True)
class DiffEdit(Editing):
    """diffusers' DiffEdit pipeline, with its defaults. Only the inversion is without guidance, as in the paper.

    Attributes:
        source_prompt: what the photo shows. The mask is where the model's predictions for the two prompts differ. The
            empty prompt is the paper's unconditional model.
        strength: how far towards noise the photo is inverted, 0 to 1.
        mask_strength: how much noise the photo has where the predictions are compared, 0 to 1.
        mask_ratio: largest difference that counts, as a multiple of the mean difference.
        num_maps: comparisons, each with other noise, whose mean is the mask.
    """

    source_prompt: str = ""
    strength: float = option(0.8, at_least=0, at_most=1)
    mask_strength: float = option(0.5, above=0, at_most=1)
    mask_ratio: float = option(3.0, above=0)
    num_maps: int = option(10, at_least=1)

    name: ClassVar[str] = "diffedit"

    def check(self, model: Family) -> None:
        """Check that diffusers' pipeline can be made of the model's parts; see `Editing.check`."""
        if not model.takes_diffedit:
            raise UserError(f"diffedit is for Stable Diffusion 1 and 2, this model is {model.name}; leave it out")

    def check_steps(self, num_inference_steps: int) -> None:
        """Check that both strengths are at least one step; see `Editing.check_steps`."""
        for name in ("strength", "mask_strength"):
            check_strength(f"{self.name}: {name}", getattr(self, name), num_inference_steps)

    @torch.no_grad()
    def draw(
        self,
        model: Family,
        photos: Tensor,
        prompts: Sequence[str],
        *,
        seed: int | Sequence[int],
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        **_: Any,
    ) -> Tensor:
        """Edit photo i modulo N by prompt i. `apdm.attacks.ZeroShot.draw` explains the arguments.

        Photos are edited one by one, because diffusers scales the masks of a batch together.
        """
        self.check(model)
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        pipeline = _pipeline(model)
        pictures = [
            self._edit(model, pipeline, photo[None], prompt, torch.Generator().manual_seed(one), options)
            for photo, prompt, one in zip(repeated(photos, prompts), prompts, seeds, strict=True)
        ]
        return torch.cat(pictures)

    def _edit(
        self,
        model: Family,
        pipeline: Any,
        photo: Tensor,
        prompt: str,
        generator: torch.Generator,
        options: dict[str, Any],
    ) -> Tensor:
        latents = model.posterior(photo * 2 - 1).mean
        steps = options["num_inference_steps"]
        if int(steps * self.strength) < 1 or int(steps * self.mask_strength) < 1:  # diffusers would do no step at all
            return model.decode(latents).cpu()
        target, source = model.prompt_inputs([prompt]), model.prompt_inputs([self.source_prompt])
        mask = pipeline.generate_mask(
            image=latents,
            **{f"target_{name}": value for name, value in target.items()},
            **{f"source_{name}": value for name, value in source.items()},
            num_maps_per_mask=self.num_maps,
            mask_encode_strength=self.mask_strength,
            mask_thresholding_ratio=self.mask_ratio,
            generator=generator,
            **options,
        )
        inverted = pipeline.invert(
            image=latents,
            prompt_embeds=source["prompt_embeds"],
            inpaint_strength=self.strength,
            num_inference_steps=steps,
            guidance_scale=1.0,
            generator=generator,
        ).latents
        drawn = pipeline(
            mask_image=torch.from_numpy(mask).float()[:, None],
            image_latents=inverted,
            **target,
            inpaint_strength=self.strength,
            generator=generator,
            output_type="latent",
            **options,
        ).images
        return model.decode(drawn).cpu()


def _pipeline(model: Family) -> Any:
    """diffusers' pipeline of the model's parts, with DDIM in place of the model's sampler."""
    config = dict(model.pipeline.scheduler.config)
    # A configuration of another sampler does not say that latents are not to be clipped, as DDIM does by default.
    config |= {"clip_sample": False, "set_alpha_to_one": False}
    if config.get("timestep_spacing") == "linspace":  # which the inverse scheduler does not have
        config["timestep_spacing"] = "leading"
    scheduler = DDIMScheduler.from_config(config)
    pipeline = StableDiffusionDiffEditPipeline(
        **{name: getattr(model.pipeline, name) for name in NEEDED},
        scheduler=scheduler,
        inverse_scheduler=DDIMInverseScheduler.from_config(scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
