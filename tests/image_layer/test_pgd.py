"""The loop that all photo protections share: steps, budget, valid range, hooks."""

from __future__ import annotations

import re
import textwrap

import pytest
import torch

from apdm.image_layer.pgd import PGD

EPS, STEP = 8 / 255, 2 / 255


def photos(*sizes: tuple[int, int], low: float = 0.3, high: float = 0.7) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [low + (high - low) * torch.rand(3, h, w, generator=generator, dtype=torch.float64) for h, w in sizes]


def total(images, which):
    return torch.stack([image.sum() for image in images])


def test_a_sign_step_moves_every_value_by_the_step_size():
    originals, slope = photos((5, 7)), torch.randn(3, 5, 7, dtype=torch.float64)
    pgd = PGD(originals, epsilon=EPS, step_size=STEP)
    pgd.ascend(lambda images, which: (-3 * slope * images[0]).sum().view(1), 1)
    torch.testing.assert_close(pgd.photos[0], torch.where(slope > 0, originals[0] - STEP, originals[0] + STEP))


def test_a_normalised_step_is_the_gradient_with_root_mean_square_step_size_and_forgets_the_step_before():
    originals, slopes = photos((4, 4)), list(torch.randn(2, 3, 4, 4, dtype=torch.float64))
    given = iter(slopes)
    pgd = PGD(originals, epsilon=1.0, step_size=STEP, update="normalised")
    pgd.ascend(lambda images, which: (next(given) * torch.stack(images)).sum().view(1), 2)
    expected = sum(STEP * slope / slope.square().mean().sqrt() for slope in slopes)
    torch.testing.assert_close(pgd.photos[0] - originals[0], expected)


@pytest.mark.parametrize("options", [{"update": "normalised"}, {"update": "normalised", "momentum": 0.5}])
def test_a_tiny_gradient_moves_a_photo_by_a_whole_step_and_nothing_of_it_stays_with_the_original(options):
    originals = photos((4, 4))
    known = originals[0].clone()
    pgd = PGD(originals, epsilon=1.0, step_size=STEP, **options)
    pgd.ascend(lambda images, which: 1e-12 * total(images, which), 1)
    torch.testing.assert_close(pgd.photos[0], known + STEP)
    assert torch.equal(originals[0], known) and not originals[0].requires_grad


def test_the_budget_is_measured_from_the_original_however_long_and_often_one_ascends():
    originals = photos((6, 6), (3, 9), low=0.0, high=1.0)
    pgd = PGD(originals, epsilon=EPS, step_size=STEP)
    for sign in (1, -1, 1, 1):
        pgd.ascend(lambda images, which, sign=sign: sign * total(images, which), 7)
    for original, photo in zip(originals, pgd.photos, strict=True):
        assert (photo - original).abs().max() <= EPS + 1e-12
        assert photo.min() >= 0 and photo.max() <= 1
        torch.testing.assert_close(photo, (original + EPS).clamp(max=1))
    pgd.ascend(lambda images, which: -total(images, which), 12)
    for original, photo in zip(originals, pgd.photos, strict=True):
        torch.testing.assert_close(photo, (original - EPS).clamp(min=0))


def test_what_an_earlier_layer_did_stays_and_nothing_goes_farther():
    original = photos((4, 4))[0]
    start = original + 2 * EPS
    up = PGD([original], epsilon=EPS, step_size=STEP, start=[start])
    up.ascend(total, 5)
    torch.testing.assert_close(up.photos[0], start)
    down = PGD([original], epsilon=EPS, step_size=STEP, start=[start])
    down.ascend(lambda images, which: -total(images, which), 50)
    torch.testing.assert_close(down.photos[0], original - EPS)


@pytest.mark.parametrize(("began", "ends"), [(2.0, 1.0), (0.5, -0.5), (-0.5, -1.0)])
def test_a_method_with_a_reach_undoes_no_more_of_an_earlier_one(began, ends):
    original = photos((4, 4))[0]
    pgd = PGD([original], epsilon=EPS, step_size=STEP, start=[original + began * EPS], reach=EPS)
    pgd.ascend(lambda images, which: -total(images, which), 50)
    torch.testing.assert_close(pgd.photos[0], original + ends * EPS)


def test_a_later_ball_starts_from_the_photos_but_is_measured_from_the_originals():
    originals = photos((4, 4))
    first = PGD(originals, epsilon=EPS, step_size=STEP)
    first.ascend(total, 10)
    second = PGD(originals, epsilon=EPS, step_size=STEP, start=first.photos)
    second.ascend(total, 10)
    torch.testing.assert_close(second.photos[0], originals[0] + EPS)


def test_photos_climb_their_own_objective_whatever_the_batch():
    originals, slopes = photos((4, 4), (4, 6), (5, 5)), [1.0, -1.0, 2.0]

    def objective(images, which):
        return torch.stack([slopes[i] * image.square().sum() for image, i in zip(images, which, strict=True)])

    results = []
    for size in (1, 2, 3):
        pgd = PGD(originals, epsilon=EPS, step_size=STEP, batch_size=size)
        pgd.ascend(objective, 3)
        results.append(pgd.photos)
    for one, two, three in zip(*results, strict=True):
        assert torch.equal(one, two) and torch.equal(two, three)
    assert results[0][1].sum() < originals[1].sum() and results[0][2].sum() > originals[2].sum()


def test_momentum_keeps_the_share_of_earlier_directions_that_it_says():
    original, first = photos((4, 4))[0], torch.full((3, 4, 4), 1e-9, dtype=torch.float64)
    second = -0.4 * first
    slopes = iter([first, second, second])
    pgd = PGD([original], epsilon=1.0, step_size=STEP, momentum=0.5)
    # Directions count by their mean absolute value: +1, then .5 - 1, then .5 * -.5 - 1.
    pgd.ascend(lambda images, which: torch.stack([(next(slopes) * image).sum() for image in images]), 3)
    torch.testing.assert_close(pgd.velocity[0], torch.full_like(original, -1.25))
    torch.testing.assert_close(pgd.photos[0], original - STEP)


def test_a_photo_without_a_gradient_stays_as_it_is():
    originals = photos((4, 4))
    for update, momentum in (("sign", 0.0), ("normalised", 0.0), ("sign", 0.5)):
        pgd = PGD(originals, epsilon=EPS, step_size=STEP, update=update, momentum=momentum)
        pgd.ascend(lambda images, which: 0 * total(images, which), 3)
        assert torch.equal(pgd.photos[0], originals[0])


def test_an_objective_that_is_not_finite_stops_the_ascent():
    pgd = PGD(photos((4, 4)), epsilon=EPS, step_size=STEP)
    with pytest.raises(FloatingPointError, match="not finite"):
        pgd.ascend(lambda images, which: total(images, which) + float("nan") * images[0][0, 0, 0], 1)


def test_an_ascent_of_no_steps_leaves_the_photos_as_they_are():
    originals = photos((4, 4))
    pgd = PGD(originals, epsilon=EPS, step_size=STEP)
    pgd.ascend(total, 0)
    assert torch.equal(pgd.photos[0], originals[0])


def test_progress_is_told_once_per_step():
    seen, originals = [], photos((4, 4), (4, 4), (4, 4))
    pgd = PGD(originals, epsilon=EPS, step_size=STEP, batch_size=2, callback=seen.append)
    pgd.ascend(total, 4)
    assert len(seen) == 4 and all(values["objective"].ndim == 0 for values in seen)
    assert not any(values["objective"].requires_grad for values in seen)  # a graph that is kept takes memory
    assert seen[0]["objective"].item() == pytest.approx(sum(float(photo.sum()) for photo in originals) / 3)


def test_the_subclass_of_the_docstring_stays_in_a_euclidean_budget():
    (code,) = re.findall(r"^( +class EuclideanPGD.*?)\n\n +A photo protection", PGD.__doc__, re.DOTALL | re.MULTILINE)
    names: dict = {"PGD": PGD}
    exec(textwrap.dedent(code), names)
    originals = photos((4, 4), (4, 6))
    pgd = names["EuclideanPGD"](originals, epsilon=0.1, step_size=0.02)
    pgd.ascend(total, 3)
    for original, photo in zip(originals, pgd.photos, strict=True):
        torch.testing.assert_close((photo - original).norm().item(), 0.06)
        torch.testing.assert_close(photo - original, torch.full_like(photo, 0.06 / photo.numel() ** 0.5))
    pgd.ascend(total, 9)
    assert all((p - o).norm() == pytest.approx(0.1) for p, o in zip(pgd.photos, originals, strict=True))


def test_the_direction_hook_gets_the_gradient_of_the_photos_own_objective_whatever_the_batch():
    class Plain(PGD):
        def direction(self, gradient: torch.Tensor, index: int) -> torch.Tensor:
            return gradient

    originals = photos((4, 4), (4, 6), (5, 5))
    pgd = Plain(originals, epsilon=1.0, step_size=STEP, batch_size=2)
    pgd.ascend(
        lambda images, which: torch.stack([(i + 1) * image.sum() for image, i in zip(images, which, strict=True)]), 1
    )
    for index, (photo, original) in enumerate(zip(pgd.photos, originals, strict=True)):
        torch.testing.assert_close(photo, original + (index + 1) * STEP)


def test_the_initial_hook_says_where_the_ascent_starts():
    class FromWhite(PGD):
        def initial(self, index: int) -> torch.Tensor:
            return torch.ones_like(self.originals[index])

    originals = photos((4, 4))
    pgd = FromWhite(originals, epsilon=EPS, step_size=STEP)
    assert torch.equal(pgd.photos[0], torch.ones_like(originals[0]))
    pgd.ascend(total, 1)
    torch.testing.assert_close(pgd.photos[0], originals[0] + EPS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"epsilon": 8}, "are in [0, 1] pixel units, such as 8/255, not 8 and"),
        ({"epsilon": 1.01}, "not 1.01 and"),
        ({"step_size": 2}, "and 2"),
        ({"update": "l2"}, "update must be one of sign, normalised, not 'l2'"),
        (
            {"originals": [torch.rand(1, 3, 4, 4)]},
            "photos must be [3, H, W] of floating point in [0, 1]; one is [1, 3, 4, 4]",
        ),
        ({"originals": [torch.zeros(3, 4, 4, dtype=torch.uint8)]}, "one is [3, 4, 4] of torch.uint8"),
    ],
)
def test_what_would_silently_do_something_else_is_refused(change: dict[str, object], problem: str) -> None:
    arguments = {"originals": photos((4, 4)), "epsilon": EPS, "step_size": STEP} | change
    with pytest.raises(ValueError, match=re.escape(problem)):
        PGD(arguments.pop("originals"), **arguments)
