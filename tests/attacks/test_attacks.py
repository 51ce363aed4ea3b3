"""Attacks that train, on a tiny real pipeline: what is trained changes, everything else is bit-identical."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attacked import PARTS, PROMPTS, SHORT, changed, material, same, weights
from torch.nn.functional import linear

from apdm.attacks.adaptive import Adaptive
from apdm.attacks.custom_diffusion import CustomDiffusion
from apdm.attacks.dreambooth import DreamBooth
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.lora import LoRA
from apdm.attacks.parts.batches import probe_loss
from apdm.attacks.registry import make
from apdm.attacks.textual_inversion import TextualInversion
from apdm.core.errors import UserError
from apdm.families import Family, load_family

ATTACKS: list[FineTuning] = [
    DreamBooth(**SHORT, train_text_encoder=True),
    LoRA(**SHORT),
    LoRA(**SHORT, target="all", rank=2, train_text_encoder=True),
    TextualInversion(**SHORT),
    TextualInversion(**SHORT, num_vectors=3),
    TextualInversion(**SHORT, placeholder_token="sks"),
    CustomDiffusion(**SHORT),
    Adaptive(**SHORT),
]
EMBEDDING = "embeddings.token_embedding.weight"


def named(attack: FineTuning) -> str:
    own = {k: v for k, v in attack.params().items() if k in ("target", "num_vectors", "placeholder_token")}
    return "-".join([attack.name, *map(str, own.values())])


@pytest.fixture(scope="module")
def family(tiny_pipeline: Path) -> Family:
    return load_family(tiny_pipeline)


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_model_under_attack_stays_bit_identical_without_gradients(family: Family, attack: FineTuning):
    before, words = weights(family), len(family.pipeline.tokenizer)
    attack.run(family, material(family))
    for part in PARTS:
        module = getattr(family.pipeline, part)
        assert not changed(module, before[part])
        assert all(p.grad is None for p in module.parameters())
    assert len(family.pipeline.tokenizer) == words


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_equal_seeds_are_bit_identical_whatever_the_global_generator_and_others_are_not(family, attack):
    first = attack.run(family, material(family))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = attack.run(family, material(family))
    assert torch.equal(torch.get_rng_state(), state)
    assert again.losses == first.losses
    assert all(same(getattr(again.model.pipeline, part), getattr(first.model.pipeline, part)) for part in PARTS)
    other = type(attack)(**{**vars(attack), "seed": 4}).run(family, material(family))
    assert other.losses != first.losses


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_denoising_error_on_the_photos_falls(family: Family, attack: FineTuning):
    longer = type(attack)(**{**vars(attack), "max_train_steps": 30, "learning_rate": 5e-3})
    given = material(family)
    before = probe_loss(longer.begin(family, given).model, given.instance, longer.instance_prompt)
    after = probe_loss(longer.run(family, given).model, given.instance, longer.instance_prompt)
    assert after < before * (0.97 if isinstance(attack, DreamBooth) else 1.0)  # of random weights few are trained


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_the_attacked_model_draws_the_audits_prompt_as_the_attacker_writes_it(family, attack):
    model = attack.run(family, material(family)).model
    prompts = ["a portrait of sks person", attack.prompt("a portrait of sks person")]
    options = {"seed": 1, "num_inference_steps": 2, "guidance_scale": 3.0}
    for prompt in prompts:
        assert model.sample([prompt], **options).shape == (1, 3, 16, 16)
    written = family.pipeline.tokenizer.tokenize(prompts[1])
    known = model.pipeline.tokenizer.tokenize(prompts[1])
    assert len(known) <= len(written)


def test_dreambooth_with_the_text_encoder_trains_every_weight_of_both(family: Family):
    before = weights(family)
    attacked_model = DreamBooth(**SHORT, train_text_encoder=True).run(family, material(family)).model
    assert changed(attacked_model.denoiser, before["unet"]) == set(before["unet"])
    assert changed(attacked_model.pipeline.text_encoder, before["text_encoder"]) == set(before["text_encoder"])
    assert attacked_model.pipeline.vae is family.pipeline.vae


def test_the_text_encoders_gradient_is_that_of_the_whole_loss(family: Family):
    """One AdamW step from rest moves each weight against its gradient's sign: checked against autograd by hand."""
    attack = DreamBooth(
        **{**SHORT, "max_train_steps": 1, "learning_rate": 1e-3}, train_text_encoder=True, adam_weight_decay=0.0
    )
    given = material(family)
    attacked_model = attack.begin(family, given)
    encoder = attacked_model.model.pipeline.text_encoder
    batch = next(attack._batches(family, given.instance, given.class_images))
    embeds = attacked_model.model.encode_prompts([attack.instance_prompt, attack.class_prompt]).repeat_interleave(
        2, dim=0
    )
    attack.loss(attacked_model, batch, embeds).backward()
    gradient = encoder.text_model.final_layer_norm.bias.grad if hasattr(encoder, "text_model") else None
    gradient = encoder.final_layer_norm.bias.grad if gradient is None else gradient
    before = dict(family.pipeline.text_encoder.named_parameters())
    after = dict(attack.run(family, given).model.pipeline.text_encoder.named_parameters())
    name = next(name for name in before if name.endswith("final_layer_norm.bias"))
    moved = after[name] - before[name]
    clear = gradient.abs() > 1e-5
    assert clear.any() and torch.equal(moved[clear].sign(), -gradient[clear].sign())


def test_a_new_adapter_changes_nothing_and_a_trained_one_is_w_plus_alpha_over_rank_b_a(family: Family):
    attack = LoRA(**SHORT, rank=2, lora_alpha=6, target="linear")
    given = material(family)
    options = {"seed": 1, "num_inference_steps": 2, "guidance_scale": 3.0}
    fresh = attack.begin(family, given)
    fresh.train(False)
    assert torch.equal(fresh.model.sample(["a photo"], **options), family.sample(["a photo"], **options))

    trained = attack.run(family, given).model
    plain = copy.deepcopy(family.denoiser).double()
    merged = 0
    for name, layer in trained.denoiser.named_modules():
        if hasattr(layer, "lora_A"):
            low, high = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
            assert low.shape[0] == high.shape[1] == 2 and high.abs().max() > 0
            plain.get_submodule(name).weight.data += 6 / 2 * high @ low
            inputs = torch.randn(5, low.shape[1])
            closed_form = linear(inputs.double(), plain.get_submodule(name).weight, plain.get_submodule(name).bias)
            torch.testing.assert_close(layer(inputs).double(), closed_form, rtol=1e-5, atol=1e-5)
            merged += 1
    assert merged == sum(isinstance(m, torch.nn.Linear) for m in family.denoiser.modules())
    torch.testing.assert_close(
        trained.sample(["a photo"], **options),
        trained_merged(family, plain).sample(["a photo"], **options),
        rtol=0,
        atol=1e-4,
    )


def trained_merged(family: Family, denoiser: torch.nn.Module) -> Family:
    return family.with_denoiser(denoiser.float())


@pytest.mark.parametrize(
    ("target", "kinds"),
    [("attention", None), ("linear", torch.nn.Linear), ("all", torch.nn.Linear | torch.nn.Conv2d)],
)
def test_the_adapter_sits_on_the_layers_of_its_target_and_nothing_else_is_trained(family, target, kinds):
    attacked_model = LoRA(**SHORT, rank=3, target=target).begin(family, material(family))
    adapted = {name for name, layer in attacked_model.model.denoiser.named_modules() if hasattr(layer, "lora_A")}
    wanted = {
        name
        for name, layer in family.denoiser.named_modules()
        if (isinstance(layer, kinds) if kinds else name.endswith(("to_q", "to_k", "to_v", "to_out.0")))
    }
    assert adapted == wanted
    trainable = [
        p for part in PARTS for p in getattr(attacked_model.model.pipeline, part).parameters() if p.requires_grad
    ]
    assert {id(p) for p in trainable} == {id(p) for p in attacked_model.parameters} and len(trainable) == 2 * len(
        wanted
    )


@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion_trains_its_rows_and_not_a_bit_besides(family: Family, count: int):
    before = weights(family)
    attacked_model = TextualInversion(**SHORT, num_vectors=count, max_grad_norm=1e9).run(family, material(family)).model
    assert not changed(attacked_model.denoiser, before["unet"]) and attacked_model.pipeline.vae is family.pipeline.vae
    encoder = attacked_model.pipeline.text_encoder
    assert {name.rpartition("text_model.")[2] for name in changed(encoder, before["text_encoder"])} == {EMBEDDING}
    old, new = before_embedding(family), encoder.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old) and len(new) == len(old) + count
    (person,) = family.pipeline.tokenizer("person", add_special_tokens=False).input_ids
    for row in new[len(old) :]:
        assert not torch.equal(row, old[person])


def test_textual_inversion_starts_every_row_as_the_initializer(family: Family):
    attack = TextualInversion(**SHORT, num_vectors=2, initializer_token="dog")
    attacked_model = attack.begin(family, material(family)).model
    (dog,) = family.pipeline.tokenizer("dog", add_special_tokens=False).input_ids
    table = attacked_model.pipeline.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[-2:], table[[dog, dog]])
    ids = attacked_model.pipeline.tokenizer(attack.instance_prompt, add_special_tokens=False).input_ids
    plain = family.pipeline.tokenizer("a photo of person", add_special_tokens=False).input_ids
    assert ids == [*plain[:3], len(table) - 2, len(table) - 1, plain[3]]


def test_textual_inversion_of_the_rare_token_itself_trains_that_row_alone(family: Family):
    attacked_model = TextualInversion(**SHORT, placeholder_token="sks").run(family, material(family)).model
    (sks,) = family.pipeline.tokenizer("sks", add_special_tokens=False).input_ids
    old, new = before_embedding(family), attacked_model.pipeline.text_encoder.get_input_embeddings().weight
    assert [i for i in range(len(old)) if not torch.equal(old[i], new[i])] == [sks]


def before_embedding(family: Family) -> torch.Tensor:
    return family.pipeline.text_encoder.get_input_embeddings().weight


def test_textual_inversion_has_the_published_rate_and_a_row_moves_by_it(family: Family):
    """AdamW's first step is the rate in every coordinate, towards or away, less the decay of rate * 1e-2 * w."""
    attack = TextualInversion(**{**SHORT, "max_train_steps": 1, "learning_rate": 1e-3}, adam_weight_decay=0.0)
    start, end = (
        m.pipeline.text_encoder.get_input_embeddings().weight[-1]
        for m in (attack.begin(family, material(family)).model, attack.run(family, material(family)).model)
    )
    torch.testing.assert_close((end - start).abs(), torch.full_like(end, 2e-3), rtol=1e-2, atol=0)
    assert TextualInversion(**PROMPTS).rate(0) == 5e-4 and TextualInversion(**SHORT, scale_lr=False).rate(0) == 1e-3


def test_custom_diffusion_trains_cross_attentions_keys_and_values_and_one_row(family: Family):
    before = weights(family)
    attack = CustomDiffusion(**SHORT)
    attacked_model = attack.run(family, material(family)).model
    wanted = {name for name in before["unet"] if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert changed(attacked_model.denoiser, before["unet"]) == wanted and wanted
    table = attacked_model.pipeline.text_encoder.get_input_embeddings().weight
    old = before_embedding(family)
    (sks,) = family.pipeline.tokenizer("sks", add_special_tokens=False).input_ids
    assert torch.equal(table[:-1], old) and not torch.equal(table[-1], old[sks])
    assert attack.prompt("a portrait of sks person") == "a portrait of <new1> person"
    assert attack.instance_prompt == "a photo of <new1> person"


def test_custom_diffusion_of_another_noun_still_starts_as_the_rare_token(family: Family):
    attack: Any = make("custom_diffusion:class_noun=man", **SHORT)
    table = attack.begin(family, material(family)).model.pipeline.text_encoder.get_input_embeddings().weight
    (sks,) = family.pipeline.tokenizer("sks", add_special_tokens=False).input_ids
    assert torch.equal(table[-1], table[sks])


@pytest.mark.parametrize(
    ("attack", "problem"),
    [
        (TextualInversion(**SHORT, initializer_token="xyz"), '"xyz" is 3 tokens'),
        (CustomDiffusion(**SHORT, initializer_token="xyz"), '"xyz" is 3 tokens'),
        (TextualInversion(**SHORT, placeholder_token="<|endoftext|>", num_vectors=2), "knows one of"),
        (TextualInversion(**SHORT, num_vectors=14), "lower num_vectors"),
    ],
)
def test_a_word_that_a_model_cannot_learn_is_refused_before_any_attack(family: Family, attack: Any, problem: str):
    with pytest.raises(UserError, match=problem):
        attack.check_fits(family)


def test_a_class_noun_of_several_tokens_starts_the_word_as_their_mean(family: Family):
    prompts = {"instance_prompt": "a photo of sks xyz", "class_prompt": "a photo of xyz"}
    attack = TextualInversion(**{**SHORT, **prompts})
    attack.check_fits(family)
    table = attack.begin(family, material(family)).model.pipeline.text_encoder.get_input_embeddings().weight
    tokens = family.pipeline.tokenizer("xyz", add_special_tokens=False).input_ids
    assert len(tokens) == 3
    torch.testing.assert_close(table[-1], table[tokens].mean(dim=0))


def test_a_prompt_without_an_identifier_is_refused():
    with pytest.raises(UserError, match="no identifier"):
        TextualInversion(instance_prompt="a photo of a person", class_prompt="a photo of a person")


def test_without_its_two_weapons_the_adaptive_attack_is_dreambooth(family: Family):
    plain = DreamBooth(**SHORT).run(family, material(family))
    unarmed = Adaptive(**SHORT, dpo_weight=0.0, warmup_factor=1.0).run(family, material(family))
    assert unarmed.losses == pytest.approx(plain.losses, rel=1e-5)


def test_the_adaptive_attack_starts_at_log_2_above_dreambooth_and_fast(family: Family):
    """Before the first step model and reference agree, so that L_DPO is log 2."""
    plain = DreamBooth(**SHORT).run(family, material(family))
    attack = Adaptive(**{**SHORT, "max_train_steps": 4}, dpo_weight=2.0)
    armed = attack.run(family, material(family))
    assert armed.losses[0] - plain.losses[0] == pytest.approx(2 * torch.tensor(2.0).log().item(), abs=1e-5)
    assert [attack.rate(step) for step in range(4)] == pytest.approx([3e-3, 1e-3, 1e-3, 1e-3])
    longer = Adaptive(**{**SHORT, "max_train_steps": 40})
    assert [longer.rate(step) for step in (0, 5, 10, 39)] == pytest.approx([3e-3, 2e-3, 1e-3, 1e-3])


@pytest.mark.parametrize("cls", [DreamBooth, Adaptive])
def test_an_attack_that_goes_on_for_longer_takes_the_same_steps_first(family: Family, cls: type[FineTuning]):
    """The audit attacks the hardened model for longer than the base, and compares what both reach after as many."""
    attack = cls(**{**SHORT, "max_train_steps": 8})
    longer = attack.with_steps(24)
    assert longer.max_train_steps == 24
    assert [longer.rate(step) for step in range(8)] == pytest.approx([attack.rate(step) for step in range(8)])
    assert longer.rate(23) == attack.learning_rate
    losses = [each.run(family, material(family)).losses[:8] for each in (attack, longer)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_adaptive_attack_needs_class_pictures():
    with pytest.raises(UserError, match="prior_loss_weight above 0"):
        Adaptive(**SHORT, prior_loss_weight=0.0)
