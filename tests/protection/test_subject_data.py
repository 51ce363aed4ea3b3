"""What Learning to Protect is fed: cached posteriors, pairs and draws against closed forms."""

from dataclasses import replace

import pytest
import torch
from plain_l2p import toy_data

from apdm.core.errors import UserError
from apdm.families import Posterior
from apdm.protection.subject_data import BatchSampler, SubjectData


def test_resampling_the_cached_posterior_has_its_mean_and_deviation(float64):
    posterior = Posterior(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 3.0]]))
    count = 40_000
    many = posterior[torch.zeros(count, dtype=torch.long)].sample(torch.Generator().manual_seed(0))
    # Five standard errors of mean and deviation.
    torch.testing.assert_close(many.mean(0), posterior.mean[0], rtol=0, atol=5 * 3.0 / count**0.5)
    torch.testing.assert_close(many.std(0), posterior.std[0], rtol=5 / (2 * count) ** 0.5, atol=0)


def test_a_pair_differs_in_the_image_alone_and_partners_keep_their_order():
    data = toy_data()
    photos = Posterior(data.instance.mean, data.instance.std * 0)
    partners = Posterior(data.instance.mean + 100, data.instance.std * 0)
    exact = SubjectData(photos, data.prior, data.instance_prompt, data.class_prompt, data.draw_timesteps, partners)
    batch = exact.protection(torch.Generator().manual_seed(0), 8)
    for field in ("noise", "timesteps", "prompt_embeds"):
        assert torch.equal(getattr(batch.positive, field), getattr(batch.negative, field))
    torch.testing.assert_close(batch.positive.latents, batch.negative.latents + 100)
    assert torch.equal(batch.negative.prompt_embeds[0], data.instance_prompt[0])
    assert torch.equal(batch.prior.prompt_embeds[0], data.class_prompt[0])
    assert not torch.equal(batch.prior.noise, batch.negative.noise)


def test_a_batch_repeats_no_image_before_it_has_used_all():
    data = toy_data()
    exact = Posterior(data.instance.mean, data.instance.std * 0)
    data = SubjectData(exact, data.prior, data.instance_prompt, data.class_prompt, data.draw_timesteps)
    for seed in range(5):
        latents = data.personalization(torch.Generator().manual_seed(seed), 3).instance.latents
        assert len(latents.flatten(1).unique(dim=0)) == 3


def test_timesteps_cover_the_whole_range_evenly():
    batch = toy_data().class_pictures(torch.Generator().manual_seed(0), 5000)
    counts = torch.bincount(batch.timesteps, minlength=10)
    assert len(counts) == 10 and counts.min() > 400


def test_equal_seeds_draw_equal_batches_and_other_seeds_others():
    first, again, other = (toy_data().protection(torch.Generator().manual_seed(s), 4) for s in (0, 0, 1))
    assert torch.equal(first.negative.latents, again.negative.latents)
    assert torch.equal(first.prior.timesteps, again.prior.timesteps)
    assert not torch.equal(first.negative.noise, other.negative.noise)


@pytest.mark.parametrize(
    ("kind", "parts"), [("personalization", 2), ("protection", 3), ("anchor", 1), ("class_pictures", 1)]
)
def test_the_shares_of_all_processes_are_the_whole_batch(kind, parts):
    def tensors(batch) -> list[torch.Tensor]:
        return [t for part in vars(batch).values() for t in (tensors(part) if hasattr(part, "latents") else [part])]

    whole, *shares = (
        tensors(getattr(BatchSampler(toy_data(), torch.Generator().manual_seed(7), 6, index, count), kind)())
        for index, count in [(0, 1), (0, 3), (1, 3), (2, 3)]
    )
    assert len(whole) == 4 * parts
    assert all(map(torch.equal, map(torch.cat, zip(*shares, strict=True)), whole))


def test_safe_partners_that_do_not_match_the_photos_are_refused():
    data = toy_data()
    with pytest.raises(UserError, match="2 safe partners for 3 photos"):
        SubjectData(
            data.instance, data.prior, data.instance_prompt, data.class_prompt, data.draw_timesteps, data.prior[:2]
        )


def test_the_anchor_holds_further_prompts_too_and_each_as_often():
    data = replace(toy_data(), anchor_prompts=torch.stack([torch.full((4, 3), value) for value in (7.0, 8.0)]))
    plain, named = data.anchor(torch.Generator().manual_seed(0), 600).prompt_embeds.chunk(2)
    assert torch.equal(plain, data.class_prompt.expand_as(plain))
    every = [data.instance_prompt[0], *data.anchor_prompts]
    counts = [sum(torch.equal(prompt, one) for prompt in named) for one in every]
    assert sum(counts) == 600 and min(counts) > 150


def test_captions_go_with_their_photos_and_draw_the_same_random_numbers():
    plain = toy_data()
    prompts = torch.stack([torch.full((4, 3), float(value)) for value in range(len(plain.instance))])
    photos = Posterior(plain.instance.mean, plain.instance.std * 0)
    one, other = (replace(plain, instance=photos, instance_prompt=p) for p in (plain.instance_prompt, prompts))
    for draw in (SubjectData.personalization, SubjectData.protection):
        batches = [draw(data, torch.Generator().manual_seed(3), 5) for data in (one, other)]
        expected, found = ((b.instance if draw is SubjectData.personalization else b.negative) for b in batches)
        for field in ("latents", "noise", "timesteps"):
            assert torch.equal(getattr(expected, field), getattr(found, field))
        numbers = [int((photos.mean - latents).flatten(1).abs().amax(1).argmin()) for latents in found.latents]
        assert set(numbers) == {0, 1, 2} and torch.equal(found.prompt_embeds, prompts[numbers])
        assert torch.equal(batches[1].prior.prompt_embeds, batches[0].prior.prompt_embeds)
    held, named = other.anchor(torch.Generator().manual_seed(0), 600).prompt_embeds.chunk(2)
    assert torch.equal(held, plain.class_prompt.expand_as(held))
    assert named[:, 0, 0].long().bincount(minlength=3).min() > 150
    with pytest.raises(ValueError, match="2 prompts for 3 photos"):
        replace(plain, instance_prompt=prompts[:2])
