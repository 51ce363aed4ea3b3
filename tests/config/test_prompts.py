"""Prompts that follow from the instance prompt, and the check that an audit asks for what was learnt."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from apdm.config import AuditJobConfig, HardenConfig, PerturbConfig, load_config, make_config
from apdm.config.prompts import without_identifier
from apdm.core.errors import UserError
from apdm.jobs.common.prepare import warn_about_prompts

REQUIRED = ["--pretrained_model_name_or_path=m", "--instance_data_dir=i", "--output_dir=o"]
AUDIT = ["--base=b", "--hardened=h", "--subjects=s", "--output_dir=o"]


def test_without_prompts_the_papers_are_used():
    config = load_config(HardenConfig, REQUIRED)
    assert (config.instance_prompt, config.class_prompt) == ("a photo of sks person", "a photo of person")
    assert config.audit.prompts == ["a photo of sks person", "a portrait of sks person"]
    assert config.validation.prompts == ["a photo of sks person", "a photo of person"]
    assert load_config(AuditJobConfig, AUDIT).prompts == config.audit.prompts


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompt"),
    [
        ("a photo of zwx person", "a photo of person"),
        ("a photo of sks dog", "a photo of dog"),
        ("a photo of ohwx man", "a photo of man"),
        ("a photo of a ohwx woman", "a photo of a woman"),
        ("portrait of the hta king", "portrait of the king"),
        ("a photo of sks man, best quality", "a photo of man, best quality"),
        ("a photo of zwx", "a photo of person"),
        ("olis man", "a photo of person"),  # which of the two is the rare word?
        ("a photo of a man", "a photo of person"),
    ],
)
def test_the_other_prompts_follow_from_the_instance_prompt(instance_prompt: str, class_prompt: str):
    words = ["--instance_prompt", instance_prompt]
    config = load_config(HardenConfig, [*REQUIRED, *words, "--audit.enabled", "true"])
    audit = load_config(AuditJobConfig, [*AUDIT, *words])
    perturb = load_config(PerturbConfig, [*REQUIRED, *words])
    assert {config.class_prompt, audit.class_prompt, perturb.class_prompt} == {class_prompt}
    assert config.audit.prompts == audit.prompts
    assert config.audit.prompts[0] == instance_prompt
    assert config.audit.prompts[1:] in ([], [instance_prompt.replace("photo", "portrait")])
    assert config.validation.prompts == [instance_prompt, class_prompt]


def test_prompts_that_are_given_are_kept():
    given = {"instance_prompt": "a photo of zwx man", "class_prompt": "a man", "output_dir": "o"}
    given |= {"pretrained_model_name_or_path": "m", "instance_data_dir": "i"}
    config = make_config(
        HardenConfig,
        {**given, "audit": {"enabled": True, "prompts": ["zwx on a horse"]}, "validation": {"prompts": ["a vase"]}},
    )
    assert (config.class_prompt, config.audit.prompts) == ("a man", ["zwx on a horse"])
    assert config.validation.prompts == ["a vase"]


@pytest.mark.parametrize(
    ("instance_prompt", "prompts"),
    [
        ("a photo of zwx person", ["a photo of sks person", "a portrait of sks person"]),
        ("a photo of sks person", ["a photo of a person"]),
        ("a photo of person", ["a photo of sks person"]),  # the instance prompt lacks the word
        ("a photo of zwx man", ["a photo of sks man"]),
        ("a photo of t@t person", ["a photo of sks person"]),
    ],
)
def test_an_audit_that_would_ask_for_somebody_else_is_refused(instance_prompt: str, prompts: list[str]):
    words = ["--instance_prompt", instance_prompt]
    with pytest.raises(UserError, match=r'^prompts ask for ".*teaches ".*": the audit would draw somebody else'):
        load_config(AuditJobConfig, [*AUDIT, *words, "--prompts", *prompts])
    with pytest.raises(UserError, match=r'^audit.prompts ask for "'):
        load_config(HardenConfig, [*REQUIRED, *words, "--audit.enabled", "--audit.prompts", *prompts])
    load_config(HardenConfig, [*REQUIRED, *words, "--audit.prompts", *prompts])  # there is no audit


@pytest.mark.parametrize("prompt", ["Sks.", "a photo of SKS, outdoors", "person sks"])
def test_case_and_punctuation_do_not_matter(prompt: str):
    assert load_config(AuditJobConfig, [*AUDIT, "--prompts", prompt]).prompts == [prompt]


@pytest.mark.parametrize(
    ("prompts", "warning"),
    [
        ({"class_prompt": "a photo of man", "audit": ["a photo of zwx man"]}, None),
        ({"class_prompt": "a photo of a man"}, None),
        ({"class_prompt": "a photo of man", "validation": ["a photo of zwx man", "a vase"]}, None),
        (
            {"class_prompt": "a photo of man", "audit": ["zwx", "a man"]},
            'prompts without "zwx" ask for somebody else: "a m',
        ),
        ({"class_prompt": "a photo of man", "validation": ["a vase"]}, "none of validation.prompts"),
        ({"class_prompt": "a photo of person"}, "give class_prompt"),
    ],
)
def test_a_job_warns_about_prompts_that_do_not_fit(prompts, warning, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "apdm"):
        warn_about_prompts("a photo of zwx man", **prompts)
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or warning in caplog.messages[0]


@pytest.mark.parametrize(
    ("prompt", "plain"),
    [
        ("a photo of sks person", "a photo of a person"),  # of the instance prompt it is the class prompt
        ("a portrait of sks person", "a portrait of person"),
        ("sks, a person in a garden", "a person in a garden"),
        ("a photo of a garden", "a photo of a garden"),
    ],
)
def test_an_attack_that_learns_nothing_draws_the_prompts_without_the_rare_word(prompt: str, plain: str):
    assert without_identifier(prompt, "a photo of sks person", "a photo of a person") == plain


def test_prompts_that_follow_from_others_need_not_be_given_again() -> None:
    root = Path(__file__).parents[2]
    words = ["--config", str(root / "configs/portrait.yaml"), "--instance_prompt", "a photo of sks person"]
    config = load_config(HardenConfig, words)
    assert config.audit.prompts == ["a photo of sks person"]
    assert config.validation.prompts == ["a photo of sks person", "a photo of a person", "a photo of a red vase"]
    assert config.preservation.anchor_prompts[1] == "a photo of a person with long hair"
    assert load_config(HardenConfig, words[:2]).audit.prompts == ["a photo of t@t person"]
    place = ["--hardened", "h", "--output_dir", "o", "--subjects", "s", *words[2:]]
    audit = load_config(AuditJobConfig, ["--config", str(root / "configs/audit-portrait.yaml"), *place])
    assert audit.prompts == ["a photo of sks person"]
