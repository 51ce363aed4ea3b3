"""InstantID's ControlNet (Wang et al. 2024). Its inputs say where a face is and whose face it is.

It differs from other ControlNets of Stable Diffusion XL in two points. Its input picture shows five points of the face,
and it attends to the adapter's tokens of the face instead of the prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from apdm.core.errors import UserError, first_line
from apdm.faces import Face, FaceEncoder
from apdm.faces.align import centred_square
from apdm.families import Family
from apdm.families.pipeline_folder import read_model

# How InstantID's input pictures look. Sizes are in pixels, for pictures of any size.
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.float32)
NOSE = 2
DISC_RADIUS = 10
LIMB_HALF_WIDTH = 4
LIMB_BRIGHTNESS = 0.6
# Entries of both configurations that must be equal, because the ControlNet's output is added inside the denoiser.
SHARED = (
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "cross_attention_dim",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)


class IdentityNet(ControlNetModel):
    """A ControlNet that attends to `tokens` and not to the prompt that the pipeline gives it.

    Attributes:
        tokens: the tokens of the face, `[1, T, D]`. With classifier-free guidance `[2, T, D]`: first the tokens of
            no face.
    """

    tokens: Tensor | None = None

    def forward(self, *args: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        """Run the ControlNet. If `tokens` are set, they replace the embeddings of the prompt, `[B, L, D]`."""
        if self.tokens is not None:
            repeats = len(encoder_hidden_states) // len(self.tokens)
            encoder_hidden_states = self.tokens.repeat_interleave(repeats, dim=0)
        return super().forward(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)


def with_identity_net(family: Family, folder: Path, *, allow_pickle: bool = False) -> Family:
    """Return the model with the ControlNet in `folder`. All other parts are shared. Call `check_controlnet` first.

    Raises:
        UserError: the weights cannot be loaded.
    """
    try:
        net = IdentityNet.from_pretrained(
            folder, dtype=family.denoiser.dtype, use_safetensors=None if allow_pickle else True, local_files_only=True
        )
    except Exception as error:  # the loader has no errors of its own and raises many kinds
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}; copy the folder again") from error
    return family.with_controlnet(net)


def check_controlnet(folder: Path, denoiser: Any, *, allow_pickle: bool = False) -> None:
    """Raise UserError unless `folder` holds a ControlNet for this denoiser."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder of InstantID's ControlNet")
    config = read_model(folder, allow_pickle=allow_pickle)
    if (kind := config.get("_class_name")) != "ControlNetModel":
        raise UserError(f"{folder} holds a {kind}, not a ControlNet; name the folder of InstantID's ControlNet")
    for name in SHARED:
        given, wanted = (_plain(source.get(name)) for source in (config, denoiser.config))
        if name in config and given != wanted:
            raise UserError(f"{folder} is for another model: its {name} is {given}, this model's {wanted}")


def _plain(value: Any) -> Any:
    """The value as JSON has it: a list in place of a tuple."""
    return list(value) if isinstance(value, tuple) else value


def find_landmarks(encoder: FaceEncoder, photo: Tensor) -> Tensor:
    """Find the five landmarks of the largest face in a photo.

    Args:
        encoder: the face encoder. If it has no detector, or the detector finds no face, the landmarks are where
            the encoder expects them in the centred square of the photo.
        photo: `[3, H, W]` in [0, 1].

    Returns:
        (x, y) of each landmark in pixels, `[5, 2]`.
    """
    faces: list[Face] = [] if encoder.detector is None else encoder.detector.detect(photo.cpu())
    if faces:
        return faces[0].landmarks
    matrix = centred_square(photo.shape[1], photo.shape[2], encoder.size)
    return (encoder.template * encoder.size - matrix[:, 2]) / matrix[0, 0]


def draw_keypoints(landmarks: Tensor, height: int, width: int) -> Tensor:
    """Draw the input picture of the ControlNet: a disc on each landmark, and limbs from the nose to the other four.

    A limb is an ellipse in the colour of its landmark, but darker. The limbs are drawn in the order of the landmarks,
    then the discs; each covers what was drawn before.

    Args:
        landmarks: (x, y) in pixels, `[5, 2]`.
        height, width: size of the picture, in pixels.

    Returns:
        The picture, `[3, height, width]` in [0, 1].
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels, points = torch.stack([x, y], dim=-1).double(), landmarks.cpu().double()
    picture = torch.zeros(3, height, width)
    for i, point in enumerate(points):
        if i != NOSE:
            inside = _in_ellipse(pixels, point, points[NOSE])
            picture[:, inside] = LIMB_BRIGHTNESS * COLOURS[i][:, None]
    for point, colour in zip(points, COLOURS, strict=True):
        picture[:, (pixels - point).norm(dim=-1) <= DISC_RADIUS] = colour[:, None]
    return picture


def _in_ellipse(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Which of the pixels `[H, W, 2]` lie in the ellipse whose long axis goes from start to end, `[H, W]`."""
    half = (end - start) / 2
    length = half.norm().clamp(min=1e-6)
    offset, along = pixels - (start + end) / 2, half / length
    u, v = offset @ along, offset @ torch.stack([-along[1], along[0]])
    return (u / length) ** 2 + (v / LIMB_HALF_WIDTH) ** 2 <= 1
