"""Attackers who give each photo a caption of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from attacked import SHORT, material
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.parts.batch_prompts import BatchPrompts
from apdm.attacks.parts.captions import assumed, caption_column, drawn_captions
from apdm.attacks.registry import make
from apdm.core.errors import UserError
from apdm.families import Family, load_family

CAPTIONS = ["a photo of sks person with red hair", "sks person on a dog", "a photo of sks person, smiling"]
PROMPTS = {name: SHORT[name] for name in ("instance_prompt", "class_prompt")}
OPTIONS = {**SHORT, "train_batch_size": 4}


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.fixture(scope="module")
def captioned(family: Family) -> Material:
    return replace(material(family), captions={"text": CAPTIONS})


def prompts_of(attack: DreamBooth, family: Family, given: Material) -> tuple[list[Tensor], list[Tensor]]:
    """Some batches of an attack: the numbers of their pictures, and the prompts."""
    attacked = attack.begin(family, given)
    batches = list(islice(attack._batches(family, given.instance, given.class_images), 4))
    encode = BatchPrompts(attack, attacked, given)
    return [batch.numbers for batch in batches], [encode(batch) for batch in batches]


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_each_photo_has_its_caption_and_class_pictures_have_the_class_prompt(family, captioned, train_text_encoder):
    attack = DreamBooth(**OPTIONS, caption_column="text", train_text_encoder=train_text_encoder)
    own, prior = family.encode_prompts(CAPTIONS).float(), family.encode_prompts([attack.class_prompt]).float()
    for numbers, found in zip(*prompts_of(attack, family, captioned), strict=True):
        photos, pictures = numbers.chunk(2)
        torch.testing.assert_close(found, torch.cat([own[photos], prior.expand(len(pictures), -1, -1)]))
        assert found.requires_grad is train_text_encoder


def test_without_captions_the_prompts_and_with_them_all_other_random_numbers_are_as_ever(family, captioned):
    plain, attack = DreamBooth(**OPTIONS), DreamBooth(**OPTIONS, caption_column="text")
    (embeds,) = {tuple(one.flatten().tolist()) for one in prompts_of(plain, family, captioned)[1]}
    both = family.encode_prompts([plain.instance_prompt, plain.class_prompt]).float()
    assert torch.equal(torch.tensor(embeds).view(8, *both.shape[1:]), both.repeat_interleave(4, dim=0))
    for one, other in zip(*(prompts_of(each, family, captioned)[0] for each in (plain, attack)), strict=True):
        assert torch.equal(one, other)
    assert plain.run(family, captioned).losses == plain.run(family, material(family)).losses
    assert plain.run(family, captioned).losses != attack.run(family, captioned).losses


def test_the_same_caption_for_all_photos_is_as_good_as_an_instance_prompt(family, captioned):
    for options in ({}, {"train_text_encoder": True}, {"caption_dropout": 0.5}, {"prior_loss_weight": 0.0}):
        described = DreamBooth(**{**OPTIONS, "instance_prompt": CAPTIONS[0]}, **options).run(family, captioned).losses
        one = replace(captioned, captions={"text": CAPTIONS[:1] * 3})
        losses = DreamBooth(**OPTIONS, caption_column="text", **options).run(family, one).losses
        assert losses == pytest.approx(described, rel=1e-4)


def test_a_dropped_caption_is_empty_and_the_others_stay(family, captioned):
    attack = DreamBooth(**{**OPTIONS, "train_batch_size": 100}, caption_column="text", caption_dropout=0.25)
    (empty,) = family.encode_prompts([""]).float()
    kept = prompts_of(replace(attack, caption_dropout=0.0), family, captioned)[1]
    for whole, found in zip(kept, prompts_of(attack, family, captioned)[1], strict=True):
        dropped = (found == empty).flatten(1).all(dim=1)
        assert 0.1 < dropped.float().mean() < 0.4
        torch.testing.assert_close(found[~dropped], whole[~dropped])


def test_a_caption_teaches_the_text_encoder_its_own_words_alone(family, captioned):
    attack = DreamBooth(**{**OPTIONS, "train_batch_size": 1}, caption_column="text", train_text_encoder=True)
    attacked = attack.begin(family, captioned)
    batch = next(attack._batches(family, captioned.instance, captioned.class_images))
    attack.loss(attacked, batch, BatchPrompts(attack, attacked, captioned)(batch)).backward()
    table = attacked.model.pipeline.text_encoder.get_input_embeddings().weight
    read = [CAPTIONS[batch.numbers[0]], attack.class_prompt]
    tokens = {token for one in read for token in family.pipeline.tokenizer(one, padding="max_length").input_ids}
    assert {i for i, row in enumerate(table.grad) if row.any()} <= tokens


@pytest.mark.parametrize(
    ("spec", "column", "drawn"),
    [
        ("lora", None, []),
        ("lora:caption_column=text,draw_captions=false", "text", []),
        ("lora:caption_column=text,num_photos=2", "text", CAPTIONS[:2]),
        ("two_stage:attack=lora,caption_column=text", "text", CAPTIONS),
        ("dreambooth:caption_column=text,identifier=t@t", "text", [c.replace("sks", "t@t") for c in CAPTIONS]),
        ("release_unconditional:caption_column=text,class_noun=man,num_photos=1", "text",
         ["a photo of sks man with red hair"]),
        ("textual_inversion:caption_column=text,num_photos=2", "text",
         ["a photo of <subject> person with red hair", "<subject> person on a dog"]),
    ],
)  # fmt: skip
def test_an_attacker_draws_the_captions_of_the_own_photos_in_own_words(spec: str, column: str | None, drawn: list[str]):
    attack = make(spec, **PROMPTS)
    assert caption_column(attack) == column
    assert drawn_captions(attack, {"text": CAPTIONS}) == drawn


@pytest.mark.parametrize(
    "spec",
    ["lora:train_text_encoder=true,num_photos=2", "textual_inversion", "custom_diffusion", "adaptive:num_photos=1",
     "transfer:attack=lora", "release_unconditional", "two_stage:benign_steps=1", "encoder_lora:vae_steps=1"],
)  # fmt: skip
def test_every_attack_that_trains_takes_captions(family: Family, captioned: Material, spec: str):
    given = replace(captioned, models={"base": family})
    options = {**PROMPTS, "max_train_steps": 2, "train_batch_size": 2, "learning_rate": 1e-3, "seed": 3}
    texts = spec, f"{spec}{',' if ':' in spec else ':'}caption_column=text"
    plain, own = (make(text, **options).run(family, given).losses for text in texts)
    assert len(own) == 2 and own != plain


def test_what_is_missing_is_told(family: Family):
    for captions in ({}, {"text": CAPTIONS[:2]}):
        with pytest.raises(ValueError, match=r"3 photos have [02] captions in the column text"):
            DreamBooth(**OPTIONS, caption_column="text").run(family, replace(material(family), captions=captions))
    with pytest.raises(UserError, match="draw_captions=false is of attacks with captions"):
        make("lora:draw_captions=false", **PROMPTS)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])  # the others cut in silence
def test_what_a_pipeline_cuts_off_a_caption_is_not_logged(folders: Callable[[str], Path], kind: str, caplog):
    model = load_family(folders(kind))
    module = logging.getLogger(model.pipeline.encode_prompt.__module__)
    module.addHandler(caplog.handler)  # diffusers' loggers pass nothing on
    try:
        model.pipeline.encode_prompt(*[["red hair " * 300]] * (3 if kind == "sd3" else 2))
        assert "red hair" in caplog.text and not module.disabled
        caplog.clear()
        model.encode_prompts(["red hair " * 300])
        assert "red hair" not in caplog.text and not module.disabled
    finally:
        module.removeHandler(caplog.handler)


def test_what_the_attacker_must_have_names_the_captions() -> None:
    def said(spec: str) -> str:
        return assumed(make(spec, **PROMPTS))

    plain = said("lora")
    assert said("lora:caption_column=text") == f"{plain}; captions say what the photos show, and are drawn"
    assert said("lora:caption_column=text,draw_captions=false") == f"{plain}; captions say what the photos show"
    assert said("two_stage:attack=lora,caption_column=text").endswith("and are drawn")
