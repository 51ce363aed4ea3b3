"""Match thresholds of objects: where the two kinds of errors are equally rare."""

from __future__ import annotations

import pytest
import torch

from apdm.metrics.objects import MeasuredThreshold, equal_error_threshold, measure_threshold


def test_the_threshold_is_the_middle_between_groups_that_do_not_overlap():
    own, others = torch.tensor([0.9, 0.7, 0.8]), torch.tensor([0.3, -0.2, 0.1, 0.2])
    assert equal_error_threshold(own, others) == pytest.approx(0.5)


def test_of_groups_that_overlap_the_threshold_gives_equal_errors():
    own, others = torch.tensor([0.2, 0.6, 0.7, 0.8]), torch.tensor([0.0, 0.1, 0.3, 0.65])
    threshold = equal_error_threshold(own, others)
    assert threshold == pytest.approx(0.45)  # one own photo below, one other above; the widest such gap
    assert (own < threshold).sum() == (others >= threshold).sum() == 1


def test_a_threshold_needs_both_groups():
    with pytest.raises(ValueError, match="needs photos of the subject and of others"):
        equal_error_threshold(torch.tensor([0.5]), torch.tensor([]))


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_own_photos_are_compared_with_other_photos_of_the_subject_and_with_everybody_else():
    references = {"dog": directions(0, 10), "cat": directions(90)}
    photos = {"dog": directions(5, 5), "cat": directions(80)}
    threshold, how = measure_threshold(references, photos, directions(180), None)
    # 2 + 1 photos that the attacker has, 2 hold-out photos against each other; 2 + 4 of the other subject, 2 strangers.
    assert (how.own, how.others, how.source) == (5, 8, "photos")
    assert how.false_match_rate == how.false_non_match_rate == 0
    assert torch.tensor(75.0).deg2rad().cos() < threshold < torch.tensor(10.0).deg2rad().cos()


def test_class_pictures_stand_for_others_only_where_there_is_nobody_else():
    references, photos, drawn = {"dog": directions(0, 10)}, {"dog": directions(5)}, directions(60, 70, 80)
    _, how = measure_threshold(references, photos, None, drawn)
    assert (how.source, how.others) == ("class pictures", 3)
    assert measure_threshold(references, photos, directions(90), drawn)[1].source == "photos"
    with pytest.raises(ValueError, match="nobody to compare"):
        measure_threshold(references, photos, None, None)


def test_thresholds_of_few_photos_and_of_encoders_that_see_no_difference_are_doubted():
    good = MeasuredThreshold(own=5, others=20, source="photos", false_match_rate=0.1, false_non_match_rate=0.0)
    assert good.doubts("dino") == []
    few = MeasuredThreshold(own=4, others=20, source="photos", false_match_rate=0.0, false_non_match_rate=0.0)
    (doubt,) = few.doubts("dino")
    assert doubt.startswith("the match threshold of dino rests on 4 own photos and 20 pictures of others, and 5 and 20")
    blind = MeasuredThreshold(own=9, others=90, source="photos", false_match_rate=0.4, false_non_match_rate=0.5)
    (doubt,) = blind.doubts("dino")
    assert doubt.startswith("dino does not tell the subjects from others: at its threshold 0.50 of the own photos")
