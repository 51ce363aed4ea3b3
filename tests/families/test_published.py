"""Models as they are published: they load and draw as in diffusers, and the export keeps their layout.

`tests/helpers/published.py` says what is special of each.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from model_cards import run_card
from published import PUBLISHED, earlier_clip, publish
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apdm.core.errors import UserError
from apdm.export.pipeline import export_model
from apdm.families import load_family
from apdm.families.single_file.write import single_file_weights
from apdm.jobs.env_models import recognise

pytestmark = pytest.mark.usefixtures("any_flux_width")
EVERY = [(name, variant) for name, facts in PUBLISHED.items() for variant in (None, *facts.variants)]
FACTS: dict[str, Any] = {"config_hash": "0" * 64, "method": "apdm", "steps": 1}
SIZE = {"height": 16, "width": 16, "num_inference_steps": 2, "guidance_scale": 3.0}
WHOLE = ("stable-diffusion-v1-5", "openjourney", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0")
CLIP = {  # where the single files have the text encoder with transformers' names
    "stable-diffusion-v1-5": "cond_stage_model.transformer.",
    "openjourney": "cond_stage_model.transformer.",
    "stable-diffusion-xl-base-1.0": "conditioner.embedders.0.transformer.",
}


@pytest.fixture(scope="module")
def published(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """published(name) -> a tiny model in that layout, written once: read it, never write into it."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = publish(name, folders, tmp_path_factory.mktemp("published") / name)
        return written[name]

    return folder


def tensors(folder: Path, parts: Collection[str]) -> dict[str, dict[str, str]]:
    """The float type of each tensor in each weight file of these parts, by their names."""
    found = {}
    for path in sorted(path for part in parts for path in (folder / part).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            found[path.relative_to(folder).as_posix()] = {name: file.get_slice(name).get_dtype() for name in names}
    return found


@pytest.mark.parametrize(("name", "variant"), EVERY, ids=str)
def test_a_published_model_draws_as_diffusers_draws_it(published, name: str, variant: str | None):
    options = {"variant": variant, "use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    plain = DiffusionPipeline.from_pretrained(published(name), **options)
    plain.set_progress_bar_config(disable=True)
    plain.register_modules(**({"safety_checker": None} if "safety_checker" in plain.components else {}))
    drawn = plain(
        prompt="a photo of person", generator=torch.Generator().manual_seed(3), output_type="pt", **SIZE
    ).images
    family = load_family(published(name), variant=variant)
    assert torch.equal(family.sample(["a photo of person"], seed=3, **SIZE), drawn.float())


@pytest.mark.parametrize(("name", "variant"), EVERY, ids=str)
def test_the_export_of_a_published_model_keeps_its_layout_and_its_cards_code_draws(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, variant: str | None
):
    base = published(name)
    family = load_family(base, variant=variant)
    model = export_model(family, tmp_path / "model", base_path=base, single_file=True, **FACTS)
    run_card(tmp_path, monkeypatch)
    others = {part for part, module in family.pipeline.components.items() if isinstance(module, torch.nn.Module)}
    others.remove(family.denoiser_name)
    ours, theirs = (tensors(folder, others) for folder in (model, base))
    assert {Path(file).parent.name for file in ours} == others
    assert all(found == theirs[file] for file, found in ours.items())
    for part in family.pipeline.components:
        for path in sorted((base / part).glob("*")):
            copy = model / part / path.name
            if path.suffix == ".json" and ".index." not in path.name:
                said, kept = (json.loads(each.read_text()) for each in (path, copy))
                assert kept in (said, said | {"torch_dtype": "float32"})  # see `_load_in_float32`
            elif path.suffix in (".txt", ".model", ".jinja"):
                assert copy.read_bytes() == path.read_bytes()
    assert (model / "model_index.json").read_bytes() == (base / "model_index.json").read_bytes()
    assert {path.name for path in base.glob("LICEN*")} == {path.name for path in model.glob("LICEN*")}


def test_text_encoders_published_in_half_precision_keep_their_variant_beside_a_transformer_in_another(
    published, tmp_path: Path
):
    base = published("stable-diffusion-3.5-large")
    family = load_family(base, variant="fp16")
    export_model(family, tmp_path / "model", base_path=base, **FACTS)
    again = DiffusionPipeline.from_pretrained(tmp_path / "model", variant="fp16", local_files_only=True)
    assert family.saved_variant == "fp16" and again.text_encoder_3 is not None


def test_openvino_weights_beside_a_variant_are_no_pickles(published, tmp_path: Path):
    """As Stable Diffusion XL after a download of its fp16 files."""
    base = published("stable-diffusion-xl-base-1.0")
    plain = [path.relative_to(base) for path in base.glob("*/*.safetensors") if ".fp16." not in path.name]
    folder = Path(shutil.copytree(base, tmp_path / "base"))
    for path in plain:
        (folder / path).unlink()
    with pytest.raises(UserError, match=r"it has model\.fp16\.safetensors: choose with --variant"):
        load_family(folder)
    assert recognise(str(folder), allow_pickle=False).use.endswith(" --variant fp16")


# -- single files --------------------------------------------------------------------------------------------


def single_file(name: str, base: Path, path: Path) -> Path:
    """A single file as the publishers of Stable Diffusion have it: with spare buffers and EMA weights."""
    weights = {key: weight.clone().contiguous() for key, weight in single_file_weights(load_family(base)).items()}
    if name in CLIP:
        start = CLIP[name]
        text = {key.removeprefix(start): w for key, w in weights.items() if key.startswith(start)}
        weights |= {start + key: weight for key, weight in earlier_clip(text, positions=True).items()}
    weights |= {f"model_ema.{key.replace('.', '')}": w + 1 for key, w in weights.items() if key.startswith("model.")}
    weights |= {"model_ema.num_updates": torch.tensor(3, dtype=torch.int32), "betas": torch.ones(1000)}
    save_file(weights, path)
    return path


@pytest.mark.parametrize("name", WHOLE)
def test_a_published_single_file_is_exported_with_the_configurations_of_its_folder(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    base = published(name)
    file = single_file(name, base, tmp_path / "published.safetensors")
    family = load_family(file, single_file_config=base)
    drawn = load_family(base).sample(["a photo of person"], seed=3, **SIZE)
    assert torch.equal(family.sample(["a photo of person"], seed=3, **SIZE), drawn)
    model = export_model(family, tmp_path / "model", base_path=file, single_file=True, **FACTS)
    run_card(tmp_path, monkeypatch)
    index, theirs = (json.loads((folder / "model_index.json").read_text()) for folder in (model, base))
    absent = {part: [None, None] for part in ("safety_checker", "feature_extractor") if part in theirs}
    assert index == theirs | absent
    found = {path.relative_to(model).as_posix() for path in model.glob("*/*.*") if path.suffix != ".safetensors"}
    assert found == {
        path.relative_to(base).as_posix()
        for part in family.pipeline.components
        if index.get(part, [None])[0]
        for path in (base / part).glob("*.*")
        if path.suffix in (".json", ".txt") and ".index." not in path.name
    }
    # Users of earlier versions of transformers need these names.
    assert all(key.startswith("text_model.") for key in load_file(model / "text_encoder/model.safetensors"))


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("stable-diffusion-3.5-large", "text_encoders."),
        ("stable-diffusion-3-medium-diffusers", "text_encoders.t5xxl."),
        ("stable-diffusion-v1-5", "first_stage_model."),
    ],
)
def test_parts_that_a_published_single_file_lacks_come_from_its_folder(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, lacking: str
):
    base, file = published(name), tmp_path / "published.safetensors"
    whole = single_file_weights(load_family(base))
    save_file({key: weight.clone() for key, weight in whole.items() if not key.startswith(lacking)}, file)
    family, expected = load_family(file, single_file_config=base), load_family(base)
    drawn = expected.sample(["a photo of person"], seed=3, **SIZE)
    assert torch.equal(family.sample(["a photo of person"], seed=3, **SIZE), drawn)
    assert family.dtypes == {part: expected.dtypes[part] for part in family.dtypes}
    assert not [name for name, module in family.pipeline.components.items() if getattr(module, "training", False)]
    export_model(family, tmp_path / "model", base_path=file, single_file=True, **FACTS)
    run_card(tmp_path, monkeypatch)
    without = shutil.copytree(base, tmp_path / "configurations", ignore=shutil.ignore_patterns("*.safetensors*"))
    with pytest.raises(UserError, match="appear to be missing in the checkpoint; see whether"):
        load_family(file, single_file_config=without)


def test_the_configurations_of_a_single_file_come_from_the_cache_of_the_hub(
    published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = published("openjourney")
    cached = tmp_path / "cache/models--prompthero--openjourney"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text("0" * 40)
    shutil.copytree(base, cached / "snapshots" / ("0" * 40), ignore=shutil.ignore_patterns("*.safetensors"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    file = single_file("openjourney", base, tmp_path / "published.safetensors")
    family = load_family(file, single_file_config="prompthero/openjourney")
    family.save(tmp_path / "model")
    assert (tmp_path / "model/tokenizer/merges.txt").is_file()
    with pytest.raises(UserError, match="somebody/nothing is no local folder, and the Hub gave no configurations"):
        load_family(file, single_file_config="somebody/nothing")


def test_the_cache_of_a_model_is_told_where_the_model_is(published, tmp_path: Path):
    snapshot = tmp_path / "models--prompthero--openjourney/snapshots/0123abcd"
    shutil.copytree(published("openjourney"), snapshot)
    with pytest.raises(UserError, match=f"name {snapshot}"):
        recognise(str(tmp_path / "models--prompthero--openjourney"), allow_pickle=False)
