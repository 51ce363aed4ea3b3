"""InstantID's second part (Wang et al. 2024): a ControlNet that is shown where a face is and told whose it is.

It is an ordinary ControlNet of Stable Diffusion XL but for two things: its picture holds five points of the face, and
where others attend to the prompt it attends to the adapter's tokens of the face.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from apdm.core.errors import UserError
from apdm.faces import Face, FaceEncoder
from apdm.faces.align import centred_square
from apdm.families import Family
from apdm.families.pipeline_folder import first_line, read_model

# What the pictures look like that the release was trained with; pixels, whatever the picture's size.
COLOURS = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1]], dtype=torch.float32)
NOSE = 2
DISC_RADIUS = 10
LIMB_HALF_WIDTH = 4
LIMB_BRIGHTNESS = 0.6
# Where these differ, what the ControlNet says does not fit into the denoiser, or is said of other inputs.
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
    """A ControlNet that attends to `tokens` in place of what the pipeline hands it.

    tokens: `[1, T, D]` of a face, or `[2, T, D]` of none and of a face, where guidance draws both at once.
    """

    tokens: Tensor | None = None

    def forward(self, *args: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
        if self.tokens is not None:
            repeats = len(encoder_hidden_states) // len(self.tokens)
            encoder_hidden_states = self.tokens.repeat_interleave(repeats, dim=0)
        return super().forward(*args, encoder_hidden_states=encoder_hidden_states, **kwargs)


def with_identity_net(family: Family, folder: Path, *, allow_pickle: bool = False) -> Family:
    """The family drawing through the ControlNet in `folder`; everything else is shared. Call `check_controlnet` first.

    Raises UserError for weights that cannot be loaded.
    """
    try:
        net = IdentityNet.from_pretrained(
            folder, dtype=family.denoiser.dtype, use_safetensors=None if allow_pickle else True, local_files_only=True
        )
    except Exception as error:  # the loader has no errors of its own: what a file can do wrong is anything
        raise UserError(f"{folder} cannot be loaded: {first_line(error)}; copy the folder anew") from error
    return family.with_controlnet(net)


def check_controlnet(folder: Path, denoiser: Any, *, allow_pickle: bool = False) -> None:
    """Raise UserError unless `folder` holds a ControlNet for this denoiser."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name the folder of InstantID's ControlNet")
    config = read_model(folder, allow_pickle=allow_pickle)
    if (kind := config.get("_class_name")) != "ControlNetModel":
        raise UserError(f"{folder} holds no ControlNet but a {kind}; name the folder of InstantID's ControlNet")
    for name in SHARED:
        given, wanted = (_plain(source.get(name)) for source in (config, denoiser.config))
        if name in config and given != wanted:
            raise UserError(f"{folder} is for another model: its {name} is {given}, this model's {wanted}")


def _plain(value: Any) -> Any:
    """Lists for tuples, as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def find_landmarks(encoder: FaceEncoder, photo: Tensor) -> Tensor:
    """Five points `[5, 2]` (x, y) in pixels of the largest face in a photo [3, H, W] in [0, 1].

    Without a face, or a detector, they are where the encoder looks for them: in the centred square.
    """
    faces: list[Face] = [] if encoder.detector is None else encoder.detector.detect(photo.cpu())
    if faces:
        return faces[0].landmarks
    matrix = centred_square(photo.shape[1], photo.shape[2], encoder.size)
    return (encoder.template * encoder.size - matrix[:, 2]) / matrix[0, 0]


def draw_keypoints(landmarks: Tensor, height: int, width: int) -> Tensor:
    """A picture [3, height, width] in [0, 1]: a disc on each of the `landmarks` [5, 2], and limbs from the nose.

    A limb is an ellipse from the nose to a point, in the point's colour but darker. What comes later covers what was
    there before: limbs in the order of their points, then discs.
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels, points = torch.stack([x, y], dim=-1).double(), landmarks.double().cpu()
    picture = torch.zeros(3, height, width)
    for i, point in enumerate(points):
        if i != NOSE:
            inside = _in_ellipse(pixels, point, points[NOSE])
            picture[:, inside] = LIMB_BRIGHTNESS * COLOURS[i][:, None]
    for point, colour in zip(points, COLOURS, strict=True):
        picture[:, (pixels - point).norm(dim=-1) <= DISC_RADIUS] = colour[:, None]
    return picture


def _in_ellipse(pixels: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Which of the pixels [H, W, 2] lie in the ellipse whose long axis goes from start to end."""
    half = (end - start) / 2
    length = half.norm().clamp(min=1e-6)
    offset, along = pixels - (start + end) / 2, half / length
    u, v = offset @ along, offset @ torch.stack([-along[1], along[0]])
    return (u / length) ** 2 + (v / LIMB_HALF_WIDTH) ** 2 <= 1
