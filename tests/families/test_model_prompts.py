"""Prompts that a model cannot tell apart, or does not read to their end, in every family."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_pipelines import BUILDERS

from apdm.cli import main
from apdm.config import HardenConfig, make_config
from apdm.core.errors import UserError
from apdm.families.prompts import check_distinct, check_prompts
from apdm.jobs.hardening.inputs import check_harden_prompts

KINDS = list(BUILDERS)
CLASS = "a photo of person"


def check(family: Any, prompt: str, class_prompt: str = CLASS, **drawn: list[str]) -> None:
    check_prompts(family, learned={"instance_prompt": [prompt]}, class_prompt=class_prompt, drawn=drawn)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_with_a_rare_word_passes(kind: str, families: Callable[[str], Any]) -> None:
    check(families(kind), "a photo of sks person", drawn=["a portrait of sks person", ""])
    check(families(kind), "a photo of person person")  # a word more is a word of its own


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "class_prompt"),
    [
        (CLASS, CLASS),
        (f" {CLASS}  ", CLASS),
        ("photo of person", CLASS),
        (f"{CLASS}, ", CLASS),
        ("a photo of a person", "a photo of person"),  # an article names nobody
        ("", CLASS),
        (CLASS, "a photo of sks person"),  # the two in the wrong order
    ],
)
def test_a_prompt_that_says_no_more_than_the_class_prompt_is_refused(
    kind: str, prompt: str, class_prompt: str, families: Callable[[str], Any]
) -> None:
    with pytest.raises(UserError, match=f'instance_prompt "{prompt}" says nothing .* class_prompt "{class_prompt}"'):
        check(families(kind), prompt, class_prompt)


def test_capital_letters_are_no_difference_to_clip(families: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="says nothing to the model"):
        check(families("sd15"), "A Photo of PERSON")


LONG = "a photo of " + "the " * 30
# The tiny models' tokenizers of CLIP read 16 tokens, two of which mark beginning and end. SD3 gives 256 tokens to T5,
# FLUX 512.
LIMITS = [("sd15", 16), ("sd21", 16), ("sdxl", 16), ("sd3", 256), ("flux", 512)]


@pytest.mark.parametrize(("kind", "limit"), LIMITS)
def test_what_every_tokenizer_cuts_is_refused_and_named(kind: str, limit: int, families: Callable[[str], Any]) -> None:
    words = "a photo of" + " the" * (limit - 5)
    check(families(kind), "a photo of sks person", drawn=[words])
    with pytest.raises(UserError, match=rf'the model reads {limit}: "the the the sks person" would be cut off'):
        check(families(kind), words + " the the the sks person")
    with pytest.raises(UserError, match="class_prompt .* would be cut off"):
        check(families(kind), "a photo of sks person", words + " the the the person")
    with pytest.raises(UserError, match="audit.prompts .* would be cut off"):
        check(families(kind), "a photo of sks person", **{"audit.prompts": [words + " the the the person"]})


@pytest.mark.parametrize(("kind", "behind"), [("flux2", 11), ("zimage", 5)])
def test_a_template_counts_as_tokens_and_may_be_cut_as_long_as_all_words_are_read(
    kind: str, behind: int, families: Callable[[str], Any]
) -> None:
    """Both read 512 tokens, 3 of them before the prompt. Those behind it go first."""
    words, count = "a photo of" + " the" * (512 - 3 - 3), 512 + 5 + behind
    check(families(kind), "a photo of sks person", drawn=[words])
    with pytest.raises(
        UserError, match=rf'has {count} tokens, and the model reads 512: "the the the sks person" would'
    ):
        check(families(kind), words + " the the the sks person")
    check(families(kind), "a photo of user person")  # a word of the template may be the person's


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_prompt_that_only_clip_cuts_passes(kind: str, families: Callable[[str], Any]) -> None:
    check(families(kind), LONG + "sks person")


def test_a_rare_word_that_is_cut_off_says_nothing(families: Callable[[str], Any]) -> None:
    with pytest.raises(UserError, match="says nothing to the model"):
        check_distinct(families("sd15"), "instance_prompt", LONG + "sks person", LONG + "person")
    check_distinct(families("sd3"), "instance_prompt", LONG + "sks person", LONG + "person")  # T5 reads it


@pytest.mark.parametrize(
    ("command", "changes", "said"),
    [
        ("harden", {"instance_prompt": CLASS, "class_prompt": CLASS}, "instance_prompt"),
        ("harden", {"variety.instance_prompts": "a photo of the", "class_prompt": "the photo of a"}, "variety."),
        ("harden", {"preservation.anchor_prompts": LONG}, "preservation.anchor_prompts"),
        ("harden", {"validation.steps": 1, "validation.prompts": LONG}, "validation.prompts"),
        ("perturb", {"class_prompt": LONG}, "class_prompt"),
        ("perturb", {"instance_prompt": LONG + "sks person"}, "would be cut off"),
    ],
)
def test_a_job_says_so_before_it_writes_anything(
    command: str,
    changes: dict[str, object],
    said: str,
    tiny_pipeline: Path,
    noise_people: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {
        "pretrained_model_name_or_path": tiny_pipeline,
        "instance_data_dir": noise_people,
        "output_dir": tmp_path / "run",
        "resolution": 16,
        "image_layer.zero_shot.enabled": False,
        **changes,
    }
    assert main([command, *(text for key, value in options.items() for text in (f"--{key}", str(value)))]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("apdm: error")]
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("option", "value"), [("audit.prompts", [LONG + "sks person"]), ("audit.edit_prompt", LONG)])
def test_prompts_of_the_audit_are_read_before_the_hardening(
    option: str, value: str | list[str], families: Callable[[str], Any]
) -> None:
    given = {"pretrained_model_name_or_path": "m", "instance_data_dir": "i", "output_dir": "o", option: value}
    with pytest.raises(UserError, match=f"{option} .* would be cut off"):
        check_harden_prompts(make_config(HardenConfig, {**given, "audit.enabled": True}), families("sd15"))
