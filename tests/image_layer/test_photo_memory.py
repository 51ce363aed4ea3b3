"""The memory of a person's photos: what is counted before a run is enough for what the run then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from apdm.config.groups.image_layer import ImageLayerConfig, ZeroShotConfig
from apdm.core.errors import UserError
from apdm.faces import Face
from apdm.faces.person import PersonsFace
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.memory import PhotoMemory
from apdm.image_layer.photos import Photo, PhotoFile
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.views import working_copy
from apdm.image_layer.zero_shot import FaceModels

HEIGHT, WIDTH = 200, 300


class MeanColour:
    """A face encoder that takes next to no memory of its own."""

    name, threshold, size, differentiable = "mean", 0.5, 8, True
    template = torch.tensor([(0, 0), (7, 0), (3.5, 3.5), (0, 7), (7, 7)], dtype=torch.float64) / 8

    def embed_crops(self, crops: torch.Tensor) -> torch.Tensor:
        return F.normalize(crops.mean(dim=(2, 3)) - 0.5, dim=1)


def face(side: int) -> Face:
    """A face in a square box near the corner of a photo."""
    return Face((5, 5, 5 + side, 5 + side), 5 + side / 7 * 8 * MeanColour.template, 1.0)


def counted(number: int, side: int, where: Face, **options: Any) -> int:
    """Bytes by `PhotoMemory`."""
    choices: Any = [PersonsFace([where], 0, "only")] * number
    found = PhotoMemory.of([PhotoFile(Path("s01/1.png"), HEIGHT, WIDTH, b"")] * number, side, choices, **options)
    return found.host + found.device


def measured(photos: list[Photo], side: int, where: Face, order: Any, momentum: float, batch_size: int) -> int:
    """The most bytes of tensors at a time while photos are protected by both layers, with the photos themselves."""
    config = ImageLayerConfig(
        method="noise", batch_size=batch_size, order=order, zero_shot=ZeroShotConfig(max_steps=2, momentum=momentum)
    )
    nothing: Any = None
    encoder: Any = MeanColour()
    models, generator = FaceModels(nothing, [encoder]), torch.Generator().manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        copies, faces = [working_copy(photo, side) for photo in photos], [[where]] * len(photos)
        task = ProtectionTask(nothing, copies, torch.zeros(1), torch.zeros(1), None, 64, generator, faces=faces)
        LayeredProtection.from_config(config, models).protect(photos, task)
    profiler: Any = profiled.profiler
    held, most = 0, 0
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most + sum(photo.pixels.numel() for photo in photos)


@pytest.mark.parametrize(
    ("number", "side", "face_side", "order", "momentum", "batch_size", "at_most"),
    [
        (8, 32, 20, "fine_tuning_first", 0.0, 1, 1.25),
        (8, 32, 20, "zero_shot_first", 0.0, 4, 1.15),
        (8, 195, 20, "zero_shot_first", 0.0, 1, 1.6),
        (2, 195, 190, "fine_tuning_first", 0.5, 2, 1.4),
        (1, 32, 20, "zero_shot_first", 0.5, 1, 1.15),
        (8, 200, 190, "fine_tuning_first", 0.5, 4, 1.5),  # small photos, which layers see as a whole
    ],
)
def test_photos_take_no_more_memory_than_counted_and_not_much_less(
    number: int, side: int, face_side: int, order: str, momentum: float, batch_size: int, at_most: float
):
    photos = [Photo(Path("s01/1.png"), torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8))] * number
    taken = measured(photos, side, face(face_side), order, momentum, batch_size)
    enough = counted(number, side, face(face_side), momentum=bool(momentum), batch_size=batch_size)
    assert taken <= enough <= at_most * taken


def test_more_memory_than_there_is_is_refused_and_less_is_not():
    PhotoMemory("s01", 0, 4, 1, 1).require(512)
    for host, device in ((2**60, 0), (0, 2**60)):
        with pytest.raises(
            UserError, match="the 4 photos in s01 need .* lower --image_layer.working_side, which is 512"
        ):
            PhotoMemory("s01", 0, 4, host, device).require(512)


def test_the_plan_says_how_many_photos_are_seen_as_copies():
    files = [PhotoFile(Path("s01/1.png"), HEIGHT, WIDTH, b""), PhotoFile(Path("s01/2.png"), 64, 80, b"")]
    told = PhotoMemory.of(files, 100, momentum=False, batch_size=1)
    assert (told.large, told.photos, told.folder) == (1, 2, "s01")
    assert told.text(100).endswith("the fine-tuning layer sees 1 of 2 as copies with a shorter side of 100 pixels")
    assert told.text(None).endswith("for the photos in s01")
    assert PhotoMemory.largest([PhotoMemory("a", 0, 1, 5, 5), PhotoMemory("b", 0, 1, 2, 9)]).folder == "b"
