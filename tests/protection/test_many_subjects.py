"""Many people, one checkpoint; and more people later, from a hardened checkpoint."""

from pathlib import Path

import pytest
import torch
from tiny_run import POOL, VARIETY, arguments, equal, last_line, weights

from apdm.cli import main
from apdm.families import load_family
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("people")
    write_subjects(folder, protected=3, others=2, consenting=2, strangers=2)
    return folder


@pytest.fixture(scope="module")
def first(tiny_pipeline: Path, people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model hardened against three people."""
    output = tmp_path_factory.mktemp("runs") / "first"
    assert main(["harden", *arguments(tiny_pipeline, people, output, **VARIETY)]) == 0
    return output


def later(original: Path, first: Path, people: Path, output: Path, **changes: object) -> list[str]:
    """The command line that adds the folder `other` to what `first` protects."""
    options = {
        "reference_model_name_or_path": original,
        "rehearsal_data_dir": people / "protected",
        "instance_data_dir": people / "other",
        **changes,
    }
    return ["harden", *arguments(first / "model", people, output, **options)]


@pytest.mark.parametrize("attackers", [{}, POOL], ids=["algorithm-1", "pool"])
def test_people_are_added_to_a_hardened_model_and_a_killed_run_resumes(
    tiny_pipeline: Path, people: Path, first: Path, tmp_path: Path, attackers: dict[str, object]
) -> None:
    def run(output: Path, **changes: object) -> int:
        return main(later(tiny_pipeline, first, people, output, rehearsal_every=2, **attackers, **changes))

    assert run(tmp_path / "straight") == 0
    assert run(tmp_path / "resumed", max_train_steps=3) == 0
    assert run(tmp_path / "resumed", resume_from_checkpoint="latest") == 0
    added = weights(tmp_path / "straight")
    assert equal(added, weights(tmp_path / "resumed"))
    assert not equal(added, weights(first))
    # Four steps of 1e-3: it went on from the hardened weights, which are themselves as far from the original.
    largest = max((added[key].float() - w.float()).abs().max().item() for key, w in weights(first).items())
    assert largest < 6e-3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"max_train_steps": 2}, "1 of 3 people will meet no simulated attacker; raise max_train_steps"),
        ({"max_train_steps": 3}, None),
        ({**POOL, "max_train_steps": 5}, "or pool.size, or lower pool.depth"),
        ({**POOL, "max_train_steps": 9}, None),
    ],
)
def test_people_whom_no_attacker_will_go_after_are_told_of(
    tiny_pipeline: Path,
    people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    line: str | None,
) -> None:
    assert main(["harden", *arguments(tiny_pipeline, people, tmp_path / "run", **changes)]) == 0
    said = capsys.readouterr().err
    assert line in said if line else "no simulated attacker" not in said


def test_those_protected_before_take_part(tiny_pipeline: Path, people: Path, first: Path, tmp_path: Path) -> None:
    assert main(later(tiny_pipeline, first, people, tmp_path / "with", rehearsal_every=2)) == 0
    alone = arguments(
        first / "model",
        people,
        tmp_path / "without",
        reference_model_name_or_path=tiny_pipeline,
        instance_data_dir=people / "other",
    )
    assert main(["harden", *alone]) == 0
    assert not equal(weights(tmp_path / "with"), weights(tmp_path / "without"))


def test_phi_is_the_original_model(tiny_pipeline: Path, people: Path, first: Path, tmp_path: Path) -> None:
    """With everything but the anchor off, what theta predicts moves back to what phi predicts."""
    anchor = {
        "l2p.learning_rate": 1e-12,
        "preservation.anchor_weight": 1e6,
        "learning_rate": 3e-4,
        "max_train_steps": 40,
        "train_batch_size": 8,
    }
    assert main(later(tiny_pipeline, first, people, tmp_path / "back", **anchor)) == 0
    original, hardened, back = (
        load_family(folder) for folder in (tiny_pipeline, first / "model", tmp_path / "back/model")
    )
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(8, 4, 8, 8, generator=generator)
    steps = torch.arange(50, 1000, 120)
    prompts = original.encode_prompts(["a photo of sks person"]).expand(8, -1, -1)
    with torch.no_grad():
        wanted, before, after = (
            family.predict(family.denoiser, latents, steps, prompts) for family in (original, hardened, back)
        )
    assert (after - wanted).norm() < 0.5 * (before - wanted).norm()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reference_model_name_or_path": "nowhere"}, "nowhere"),
        ({"rehearsal_data_dir": "nowhere"}, "nowhere"),
        ({"variety.photos": "jepg"}, 'did you mean "jpeg"?'),
        ({"variety.inner_steps": 0}, "variety.inner_steps"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_before_any_output(
    tiny_pipeline: Path,
    people: Path,
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    words: str,
) -> None:
    assert main(later(tiny_pipeline, first, people, tmp_path / "run", **changes)) == 2
    assert words in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_rehearsal_needs_the_original(
    tiny_pipeline: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = arguments(tiny_pipeline, people, tmp_path / "run", rehearsal_data_dir=people / "other")
    assert main(["harden", *run]) == 2
    assert "reference_model_name_or_path" in last_line(capsys)


def test_a_person_is_new_or_of_before_but_not_both(
    tiny_pipeline: Path, people: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = later(tiny_pipeline, first, people, tmp_path / "run", instance_data_dir=people / "protected")
    assert main(both) == 2
    assert f"{people / 'protected'} is given twice, for the protected people and for people" in last_line(capsys)


def test_the_original_must_have_the_same_denoiser(
    tiny_pipeline: Path, people: Path, first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(later(PIPELINE, first, people, tmp_path / "run")) == 2
    assert "is not the original of" in last_line(capsys)
