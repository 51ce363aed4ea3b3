"""The picture of a face's five points, which InstantID's ControlNet is shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apdm.attacks.parts.identity_net import COLOURS, draw_keypoints, find_landmarks
from apdm.faces import AlignedEncoder, load_detector
from apdm.faces.mobilefacenet import MobileFaceNet
from apdm.portraits.drawing import render_person
from apdm.portraits.people import circumstance, identity


def test_the_picture_of_the_keypoints_is_as_opencv_draws_it():
    """Limbs from the nose at three fifths of their colour, then discs of ten pixels; edges may be a pixel off."""
    cv2 = pytest.importorskip("cv2")
    points = torch.tensor([[90, 100], [170, 95], [128, 150], [100, 190], [160, 186]])
    expected, whole = np.zeros((256, 256, 3), np.float32), COLOURS.tolist()
    nose = points[2].numpy()
    for i in (0, 1, 3, 4):
        x, y = (nose - points[i].numpy()).tolist()
        centre = tuple(((nose + points[i].numpy()) // 2).tolist())
        axes, angle = (round(np.hypot(x, y) / 2), 4), np.degrees(np.arctan2(y, x))
        cv2.ellipse(expected, centre, axes, angle, 0, 360, [0.6 * value for value in whole[i]], -1)
    for point, colour in zip(points.tolist(), whole, strict=True):
        cv2.circle(expected, tuple(point), 10, colour, -1)
    drawn = draw_keypoints(points.float(), 256, 256).permute(1, 2, 0)
    near = [torch.as_tensor(expected).roll((y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert torch.stack([(drawn - picture).abs().amax(2) for picture in near]).amin(0).max() < 1e-6
    for point, colour in zip(points.tolist(), COLOURS, strict=True):
        assert torch.equal(drawn[point[1], point[0]], colour)


def test_the_five_points_are_the_detectors_or_else_those_of_the_centred_square():
    picture = np.array(render_person(identity(1), circumstance(1, 0)))
    photo = torch.as_tensor(picture).permute(2, 0, 1) / 255
    wide = torch.cat([torch.zeros(3, 64, 16), photo, torch.zeros(3, 64, 16)], dim=2)
    detector = load_detector("portrait")
    seeing = AlignedEncoder("m", 0.3, MobileFaceNet(), detector)
    assert torch.equal(find_landmarks(seeing, wide), detector.detect(wide)[0].landmarks)
    assert detector.detect(torch.zeros(3, 64, 96)) == []
    unseen = find_landmarks(seeing, torch.zeros(3, 64, 96))
    expected = (seeing.template * 64 - 0.5 + 0.5 * 64 / 112) + torch.tensor([16.0, 0.0])
    torch.testing.assert_close(unseen, expected)
