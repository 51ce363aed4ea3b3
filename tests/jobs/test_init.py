"""`apdm init` asks only what it must, checks what it is told, and writes a file that the commands take."""

from __future__ import annotations

import itertools
import json
import os
import pty
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from real_assets import ASSETS, needs_assets
from safetensors.torch import save_file
from tiny_pipelines import BUILDERS
from tiny_run import write_people

from apdm.cli import main
from apdm.config import HardenConfig, InitConfig, load_config, make_config
from apdm.config.commands.init import QUESTIONS
from apdm.config.groups.presets import MEMORY_PRESETS
from apdm.config.options import options_by_path
from apdm.config.starting_file import (
    KINDS,
    ON_THE_HUB,
    POOL,
    Answers,
    check_card,
    check_faces,
    miniature_kind,
    starting_file,
    starting_values,
)
from apdm.config.yaml_text import parse_yaml
from apdm.core.errors import UserError
from apdm.families import load_family
from apdm.families.single_file.write import single_file_weights
from apdm.jobs.init import KIND_OF_CLASS, init, look_at_model
from apdm.portraits import PIPELINE

ROOT = Path(__file__).parents[2]
CARDS = ("24gb", "48gb", "80gb", "other")
FACES = (["none"], ["bundled"], ["packs/buffalo_l"], ["packs/a pack: 1", "two.onnx=0.3"])
HUB = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def write_photos(folder: Path, number: int = 4) -> Path:
    (folder / "s01").mkdir(parents=True)
    for shade in range(number):
        Image.new("RGB", (32, 32), (shade, shade, shade)).save(folder / f"s01/{shade}.png")
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "subjects")
    return tmp_path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    BUILDERS["sd15"](folder / "make", miniature=False).save_pretrained(folder / "model")
    return folder / "model"


def words(**given: Any) -> list[str]:
    answers = {"make": "model", "model": HUB, "photos": "subjects", "card": "24gb", "faces": "none"} | given
    return ["init", *(word for name, text in answers.items() if text is not None for word in (f"--{name}", str(text)))]


# -- every file that it can write --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*KINDS, "miniature"])
def test_the_command_takes_the_file_of_every_combination_of_answers(name: str) -> None:
    kind = miniature_kind() if name == "miniature" else KINDS[name]
    written = 0
    for make, card, faces in itertools.product(("model", "photos", "both"), CARDS, FACES):
        try:
            check_card(kind, make, card)
            check_faces(kind, make, card, faces)
        except UserError:
            continue
        written += 1
        answers = Answers(
            make=make,
            model="models/a model",
            kind=kind,
            found={"variant": "fp16", "resolution": 768},
            photos="photos: of people",
            card=card,
            faces=faces,
            output_dir="out",
        )
        text = starting_file(answers, file="apdm.yaml")
        config: Any = make_config(answers.config_class, parse_yaml(text))
        is_group = [isinstance(value, dict) for value in parse_yaml(text).values()]
        assert is_group == sorted(is_group), "groups come last"
        places = (config.pretrained_model_name_or_path, config.instance_data_dir)
        assert places == ("models/a model", "photos: of people")
        assert (config.variant, config.resolution) == ("fp16", 768)
        assert config.faces == ([] if faces[0] in ("none", "bundled") else faces)
        assert all(len(line) <= 120 for line in text.splitlines()), text
        assert text.count("# ") >= len(starting_values(answers)) + 2, "every option has a comment"
        assert config.protects_photos == (make != "model")
        if answers.command == "harden" and card in MEMORY_PRESETS and not kind.miniature:
            assert {path: attrgetter(path)(config) for path in MEMORY_PRESETS[card]} == MEMORY_PRESETS[card]
        if faces == ["none"]:
            assert answers.command == "perturb" or not config.audit.enabled
            assert not (config.protects_photos and config.image_layer.zero_shot.enabled)
    assert written >= 6


@pytest.mark.parametrize("name", KINDS)
def test_the_values_are_those_of_the_file_in_configs_but_for_the_pool(name: str) -> None:
    options: Any = {"model": HUB, "photos": "subjects", "card": "other", "faces": ["pack"], "output_dir": "o"}
    values = starting_values(Answers(make="model", kind=KINDS[name], found={}, **options))
    own = {"pretrained_model_name_or_path", "instance_data_dir", "output_dir", "faces", "audit.enabled", *POOL}
    compared = {path: value for path, value in values.items() if path not in own | {"image_layer.enabled"}}
    needed = {"resolution", "num_inference_steps", "guidance_scale", "max_train_steps", "l2p.inner_steps"}
    assert needed < compared.keys()
    file = ["--config", str(ROOT / f"configs/{name}.yaml"), "--instance_data_dir", "subjects"]
    config = load_config(HardenConfig, file)
    assert compared == {path: attrgetter(path)(config) for path in compared}


def test_the_kinds_are_those_of_the_families() -> None:
    from apdm.families.load import families_by_pipeline

    assert KIND_OF_CLASS.keys() == families_by_pipeline().keys()
    assert {kind for kind, _ in ON_THE_HUB.values()} == set(KINDS)


# -- what it finds out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "flux2", "zimage"])
def test_a_folder_says_what_kind_of_model_it_is(name: str, tmp_path: Path) -> None:
    pipeline = BUILDERS[name](tmp_path / "make", miniature=False)
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    if name == "flux2":  # as many heads as 4B has
        edit(tmp_path / "model/transformer/config.json", num_attention_heads=24)
    kind, found = look_at_model(str(tmp_path / "model"), None)
    assert kind is KINDS[name] and found["variant"] == "fp16"
    assert name in ("flux", "flux2", "zimage") or found["resolution"] == 16


def test_flux_2_klein_9b_takes_more_cards_and_a_distilled_klein_draws_in_4_steps(tmp_path: Path) -> None:
    BUILDERS["flux2"](tmp_path / "make", miniature=False).save_pretrained(tmp_path / "model")
    edit(tmp_path / "model/transformer/config.json", num_attention_heads=32)
    edit(tmp_path / "model/model_index.json", is_distilled=True)
    kind, found = look_at_model(str(tmp_path / "model"), None)
    assert kind.cards == ("other",) and "80gb" in KINDS["flux2"].cards and kind.values == KINDS["flux2"].values
    assert found == {"num_inference_steps": 4, "guidance_scale": 1.0}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_the_file_passes_the_dry_run_of_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model=model, card="other")) == 0
    said = capsys.readouterr().out
    assert "apdm harden --config apdm.yaml --dry_run" in said
    assert main(["harden", "--config", "apdm.yaml", "--dry_run", "--num_threads", "1"]) == 0
    assert not Path("outputs").exists()


def test_the_bundled_model_gets_the_values_of_the_demo(tmp_path: Path) -> None:
    people = write_people(tmp_path / "people")
    assert main(words(model=PIPELINE, photos=people / "protected", faces="bundled", make="both")) == 0
    text = Path("apdm.yaml").read_text(encoding="utf-8")
    assert "a photo of t@t person" in text and "preset" not in text and "resolution: 64" in text
    assert main(["harden", "--config", "apdm.yaml", "--dry_run", "--num_threads", "1"]) == 0


# -- wrong answers -----------------------------------------------------------------------------------------------------


def test_without_a_terminal_every_missing_answer_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(card=None, photos=None)) == 2
    message = "apdm: error: --photos, --card must be given: there is no terminal to ask on\n"
    assert capsys.readouterr().err.endswith(message) and not Path("apdm.yaml").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"photos": "nowhere"}, "nowhere does not exist"),
        ({"photos": "empty"}, "empty holds no photos"),
        ({"photos": "three", "faces": "pack"}, "too few to hold some out"),
        ({"model": "empty"}, "is not a diffusers pipeline folder"),
        ({"model": "nowhere"}, "no such folder or file"),
        ({"model": "me/unknown-model"}, "me/unknown-model: model_index.json cannot be read"),
        ({"model": "one.safetensors"}, "--single_file_config"),
        ({"faces": "nowhere"}, "nowhere names no bundled network and no file"),
        ({"faces": "face.pt=0.3"}, "face.pt is a pickle, which can run code"),
        ({"make": "both", "card": "other", "faces": "face.onnx=0.3"}, "no face detector is named"),
        ({"faces": "bundled"}, "nothing says which networks look at faces"),
        ({"card": "24gb", "model": "stabilityai/stable-diffusion-xl-base-1.0"}, "choose 48gb or 80gb or other"),
        ({"make": "photos"}, "photos can be protected only against face recognisers"),
        ({"card": "32gb"}, "one of 24gb, 48gb, 80gb, other"),
        ({"output": "no/file.yaml"}, "lies in a folder that does not exist"),
        ({"output": "empty"}, "is a folder"),
    ],
)
def test_a_wrong_answer_is_one_line_and_nothing_is_written(
    given: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("empty").mkdir()
    Path("pack").mkdir()
    for name in ("one.safetensors", "face.pt", "face.onnx"):
        Path(name).write_bytes(b"")
    write_photos(Path("three"), number=3)
    before = sorted(Path().rglob("*"))
    assert main(words(**given)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert message in line
    assert sorted(Path().rglob("*")) == before


@needs_assets
def test_networks_for_faces_are_checked_as_the_command_will(capsys: pytest.CaptureFixture[str]) -> None:
    pack, weights = ASSETS / "encoders/insightface_pack", ASSETS / "encoders/mobilefacenet/mobilefacenet.pt"

    def code(*more: str, faces: Path | str = f"{pack}=0.25") -> int:
        return main([*words(card="other", faces=faces), *more, "--overwrite", "true"])

    assert code(faces=pack) == 2
    assert "face encoder insightface_pack has no threshold" in capsys.readouterr().err
    assert code() == 0 and not load_config(HardenConfig, ["--config", "apdm.yaml"]).allow_pickle
    named = ["--faces", f"{pack}=0.25", f"{weights}=0.25"]
    rest = words(card="other", faces=None)
    assert main([*rest, *named, "--output", "two.yaml"]) == 2
    assert "mobilefacenet.pt is a pickle, which can run code; pass --allow_pickle true" in capsys.readouterr().err
    assert main([*rest, *named, "--output", "two.yaml", "--allow_pickle", "true"]) == 0
    assert load_config(HardenConfig, ["--config", "two.yaml"]).allow_pickle


def test_all_wrong_answers_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(photos="nowhere", model="no/such/model")) == 2
    said = capsys.readouterr().err
    assert "nowhere does not exist" in said and "no/such/model: no such folder" in said


def test_a_file_that_is_there_is_kept_unless_the_user_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    Path("apdm.yaml").write_text("mine")
    assert main(words()) == 2
    assert "apdm.yaml is there already; name another file with --output" in capsys.readouterr().err
    assert Path("apdm.yaml").read_text() == "mine"
    assert main([*words(), "--overwrite"]) == 0
    assert HUB in Path("apdm.yaml").read_text()


# -- questions ---------------------------------------------------------------------------------------------------------


def test_only_what_the_options_leave_open_is_asked_and_a_wrong_answer_is_asked_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []
    answers = iter(["nowhere", "subjects", "96gb", "48gb", "a 'b", "pack two.onnx=0.3"])
    Path("pack").mkdir()
    Path("two.onnx").touch()

    def ask(question: str) -> str:
        asked.append(question)
        return next(answers)

    # On this card the model gets no audit, so that nothing looks at faces and these networks need not load.
    result = init(InitConfig(make="model", model="stabilityai/stable-diffusion-xl-base-1.0", output="mine.yaml"), ask)
    assert [question[0] for question in asked] == ["3", "3", "4", "4", "5", "5"]
    assert asked[0].startswith("3/5 Where are the photos") and asked[0].endswith("[subjects]: ")
    assert "nowhere does not exist" in caplog.text and "one of 24gb" in caplog.text and "quotation" in caplog.text
    assert "faces: [pack, two.onnx=0.3]" in result.file.read_text()


def test_an_empty_answer_takes_what_is_offered() -> None:
    asked: list[str] = []
    result = init(InitConfig(), lambda question: asked.append(question) or "")  # type: ignore[func-returns-value]
    assert len(asked) == len(QUESTIONS) and result.command == "harden"
    assert set(QUESTIONS) <= options_by_path(InitConfig).keys()


def test_the_questions_are_put_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with open(theirs, "r+b", buffering=0, closefd=False) as raw, open(ours, "wb", buffering=0) as keyboard:
        terminal = os.fdopen(os.dup(raw.fileno()), "r", encoding="utf-8")
        screen = os.fdopen(os.dup(raw.fileno()), "w", encoding="utf-8")
        with terminal, screen:
            monkeypatch.setattr(sys, "stdin", terminal)
            monkeypatch.setattr(sys, "stdout", screen)
            keyboard.write(b"model\n")
            assert main(words(make=None)) == 0
            Path("apdm.yaml").unlink()
            keyboard.write(b"\x04")  # Ctrl-D
            assert main(words(make=None)) == 2
    assert not Path("apdm.yaml").exists()
    os.close(theirs)


def test_a_single_file_needs_its_configurations(model: Path) -> None:
    save_file(single_file_weights(load_family(model)), "one.safetensors")
    assert main([*words(model="one.safetensors"), "--single_file_config", str(model)]) == 0
    assert f"single_file_config: {model}" in Path("apdm.yaml").read_text()


def test_a_file_of_the_denoiser_alone_needs_a_folder_with_the_other_parts(
    folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    BUILDERS["flux"](Path("vocabulary"), miniature=False).save_pretrained("flux")
    flux = load_family("flux")
    save_file(single_file_weights(flux), "flux.safetensors")
    flux.save("half", variant="fp16")
    kind, found = look_at_model("flux.safetensors", "half")
    assert kind == KINDS["flux"] and found == {"single_file_config": "half", "variant": "fp16"}
    assert main([*words(model="flux.safetensors"), "--single_file_config", str(folders("sd15"))]) == 2
    assert "holds a FluxPipeline, but" in capsys.readouterr().err


# -- answers are not lost ----------------------------------------------------------------------------------------------


def test_a_taken_output_folder_is_told_after_the_first_question_and_the_answers_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("outputs/hardened").mkdir(parents=True)
    Path("outputs/hardened/mine.txt").touch()
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return "model"

    with pytest.raises(UserError, match="--output_dir"):
        init(InitConfig(output="my file.yaml"), ask)
    assert len(asked) == 1 and "apdm init --output 'my file.yaml' --make model" in caplog.text


def test_an_answer_that_stands_for_nothing_is_asked_again() -> None:
    answers = iter(["null", "model", "null", HUB, "subjects", "24gb", "none"])
    assert init(InitConfig(), lambda _: next(answers)).command == "harden"


def test_ctrl_c_and_a_file_that_cannot_be_written_keep_the_answers(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["both", HUB])

    def ask(_: str) -> str:
        for answer in answers:
            return answer
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        init(InitConfig(), ask)
    assert f"apdm init --make both --model {HUB}" in caplog.text
    name = "x" * 250  # a longer one than the staging folder may have
    assert main([*words(), "--output", name]) == 2
    assert "cannot be written" in capsys.readouterr().err
