"""Who the simulated attackers are, and what they vary."""

from collections import Counter

import pytest
import torch
from plain_l2p import toy_data

from apdm.protection.attackers import SimulatedAttackers

PLAIN = {"learning_rates": [1e-3], "steps": [7], "batch_size": 2}


def people(count: int, variants: int = 1, start: int = 0) -> dict:
    return {f"s{start + n:02d}": [toy_data() for _ in range(variants)] for n in range(count)}


def source(people, **options) -> SimulatedAttackers:
    return SimulatedAttackers(people, torch.Generator().manual_seed(3), **{**PLAIN, **options})


def test_without_variety_people_take_turns_and_nothing_is_drawn():
    attackers = source(people(3))
    before = attackers.generator.get_state()
    plans = [attackers.next() for _ in range(6)]
    assert [plan.person for plan in plans] == [0, 1, 2, 0, 1, 2]
    assert {(p.variant, p.learning_rate, p.steps, p.prior_loss_weight) for p in plans} == {(0, 1e-3, 7, 1.0)}
    assert torch.equal(attackers.generator.get_state(), before)


def test_everything_that_may_vary_does_and_equally_often():
    variety = {"learning_rates": [1e-4, 3e-4], "steps": [5, 10, 20], "prior_loss_weights": [0.0, 1.0]}
    attackers = source(people(2, variants=4), **variety)
    plans = [attackers.next() for _ in range(2400)]
    for name, count in (("person", 2), ("variant", 4), ("learning_rate", 2), ("steps", 3), ("prior_loss_weight", 2)):
        seen = Counter(getattr(plan, name) for plan in plans)
        assert len(seen) == count
        assert min(seen.values()) > 0.8 * len(plans) / count


def test_a_plan_has_the_batches_of_its_person_and_variant():
    everybody = people(2, variants=3)
    attackers = source(everybody)
    for _ in range(20):
        plan = attackers.next()
        assert attackers.batches(plan).data is everybody[f"s{plan.person:02d}"][plan.variant]


def test_people_take_turns_in_the_order_of_their_ids_whatever_order_they_come_in():
    (first, second), (third, fourth) = ([toy_data(), toy_data()] for _ in range(2))
    attackers = source({"s2": [second], "s1": [first]}, earlier={"a2": [fourth], "a1": [third]}, earlier_every=2)
    assert [attackers.batches(attackers.next()).data for _ in range(4)] == [first, third, second, fourth]


@pytest.mark.parametrize("every", [2, 4])
def test_every_so_many_attackers_one_is_of_those_protected_earlier_and_all_get_their_turn(every):
    attackers = source(people(3), earlier=people(2, start=10), earlier_every=every)
    turns = [attackers.next().person for _ in range(24 * every)]
    assert [i for i, person in enumerate(turns) if person >= 3] == list(range(every - 1, 24 * every, every))
    counts = Counter(turns)
    assert counts[3] == counts[4] == 12
    assert counts[0] == counts[1] == counts[2] == 8 * (every - 1)


def test_the_same_turn_and_generator_give_the_same_plan():
    variety = {"learning_rates": [1e-4, 2e-4, 3e-4], "steps": [5, 10, 20]}
    one, other = (source(people(2, variants=5), **variety) for _ in range(2))
    for _ in range(9):
        one.next()
    other.turn = one.turn
    other.generator.set_state(one.generator.get_state())
    assert [one.next() for _ in range(9)] == [other.next() for _ in range(9)]
