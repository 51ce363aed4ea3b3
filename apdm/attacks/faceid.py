"""The zero-shot attack: an adapter of FaceID's or InstantID's kind draws a person from one photo, without any training.

Format and use are diffusers' (IP-Adapter, Ye et al. 2023): an identity encoder's embedding becomes tokens that the
denoiser attends to beside the prompt. InstantID (Wang et al. 2024) makes them with a resampler, and can add a
ControlNet. Hardened weights know nothing of it; what it sees of a person is what the encoder sees in the photo.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor
from torch.nn.functional import normalize

from apdm.attacks.adapter_file import AdapterFile
from apdm.attacks.identity_net import check_controlnet, draw_keypoints, find_landmarks, with_identity_net
from apdm.core.errors import UserError
from apdm.faces import FaceEncoder
from apdm.families import Family
from apdm.families.base import adapter_input


@dataclass(frozen=True, kw_only=True)
class FaceIDAdapter:
    """An adapter's file and the encoder whose embeddings it was trained with; its keys tell FaceID's from InstantID's.

    scale: of the adapter's attention; a LoRA in a FaceID file is applied whole. controlnet: InstantID's ControlNet, a
    diffusers folder, which draws the face where it is in the photo. controlnet_scale: of what it adds, by default as in
    the release's example. allow_pickle: also read .bin, with torch's restricted unpickler.
    """

    path: Path
    encoder: FaceEncoder
    scale: float = 1.0
    controlnet: Path | None = None
    controlnet_scale: float = 0.8
    allow_pickle: bool = False

    name: ClassVar[str] = "faceid"
    assumes: ClassVar[str] = "one photo, and an adapter that somebody else trained"

    def params(self) -> dict[str, object]:
        params: dict[str, object] = {"adapter": self.path.name, "encoder": self.encoder.name, "scale": self.scale}
        if self.controlnet is not None:
            params |= {"controlnet": self.controlnet.name, "controlnet_scale": self.controlnet_scale}
        return params

    def with_adapter(self, family: Family) -> Family:
        """The model with the adapter in a copy of its denoiser; `family` stays as it is. Raises as `check` does."""
        file = self._checked(family)
        attacked = family.with_denoiser(copy.deepcopy(family.denoiser))
        attacked.pipeline.load_ip_adapter(file.state, subfolder="", weight_name="", image_encoder_folder=None)
        attacked.pipeline.set_ip_adapter_scale(self.scale)
        if self.controlnet is None:
            return attacked
        return with_identity_net(attacked, self.controlnet, allow_pickle=self.allow_pickle)

    @torch.no_grad()
    def identity(self, photos: Tensor) -> Tensor:
        """What FaceID is told of photos `[N, 3, H, W]` in [0, 1]: their mean embedding as a unit vector `[D]`."""
        return normalize(self.encoder.embed(photos).mean(0), dim=0)

    def run(
        self,
        attacked: Family,
        photos: Tensor,
        prompts: Sequence[str],
        *,
        guidance_scale: float = 7.5,
        **options: Any,
    ) -> Tensor:
        """Pictures `[B, 3, H, W]` in [0, 1] of the person in `photos`, one per prompt; options as in `sample`.

        With a ControlNet the face is where it is in the first photo.
        """
        identity = self._told(attacked, photos).to(attacked.denoiser.device)
        if self.controlnet is not None:
            options["pipeline_options"] = self._control(attacked, photos[0], identity, guidance_scale, **options)
        return attacked.sample(prompts, face_embeds=identity, guidance_scale=guidance_scale, **options)

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """See `apdm.attacks.ZeroShot`; the photos are one person, and one identity."""
        return self.run(self.with_adapter(model), photos, prompts, **options)

    def check(self, family: Family) -> None:
        """Raise UserError for a file that is no adapter of a face, or one for another model or encoder, and for a
        ControlNet that is none or does not fit."""
        self._checked(family)

    def _checked(self, family: Family) -> AdapterFile:
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; name a FaceID or InstantID adapter's .safetensors file")
        if not family.takes_face_adapter:
            kind = type(family.pipeline).__name__
            raise UserError(f"{self.path.name} is for Stable Diffusion (1, 2 or XL), this model is {kind}")
        file = AdapterFile.read(self.path, allow_pickle=self.allow_pickle)
        file.check_fits(family.denoiser)
        # Whole pictures, as the attack gives it photos: an encoder without a detector would take none.
        side = self.encoder.size
        with torch.no_grad():
            dimension = self.encoder.embed(torch.full((1, 3, side, side), 0.5)).shape[1]
        if file.dimension != dimension:
            raise UserError(
                f"{self.path.name} takes embeddings of {file.dimension} numbers, {self.encoder.name} gives "
                f"{dimension}: name the encoder that the adapter was trained with"
            )
        if self.controlnet is not None:
            if not file.is_resampler:
                raise UserError(f"{self.path.name} is FaceID's, and a ControlNet goes with InstantID's: leave it out")
            if not family.takes_controlnet:
                raise UserError(f"{self.controlnet} needs Stable Diffusion XL, this model is not: leave it out")
            check_controlnet(self.controlnet, family.denoiser, allow_pickle=self.allow_pickle)
        return file

    @torch.no_grad()
    def _told(self, attacked: Family, photos: Tensor) -> Tensor:
        """InstantID was trained with embeddings as the encoder gives them, FaceID with unit vectors."""
        projection = attacked.denoiser.encoder_hid_proj.image_projection_layers[0]
        if isinstance(projection, IPAdapterPlusImageProjection):
            return self.encoder.features(photos).mean(0)
        return self.identity(photos)

    @torch.no_grad()
    def _control(
        self,
        attacked: Family,
        photo: Tensor,
        identity: Tensor,
        guidance_scale: float,
        *,
        height: int | None = None,
        width: int | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """What the ControlNet is shown, as arguments of the pipeline; whose face it is goes into the ControlNet."""
        tokens = attacked.denoiser.encoder_hid_proj(adapter_input(identity, guided=guidance_scale > 1))[0]
        attacked.pipeline.controlnet.tokens = tokens.flatten(0, 1)
        side = attacked.denoiser.config.sample_size * attacked.vae_scale
        height, width = height or side, width or side
        landmarks = find_landmarks(self.encoder, photo)
        # Pixel centres lie at whole numbers: the photo's left edge is at -0.5.
        landmarks = (landmarks + 0.5) * torch.tensor([width / photo.shape[2], height / photo.shape[1]]) - 0.5
        picture = draw_keypoints(landmarks, height, width)
        return {"image": picture[None], "controlnet_conditioning_scale": float(self.controlnet_scale)}
