"""The losses against closed forms and finite differences."""

import math

import pytest
import torch

from apdm.protection import losses
from apdm.protection.objectives import Errors, make_objective

SHAPE = (3, 2, 4, 4)


def random_errors(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(SHAPE, generator=generator, dtype=torch.get_default_dtype()) for _ in range(count)]


@pytest.mark.parametrize(("reduction", "beta"), [("element", 1.0), ("element", 30.0), ("sample", 100.0)])
def test_gradient_of_dpo_is_that_of_finite_differences(float64, reduction, beta):
    errors = [error.requires_grad_() for error in random_errors(4)]
    assert torch.autograd.gradcheck(
        lambda *e: losses.dpo_loss(*e, beta=beta, reduction=reduction), errors, eps=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("reduction", ["element", "sample"])
def test_dpo_is_log_2_where_denoiser_and_reference_agree(reduction):
    positive, negative = random_errors(2)
    loss = losses.dpo_loss(positive, positive, negative, negative, beta=500.0, reduction=reduction)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-7)


@pytest.mark.parametrize("reduction", ["element", "sample"])
def test_descending_dpo_lowers_the_positive_error_and_raises_the_negative(float64, reduction):
    positive, reference_positive, negative, reference_negative = random_errors(4)
    errors = (positive.requires_grad_(), reference_positive, negative.requires_grad_(), reference_negative)
    down, up = torch.autograd.grad(losses.dpo_loss(*errors, beta=2.0, reduction=reduction), (positive, negative))
    assert (down > 0).all() and (up < 0).all()


def test_reductions_are_equal_for_a_single_element_and_differ_for_more(float64):
    errors = random_errors(4)
    both = [losses.dpo_loss(*errors, beta=50.0, reduction=r) for r in ("element", "sample")]
    assert not torch.isclose(*both)
    single = [error[:, :1, :1, :1] for error in errors]
    both = [losses.dpo_loss(*single, beta=50.0, reduction=r) for r in ("element", "sample")]
    assert torch.isclose(*both)


def test_sample_dpo_is_the_written_formula(float64):
    plus, phi_plus, minus, phi_minus = random_errors(4)
    loss = losses.dpo_loss(plus, phi_plus, minus, phi_minus, beta=40.0, reduction="sample")
    terms = []
    for i in range(len(plus)):
        margin = (plus[i] - phi_plus[i]).mean() - (minus[i] - phi_minus[i]).mean()
        terms.append(-math.log(1 / (1 + math.exp(40.0 * margin))))
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)


def test_the_gradient_of_dpo_grows_with_beta_and_ends_where_the_preference_is_met():
    same = random_errors(1)[0].requires_grad_()
    for beta, offset, share in [(1.0, 0.0, 0.5), (1000.0, 0.0, 0.5), (1000.0, 1.0, 1.0), (1000.0, -1.0, 0.0)]:
        for reduction in ("element", "sample"):
            reference = same.detach() - offset  # so that r+ - r- is the offset
            loss = losses.dpo_loss(same, reference, reference, reference, beta=beta, reduction=reduction)
            (gradient,) = torch.autograd.grad(loss, same)
            assert torch.allclose(gradient * same.numel(), torch.tensor(share * beta), atol=1e-3)


@pytest.mark.parametrize("reduction", ["element", "sample"])
def test_dpo_is_finite_at_any_beta(reduction):
    errors = [error.requires_grad_() for error in random_errors(4)]
    loss = losses.dpo_loss(*errors, beta=1e30, reduction=reduction)
    assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, errors))


def test_a_loss_of_a_batch_is_the_mean_over_its_halves(float64):
    errors = [torch.cat([e, e.flip(0) * 2]) for e in random_errors(4)]
    for reduction in ("element", "sample"):
        whole = losses.dpo_loss(*errors, beta=20.0, reduction=reduction)
        halves = [losses.dpo_loss(*(e[i : i + 3] for e in errors), beta=20.0, reduction=reduction) for i in (0, 3)]
        assert torch.isclose(whole, sum(halves) / 2, rtol=1e-12)


def test_half_precision_predictions_are_squared_in_float32():
    prediction, target = torch.full(SHAPE, 300.0, dtype=torch.float16), torch.zeros(SHAPE)
    error = losses.squared_error(prediction, target)
    assert error.dtype == torch.float32 and error[0, 0, 0, 0] == 90000  # beyond the largest float16


def test_personalization_and_protection_are_their_weighted_sums(float64):
    instance, prior = random_errors(2)
    loss = losses.personalization_loss(instance, prior, prior_loss_weight=0.3)
    assert torch.isclose(loss, instance.mean() + 0.3 * prior.mean(), rtol=1e-12)
    loss = losses.protection_loss(torch.tensor(0.7), torch.tensor(0.2), preservation_weight=3.0)
    assert torch.isclose(loss, torch.tensor(1.3), rtol=1e-12)


def test_anchor_is_the_mean_squared_distance_and_zero_at_the_reference(float64):
    ours, theirs = random_errors(2)
    assert torch.isclose(losses.anchor_loss(ours, theirs), torch.nn.functional.mse_loss(ours, theirs), rtol=1e-12)
    assert losses.anchor_loss(ours, ours) == 0


def test_an_unknown_reduction_is_refused():
    with pytest.raises(ValueError, match="'element' or 'sample'"):
        losses.dpo_loss(*random_errors(4), beta=1.0, reduction="sum")


def test_ascent_is_minus_the_error_and_stops_at_so_many_times_the_references(float64):
    error = torch.rand(3, 2, 4, 4, requires_grad=True)
    loss = losses.ascent_loss(error, torch.rand(3, 2, 4, 4))
    assert loss.item() == pytest.approx(-error.mean().item(), rel=1e-12)
    # Samples whose mean error is 1, 2 and 3. With the limit 2.5 they count up to 0.5, 3.75 and 2.5.
    error, reference = (
        torch.tensor(means).view(3, 1, 1, 1).expand(3, 2, 4, 4).clone() for means in ([1.0, 2.0, 3.0], [0.2, 1.5, 1.0])
    )
    loss = losses.ascent_loss(error.requires_grad_(True), reference, limit=2.5)
    assert loss.item() == pytest.approx(-(0.5 + 2 + 2.5) / 3, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, error)
    wanted = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1, 1).expand_as(error) * (-1 / (3 * 32))
    torch.testing.assert_close(gradient, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("spec", "limit"), [("ascent", 0.0), ("ascent:limit=1.7", 1.7)])
def test_the_ascent_objective_raises_the_error_on_the_subjects_photos(float64, spec, limit):
    objective, errors = make_objective(spec), Errors(*random_errors(5))
    expected = losses.ascent_loss(errors.negative, errors.reference_negative, limit=limit)
    assert objective.loss(errors).item() == pytest.approx(expected.item(), rel=1e-12)
