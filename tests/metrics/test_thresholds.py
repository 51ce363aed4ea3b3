"""Match thresholds of objects: where the two kinds of errors are equally rare."""

from __future__ import annotations

from dataclasses import replace

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


def test_of_thresholds_that_are_equally_good_the_one_in_the_widest_gap_is_taken():
    own, others = torch.tensor([0.2, 0.5, 0.8, 0.95]), torch.tensor([0.1, 0.6])
    assert equal_error_threshold(own, others) == pytest.approx(0.35)  # as good: 0.15, 0.55 and 0.7


def test_a_threshold_needs_both_groups():
    one, none = torch.tensor([0.5]), torch.tensor([])
    for own, others in ((one, none), (none, one)):
        with pytest.raises(ValueError, match="needs photos of the subject and of others"):
            equal_error_threshold(own, others)
    assert equal_error_threshold(one, torch.tensor([0.1])) == pytest.approx(0.3)


def test_others_at_a_threshold_are_errors_as_they_are_matches():
    own, others = torch.tensor([0.1, 0.9]), torch.tensor([0.1, 0.1, 0.9])
    assert equal_error_threshold(own, others) == pytest.approx(0.5)  # at 0.1 all others would match


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


def test_a_hold_out_photo_is_not_compared_with_itself():
    references, photos = {"dog": directions(0, 60, 10)}, {"dog": directions(20)}
    threshold, how = measure_threshold(references, photos, directions(180), None)
    alike = (directions(60) @ directions(5).T).item()  # the second photo and the mean of the other two
    centre = references["dog"].mean(dim=0)
    stranger = (directions(180) @ centre / centre.norm()).item()
    assert threshold == pytest.approx((alike + stranger) / 2) and how.own == 4


def test_the_error_rates_are_those_at_the_threshold():
    references, photos = {"dog": directions(0)}, {"dog": directions(5, 10, 15, 70)}
    threshold, how = measure_threshold(references, photos, directions(12, 40, 50, 60, 80), None)
    assert threshold == pytest.approx(torch.tensor([15.0, 40.0]).deg2rad().cos().mean().item())
    assert (how.false_match_rate, how.false_non_match_rate) == (0.2, 0.25)


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
    for rates in ({"false_match_rate": 0.1}, {"false_non_match_rate": 0.1}):
        assert len(replace(blind, **rates).doubts("dino")) == 1
    (doubt,) = replace(good, others=19).doubts("dino")
    assert "rests on 5 own photos and 19 pictures of others" in doubt
    (doubt,) = blind.doubts("dino")
    assert doubt.startswith("dino does not tell the subjects from others: at its threshold 0.50 of the own photos")
