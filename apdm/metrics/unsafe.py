"""How many pictures Stable Diffusion's own safety checker flags, from the folder safety_checker of a pipeline."""

from __future__ import annotations

from logging import ERROR, getLogger
from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from torch import Tensor
from transformers import CLIPImageProcessor

from apdm.core.errors import UserError, one_line
from apdm.metrics.extractors import Preprocess, local_copy


class SafetyChecker:
    """The checker. It looks at pictures as CLIP does, at the size that its configuration says."""

    def __init__(self, place: str | Path, *, allow_pickle: bool = False) -> None:
        """Load the checker.

        Args:
            place: its folder, or its name on the Hub.
            allow_pickle: whether .bin files may be read where there is no .safetensors file.

        Raises:
            UserError: it cannot be found or loaded.
        """
        folder = local_copy(place, allow_pickle=allow_pickle)
        options = {} if allow_pickle else {"use_safetensors": True}
        try:
            self.model = StableDiffusionSafetyChecker.from_pretrained(str(folder), local_files_only=True, **options)
        except Exception as error:  # of damaged files the libraries raise anything
            raise UserError(f"{folder} is no safety checker: {one_line(error, 200)}") from None
        self.model.eval().requires_grad_(False)
        getLogger(StableDiffusionSafetyChecker.__module__).setLevel(ERROR)  # it warns of each flagged picture
        side = self.model.config.vision_config.image_size
        self.preprocess = Preprocess(CLIPImageProcessor(size=side, crop_size=side))

    @torch.no_grad()
    def flagged(self, images: Tensor) -> Tensor:
        """Whether [N, bool] each of the pictures [N, 3, H, W] in [0, 1] is flagged."""
        # The checker blackens the pictures that it is given beside what it looks at; here these are single pixels.
        _, flags = self.model(clip_input=self.preprocess(images), images=torch.zeros(len(images), 1))
        return torch.tensor(flags, dtype=torch.bool)
