"""Attacks with a first stage: restoration against closed forms, and that the second stage is the attack it says."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attacked import PARTS, SHORT, changed, material, same, weights
from torch.nn.functional import mse_loss

from apdm.attacks import Material
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.encoder_lora import EncoderLoRA
from apdm.attacks.lora import LoRA
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.purify import Flip
from apdm.attacks.restoration import Interpolation, TaskVector, Transplant
from apdm.attacks.staged import Staged
from apdm.attacks.textual_inversion import TextualInversion
from apdm.attacks.transfer import Transfer
from apdm.attacks.two_stage import TwoStage
from apdm.core.errors import UserError
from apdm.families import Family, load_family

PLAIN = DreamBooth(**{**SHORT, "max_train_steps": 1})


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


def moved(family: Family, seed: int, part: str = "unet") -> Family:
    """Another model of the same architecture: one part with noise on every weight."""
    module = copy.deepcopy(getattr(family.pipeline, part))
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return family.replace(**{part: module})


@pytest.fixture(scope="module")
def models(family: Family) -> dict[str, Family]:
    return {name: moved(family, seed) for seed, name in enumerate(["base", "sibling", "hardened_sibling", "hardened"])}


def prepared(attack: Staged, model: Family, given: Material) -> dict[str, torch.Tensor]:
    return attack.prepare(model, given)[0].denoiser.state_dict()


@pytest.mark.parametrize(("source", "alpha"), [("base", 0.3), ("sibling", 0.7), ("base", 1.5)])
def test_interpolation_is_the_weighted_mean_of_every_weight(family, models, source, alpha):
    found = prepared(Interpolation(attack=PLAIN, source=source, alpha=alpha), family, material(family, **models))
    there = models[source].denoiser.state_dict()
    for name, weight in family.denoiser.state_dict().items():
        closed_form = (1 - alpha) * weight.double() + alpha * there[name].double()
        torch.testing.assert_close(found[name].double(), closed_form, rtol=1e-5, atol=1e-6)


def test_interpolation_at_0_and_1_is_one_model_and_the_other_bit_for_bit(family, models):
    given = material(family, **models)
    for alpha, model in ((0.0, family), (1.0, models["base"])):
        restored, _ = Interpolation(attack=PLAIN, alpha=alpha).prepare(family, given)
        assert same(restored.denoiser, model.denoiser)
    whole = Interpolation(attack=PLAIN, alpha=1.0)
    assert whole.wins_by_definition and "wins by definition" in whole.assumes
    assert not Interpolation(attack=PLAIN, source="sibling", alpha=1.0).wins_by_definition
    assert same(whole.run(family, given).model.denoiser, PLAIN.run(models["base"], given).model.denoiser)


def test_a_task_vector_from_a_sibling_is_taken_off_times_the_factor(family, models):
    found = prepared(TaskVector(attack=PLAIN, factor=0.8), family, material(family, **models))
    plain, hardened = (models[name].denoiser.state_dict() for name in ("sibling", "hardened_sibling"))
    for name, weight in family.denoiser.state_dict().items():
        closed_form = weight.double() - 0.8 * (hardened[name].double() - plain[name].double())
        torch.testing.assert_close(found[name].double(), closed_form, rtol=1e-5, atol=1e-6)


def test_transplanted_cross_attention_is_the_sources_and_all_else_the_models(family, models):
    found = prepared(Transplant(attack=PLAIN), family, material(family, **models))
    own, given = family.denoiser.state_dict(), models["sibling"].denoiser.state_dict()
    assert any(".attn2." in name for name in own)
    for name, weight in found.items():
        assert torch.equal(weight, given[name] if ".attn2." in name else own[name]), name


def test_a_transplanted_text_encoder_or_vae_is_the_sources(family):
    given = material(family, sibling=moved(family, 1, "text_encoder"), base=moved(family, 2, "vae"))
    model, same_material = Transplant(attack=PLAIN, part="text_encoder").prepare(family, given)
    assert model.pipeline.text_encoder is given.models["sibling"].pipeline.text_encoder and same_material is given
    assert model.denoiser is family.denoiser
    model, encoded = Transplant(attack=PLAIN, source="base", part="vae").prepare(family, given)
    assert model.pipeline.vae is given.models["base"].pipeline.vae
    with torch.no_grad():
        torch.testing.assert_close(encoded.instance.mean, given.models["base"].posterior(given.photos).mean)
    assert not torch.equal(encoded.class_images.mean, given.class_images.mean)


def test_a_model_that_is_not_there_or_is_another_kind_is_one_clear_line(family, models, make_pipeline):
    attack = Interpolation(attack=TaskVector(attack=PLAIN))
    assert attack.needs == ("base", "sibling", "hardened_sibling")
    with pytest.raises(UserError, match="the attack interpolation needs the base model"):
        attack.run(family, material(family))
    small = copy.deepcopy(family.denoiser)
    small.conv_in = torch.nn.Conv2d(4, 8, 1)
    given = material(family, base=family.with_denoiser(small))
    with pytest.raises(UserError, match="another architecture"):
        Interpolation(attack=PLAIN).run(family, given)


def test_two_stages_are_benign_training_and_then_the_attack(family: Family):
    given = material(family)
    attack = TwoStage(attack=PLAIN, benign_steps=3, benign_learning_rate=1e-3)
    benign = DreamBooth(**{**SHORT, "instance_prompt": SHORT["class_prompt"]}, prior_loss_weight=0.0)
    expected = PLAIN.run(benign.run(family, Material(given.class_images)).model, given)
    found = attack.run(family, given)
    assert found.losses == expected.losses and same(found.model.denoiser, expected.model.denoiser)
    consenting = replace(given, consenting=given.instance)
    assert attack.run(family, consenting).losses != found.losses


def test_an_adapter_is_trained_on_one_model_and_loaded_on_the_other(family, models):
    given = material(family, base=models["base"])
    inner = LoRA(**SHORT, rank=2)
    seen: dict[int, Family] = {}
    attack = Transfer(attack=inner, trained_on="base")
    found = attack.run(family, given, eval_steps=[0, 3], evaluate=lambda step, m: seen.update({step: m}))
    there = inner.run(models["base"], given)
    assert found.losses == there.losses
    adapter, own = there.model.denoiser.state_dict(), family.denoiser.state_dict()
    for name, weight in found.model.denoiser.state_dict().items():
        plain = name.replace(".base_layer", "")
        assert torch.equal(weight, adapter[name] if "lora_" in name else own[plain]), name
    assert seen.keys() == {0, 3} and seen[3] is found.model


def test_a_token_is_trained_on_one_model_and_loaded_on_the_other(family):
    other = moved(family, 5, "text_encoder")
    given = material(family, hardened=other)
    inner = TextualInversion(**SHORT, num_vectors=2)
    tables = {
        name: model.pipeline.text_encoder.get_input_embeddings().weight
        for name, model in {
            "found": Transfer(attack=inner, trained_on="hardened").run(family, given).model,
            "there": inner.run(other, given).model,
            "here": family,
        }.items()
    }
    assert torch.equal(tables["found"][:-2], tables["here"])
    assert torch.equal(tables["found"][-2:], tables["there"][-2:])


def test_on_the_model_that_it_was_trained_on_a_loaded_adapter_is_the_plain_attack(family):
    given = material(family, base=family)
    inner = LoRA(**SHORT, rank=2)
    found, plain = Transfer(attack=inner).run(family, given), inner.run(family, given)
    assert found.losses == plain.losses and same(found.model.denoiser, plain.model.denoiser)


def test_what_leaves_no_adapter_cannot_be_carried(family):
    with pytest.raises(UserError, match="dreambooth trains no adapter"):
        Transfer(attack=PLAIN).run(family, material(family, base=family))


def test_fewer_and_changed_photos_are_what_the_attack_trains_on(family):
    given = material(family)
    _, few = PhotoTreatment(attack=PLAIN, num_photos=2).prepare(family, given)
    assert torch.equal(few.instance.mean, given.instance.mean[:2]) and len(few.photos) == 2
    _, flipped = PhotoTreatment(attack=PLAIN, purifier=Flip()).prepare(family, given)
    torch.testing.assert_close(flipped.photos, given.photos.flip(-1))
    with torch.no_grad():
        torch.testing.assert_close(flipped.instance.mean, family.posterior(given.photos.flip(-1)).mean)
    with pytest.raises(UserError, match="num_photos is 20, but there are 3 photos"):
        PhotoTreatment(attack=PLAIN, num_photos=20).prepare(family, given)


def test_the_parameters_name_every_stage():
    inner = TwoStage(attack=LoRA(**SHORT, rank=9), benign_steps=7)
    params = PhotoTreatment(attack=inner, purifier=Flip()).params()
    assert params["attack"] == "two_stage > lora"
    assert (params["rank"], params["benign_steps"], params["purifier"]) == (9, 7, {"name": "flip"})


def test_the_encoders_lora_makes_photos_reconstruct_and_touches_the_encoder_alone(family):
    given, before = material(family), weights(family)
    attack = EncoderLoRA(attack=PLAIN, vae_steps=20, vae_learning_rate=1e-2, vae_rank=2, vae_batch_size=3)
    own, encoded = attack.prepare(family, given)

    def error(model: Family, latents) -> float:
        return mse_loss(model.decode(latents.mean) * 2 - 1, given.photos).item()

    with torch.no_grad():
        assert error(own, encoded.instance) < error(family, given.instance)
        assert torch.equal(own.decode(given.instance.mean), family.decode(given.instance.mean))
    adapted = {name for name in own.pipeline.vae.state_dict() if "lora_" in name}
    assert adapted and all(name.startswith(("encoder.", "quant_conv")) for name in adapted)
    for part in PARTS:
        assert not changed(getattr(family.pipeline, part), before[part])
    assert attack.run(family, given).model.pipeline.vae is not family.pipeline.vae


STAGED = [
    TwoStage(attack=PLAIN, benign_steps=2),
    Interpolation(attack=PLAIN),
    TaskVector(attack=PLAIN),
    Transplant(attack=PLAIN),
    Transfer(attack=LoRA(**SHORT)),
    PhotoTreatment(attack=PLAIN, purifier=Flip(), num_photos=2),
    EncoderLoRA(attack=PLAIN, vae_steps=2),
]


@pytest.mark.parametrize("attack", STAGED, ids=lambda attack: attack.name)
def test_a_staged_attack_is_paired_evaluated_and_described_and_leaves_the_model_alone(family, models, attack):
    before, given, seen, steps = weights(family), material(family, **models), [], []
    runs = [
        attack.run(
            family,
            given,
            eval_steps=[0, attack.max_train_steps],
            evaluate=lambda step, model: seen.append(step),
            callback=lambda step, loss: steps.append(step),
        )
        for _ in range(2)
    ]
    assert seen == [0, attack.max_train_steps] * 2 and len(steps) == 2 * attack.max_train_steps
    assert runs[0].losses == runs[1].losses and same(runs[0].model.denoiser, runs[1].model.denoiser)
    for part in PARTS:
        assert not changed(getattr(family.pipeline, part), before[part])
    params = attack.params()
    assert params["attack"] == attack.attack.name and params["learning_rate"] == 1e-3 and "seed" not in params
    json.dumps(params)
    assert attack.assumes and attack.prompt("sks") == attack.attack.prompt("sks")
