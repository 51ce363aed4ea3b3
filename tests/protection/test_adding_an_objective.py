"""docs/adding-an-objective.md, done exactly as it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_l2p import fresh, toy_data, toy_protector
from tiny_run import arguments, equal, weights, write_people

from apdm.cli import main
from apdm.config.registry import forget_classes
from apdm.core.errors import UserError
from apdm.distributed.loss_scale import LossScale
from apdm.protection import objectives
from apdm.protection.objectives import make_objective
from apdm.protection.subject_data import BatchSampler

PAGE = Path(__file__).parents[2] / "docs" / "adding-an-objective.md"


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """The page's three examples, as files with the names that they say."""
    written = []
    for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        (name,) = re.findall(r'\A"""(\w+\.py):', code)
        written.append(tmp_path / name)
        written[-1].write_text(code)
    return written


def batches(seed: int = 5) -> BatchSampler:
    return BatchSampler(toy_data(), torch.Generator().manual_seed(seed), 2)


def test_the_commands_of_the_page_name_objectives_that_can_be_made(files: list[Path]):
    specs = re.findall(r"--objective (\S+)", PAGE.read_text())
    assert len(specs) == 3
    made: list[Any] = [make_objective(str(files[0].parent / spec)) for spec in specs]
    assert [objective.margin for objective in made] == [0.5, 1.0, 0.5]


def test_the_first_example_gives_the_gradient_of_its_loss_and_of_preservation(float64, files: list[Path]):
    method = toy_protector(objective=f"{files[0]}:Hinge", preservation_weight=0.3)
    attack = method.begin(fresh(batches()))
    figures = method.oppose(attack)
    model, batch = method.engine.model, batches().protection()
    error, reference = (method.error(network, batch.negative) for network in (model, method.reference))
    gained = (error - reference.detach()).flatten(1).mean(1)
    loss = torch.relu(0.5 - gained).mean() + 0.3 * method.error(model, batch.prior).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    torch.testing.assert_close(list(method.master.gradient), list(expected), rtol=1e-9, atol=1e-12)
    assert figures["hinge_loss"].item() == pytest.approx(torch.relu(0.5 - gained).mean().item())


def test_the_example_with_a_schedule_goes_from_one_loss_to_the_other(float64, files: list[Path]):
    def opposed(objective: str, done: int) -> list[torch.Tensor]:
        method = toy_protector(objective=objective, outer_steps=4, done=done)
        figures = method.oppose(method.begin(fresh(batches())))
        assert figures
        return [part.clone() for part in method.master.gradient]

    schedule = f"{files[1]}:FromDpoToHinge"
    dpo, hinge = opposed("dpo:beta=10,reduction=element", 0), opposed(f"{files[0]}:Hinge", 0)
    for done in (0, 1, 4):
        expected = [(1 - done / 4) * d + done / 4 * h for d, h in zip(dpo, hinge, strict=True)]
        torch.testing.assert_close(opposed(schedule, done), expected, rtol=1e-9, atol=1e-12)


def test_an_outer_step_is_counted(float64):
    method = toy_protector(outer_steps=3)
    for done in range(3):
        attack = method.begin(fresh(batches()))
        assert (attack.outer_step, attack.outer_steps) == (done, 3)
        method.outer_step(fresh(batches()))


def test_the_second_example_sees_a_second_draw_and_how_far_the_attacker_is(float64, files: list[Path]):
    method = toy_protector(objective=f"{files[2]}:AgainstTheNextStep:full_after=8")
    attack = method.begin(fresh(batches()))
    for _ in range(2):
        method.personalize(attack, attack.batches.personalization())
    method.oppose(attack)
    again = batches()
    first, second, third = (again.personalization() for _ in range(3))
    loss = method.error(method.engine.model, third.instance).mean()
    expected = [-g / 4 for g in torch.autograd.grad(loss, list(method.engine.model.parameters()))]
    torch.testing.assert_close(list(method.master.gradient), expected, rtol=1e-9, atol=1e-12)
    assert not torch.equal(second.instance.noise, third.instance.noise)
    assert not torch.equal(first.instance.noise, third.instance.noise)


def test_in_the_package_an_objective_is_known_by_its_name(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(files[0].parent)])
    forget_classes()
    try:
        made: Any = make_objective("hinge:margin=2")
        assert made.margin == 2.0
    finally:
        monkeypatch.undo()
        forget_classes()
    assert set(objectives.OBJECTIVES.classes()) == {"ascent", "dpo"}


def test_a_job_hardens_with_the_example(files: list[Path], tiny_pipeline: Path, tmp_path: Path):
    people = write_people(tmp_path / "people")
    for name, spec in (("ours", f"{files[0]}:Hinge"), ("dpo", "dpo")):
        assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / name, objective=spec)]) == 0
    assert not equal(weights(tmp_path / "ours"), weights(tmp_path / "dpo"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dop", 'there is no objective "dop"; did you mean "dpo"?'),
        ("dpo:betta=1", 'dpo has no option "betta"; did you mean "beta"?'),
        ("dpo:beta=0", "the objective dpo needs a beta above 0"),
        ("dpo:reduction=mean", 'reduction is "mean"; it needs one of element, sample'),
        ("ascent:limit=-1", "limit is -1; it cannot be below 0"),
        ("missing.py:Mine", "missing.py does not exist"),
    ],
)
def test_what_is_no_objective_is_one_clear_line_before_any_work(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: str, message: str
):
    with pytest.raises(UserError, match=re.escape(message)):
        make_objective(spec)
    people = write_people(tmp_path / "people")
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "out", objective=spec)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_run_whose_objective_keeps_a_state_is_not_resumed(tiny_pipeline: Path, tmp_path: Path, capsys):
    people, output = write_people(tmp_path / "people"), tmp_path / "run"
    changes = {
        "objective": "benchmarks/objectives/projected.py:Projected",
        "preservation.anchor_weight": 1.0,
        "max_train_steps": 2,
    }
    assert main(["harden", *arguments(tiny_pipeline, people, output, **changes)]) == 0
    changes |= {"max_train_steps": 3, "resume_from_checkpoint": "latest"}
    assert main(["harden", *arguments(tiny_pipeline, people, output, **changes)]) == 2
    assert "the objective projected keeps a state that checkpoints do not hold" in capsys.readouterr().err


def test_a_gradient_that_a_loss_scale_multiplies_is_not_handed_out():
    method = toy_protector()
    method.engine.defence_scale = LossScale(enabled=True)
    attack = method.begin(fresh(batches()))
    with pytest.raises(UserError, match="the objective dpo takes gradients out of the engine.*use bf16 or no"):
        attack.gradient(method.objective.protection_loss(attack), batches().protection())


def test_a_schedule_goes_on_where_a_resumed_run_goes_on(files: list[Path], tiny_pipeline: Path, tmp_path: Path):
    people = write_people(tmp_path / "people")
    changes = {"objective": f"{files[1]}:FromDpoToHinge", "max_train_steps": 3, "checkpointing_steps": 1}
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "whole", **changes)]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoint-000003")
    changes["resume_from_checkpoint"] = "latest"
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "resumed", **changes)]) == 0
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "resumed"))
