"""Which face of a photo is the person's: the rule on vectors, and on group pictures of real faces."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from real_assets import ASSETS, needs_assets
from torch import Tensor
from torch.nn.functional import normalize

from apdm.core.pictures import to_unit
from apdm.data.subjects import load_images
from apdm.faces import Face, load_detector, load_encoder
from apdm.faces.person import PersonsFace, choose_faces, embed_person

PEOPLE = {name: vector for name, vector in zip("abcd", torch.eye(8)[:4], strict=True)}
FACE = Face((0.0, 0.0, 10.0, 10.0), torch.zeros(5, 2), 1.0)


def seen(who: str, photo: int) -> Tensor:
    """A person's vector, a little different in each photo."""
    return normalize(PEOPLE[who] + 0.3 * torch.eye(8)[4 + photo % 4], dim=0)


def choices(*photos: str) -> list[PersonsFace]:
    """The choices in photos whose faces are those of the people with these letters, the largest first."""
    embeddings = [
        {name: torch.stack([seen(who, place) for who in photo]) for name in ("x", "y")} if photo else {}
        for place, photo in enumerate(photos)
    ]
    return choose_faces([[FACE] * len(photo) for photo in photos], embeddings, {"x": 0.5, "y": 0.6})


def said(*photos: str) -> list[tuple[int | None, str]]:
    return [(choice.index, choice.reason) for choice in choices(*photos)]


def test_in_a_group_it_is_the_face_of_the_photos_with_one_face_and_not_the_largest():
    assert said("a", "a", "bac", "ab", "") == [(0, "only"), (0, "only"), (1, "alike"), (0, "alike"), (None, "none")]
    assert [len(choice.chosen) for choice in choices("a", "bac", "")] == [1, 1, 0]


def test_it_is_unclear_if_nobody_or_two_are_like_the_person_and_then_all_are_protected():
    assert said("a", "a", "bc", "aab")[2:] == [(0, "unclear"), (0, "unclear")]
    assert len(choices("a", "bc")[1].chosen) == 2


def test_in_groups_alone_it_is_the_one_who_comes_again_unless_two_do():
    assert said("ba", "ac", "da") == [(1, "alike"), (0, "alike"), (1, "alike")]
    assert {reason for _, reason in said("ab", "ba", "ab")} == {"unclear"}
    assert said("ab") == [(0, "unclear")]


def test_a_stranger_alone_in_a_photo_is_called_unlike_where_there_are_enough_others():
    assert said("a", "a", "b", "a")[2] == (0, "unlike")
    assert said("a", "b") == [(0, "only"), (0, "only")]
    assert said("", "a") == [(None, "none"), (0, "only")] and said("") == [(None, "none")]


def test_a_face_is_compared_with_the_others_and_not_with_itself():
    """Two that are right angles apart are 0.4 from a third one, and -1 from each other, on the encoder's own scale."""
    vectors = torch.tensor([[1.0, 0.0], [0.5**0.5, 0.5**0.5], [0.5**0.5, -(0.5**0.5)]])
    found = choose_faces([[FACE]] * 3, [{"x": vector[None]} for vector in vectors], {"x": 0.5})
    assert [choice.reason for choice in found] == ["only", "unlike", "unlike"]


@needs_assets
@pytest.mark.parametrize("sizes", [(300, 512), (512, 300)])
def test_real_references_with_a_stranger_in_them_are_still_of_the_person(tmp_path, sizes):
    own, other = (sorted((ASSETS / f"photos/faces/{who}").iterdir()) for who in ("f01", "f02"))
    group = Image.new("RGB", (1024, 1024), "grey")
    for path, side, corner in zip((own[0], other[0]), sizes, ((0, 0), (512, 512)), strict=True):
        group.paste(Image.open(path).convert("RGB").resize((side, side)), corner)
    group.save(tmp_path / "group.png")
    detector = load_detector(str(ASSETS / "detectors/yunet_n_dynamic.onnx"))
    encoder = load_encoder(
        f"{ASSETS / 'encoders/mobilefacenet/mobilefacenet.pt'}=0.255", detector=detector, allow_pickle=True
    )
    images = to_unit(load_images([*own[1:4], tmp_path / "group.png"], 512))
    images = torch.cat([images, torch.full_like(images[:1], 0.5)])  # the last one shows nobody
    with torch.no_grad():
        person, (stranger,) = embed_person(encoder, images), encoder.embed(to_unit(load_images(other[:1], 512)))
    assert float(person[3] @ normalize(person[:3].mean(dim=0), dim=0)) > 0.5 and float(person[3] @ stranger) < 0.255
    alone = [0, 1, 2, 4]
    torch.testing.assert_close(person[alone], encoder.embed(images[alone]))
