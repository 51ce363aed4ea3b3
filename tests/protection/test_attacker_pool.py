"""The pool of attackers that persist over outer steps."""

from dataclasses import replace

import pytest
import torch
from plain_l2p import ADAM, Recorded, fresh, toy_data, toy_protector

from apdm.protection.attacker_pool import AttackerPool
from apdm.protection.attackers import AttackerPlan, SimulatedAttackers
from apdm.protection.subject_data import BatchSampler


def draws(seed: int) -> BatchSampler:
    return BatchSampler(toy_data(), torch.Generator().manual_seed(seed), 2)


class Given:
    """A source of attackers who each draw from the next of `sources`, `depth` steps long."""

    def __init__(self, sources, depth: int) -> None:
        self.sources, self.depth, self.turn = list(sources), depth, 0

    def next(self) -> AttackerPlan:
        self.turn += 1
        return AttackerPlan((self.turn - 1) % len(self.sources), 0, ADAM["learning_rate"], self.depth, 1.0)

    def batches(self, plan: AttackerPlan):
        return self.sources[plan.person]


class Run:
    """Learning to Protect with a pool."""

    def __init__(self, method, hostile, benign=(), *, depth=100, stride=2, **options) -> None:
        self.method = method
        self.pool = AttackerPool.start(
            Given(hostile, depth),
            Given(benign, depth) if benign else None,
            **{"size": len(hostile), "benign_size": len(benign), "stride": stride, **options},
        )

    def outer_step(self):
        return self.method.outer_step(self.pool.next())

    @property
    def attackers(self):
        return self.pool.attackers


def walk(method, batches, **options):
    """An attack alone, over these batches; theta' - theta at its end."""
    attack = method.begin(fresh(None, **options))
    for batch in batches:
        method.personalize(attack, batch)
    working, theta = method.engine.working.tensors, method.master.theta
    return attack, [(w - t).detach() for w, t in zip(working, theta, strict=True)]


def freeze_theta(method) -> None:
    for group in method.master.optimizer.param_groups:
        group["lr"] = 0.0


def test_one_attacker_that_lives_one_step_is_algorithm_1_with_one_inner_step(float64):
    paper, ours = toy_protector(), toy_protector()
    source, pool = draws(5), Run(ours, [draws(5)], depth=1, stride=1)
    for _ in range(4):
        paper.outer_step(fresh(source, inner_steps=1))
        pool.outer_step()
    torch.testing.assert_close(list(ours.master.theta), list(paper.master.theta), rtol=1e-12, atol=1e-14)


def test_while_theta_stands_still_an_attacker_walks_the_path_of_one_uninterrupted_attack(float64):
    method = toy_protector()
    freeze_theta(method)
    source = Recorded(draws(7))
    pool = Run(method, [source], stride=2)
    for _ in range(3):
        pool.outer_step()
    _, walked = walk(toy_protector(), source.drawn["personalization"])
    torch.testing.assert_close(pool.attackers[0].offset, walked, rtol=1e-9, atol=1e-12)


def test_the_protective_gradient_is_taken_where_the_attacker_stands_after_its_turn(float64):
    method = toy_protector()
    freeze_theta(method)
    source = Recorded(draws(7))
    Run(method, [source], stride=3).outer_step()
    alone = toy_protector()
    attack, _ = walk(alone, source.drawn["personalization"])
    attack.differentiate(alone.objective.protection_loss(attack), source.drawn["protection"][0])
    torch.testing.assert_close(list(method.master.gradient), list(alone.master.gradient), rtol=1e-9, atol=1e-12)


def test_a_benign_attacker_adds_the_weighted_gradient_of_its_own_loss(float64):
    method = toy_protector(benign_weight=2.5)
    freeze_theta(method)
    consenting = Recorded(draws(9))
    pool = Run(method, [draws(7)], [consenting], stride=1)
    pool.outer_step()
    pool.outer_step()
    alone = toy_protector()
    first, second = consenting.drawn["personalization"]
    walk(alone, [first])
    loss, _ = alone.personalization_loss(alone.engine.model, second, prior_loss_weight=1.0)
    wanted = [2.5 * g for g in torch.autograd.grad(loss, alone.engine.working.parameters)]
    torch.testing.assert_close(list(method.master.gradient), wanted, rtol=1e-9, atol=1e-12)
    assert not consenting.drawn["protection"]


def test_at_its_depth_an_attacker_starts_anew_and_ages_are_staggered(float64):
    method = toy_protector()
    pool = Run(method, [draws(i) for i in range(3)], [draws(3)], depth=8, stride=2)
    assert sorted(attacker.age for attacker in pool.attackers) == [0, 2, 4, 6]
    assert sum(attacker.benign for attacker in pool.attackers) == 1
    oldest = max(pool.attackers, key=lambda attacker: attacker.age)
    for _ in range(len(pool.attackers)):
        pool.outer_step()
    assert oldest.age == 0
    assert not oldest.steps
    assert all(any(part.any() for part in a.offset) for a in pool.attackers if a is not oldest)


@pytest.mark.parametrize(
    ("size", "benign_size", "order", "ages"),
    [(3, 2, "hbHBh", [0, 2, 4, 6, 8]), (5, 1, "hHhbHh", [0, 1, 3, 5, 6, 8]), (1, 3, "bhBb", [0, 2, 5, 7])],
)
def test_benign_attackers_are_spread_among_the_hostile_ones_and_ages_are_whole_numbers(size, benign_size, order, ages):
    """h hostile, b benign; a capital letter trains a LoRA."""
    pool = AttackerPool.start(
        Given([draws(0)], 10), Given([draws(1)], 10), size=size, benign_size=benign_size, stride=2, lora_share=0.5
    )
    letters = ["b" if a.benign else "h" for a in pool.attackers]
    found = [c.upper() if a.plan.low_rank else c for c, a in zip(letters, pool.attackers, strict=True)]
    assert "".join(found) == order
    assert [a.age for a in pool.attackers] == ages and all(isinstance(a.age, int) for a in pool.attackers)


@pytest.mark.parametrize(
    ("size", "depth", "stride", "steps"), [(2, 8, 2, 17), (2, 7, 3, 40), (3, 5, 4, 2), (3, 12, 3, 23), (1, 2, 5, 6)]
)
def test_who_will_be_met_is_known_beforehand(float64, size, depth, stride, steps):
    method = toy_protector()
    hostile, benign = Given([draws(i) for i in range(40)], depth), Given([draws(90)], depth)
    pool = AttackerPool.start(hostile, benign, size=size, benign_size=1, stride=stride)
    foreseen, seen = pool.count_attackers(steps), set()
    for _ in range(steps):
        attacker = pool.next()
        if not attacker.benign:
            seen.add(attacker.plan.person)
        method.outer_step(attacker)
    assert len(seen) == foreseen


@pytest.mark.parametrize(("count", "people"), [(1, 1), (3, 3), (4, 4), (5, 4), (8, 5)])
def test_attackers_take_turns_over_the_people_those_of_before_included(count, people):
    source = SimulatedAttackers(
        {f"s{i}": [toy_data()] for i in range(3)},
        torch.Generator(),
        learning_rates=[1.0],
        steps=[1],
        batch_size=1,
        earlier={f"e{i}": [toy_data()] for i in range(2)},
    )
    assert source.count_people(count) == people
    assert len({source.next().person for _ in range(count)}) == people


@pytest.mark.parametrize("hostile", [1, 3])
def test_every_attacker_gets_its_turn(float64, hostile):
    sources = [Recorded(draws(i)) for i in range(hostile)]
    pool = Run(toy_protector(), sources, stride=2)
    for _ in range(2 * hostile):
        pool.outer_step()
    assert [len(source.drawn["protection"]) for source in sources] == [2] * hostile


def test_with_more_people_than_attackers_everybody_is_attacked_in_time(float64):
    sources = [Recorded(draws(i)) for i in range(5)]
    pool = Run(toy_protector(), sources, depth=4, stride=2, size=2)
    for _ in range(12):
        pool.outer_step()
    assert all(source.drawn["protection"] for source in sources)


def test_each_attacker_goes_at_its_own_rate(float64):
    method = toy_protector()
    freeze_theta(method)
    pool = Run(method, [draws(0), draws(0)], stride=1)
    slow, fast = pool.attackers
    fast.plan = replace(fast.plan, learning_rate=3 * slow.plan.learning_rate)
    for _ in range(2):
        pool.outer_step()
    # One AdamW step from fresh moments is as long as its rate, whatever the gradient.
    lengths = [torch.cat([part.abs().flatten() for part in a.offset]).median().item() for a in (slow, fast)]
    assert lengths[1] == pytest.approx(3 * lengths[0], rel=0.05)


def test_each_attacker_keeps_or_leaves_out_its_own_prior(float64):
    method = toy_protector()
    freeze_theta(method)
    sources = [Recorded(draws(0)) for _ in range(2)]
    pool = Run(method, sources, stride=2)
    without, with_prior = pool.attackers
    without.plan = replace(without.plan, prior_loss_weight=0.0)
    for _ in range(4):
        pool.outer_step()
    for attacker, weight, source in ((without, 0.0, sources[0]), (with_prior, 1.0, sources[1])):
        _, walked = walk(toy_protector(), source.drawn["personalization"], prior_loss_weight=weight)
        torch.testing.assert_close(attacker.offset, walked, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(without.offset[0], with_prior.offset[0], rtol=1e-3)


def test_a_gradient_that_is_not_finite_leaves_theta_and_its_moments_alone(float64):
    method = toy_protector()
    method.outer_step(fresh(draws(5), inner_steps=1))
    theta = [t.detach().clone() for t in method.master.theta]
    moments = [value.clone() for state in method.master.optimizer.state.values() for value in state.values()]
    method.master.gradient[0].fill_(float("nan"))
    assert not method.master.step().isfinite()
    assert all(map(torch.equal, method.master.theta, theta))
    after = [value for state in method.master.optimizer.state.values() for value in state.values()]
    assert all(map(torch.equal, after, moments))
