"""One subject's photos through both layers: which method, in which order, inside which ball."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from apdm.config.image_layer import ImageLayerConfig
from apdm.core.errors import UserError
from apdm.data.transforms import RandomTransform
from apdm.faces import FaceDetector, FaceEncoder
from apdm.image_layer.antidiffusion import anti_diffusion
from apdm.image_layer.baselines import aspl, encoder_attack, fsmg, noise
from apdm.image_layer.dladiff import dladiff
from apdm.image_layer.pgd import PGD
from apdm.image_layer.photos import Photo, quantise
from apdm.image_layer.scene import Scene
from apdm.image_layer.timesteps import greedy_timesteps
from apdm.image_layer.zero_shot import ZeroShotLayer

# A method against fine-tuning moves the photos of `pgd`; its options are `ImageLayerConfig.<its name here>`.
METHODS: dict[str, Callable[[Scene, PGD, Any], None]] = {
    "dladiff": dladiff,
    "anti_diffusion": anti_diffusion,
    "aspl": aspl,
    "fsmg": fsmg,
    "encoder": encoder_attack,
    "noise": noise,
}


@dataclass(frozen=True)
class FaceTools:
    """What the zero-shot layer looks through. Raises UserError for an encoder that cannot be misled."""

    detector: FaceDetector
    encoders: Sequence[FaceEncoder]

    def __post_init__(self) -> None:
        for encoder in self.encoders:
            if not encoder.differentiable:
                raise UserError(
                    f"{encoder.name} gives no gradients, so that it can judge but not be misled; "
                    "name the recogniser's own .onnx file in zero_shot.encoders"
                )

    def to(self, device: torch.device | str) -> None:
        """Move the encoders to where the photos are."""
        for encoder in self.encoders:
            model = getattr(encoder, "model", None)
            if isinstance(model, Module):
                model.to(device)


def protect_subject(
    photos: Sequence[Photo], scene: Scene, config: ImageLayerConfig, faces: FaceTools | None
) -> list[Tensor]:
    """Protect all photos of a subject: 8-bit pixels `[3, H, W]` of each, within `config.ball` of the original.

    scene: its originals are the same photos. faces: needed where the zero-shot layer is enabled.
    """
    layers: list[Callable[[list[Tensor]], list[Tensor]]] = []
    if config.method != "none":
        layers.append(lambda start: _against_fine_tuning(scene, config, start))
    if config.zero_shot.enabled:
        if faces is None:
            raise ValueError("the zero-shot layer is enabled but there are no face tools for it to look through")
        layers.append(lambda start: _against_zero_shot(scene, config, faces, start))
    if config.order == "zero_shot_first":
        layers.reverse()
    current = scene.originals
    for layer in layers:
        current = layer(current)
    return [quantise(photo, known.pixels, config.ball) for photo, known in zip(current, photos, strict=True)]


def make_transform(config: ImageLayerConfig) -> RandomTransform | None:
    """The transforms of the expectation, None where all their probabilities are 0."""
    return RandomTransform(config.transform) if sum(config.transform.probabilities) else None


def _against_fine_tuning(scene: Scene, config: ImageLayerConfig, start: list[Tensor]) -> list[Tensor]:
    pgd = PGD(
        scene.originals,
        epsilon=config.fine_tuning_epsilon,
        step_size=config.step_size,
        start=start,
        reach=config.fine_tuning_epsilon,  # after the zero-shot layer it would write over all of it
        update=config.update,
        batch_size=config.batch_size,
        callback=scene.callback,
    )
    if config.greedy_timesteps:
        scene.timesteps = greedy_timesteps(scene)
    METHODS[config.method](scene, pgd, getattr(config, config.method))
    return pgd.photos


def _against_zero_shot(scene: Scene, config: ImageLayerConfig, faces: FaceTools, start: list[Tensor]) -> list[Tensor]:
    options = config.zero_shot
    layer = ZeroShotLayer(
        scene.originals, faces.detector, faces.encoders, options, scene.generator, make_transform(config)
    )
    pgd = PGD(
        scene.originals,
        epsilon=config.zero_shot_epsilon,
        step_size=options.step_size,
        start=start,
        momentum=options.momentum,
        batch_size=config.batch_size,
        callback=scene.callback,
    )
    layer.run(pgd)
    return pgd.photos
