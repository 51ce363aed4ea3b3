"""The zero-shot attack: a FaceID or InstantID adapter draws a person from one photo, without any training.

The adapter is an IP-Adapter (Ye et al. 2023) and is used through diffusers. A face encoder's embedding of the face
becomes tokens, and the denoiser attends to these tokens beside the prompt. InstantID (Wang et al. 2024) makes the
tokens with a resampler and can add a ControlNet. Hardening the weights does not protect against this attack. The
adapter knows of the person only what the face encoder sees in the photo.
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

from apdm.attacks.parts.adapter_file import AdapterFile
from apdm.attacks.parts.identity_net import check_controlnet, draw_keypoints, find_landmarks, with_identity_net
from apdm.core.errors import UserError
from apdm.core.files import model_hash, weights_sha256
from apdm.faces import FaceEncoder
from apdm.families import Family
from apdm.families.sampling import adapter_input


@dataclass(frozen=True, kw_only=True)
class FaceIDAdapter:
    """A FaceID or InstantID adapter. The keys in the file say which of the two it is.

    Attributes:
        path: the adapter's file.
        encoder: the face encoder whose embeddings the adapter was trained with.
        scale: weight of the adapter's attention. A LoRA in a FaceID file is always applied fully.
        controlnet: folder of InstantID's ControlNet, which draws the face where it is in the photo. None: no
            ControlNet.
        controlnet_scale: weight of the ControlNet's output. The default is taken from the authors' example.
        allow_pickle: whether .bin files are read too, with torch's restricted unpickler.
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
        """The options as they stand in results.json."""
        params: dict[str, object] = {"adapter": self.path.name, "encoder": self.encoder.name, "scale": self.scale}
        if self.controlnet is not None:
            params |= {"controlnet": self.controlnet.name, "controlnet_scale": self.controlnet_scale}
        return params

    def file_hash(self) -> str:
        """The sha256 of the adapter's file, and of the ControlNet if there is one; empty if a file is missing."""
        if not self.path.is_file() or not (self.controlnet is None or self.controlnet.is_dir()):
            return ""  # the attack will say so in its row
        controlnet = "" if self.controlnet is None else model_hash(self.controlnet)
        return weights_sha256(self.path) + controlnet

    def with_adapter(self, family: Family) -> Family:
        """Return the model with the adapter in a copy of its denoiser. `family` is not changed.

        Raises:
            UserError: as `check` does.
        """
        file = self._checked(family)
        attacked = family.with_denoiser(copy.deepcopy(family.denoiser))
        attacked.pipeline.load_ip_adapter(file.state, subfolder="", weight_name="", image_encoder_folder=None)
        attacked.pipeline.set_ip_adapter_scale(self.scale)
        if self.controlnet is None:
            return attacked
        return with_identity_net(attacked, self.controlnet, allow_pickle=self.allow_pickle)

    @torch.no_grad()
    def identity(self, photos: Tensor) -> Tensor:
        """The embedding that FaceID takes: the mean over photos `[N, 3, H, W]` in [0, 1] as a unit vector `[D]`."""
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
        """Draw the person with a model that `with_adapter` returned.

        Args:
            attacked: the model with the adapter.
            photos: photos of one person, `[N, 3, H, W]` in [0, 1].
            prompts: B prompts.
            guidance_scale, options: as in `Family.sample`.

        Returns:
            One picture for each prompt, `[B, 3, H, W]` in [0, 1]. With a ControlNet the face is where it is in the
            first photo.
        """
        identity = self._embedding(attacked, photos).to(attacked.denoiser.device)
        if self.controlnet is not None:
            options["pipeline_options"] = self._control(attacked, photos[0], identity, guidance_scale, **options)
        return attacked.sample(prompts, face_embeds=identity, guidance_scale=guidance_scale, **options)

    def draw(self, model: Family, photos: Tensor, prompts: Sequence[str], **options: Any) -> Tensor:
        """Draw the person. `apdm.attacks.ZeroShot.draw` explains the arguments; all photos show the same person."""
        return self.run(self.with_adapter(model), photos, prompts, **options)

    def check(self, family: Family) -> None:
        """Check that the adapter and the ControlNet fit the model and the encoder.

        Raises:
            UserError: a file or folder does not exist, is of another kind, or is for another model or encoder.
        """
        self._checked(family)

    def _checked(self, family: Family) -> AdapterFile:
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist; name a FaceID or InstantID adapter's .safetensors file")
        if not family.takes_face_adapter:
            kind = type(family.pipeline).__name__
            raise UserError(f"{self.path.name} is for Stable Diffusion 1, 2 or XL, this model is {kind}; leave it out")
        file = AdapterFile.read(self.path, allow_pickle=self.allow_pickle)
        file.check_fits(family.denoiser)
        # Embed a whole picture, as the attack does, so that an encoder without the detector it needs fails here.
        side = self.encoder.size
        with torch.no_grad():
            dimension = self.encoder.embed(torch.full((1, 3, side, side), 0.5)).shape[1]
        if file.dimension != dimension:
            raise UserError(
                f"{self.path.name} takes embeddings of {file.dimension} numbers, {self.encoder.name} gives "
                f"{dimension}; name the encoder that the adapter was trained with"
            )
        if self.controlnet is not None:
            if not file.is_resampler:
                raise UserError(
                    f"{self.path.name} is a FaceID adapter, and a ControlNet goes with InstantID only; leave it out"
                )
            if not family.takes_controlnet:
                raise UserError(f"{self.controlnet} needs Stable Diffusion XL, which this model is not; leave it out")
            check_controlnet(self.controlnet, family.denoiser, allow_pickle=self.allow_pickle)
        return file

    @torch.no_grad()
    def _embedding(self, attacked: Family, photos: Tensor) -> Tensor:
        """The embedding that the adapter takes: InstantID takes the encoder's output as it is, FaceID a unit vector."""
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
        """Give the ControlNet the tokens of the face, and return its other inputs as arguments of the pipeline."""
        tokens = attacked.denoiser.encoder_hid_proj(adapter_input(identity, guided=guidance_scale > 1))[0]
        attacked.pipeline.controlnet.tokens = tokens.flatten(0, 1)
        side = attacked.denoiser.config.sample_size * attacked.vae_scale
        height, width = height or side, width or side
        landmarks = find_landmarks(self.encoder, photo)
        # The centres of pixels have whole numbers, so the photo's left edge is at -0.5.
        landmarks = (landmarks + 0.5) * torch.tensor([width / photo.shape[2], height / photo.shape[1]]) - 0.5
        picture = draw_keypoints(landmarks, height, width)
        return {"image": picture[None], "controlnet_conditioning_scale": float(self.controlnet_scale)}
