"""docs/adding-a-family.md, done exactly as it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file
from tiny_pipelines import BETAS, small_vae, t5_tokenizer
from transformers import T5Config, T5EncoderModel

import apdm.families
from apdm.attacks import Material
from apdm.attacks.parts.batches import probe_loss
from apdm.attacks.registry import make
from apdm.audit.inputs.models import load_models
from apdm.cli import main
from apdm.config.registry import forget_classes
from apdm.core.errors import UserError
from apdm.families import FAMILIES, Family, load_family
from apdm.families.attention import watch_attention
from apdm.families.encoding import encode_images

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-family.md"
PROMPTS = {"instance_prompt": "a photo of sks person", "class_prompt": "a photo of person"}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the page's example."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path_factory.mktemp("mine") / "pixart.py"
    path.write_text(code)
    return path


@pytest.fixture(scope="module")
def spec(given: Path) -> str:
    return f"{given}:PixArtSigma"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of a class that the package does not know."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        t5 = T5Config(vocab_size=128, d_model=24, d_ff=32, d_kv=8, num_layers=1, num_heads=4)
        transformer = PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            cross_attention_dim=16,
            sample_size=8,
            caption_channels=24,
            use_additional_conditions=False,
        )
        torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)  # zero at first
        pipeline = PixArtSigmaPipeline(
            tokenizer=t5_tokenizer(),
            text_encoder=T5EncoderModel(t5),
            vae=small_vae(),
            transformer=transformer,
            scheduler=DDIMScheduler(**BETAS, clip_sample=False),
        )
    path = tmp_path_factory.mktemp("pixart") / "model"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def family(folder: Path, spec: str) -> Family:
    return load_family(folder, family=spec)


@pytest.fixture
def material(family: Family) -> Material:
    photos = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_images(family, photos)
    return Material(latents, class_images=latents, photos=photos)


@pytest.fixture
def in_the_package(given: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(apdm.families, "__path__", [*apdm.families.__path__, str(given.parent)])
    forget_classes()
    yield
    monkeypatch.undo()
    forget_classes()


def test_without_the_family_the_pipeline_is_refused_and_the_option_is_named(folder: Path):
    with pytest.raises(UserError, match=r"names a PixArtSigmaPipeline; name its family with --family, or use one of"):
        load_family(folder)


def test_a_family_refuses_pipelines_of_classes_that_it_does_not_handle(spec: str, tiny_pipeline: Path):
    with pytest.raises(UserError, match=r"StableDiffusionPipeline; the family .* handles PixArtSigmaPipeline"):
        load_family(tiny_pipeline, family=spec)


def test_a_family_that_does_not_exist_is_refused_with_the_nearest_name(folder: Path, given: Path):
    with pytest.raises(UserError, match='did you mean "stable-diffusion-xl"'):
        load_family(folder, family="stable-diffusion-x")
    with pytest.raises(UserError, match='no model family "PixArt"; it has PixArtSigma'):
        load_family(folder, family=f"{given}:PixArt")
    with pytest.raises(UserError, match="takes no options"):
        load_family(folder, family=f"{given}:PixArtSigma:a=1")


def test_predict_does_what_the_pipeline_does_when_it_samples(family: Family):
    calls = []
    hook = family.denoiser.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args[0], kwargs["timestep"], output[0])), with_kwargs=True
    )
    prompt = "a photo of sks person"
    size = {"height": 16, "width": 16, "use_resolution_binning": False}
    family.pipeline(prompt, **size, num_inference_steps=2, guidance_scale=1.0, output_type="latent")
    hook.remove()
    noisy, timestep, theirs = calls[0]
    with torch.no_grad():
        ours = family.predict(family.denoiser, noisy, timestep, family.encode_prompts([prompt]))
    torch.testing.assert_close(ours, theirs[:, :4], rtol=1e-4, atol=1e-5)
    picture = family.sample([prompt], seed=0, num_inference_steps=2, height=16, width=16)
    assert picture.shape == (1, 3, 16, 16) and picture.isfinite().all()


def test_its_attention_is_read_and_attacks_train_it(family: Family, material: Material):
    noisy, embeds = torch.randn(2, 4, 8, 8), family.encode_prompts(["a photo", "a dog"])
    with watch_attention(family.attention_layers(family.denoiser)) as maps, torch.no_grad():
        family.predict(family.denoiser, noisy, torch.tensor([10, 700]), embeds)
    assert list(maps.cross) == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]
    assert list(maps.self_) == ["transformer_blocks.0.attn1", "transformer_blocks.1.attn1"]
    for row, prompt in enumerate(["a photo", "a dog"]):  # the mask leaves out the tokens that fill a prompt up
        tokens = len(family.pipeline.tokenizer(prompt).input_ids)
        for probabilities in maps.cross.values():
            read = probabilities[row, ..., :tokens].sum(-1)
            torch.testing.assert_close(read, torch.ones_like(read))
    for name in ("dreambooth", "lora:rank=2"):
        attack = make(name, **PROMPTS, max_train_steps=8, train_batch_size=3, learning_rate=1e-2)
        attacked = attack.run(family, material).model
        errors = [probe_loss(model, material.instance, PROMPTS["instance_prompt"]) for model in (family, attacked)]
        assert errors[1] < errors[0]


def test_an_attack_that_needs_a_clip_says_that_there_is_none(family: Family, material: Material):
    for name in ("textual_inversion", "dreambooth:train_text_encoder=true", "lora:train_text_encoder=true"):
        with pytest.raises(UserError, match="needs a text encoder that can be trained, and pixart-sigma has none"):
            make(name, **PROMPTS, max_train_steps=1).run(family, material)


def test_models_are_hardened_verified_and_compared_from_the_command_line(
    folder: Path, spec: str, noise_people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "run"
    options = {
        "family": spec,
        "pretrained_model_name_or_path": folder,
        "instance_data_dir": noise_people,
        "output_dir": output,
        "resolution": 16,
        "num_class_images": 2,
        "num_inference_steps": 2,
        "num_threads": 1,
        "max_train_steps": 2,
        "learning_rate": 1e-3,
        "l2p.inner_steps": 2,
        "l2p.learning_rate": 1e-3,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    assert main(["harden", *words]) == 0
    weights = "transformer/diffusion_pytorch_model.safetensors"
    before, after = load_file(folder / weights), load_file(output / "model" / weights)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert main(["verify", str(output), "--family", spec]) == 0
    assert main(["verify", str(output)]) == 1
    assert "--family" in capsys.readouterr().out
    models = load_models({"base": str(folder), "hardened": str(output / "model")}, family=spec)
    assert {type(model).__name__ for model in models.values()} == {"PixArtSigma"}


def test_in_the_package_it_is_found_by_its_pipeline_class_and_by_name(in_the_package: None, folder: Path):
    assert type(load_family(folder)).__name__ == "PixArtSigma"
    assert FAMILIES.find("pixart-sigma").pipeline_classes == ("PixArtSigmaPipeline",)


def test_a_variant_in_the_package_that_inherits_its_pipeline_class_is_used_only_where_it_is_named(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    variant = 'from apdm.families.sd import StableDiffusion\nclass Variant(StableDiffusion):\n    name = "variant"\n'
    (tmp_path / "zz_variant.py").write_text(variant)  # the last by name would win
    monkeypatch.setattr(apdm.families, "__path__", [*apdm.families.__path__, str(tmp_path)])
    forget_classes()
    try:
        assert type(load_family(tiny_pipeline)).__name__ == "StableDiffusion"
        assert type(load_family(tiny_pipeline, family="variant")).__name__ == "Variant"
    finally:
        monkeypatch.undo()
        forget_classes()


def test_the_page_names_the_options_and_files_that_exist():
    text = PAGE.read_text()
    assert all(len(line) <= 120 for line in text.splitlines())
    root = PAGE.parents[1]
    for path in re.findall(r"`(tests/[\w/]+\.py|apdm/[\w/]+\.py)`", text):
        assert (root / path).is_file(), path
