"""Figures of pictures drawn without an attack, from features and embeddings that are made up."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from apdm.metrics.fidelity import frechet_distance, kernel_distance
from apdm.metrics.identity import likeness
from apdm.metrics.judges import Features
from apdm.metrics.utility import MeanAndStd, class_utility, strangers_likeness

ENCODERS = {"one": 1, "two": 3}  # and the factor by which the encoder stretches angles between faces


def at(*angles: float) -> dict[str, Tensor]:
    """What both encoders see in pictures whose faces stand at these angles from each other, in radians."""
    return {
        name: torch.tensor([[math.cos(factor * a), math.sin(factor * a)] for a in angles])
        for name, factor in ENCODERS.items()
    }


def seen(embeddings: dict[str, Tensor], faces: list[bool], extracted: Tensor | None = None) -> Features:
    detected = torch.tensor(faces)
    return Features(embeddings, detected.float(), detected, extracted, None)


def mean_and_std(values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


@pytest.mark.parametrize("with_photos", [True, False])
def test_likeness_by_chance_is_over_all_strangers_and_all_people(with_photos: bool):
    people, strangers, drawn = {"s1": 0.0, "s2": 0.3}, (0.2, 0.5, 0.6), (0.1, 9.0, 0.4, 0.45)
    faces = (0.1, 0.4, 0.45)  # the second picture shows none
    found = strangers_likeness(
        {subject: at(angle) for subject, angle in people.items()},
        at(*strangers) if with_photos else None,
        seen(at(*drawn), [True, False, True, True]),
    )
    assert list(found) == list(ENCODERS)
    for name, factor in ENCODERS.items():

        def cosines(angles: tuple[float, ...], subjects: list[str], factor: int = factor) -> list[float]:
            return [math.cos(factor * (a - people[subject])) for subject in subjects for a in angles]

        compared, entry = strangers if with_photos else faces, found[name]
        assert (entry.mean, entry.std) == pytest.approx(mean_and_std(cosines(compared, ["s1", "s2"])))
        each = {subject: mean_and_std(cosines(compared, [subject]))[0] for subject in people}
        assert entry.subjects == pytest.approx(each) and entry.count == 3
        by_class = entry.class_pictures
        assert (by_class.mean, by_class.std) == pytest.approx(mean_and_std(cosines(faces, ["s1", "s2"])))
        assert entry.source == ("photos" if with_photos else "class pictures")


def test_without_faces_there_is_no_likeness_by_chance_but_that_of_photos():
    nobody = seen(at(0.1, 0.2), [False, False])
    found = strangers_likeness({"s1": at(0.0)}, at(0.4), nobody)
    assert found["one"].class_pictures == MeanAndStd(mean=None, std=None)
    with pytest.raises(ValueError, match="photos of strangers or class pictures with faces"):
        strangers_likeness({"s1": at(0.0)}, None, nobody)


class Network:
    name, is_inception = "network", False

    def __call__(self, images: Tensor) -> Tensor:
        return images


def test_each_distance_of_the_class_is_from_the_base_and_with_its_own_function():
    generator = torch.Generator().manual_seed(0)
    faces = {
        "base": [True, True, True, False],
        "base_again": [False] * 4,
        "hardened": [True, False, False, False],
        "placebo": [True, True, False, False],
    }
    features = {
        name: seen({}, detected, torch.randn(4, 3, generator=generator) * (1 + number) + number)
        for number, (name, detected) in enumerate(faces.items())
    }
    found = class_utility(features, Network())
    base, again, hardened = (features[name].extracted for name in ("base", "base_again", "hardened"))
    assert base is not None and again is not None and hardened is not None
    for entry, distance in ((found.frechet, frechet_distance), (found.kernel, kernel_distance)):
        by_hand = distance(base, hardened), distance(base, again)
        assert (entry.to_base, entry.base_seed_to_seed) == by_hand and entry.network == "network"
        assert entry.ratio == pytest.approx(by_hand[0] / by_hand[1])
    assert found.num_images == 4 and found.drift == {}
    assert found.class_face_rate == {"base": 0.75, "hardened": 0.25, "placebo": 0.5}


def test_without_a_network_or_a_reader_nothing_is_measured_with_it():
    nothing = dict.fromkeys(("base", "base_again", "hardened"), seen({}, [True] * 4))
    found = class_utility(nothing, None, None, {"hair": ["dark", "fair"]})
    assert found.frechet.network is found.frechet.to_base is found.kernel.to_base is None and found.drift == {}


def test_two_pictures_are_enough_for_a_distance():
    two = dict.fromkeys(("base", "base_again", "hardened"), seen({}, [True] * 2, torch.eye(2)))
    assert class_utility(two, Network()).frechet.to_base == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("broken", ["base", "hardened"])
def test_features_of_a_broken_model_or_of_one_picture_give_no_distance(broken: str):
    good = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    one_bad_number = good.clone()
    one_bad_number[2, 1] = math.nan
    for bad in (good[:1], one_bad_number, None):
        features = {
            name: seen({}, [True] * 4, extracted)
            for name, extracted in ({"base": good, "base_again": good + 1, "hardened": good} | {broken: bad}).items()
        }
        found = class_utility(features, Network())
        assert found.frechet.to_base is None and found.frechet.ratio is None
        by_chance = None if broken == "base" else pytest.approx(3)  # the squared length of (1, 1, 1)
        assert found.frechet.base_seed_to_seed == by_chance


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_of_single_precision_features_are_computed_in_double_precision(distance):
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) + 100
    assert distance(first, second) == pytest.approx(distance(first.double(), second.double()), rel=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_features_of_other_shapes_or_of_one_picture_are_refused(distance):
    two, wide, cube = torch.ones(3, 2), torch.ones(3, 4), torch.ones(3, 2, 2)
    for first, second in ((torch.ones(3), torch.ones(3)), (two, wide), (cube, two), (two, cube)):
        with pytest.raises(ValueError, match="features must be"):
            distance(first, second)
    for first, second in ((two, two[:1]), (two[:1], two)):
        with pytest.raises(ValueError, match="at least 2 pictures"):
            distance(first, second)


def test_likeness_needs_a_reference_of_the_same_width():
    with pytest.raises(ValueError, match="at least one reference"):
        likeness(torch.ones(3, 2), torch.ones(0, 2))
    with pytest.raises(ValueError, match="embeddings must be"):
        likeness(torch.ones(3, 2), torch.ones(1, 4))
