"""The attacks against every family: all that reads the prompt is reached, and nothing else changes."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from tiny_pipelines import BUILDERS

from apdm.attacks import Material
from apdm.attacks.registry import make, make_purifier, make_zero_shot
from apdm.audit.inputs.attack_factory import check_fits, check_on_model
from apdm.core.errors import UserError
from apdm.families import Family, StableDiffusion, load_family
from apdm.families.encoding import encode_images
from apdm.families.pooled import split_pooled

PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}
SHORT = {"max_train_steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """prepared(kind) -> (the family, what its attacker holds); read only."""
    made: dict[str, tuple[Family, Material]] = {}

    def prepare(kind: str) -> tuple[Family, Material]:
        if kind not in made:
            folder: Path = tmp_path_factory.mktemp(kind)
            # In a published vocabulary the end of a text has the largest id, in the miniature world's it has not.
            BUILDERS[kind](folder / "vocabulary", miniature=False).save_pretrained(folder / "model")
            family = load_family(folder / "model")
            photos = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
            latents = encode_images(family, photos)
            made[kind] = family, Material(latents, class_images=latents, photos=photos, models={"base": family})
        return made[kind]

    return prepare


BEYOND_SD = pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])  # the attacks' own tests are on 1.x
SIZE = {"height": 16, "width": 16}
ATTACKS = (
    "dreambooth:train_text_encoder=true",
    "lora:train_text_encoder=true,target=linear",
    "textual_inversion",
    "custom_diffusion",
)
WITHOUT_TEXT = ("dreambooth", "lora:target=linear", "lora:caption_dropout=0.5", "adaptive")
TRAINED = [(kind, spec) for kind in ("sdxl", "sd3", "flux") for spec in ATTACKS]
TRAINED += [(kind, spec) for kind in ("flux2", "zimage") for spec in WITHOUT_TEXT]


@pytest.mark.parametrize(("kind", "spec"), TRAINED)
def test_what_trains_changes_the_attackers_pictures_and_not_the_model_it_was_given(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    prompt = "a photo of sks person"
    before = family.sample([prompt], seed=0, num_inference_steps=1, **SIZE)
    attack = make(spec, **PROMPTS, **SHORT)
    attacked = attack.run(family, material)
    assert len(attacked.losses) == 2 and torch.tensor(attacked.losses).isfinite().all()
    after = attacked.model.sample([attack.prompt(prompt)], seed=0, num_inference_steps=1, **SIZE)
    assert not torch.equal(after, before)
    assert torch.equal(family.sample([prompt], seed=0, num_inference_steps=1, **SIZE), before)


@pytest.mark.parametrize(
    ("kind", "prompt_stream"),
    [
        ("sd15", 0),
        ("sdxl", 0),
        ("sd3", 2 * 4 - 1),
        ("flux", 4),
        ("flux2", 4),
        ("zimage", 0),
    ],  # SD3's last block has no way out for the prompt
)
def test_an_adapter_on_attention_sits_on_the_streams_of_both_picture_and_prompt(
    prepared, kind: str, prompt_stream: int
):
    family, material = prepared(kind)
    attention = [name for name, layer in family.denoiser.named_modules() if isinstance(layer, torch.nn.Linear)]
    picture = {name for name in attention if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))}
    if kind == "flux2":  # one matrix for both in a single block, as in diffusers' script
        picture |= {f"single_transformer_blocks.0.attn.{name}" for name in ("to_qkv_mlp_proj", "to_out")}
    prompt = {name for name in attention if name.endswith((".add_q_proj", ".add_k_proj", ".add_v_proj", ".to_add_out"))}
    assert len(prompt) == prompt_stream
    denoiser = make("lora", **PROMPTS, **SHORT).run(family, material).model.denoiser
    learnt = {
        name: layer.lora_B["default"].weight for name, layer in denoiser.named_modules() if hasattr(layer, "lora_B")
    }
    assert learnt.keys() == picture | prompt
    assert all(learnt[name].any() for name in prompt if name.endswith(("add_k_proj", "add_v_proj")))


@pytest.mark.parametrize(("kind", "adapted"), [("flux2", 8 + 2), ("zimage", 4 * 4)])
def test_an_adapters_file_draws_in_diffusers_what_the_attacker_draws(prepared, tmp_path: Path, kind: str, adapted: int):
    """The adapter on the layers of diffusers' training script, written and read by the pipeline itself.

    FLUX.2 has ten such layers in a double and a single block. Z-Image has four in each of four blocks.
    """
    family, material = prepared(kind)
    attacked = make("lora:rank=2", **PROMPTS, **{**SHORT, "learning_rate": 1e-2}).run(family, material).model
    layers = get_peft_model_state_dict(attacked.denoiser)
    assert len(layers) == 2 * adapted  # A and B
    metadata = {"transformer_lora_adapter_metadata": attacked.denoiser.peft_config["default"].to_dict()}
    family.pipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers, **metadata)
    pipeline = type(family.pipeline).from_pretrained(family.source, local_files_only=True)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, **SIZE}
    prompt = "a photo of sks person"

    def picture() -> torch.Tensor:
        return pipeline(prompt=prompt, **options, output_type="pt", generator=torch.Generator().manual_seed(5)).images

    before = picture()
    pipeline.load_lora_weights(tmp_path)
    ours = attacked.sample([prompt], seed=5, **options)
    torch.testing.assert_close(picture(), ours, rtol=0, atol=1e-4)
    assert (picture() - before).abs().max() > 1e-3


REFUSED = {
    "textual_inversion": "learning a new word",
    "custom_diffusion": "learning a new word",
    "dreambooth:train_text_encoder=true": "train_text_encoder=true",
    "transfer:attack=custom_diffusion": "learning a new word",
}


@pytest.mark.parametrize("kind", ["flux2", "zimage"])
@pytest.mark.parametrize("spec", REFUSED)
def test_what_needs_a_text_encoder_of_its_own_is_refused_where_a_language_model_reads(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    attack = make(spec, **PROMPTS, **SHORT)
    said = f"{REFUSED[spec]} needs a text encoder that can be trained, and {family.name} has none; leave it out"
    # When it runs, and before any work, where the attack is named too.
    for tried in (lambda: attack.run(family, material), lambda: check_on_model(spec, attack, family, 4)):
        with pytest.raises(UserError) as error:
            tried()
        assert str(error.value) in (said, f"{spec}: {said}")
    assert str(error.value).startswith(spec)


class Silent(StableDiffusion):
    """A family that does not say how much noise there is at a timestep."""

    signal_to_noise = Family.signal_to_noise
    x0_error_share = Family.x0_error_share


@pytest.mark.parametrize("spec", ["lora:snr_gamma=5", "two_stage:attack=dreambooth,loss_space=x0"])
def test_weights_by_noise_are_refused_before_any_work_where_the_noise_is_not_told(prepared, spec: str):
    silent = Silent(prepared("sd15")[0].pipeline)
    option = spec.rpartition(":" if "lora" in spec else ",")[2]
    with pytest.raises(UserError, match=f"^{spec}: {option} weights the loss .* stable-diffusion .* leave it out$"):
        check_on_model(spec, make(spec, **PROMPTS, **SHORT), silent, 4)


def test_photos_that_diffusers_cannot_redraw_are_refused_in_one_line(prepared):
    """Its pipelines of FLUX.2 [klein] show the photo to the denoiser, and add no noise to it."""
    family, material = prepared("flux2")
    for spec in ("img2img:strength=0.5", "inpainting"):
        with pytest.raises(UserError, match=f"^{spec[:7]}.* noise .* diffusers has no pipeline of flux2; leave it out"):
            make_zero_shot(spec).check(family)
    for spec in ("dreambooth:photos=diffusion", "two_stage:attack=lora,photos=diffusion"):
        with pytest.raises(UserError, match="^the purifier diffusion adds noise to a photo .* no pipeline of flux2"):
            check_fits(make(spec, **PROMPTS, **SHORT), family)
    with pytest.raises(UserError, match="no pipeline of flux2"):
        make_purifier("diffusion")(material.photos / 2 + 0.5, family, 0)


CLIPS = {
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sd3": ("text_encoder", "text_encoder_2"),
    "flux": ("text_encoder",),
}
T5 = {"sdxl": None, "sd3": "text_encoder_3", "flux": "text_encoder_2"}
UNREAD = ("encoder.layers.1.", "final_layer_norm.")  # of SDXL's first encoder, whose last layer but one is taken


@BEYOND_SD
@pytest.mark.parametrize("spec", ["dreambooth:train_text_encoder=true", "lora:train_text_encoder=true"])
def test_every_clip_is_trained_and_t5_is_not(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    attacked = make(spec, **PROMPTS, **SHORT).run(family, material).model
    for name in CLIPS[kind]:
        before = dict(getattr(family.pipeline, name).named_parameters())
        after = dict(getattr(attacked.pipeline, name).named_parameters())
        trained = [key for key in after if ("lora_B" in key if spec.startswith("lora") else key.endswith(".weight"))]
        if kind == "sdxl" and name == "text_encoder":
            trained = [key for key in trained if not any(part in key for part in UNREAD)]
        for key in trained:
            moved = after[key].any() if "lora_B" in key else not torch.equal(after[key], before[key])
            assert moved, (name, key)
        assert trained
    if T5[kind]:
        assert getattr(attacked.pipeline, T5[kind]) is getattr(family.pipeline, T5[kind])


@BEYOND_SD
@pytest.mark.parametrize("spec", ["textual_inversion", "textual_inversion:placeholder_token=sks", "custom_diffusion"])
def test_every_clip_learns_the_word_from_the_same_start_and_no_other_row_moves(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    attack = make(
        f"{spec},initializer_token=dog" if ":" in spec else f"{spec}:initializer_token=dog", **PROMPTS, **SHORT
    )
    attacked = attack.run(family, material).model
    for name in CLIPS[kind]:
        words, learnt = (getattr(m.pipeline, name.replace("text_encoder", "tokenizer")) for m in (family, attacked))
        own, now = (getattr(m.pipeline, name).get_input_embeddings().weight for m in (family, attacked))
        (row,) = learnt(attack.prompt("sks"), add_special_tokens=False).input_ids
        (dog,) = words("dog", add_special_tokens=False).input_ids
        others = [i for i in range(len(own)) if i != row]
        assert torch.equal(now[others], own[others]) and not torch.equal(now[row], own[dog])
        assert (now[row] - own[dog]).abs().max() < 0.05  # two steps away from where it began
        assert len(words) == len(own) and len(learnt) == len(now) == max(len(own), row + 1)
    if T5[kind]:
        assert getattr(attacked.pipeline, T5[kind]) is getattr(family.pipeline, T5[kind])


@BEYOND_SD
@pytest.mark.parametrize("count", [1, 2])
def test_a_new_word_reads_as_its_initializer_where_the_end_is_told_by_the_largest_id(prepared, kind: str, count: int):
    """So the published CLIPs are configured, and a new word has a larger id than the end."""
    family, material = prepared(kind)
    family = family.replace(**{name: copy.deepcopy(getattr(family.pipeline, name)) for name in CLIPS[kind]})
    ends = [getattr(family.pipeline, name) for name in CLIPS[kind]]
    ends = [holder for encoder in ends for m in encoder.modules() for holder in (m, getattr(m, "config", None))]
    ends = [holder for holder in ends if hasattr(holder, "eos_token_id")]
    for holder in ends:
        holder.eos_token_id = 2
    attack: Any = make(f"textual_inversion:initializer_token=dog,num_vectors={count}", **PROMPTS, **SHORT)
    started = attack.begin(family, material).model
    word, spelt = (
        model.encode_prompts([prompt])
        for model, prompt in ((started, attack.instance_prompt), (family, f"a photo of {'dog ' * count}person"))
    )
    if kind == "sdxl":
        torch.testing.assert_close(word, spelt)
    pooled = [split_pooled(embeds, family._pooled_width)[1] for embeds in (word, spelt)]  # T5 is not in it
    torch.testing.assert_close(*pooled)
    assert all(holder.eos_token_id == 2 for holder in ends)


def test_a_pipeline_that_has_learnt_a_word_can_be_written_and_read(prepared, tmp_path: Path):
    family, material = prepared("sdxl")
    attack = make("textual_inversion:num_vectors=2", **PROMPTS, **SHORT)
    attacked = attack.run(family, material).model
    attacked.save(tmp_path / "model")
    read = load_family(tmp_path / "model")
    embeds = [model.encode_prompts([attack.instance_prompt]).detach() for model in (attacked, read)]
    torch.testing.assert_close(*embeds)
    assert not torch.equal(embeds[0], family.encode_prompts([attack.instance_prompt]))


@pytest.mark.parametrize("kind", ["sdxl", "sd3"])
def test_a_transplant_of_text_takes_every_encoder(prepared, kind: str):
    family, material = prepared(kind)
    names = [name for name in (*CLIPS[kind], T5[kind]) if name]
    base = family.replace(**{name: copy.deepcopy(getattr(family.pipeline, name)) for name in names})
    attack: Any = make("transplant:source=base,part=text_encoder", **PROMPTS, **SHORT)
    taken, _ = attack.prepare(family, replace(material, models={"base": base}))
    assert all(getattr(taken.pipeline, name) is getattr(base.pipeline, name) for name in names)
    assert taken.denoiser is family.denoiser


READS = {
    "sd15": {"attn2.to_k.weight", "attn2.to_v.weight"},
    "sdxl": {"attn2.to_k.weight", "attn2.to_v.weight"},
    "sd3": {"attn.add_k_proj.weight", "attn.add_v_proj.weight"},
    "flux": {"attn.add_k_proj.weight", "attn.add_v_proj.weight"},
}


@pytest.mark.parametrize("kind", READS)
def test_custom_diffusion_trains_keys_and_values_of_the_prompt_and_nothing_else_of_the_denoiser(prepared, kind: str):
    family, material = prepared(kind)
    attacked = make("custom_diffusion", **PROMPTS, **SHORT).run(family, material).model
    ours, theirs = (dict(model.denoiser.named_parameters()) for model in (family, attacked))
    changed = {".".join(name.split(".")[-3:]) for name in ours if not torch.equal(ours[name], theirs[name])}
    assert changed == READS[kind]


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "flux2", "zimage"])
def test_a_transplant_takes_the_weights_that_read_the_prompt_and_leaves_the_picture_s(prepared, kind: str):
    family, material = prepared(kind)
    other = copy.deepcopy(family.denoiser)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.1)
    models = {"base": family.with_denoiser(other)}
    attack: Any = make("transplant:source=base", **PROMPTS, **SHORT)
    taken, _ = attack.prepare(family, replace(material, models=models))
    weights = dict(family.denoiser.named_parameters())
    changed = {name for name, weight in taken.denoiser.named_parameters() if not torch.equal(weight, weights[name])}
    own = {"sdxl": (".attn2.", ".attn1."), "zimage": ("context_refiner.", "layers.")}
    prompt, picture = own.get(kind, (".attn.add_", ".attn.to_q."))
    assert any(prompt in name for name in changed) and not any(picture in name for name in changed)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "zimage"])
@pytest.mark.parametrize("spec", ["img2img:strength=0.5", "inpainting"])
def test_photos_are_edited_with_every_family(prepared, kind: str, spec: str):
    family, material = prepared(kind)
    photos = material.photos / 2 + 0.5
    options = {"seed": 0, "num_inference_steps": 2, "guidance_scale": 3.0}
    pictures = make_zero_shot(spec).draw(family, photos, ["a photo of person"] * 3, **options)
    assert pictures.shape == photos.shape and pictures.min() >= 0 and pictures.max() <= 1
    alone = make_zero_shot(spec).draw(family, photos[:1], ["a photo of person"], **options)
    torch.testing.assert_close(alone, pictures[:1], rtol=0, atol=1e-4)
