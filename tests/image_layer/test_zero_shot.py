"""The layer against zero-shot adapters: on drawn faces in float64, and on real ones where they are at hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from real_assets import ASSETS, needs_assets

from apdm.config.groups.image_layer import TransformConfig
from apdm.core.errors import UserError
from apdm.data.transforms import RandomTransform
from apdm.faces import Face, load_detector, load_encoder
from apdm.faces.portrait import PortraitEncoder
from apdm.image_layer.layers import ZeroShotLayer
from apdm.image_layer.pgd import PGD
from apdm.image_layer.photos import quantise, read_photo
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels, IdentityObjective, embed_face, on_own_scale
from apdm.portraits.drawing import render_person
from apdm.portraits.people import OTHER_PEOPLE, circumstance, identity

EPS = 11 / 255


def portrait(photo: int = 0, side: int = 64) -> torch.Tensor:
    seed = OTHER_PEOPLE.start + 7000
    drawn = render_person(identity(seed), circumstance(seed, photo)).resize((side, side))
    return torch.from_numpy(np.array(drawn)).permute(2, 0, 1).contiguous().float() / 255


class TwoFaces:
    """A picture of two portraits side by side has a face in each half."""

    name, threshold = "two", 0.5

    def detect(self, image: torch.Tensor) -> list[Face]:
        side = image.shape[1]
        corners = ((0, 0), (side - 1, 0), (side / 2, side / 2), (0, side - 1), (side - 1, side - 1))
        marks = torch.tensor(corners, dtype=torch.float64)
        return [
            Face((x, 0, x + side, side), marks + torch.tensor([float(x), 0.0]), 1.0)
            for x in range(0, image.shape[2] - side + 1, side)
        ]


@pytest.fixture
def encoder() -> PortraitEncoder:
    """portrait-a, told that the corners of a crop are its landmarks, as TwoFaces says."""
    encoder = load_encoder("portrait-a")
    assert isinstance(encoder, PortraitEncoder)
    corners = [(0, 0), (63, 0), (32, 32), (0, 63), (63, 63)]
    encoder.template = torch.tensor(corners, dtype=torch.float64) / 64
    return encoder


def objective(photos: list[torch.Tensor], encoder: PortraitEncoder, **options: Any) -> IdentityObjective:
    return IdentityObjective(photos, FaceModels(TwoFaces(), [encoder]), torch.Generator().manual_seed(0), **options)


def ascent(photos: list[torch.Tensor], made: IdentityObjective, step_size: float = 2 / 255, steps: int = 200) -> PGD:
    pgd = PGD(photos, epsilon=EPS, step_size=step_size)
    made.ascend(pgd, steps)
    return pgd


def cosines(made: IdentityObjective, photos: list[torch.Tensor]) -> list[float]:
    return [
        float(embed_face(target.encoder, photo, target.face) @ target.clean)
        for photo, targets in zip(photos, made.targets, strict=True)
        for target in targets
    ]


def test_the_loss_has_the_gradient_of_finite_differences(encoder: PortraitEncoder, float64: None):
    encoder.model.double()
    photo = 0.1 + 0.8 * portrait(side=80).double()
    made = objective([photo], encoder, jitter=0.05)
    state = made.generator.get_state()

    def value(changed: torch.Tensor) -> torch.Tensor:
        made.generator.set_state(state)
        return made.loss([changed], [0])[0]

    # At the clean photo the cosine is at its summit, where differences say nothing.
    moved = (photo + 0.02 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    (gradient,) = torch.autograd.grad(value(moved), moved)
    assert gradient.abs().max() > 0
    for at in torch.randperm(photo.numel(), generator=torch.Generator().manual_seed(2))[:12].tolist():
        up, down = moved.detach().clone(), moved.detach().clone()
        up.view(-1)[at] += 1e-6
        down.view(-1)[at] -= 1e-6
        difference = (value(up) - value(down)) / 2e-6
        torch.testing.assert_close(gradient.view(-1)[at], difference, rtol=1e-4, atol=1e-6 * gradient.abs().max())


def test_every_cosine_ends_below_the_threshold_by_the_margin(encoder: PortraitEncoder):
    photos = [portrait(0), portrait(1)]
    made = objective(photos, encoder)
    pgd = ascent(photos, made)
    limit = encoder.threshold - 1.0 * (1 - encoder.threshold)
    assert all(cosine <= limit + 0.05 for cosine in cosines(made, pgd.photos))
    assert all((p - o).abs().max() <= EPS + 1e-6 for p, o in zip(pgd.photos, photos, strict=True))


def test_all_faces_of_a_photo_are_changed_and_nothing_beside_them(encoder: PortraitEncoder):
    beside = torch.full((3, 64, 30), 0.5)
    photo = torch.cat([portrait(0), portrait(1), beside], dim=2)
    made = objective([photo], encoder, jitter=0.0)
    assert len(made.targets[0]) == 2
    pgd = ascent([photo], made)
    assert all(cosine < encoder.threshold for cosine in cosines(made, pgd.photos))
    changed = (pgd.photos[0] - photo).abs().amax(dim=(0, 1))
    assert changed[4:60].min() > 0 and changed[70:120].min() > 0 and changed[131:].max() == 0


def test_a_photo_that_has_reached_the_aim_no_longer_moves(encoder: PortraitEncoder):
    photos = [portrait(0)]
    made = objective(photos, encoder, jitter=0.0)
    first = ascent(photos, made, steps=400)
    again = PGD(photos, epsilon=EPS, step_size=2 / 255, start=first.photos)
    made.ascend(again, 400)
    assert torch.equal(again.photos[0], first.photos[0])


@dataclass
class Colours:
    """A face encoder whose embedding is the direction of a crop's mean colour, seen from some grey."""

    threshold: float = 0.5
    grey: float = 0.5
    seen: Callable[[torch.Tensor], torch.Tensor] = lambda crops: crops
    name, size, differentiable = "colours", 8, True
    template = torch.tensor([(0, 0), (7, 0), (3.5, 3.5), (0, 7), (7, 7)], dtype=torch.float64) / 8

    def embed_crops(self, crops: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.seen(crops).mean(dim=(2, 3)) - self.grey, dim=1)


def misled(*encoders: Any) -> FaceModels:
    return FaceModels(TwoFaces(), encoders)


def boxed(left: float, top: float, right: float, bottom: float) -> Face:
    """A face with landmarks in the corners and in the middle of a square in its box."""
    side = min(right - left, bottom - top)
    return Face((left, top, right, bottom), torch.tensor([left, top]) + side * Colours.template * 8 / 7, 1.0)


def test_the_loss_is_the_weighted_sum_of_how_far_cosines_are_above_their_goals(float64: None) -> None:
    generator = torch.Generator().manual_seed(3)
    originals = list(torch.rand(3, 3, 30, 40, generator=generator))
    changed = [(photo + 0.3 * torch.rand(3, 1, 1, generator=generator)).clamp(0, 1) for photo in originals]
    chosen = [[boxed(2, 3, 13, 14), boxed(20, 8, 35, 23)], [], [boxed(11, 5, 18, 12)]]
    encoders: list = [Colours(0.9, 0.2), Colours(-0.3, 0.1)]
    made = IdentityObjective(
        originals, FaceModels(TwoFaces(), encoders), generator, chosen=chosen, weights=[0.5, 3.0], margin=0.3, jitter=0
    )
    expected = []
    for photo, original, faces in zip(changed, originals, chosen, strict=True):
        total = 0.0
        for face in faces:
            for encoder, weight in zip(encoders, (0.5, 3.0), strict=True):
                cosine = float(embed_face(encoder, photo, face) @ embed_face(encoder, original, face))
                total -= weight * max(0.0, (cosine - encoder.threshold) / (1 - encoder.threshold) + 0.3)
        expected.append(total)
    assert expected[1] == 0 and len({round(value, 3) for value in expected}) == 3
    assert made.loss([changed[2], changed[0], changed[1]], [2, 0, 1]).tolist() == pytest.approx(
        [expected[2], expected[0], expected[1]], rel=1e-9
    )


def test_a_photo_without_chosen_faces_stays_while_others_move_and_an_ascent_takes_the_steps_that_it_is_given() -> None:
    photos = list(torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(4)))
    faces = misled(Colours())
    made = IdentityObjective(photos, faces, torch.Generator().manual_seed(0), chosen=[[boxed(3, 3, 15, 15)], []])
    told: list[Any] = []
    pgd = PGD(photos, epsilon=EPS, step_size=1e-6, callback=told.append)  # too short to reach the goal
    made.ascend(pgd, 23)
    assert len(told) == 23
    assert torch.equal(pgd.photos[1], photos[1]) and not torch.equal(pgd.photos[0], photos[0])


def test_the_layer_hands_its_options_and_those_of_the_task_to_the_objective_and_the_loop(
    task: ProtectionTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any of them left out, the photos were others."""

    def darker(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images * torch.rand(1, 3, 1, 1, generator=generator)

    generator = torch.Generator().manual_seed(5)
    photos = list(0.2 + 0.6 * torch.rand(3, 3, 30, 40, generator=generator))
    shifts = ((0.1, -0.1, 0.0), (-0.05, 0.15, 0.05), (0.0, 0.0, 0.05))
    starts = [photo + torch.tensor(shift)[:, None, None] for photo, shift in zip(photos, shifts, strict=True)]
    chosen = [[boxed(2, 3, 13, 14), boxed(20, 8, 35, 23)], [boxed(11, 5, 18, 12)], [boxed(11, 5, 25, 19)]]
    aims: dict[str, Any] = {"weights": [0.5, 3.0], "margin": 0.3, "jitter": 0.1}
    loop: dict[str, Any] = {"epsilon": 0.05, "step_size": 0.004, "momentum": 0.9, "batch_size": 2}
    faces, seeded = misled(Colours(0.5, 0.2), Colours(-0.3, 0.55)), torch.Generator
    made = IdentityObjective(photos, faces, seeded().manual_seed(0), chosen=chosen, transform=darker, **aims)
    expected = PGD(photos, start=starts, **loop)
    made.ascend(expected, 4)
    told: list[Any] = []
    batches: list[list[int]] = []
    changed = replace(
        task,
        originals=photos,
        faces=chosen,
        generator=seeded().manual_seed(0),
        transform=darker,
        callback=told.append,
    )
    loss = IdentityObjective.loss

    def noted(self: IdentityObjective, photos: list[torch.Tensor], which: list[int]) -> torch.Tensor:
        batches.append(which)
        return loss(self, photos, which)

    monkeypatch.setattr(IdentityObjective, "loss", noted)
    found = ZeroShotLayer(faces=faces, max_steps=4, **aims, **loop).apply(changed, starts)
    assert all(torch.equal(one, other) for one, other in zip(found, expected.photos, strict=True))
    assert len(told) == 4 and batches[:2] == [[0, 1], [2]]


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((100.5, 84.0, 131.0, 137.2), (48, 164), (64, 158)),  # 26.6 around the box, back to a multiple of 16
        ((5.0, 3.0, 36.0, 30.0), (0, 46), (0, 52)),
        ((215.0, 170.0, 238.0, 199.0), (144, 200), (192, 240)),
    ],
)
def test_an_adapters_user_transforms_the_face_with_its_surroundings(
    box: tuple[float, float, float, float], rows: tuple[int, int], columns: tuple[int, int], float64: None
) -> None:
    photo = torch.rand(3, 200, 240, generator=torch.Generator().manual_seed(5))
    moved, cuts = (photo + 0.2).clamp(max=1), []

    def noted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        cuts.append(images)
        return images

    values = []
    for transform in (None, noted):
        made = IdentityObjective(
            [photo],
            misled(Colours()),
            torch.Generator().manual_seed(0),
            chosen=[[boxed(*box)]],
            margin=9.0,
            transform=transform,
        )
        values.append(made.loss([moved], [0]))
    torch.testing.assert_close(*values)
    assert values[0].item() < 0
    assert torch.equal(cuts[0], moved[None, :, slice(*rows), slice(*columns)])


@pytest.mark.parametrize(
    ("seen", "problem"),
    [
        (lambda crops: crops * float("nan"), "colours gives values that are no numbers for a photo"),
        (lambda crops: crops + (crops - crops.detach()).sqrt(), "colours gives values that are no numbers for a photo"),
        (lambda crops: torch.ones_like(crops).requires_grad_(), "colours gives values that are no numbers for a photo"),
        (lambda crops: 1 + 0 * crops, "colours gives no gradient for a photo"),
        (lambda crops: crops.detach(), "colours fails on a photo (RuntimeError)"),
    ],
)
def test_an_encoder_that_cannot_be_misled_is_refused_at_the_first_photo(seen: Any, problem: str) -> None:
    faces = misled(Colours(), Colours(seen=seen))
    with pytest.raises(UserError) as caught:
        faces.look(portrait(), first=True)
    assert problem in str(caught.value) and "\n" not in str(caught.value)
    assert len(faces.look(portrait())[0]) == 1  # later photos are not tried
    assert misled(Colours()).look(portrait(), first=True)[1].keys() == {"colours"}


def test_encoders_move_to_the_device(encoder: PortraitEncoder) -> None:
    misled(Colours(), encoder).to("meta")
    assert {weight.device.type for weight in encoder.model.parameters()} == {"meta"}


def test_a_photo_without_a_face_stays_as_it_is(encoder: PortraitEncoder):
    noise = torch.rand(3, 64, 64)
    made = IdentityObjective([noise], FaceModels(load_detector("portrait"), [encoder]), torch.Generator())
    assert made.targets == [[]]
    assert torch.equal(ascent([noise], made).photos[0], noise)


def test_each_encoder_counts_on_its_own_scale():
    squeezed, wide = torch.tensor([1.0, 0.93, 0.86]), torch.tensor([1.0, 0.25, -0.5])
    torch.testing.assert_close(on_own_scale(squeezed, 0.93), on_own_scale(wide, 0.25))
    torch.testing.assert_close(on_own_scale(wide, 0.25), torch.tensor([1.0, 0.0, -1.0]))


def test_it_holds_in_expectation_over_what_may_happen_to_a_photo(encoder: PortraitEncoder):
    photo = portrait(0, side=96)
    config = TransformConfig(jpeg_probability=0.5, resize_probability=0.5)
    made = objective([photo], encoder, transform=RandomTransform(config))
    pgd = ascent([photo], made)
    (target,) = made.targets[0]
    buffer = io.BytesIO()
    Image.fromarray((pgd.photos[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=75)
    seen = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
    assert embed_face(encoder, seen, target.face) @ target.clean < encoder.threshold


def test_an_encoder_without_gradients_is_refused(encoder: PortraitEncoder):
    encoder.differentiable = False
    with pytest.raises(UserError, match="no gradients"):
        FaceModels(TwoFaces(), [encoder])


@needs_assets
def test_real_faces_are_misled_as_saved_when_shifted_and_after_jpeg():
    detector = load_detector(str(ASSETS / "encoders/insightface_pack"))
    encoder = load_encoder(f"{ASSETS / 'encoders/mobilefacenet/mobilefacenet.pt'}=0.255", allow_pickle=True)
    photos = [read_photo(sorted((ASSETS / f"photos/faces/{who}").iterdir())[0]) for who in ("f01", "f02")]
    originals = [photo.unit for photo in photos]
    faces = FaceModels(detector, [encoder])
    made = IdentityObjective(originals, faces, torch.Generator().manual_seed(0), margin=0.7, jitter=0.05)
    pgd = PGD(originals, epsilon=EPS, step_size=8e-4)
    made.ascend(pgd, 60)
    for photo, changed, (target,) in zip(photos, pgd.photos, made.targets, strict=True):
        saved = quantise(changed, photo.pixels, EPS)
        assert (saved.int() - photo.pixels.int()).abs().max() <= 11
        buffer = io.BytesIO()
        Image.fromarray(saved.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
        jpeg = torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1).float() / 255
        shifted = replace(target.face, landmarks=target.face.landmarks + 1.0)
        looks = [(saved.float() / 255, target.face), (saved.float() / 255, shifted), (jpeg, target.face)]
        assert all(embed_face(encoder, seen, face) @ target.clean < encoder.threshold for seen, face in looks)
        # A detector finds its own landmarks in the changed photo.
        found = detector.detect(saved.float() / 255)[0]
        assert embed_face(encoder, saved.float() / 255, found) @ target.clean < encoder.threshold
