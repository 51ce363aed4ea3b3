"""How much of the error an attack covers: the figures on predictions whose answers are known."""

import pytest
import torch

from benchmarks.learning import compare, summary


def test_what_an_attack_covers_is_its_share_of_the_way_to_the_noise() -> None:
    noise = torch.tensor([[3.0, 4.0], [6.0, 8.0]]).view(2, 1, 1, 2)
    before = {"instance": torch.zeros_like(noise), "empty": torch.ones_like(noise)}
    aside = torch.tensor([[-4.0, 3.0], [-8.0, 6.0]]).view(2, 1, 1, 2)  # as long as the way, and across it
    after = {
        100: {"instance": 0.25 * noise, "empty": 1 + 0.5 * noise},
        300: {"instance": noise + aside, "empty": 1 - noise - aside},
    }
    found = compare(noise, before, after)
    assert found["start"] == pytest.approx(7.5)
    assert found["covered"] == pytest.approx({"100": 0.25, "300": 1.0})
    assert found["left"] == pytest.approx({"100": 5.625, "300": 7.5})
    assert found["prompts"] == pytest.approx({"100": 1.0, "300": -1.0})
    rows = [{"model": "base", "person": 0, "photos": kind, "timestep": 200, **found} for kind in ("trained", "other")]
    assert list(summary(rows))[2] == "| 0 | base | trained | 7.50 | 0.25 / 1.00 | 5.62 / 7.50 | -1.00 |"
