"""Identity, fidelity and cost statistics against closed forms and values of published libraries."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from apdm.metrics.drift import class_drift, histogram, total_variation
from apdm.metrics.fidelity import distance_names, frechet_distance, kernel_distance
from apdm.metrics.identity import IdentityStatistics, face_rate, identity_statistics, likeness
from apdm.metrics.judges import Features
from apdm.metrics.statistics import Cost, bootstrap_interval, cost_factor, steps_to_reach
from apdm.metrics.utility import ClassDistance, strangers_matched


def gaussian_sets() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(7)
    first, second = rng.normal(size=(40, 6)), rng.normal(size=(50, 6)) * 1.3 + 0.4
    return torch.from_numpy(first), torch.from_numpy(second)


def with_moments(mean: list[float], std: list[float]) -> torch.Tensor:
    """Two points per axis on either side of `mean`: exactly this mean and this diagonal covariance."""
    width = len(mean)
    steps = torch.diag(torch.tensor(std, dtype=torch.float64)) * math.sqrt((2 * width - 1) / 2)
    return torch.tensor(mean, dtype=torch.float64) + torch.cat([steps, -steps])


def test_likeness_is_the_cosine_with_the_mean_of_normalised_references():
    references = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # mean direction: 45 degrees, whatever the lengths
    generated = torch.tensor([[3.0, 3.0], [1.0, 0.0], [-1.0, -1.0], [1.0, -1.0]])
    expected = torch.tensor([1.0, math.sqrt(0.5), -1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(likeness(generated, references), expected)


def test_an_undetected_picture_counts_as_zero_in_mean_and_not_at_all_in_detected_mean():
    scores = torch.tensor([0.8, 0.4, 0.9, 0.2])
    detected = torch.tensor([True, True, False, True])
    assert asdict(identity_statistics(scores, detected, threshold=0.4)) == pytest.approx(
        {"mean": 1.4 / 4, "detected_mean": 1.4 / 3, "face_rate": 3 / 4, "match_rate": 2 / 4}
    )


def test_a_score_at_the_threshold_matches_and_objects_have_no_faces():
    statistics = identity_statistics(torch.tensor([0.5, 0.25, 0.75, 0.0]), None, threshold=0.5)
    assert statistics == IdentityStatistics(mean=0.375, detected_mean=None, face_rate=None, match_rate=0.5)


def test_the_face_rate_is_the_mean_over_the_encoders_that_looked_for_faces():
    rates = {"a": 0.5, "b": None, "c": 0.75}
    found = {
        name: IdentityStatistics(mean=0.1, detected_mean=None, face_rate=rate, match_rate=0.0)
        for name, rate in rates.items()
    }
    assert face_rate(found) == 0.625
    assert face_rate({"b": found["b"]}) is None


def test_without_any_face_the_detected_mean_is_none_and_nothing_matches():
    statistics = identity_statistics(torch.tensor([0.9, 0.9]), torch.zeros(2, dtype=torch.bool), threshold=0.1)
    assert statistics == IdentityStatistics(mean=0.0, detected_mean=None, face_rate=0.0, match_rate=0.0)


def test_a_score_that_is_not_finite_is_an_error_only_where_a_face_was_seen():
    scores = torch.tensor([0.5, math.nan])
    with pytest.raises(FloatingPointError, match="not finite"):
        identity_statistics(scores, torch.tensor([True, True]), threshold=0.1)
    assert identity_statistics(scores, torch.tensor([True, False]), threshold=0.1).mean == 0.25


@pytest.mark.parametrize(("mean2", "std2"), [([0.0], [1.0]), ([3.0], [1.0]), ([0.0], [2.5]), ([-1.0], [0.0])])
def test_frechet_distance_of_one_dimensional_gaussians_is_the_closed_form(mean2: list[float], std2: list[float]):
    expected = mean2[0] ** 2 + (1.0 - std2[0]) ** 2
    assert frechet_distance(with_moments([0.0], [1.0]), with_moments(mean2, std2)) == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_of_diagonal_gaussians_is_the_closed_form():
    mean1, std1, mean2, std2 = [0.0, 1.0, -2.0], [1.0, 2.0, 0.5], [0.5, 1.0, 3.0], [3.0, 0.1, 0.5]
    expected = sum((a - b) ** 2 for a, b in zip(mean1 + std1, mean2 + std2, strict=True))
    assert frechet_distance(with_moments(mean1, std1), with_moments(mean2, std2)) == pytest.approx(expected)


def test_frechet_distance_agrees_with_pytorch_fid():
    assert frechet_distance(*gaussian_sets()) == pytest.approx(2.1458213141489075, rel=1e-9)  # pytorch-fid 0.3.0


def test_frechet_distance_agrees_with_the_matrix_square_root_of_scipy():
    first, second = (features.numpy() for features in gaussian_sets())
    root = sqrtm(np.cov(first, rowvar=False) @ np.cov(second, rowvar=False))
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum()
    expected += np.trace(np.cov(first, rowvar=False) + np.cov(second, rowvar=False) - 2 * root.real)
    assert frechet_distance(*gaussian_sets()) == pytest.approx(expected, rel=1e-9)


def test_kernel_distance_is_the_sum_over_all_pairs_written_out():
    first, second = (features[:7].numpy() for features in gaussian_sets())

    def mean(a: np.ndarray, b: np.ndarray, skip: bool) -> float:
        values = [(x @ y / 6 + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not (skip and i == j)]
        return float(np.mean(values))

    expected = mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)
    assert kernel_distance(*map(torch.from_numpy, (first, second))) == pytest.approx(expected, rel=1e-12)


def test_drift_is_the_share_of_pictures_that_would_have_to_change():
    read = {
        "base": {"hair": torch.tensor([0, 0, 1, 1])},
        "base_again": {"hair": torch.tensor([0, 0, 0, 1])},
        "hardened": {"hair": torch.tensor([2, 2, 2, 0])},
    }
    drift = class_drift(read, {"hair": ("bald", "black", "red")})["hair"]
    assert drift.shares == {"base": [0.5, 0.5, 0.0], "hardened": [0.25, 0.0, 0.75]}
    assert drift.base_seed_to_seed == 0.25
    assert drift.distance == {"hardened": 0.75}  # to the base drawn from the same noise: .75 .25 0
    assert total_variation(histogram(torch.tensor([1]), 3), histogram(torch.tensor([2]), 3)) == 1
    with pytest.raises(ValueError, match="at least one"):
        histogram(torch.tensor([]), 3)


def test_frechet_distance_is_exact_with_fewer_pictures_than_features():
    first, second = gaussian_sets()
    turn = torch.linalg.qr(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)).double()).Q[:6]
    wide = frechet_distance(first @ turn, second @ turn)  # the same Gaussians on a 6-plane of a 100-space
    assert wide == pytest.approx(frechet_distance(first, second), rel=1e-9)
    assert frechet_distance(first @ turn, first @ turn) == pytest.approx(0, abs=1e-9)


class Named:
    """An extractor as far as the names of distances need one."""

    def __init__(self, *, is_inception: bool) -> None:
        self.name, self.is_inception = "some", is_inception

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_only_inception_features_of_enough_pictures_give_fid():
    assert distance_names(Named(is_inception=True), 2048) == ("FID", "KID")
    assert distance_names(Named(is_inception=True), 2047) == ("Frechet distance", "KID")
    assert distance_names(Named(is_inception=False), 10**6) == ("Frechet distance", "kernel distance")


def test_kernel_distance_agrees_with_clean_fid():
    first, second = gaussian_sets()
    assert kernel_distance(first, second[:40]) == pytest.approx(0.8978119148823908, rel=1e-9)  # clean-fid 0.1.35


def test_kernel_distance_is_unbiased_where_frechet_distance_is_not():
    draws = torch.randn(400, 2, 10, 4, generator=torch.Generator().manual_seed(0)).double()
    kernel = torch.tensor([kernel_distance(a, b) for a, b in draws])
    assert abs(kernel.mean()) < 4 * kernel.std() / math.sqrt(len(kernel))
    assert min(frechet_distance(a, b) for a, b in draws[:50]) > 0.1


def test_bootstrap_interval_matches_the_normal_approximation_and_its_seed():
    values = np.random.default_rng(3).normal(5.0, 2.0, size=400).tolist()
    low, high = bootstrap_interval(values, seed=1)
    half = 1.96 * np.std(values) / 20
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=0.03)
    assert bootstrap_interval(values, seed=1) == (low, high) != bootstrap_interval(values, seed=2)


def test_the_ratio_of_class_distances_shows_a_change_better_with_more_pictures():
    generator = torch.Generator().manual_seed(0)

    def ratio(number: int) -> float:
        base, again, changed = (torch.randn(number, 32, generator=generator) for _ in range(3))
        to_base, by_chance = (frechet_distance(base, other) for other in (changed + 0.1, again))
        entry = ClassDistance(name="Frechet distance", network="any", to_base=to_base, base_seed_to_seed=by_chance)
        return entry.ratio or 0.0

    few, many = ratio(50), ratio(5000)
    assert few < 1.2 and many > 2


@pytest.mark.parametrize("number", [2, 3, 5, 10])
def test_intervals_of_few_values_hold_the_true_mean_as_often_as_they_say(number: int):
    values = np.random.default_rng(0).normal(size=(400, number))
    ends = [bootstrap_interval(each.tolist()) for each in values]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(0.945, abs=0.025)


def test_an_interval_of_equal_values_is_that_value():
    assert bootstrap_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))


def test_a_paired_interval_sees_a_small_difference_through_a_large_shared_spread():
    hardened = np.random.default_rng(3).normal(0.0, 10.0, size=20)
    base = hardened + np.random.default_rng(4).normal(0.5, 0.1, size=20)
    low, high = bootstrap_interval(base.tolist(), hardened.tolist())
    assert 0.4 < low < 0.5 < high < 0.6
    with pytest.raises(ValueError, match="not paired"):
        bootstrap_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_interval([1.0])


@pytest.mark.parametrize(
    ("level", "steps", "censored"),
    [(0.1, 0.0, False), (0.2, 5.0, False), (0.5, 15.0, False), (0.6, 20.0, False), (0.61, None, True)],
)
def test_steps_to_reach_interpolates_the_first_crossing(level: float, steps: float | None, censored: bool):
    reached = steps_to_reach([(0, 0.1), (10, 0.3), (15, 0.5), (20, 0.6), (30, 0.2)], level)
    assert (reached.steps, reached.censored, reached.horizon) == (
        None if steps is None else pytest.approx(steps),
        censored,
        30.0,
    )


def test_a_likeness_that_the_first_point_has_exactly_is_reached_there():
    assert steps_to_reach([(3, 0.5), (10, 0.2)], 0.5).steps == 3.0


@pytest.mark.parametrize("curve", [[], [(0, 0.1), (0, 0.2)], [(5, 0.1), (1, 0.2)], [(0, math.nan)]])
def test_a_curve_that_makes_no_sense_is_an_error(curve: list[tuple[float, float]]):
    with pytest.raises(ValueError, match="curve"):
        steps_to_reach(curve, 0.5)


def test_cost_factor_is_a_ratio_a_lower_bound_or_undefined():
    base = [(0, 0.0), (100, 0.5)]
    assert str(cost_factor(base, [(0, 0.0), (100, 0.5)], 0.5)) == "1.00"
    assert str(cost_factor(base, [(0, 0.0), (400, 0.5)], 0.25)) == "4.00"
    assert str(cost_factor(base, [(0, 0.0), (500, 0.1)], 0.5)) == ">= 5.00"
    undefined = Cost(None, at_least=False)
    assert str(undefined) == "undefined"
    assert cost_factor(base, base, 0.9) == undefined  # the base never gets there
    assert cost_factor(base, base, 0.0) == undefined  # the base need not start


@pytest.mark.parametrize(("stands_still_from", "twice", "five_times"), [(1.0, 0.1, 0.03), (0.125, 0.19, 0.06)])
def test_noise_alone_makes_the_cost_factors_of_single_runs_that_the_page_on_audits_names(
    stands_still_from: float, twice: float, five_times: float
):
    rng = np.random.default_rng(0)

    def run(horizon: int) -> list[tuple[float, float]]:
        steps = np.linspace(0, horizon, 8 * horizon + 1)
        likeness = 0.9 * np.minimum(steps / stands_still_from, 1) + rng.normal(0, 0.02, len(steps))
        return list(zip(steps.tolist(), likeness.tolist(), strict=True))

    factors = []
    for _ in range(1000):
        base, hardened = run(1), run(10)  # the same model, so the true factor is 1
        factors.append(cost_factor(base, hardened, base[-1][1]).factor or 0.0)
    assert np.median(factors) == pytest.approx(1, abs=0.1)
    assert np.mean([factor >= 2 for factor in factors]) == pytest.approx(twice, abs=0.03)
    assert np.mean([factor >= 5 for factor in factors]) == pytest.approx(five_times, abs=0.02)


def test_a_stranger_is_a_person_only_if_every_encoder_says_so_and_class_pictures_need_a_face():
    axes = torch.eye(3)
    person = {"one": axes[:1], "two": axes[:1]}
    strangers = {"one": axes[[0, 0, 1, 1]], "two": axes[[0, 1, 0, 2]]}
    thresholds = {"one": 0.5, "two": 1.0}  # as high as the likeness itself
    faces = torch.tensor([True, True, False, False])
    drawn = Features(strangers, faces.float(), faces, torch.zeros(4, 1), torch.zeros(4, 1))
    assert strangers_matched({"s01": person}, strangers, drawn, thresholds) == {"s01": 0.25}
    assert strangers_matched({"s01": person}, None, drawn, thresholds) == {"s01": 0.5}
