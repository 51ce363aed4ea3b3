"""The Python API: the jobs as functions that return typed results, print nothing and leave the process as it was."""

from __future__ import annotations

import gc
import json
import logging
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from launches import run_launcher
from PIL import Image
from real_signals import signal_when
from tiny_run import OPTIONS, equal, weights, write_people

import apdm
from apdm.attacks.lora import LoRA
from apdm.cli import main
from apdm.config import AttackConfig, HardenConfig, L2PConfig, PoolConfig, load_config
from apdm.config.filling import make_config
from apdm.core import plain_bar

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_people(tmp_path_factory.mktemp("people"))


@pytest.fixture(scope="module")
def options(tiny_pipeline: Path, people: Path) -> dict[str, object]:
    """Options of a short hardening run, all but `output_dir`."""
    model = {"pretrained_model_name_or_path": tiny_pipeline, "instance_data_dir": people / "protected"}
    return {**OPTIONS, **model, "max_train_steps": 2}


@pytest.fixture(scope="module")
def hardened(options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> apdm.HardenResult:
    return apdm.harden(**options, output_dir=tmp_path_factory.mktemp("runs") / "hardened")


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)


def test_importing_the_package_is_quick_and_imports_no_library() -> None:
    code = """
import sys, time
before = set(sys.modules)
start = time.process_time()
import apdm
seconds = time.process_time() - start
print(seconds, *sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""
    measured = [run_python(code).stdout.split() for _ in range(3)]
    loaded = set(measured[0][1:])
    # What is imported says more than a clock. The time is CPU time, which other processes do not stretch.
    assert not loaded & {"torch", "diffusers", "transformers", "numpy", "yaml", "PIL", "accelerate"}, loaded
    assert min(float(seconds) for seconds, *_ in measured) < 0.2


def test_every_public_name_is_there_and_an_unknown_one_is_an_attribute_error() -> None:
    for name in apdm.__all__:
        assert getattr(apdm, name) is not None, name
        assert name in dir(apdm)
    with pytest.raises(AttributeError, match="has no attribute 'hardn'"):
        apdm.hardn  # noqa: B018


def test_type_checkers_see_the_functions_and_their_results(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import apdm\n"
        "reveal_type(apdm.harden(max_train_steps=1))\n"
        "reveal_type(apdm.perturb().image_dir)\n"
        "reveal_type(apdm.audit('audit.yaml', seed=1).protected)\n"
        "reveal_type(apdm.verify(output_dir='x').problems)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(program)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    for kind in ("apdm.jobs.common.results.HardenResult", "pathlib.Path", "bool", "tuple[str, ...]"):
        assert f'Revealed type is "{kind}"' in said, said
    assert (ROOT / "apdm/py.typed").is_file()


def test_harden_returns_where_the_model_is(hardened: apdm.HardenResult) -> None:
    assert hardened.steps == 2
    assert (hardened.seconds or 0) > 0 and (hardened.peak_memory_bytes or 0) > 10**8  # Python with torch takes more
    assert hardened.model_dir == hardened.output_dir / "model"
    assert repr(hardened).endswith("image_dir=None, pushed=None, protected=None)")
    assert (hardened.model_dir / "unet/diffusion_pytorch_model.safetensors").is_file()
    assert (hardened.image_dir, hardened.results, hardened.protected) == (None, None, None)


def test_the_command_gives_the_same_weights_as_the_function_and_says_where_they_are(
    hardened: apdm.HardenResult, options: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["harden", *words, "--output_dir", str(tmp_path / "run")]) == 0
    assert equal(weights(hardened.output_dir), weights(tmp_path / "run"))
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith(f"hardened model  {tmp_path / 'run/model'} (2 outer steps in ")
    assert first.endswith(" GB of memory)")
    assert more == [
        "changed         100.0% of the denoiser's weights",
        f"try next        apdm verify {tmp_path / 'run'}",
    ]


def test_a_fresh_process_prints_nothing_and_neither_do_the_libraries(
    options: dict[str, object], tmp_path: Path
) -> None:
    code = "import apdm, json, sys; apdm.harden(**json.loads(sys.argv[1]))"
    process = run_python(code, json.dumps({**options, "output_dir": tmp_path / "run"}, default=str))
    assert (process.stdout, process.stderr) == ("", "")
    assert (tmp_path / "run/model").is_dir()


def test_messages_go_to_the_logger(
    options: dict[str, object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="apdm"):
        apdm.harden(**{**options, "preset": "80gb", "mixed_precision": "no"}, output_dir=tmp_path / "run")
    assert any(message.startswith("preset 80gb") for message in caplog.messages)


def test_progress_bars_are_shown_on_request(
    options: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_bar, "FIRST", 0.0)  # seconds until the first line, where there is no terminal
    apdm.harden(**options, output_dir=tmp_path / "run", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "harden: 50% done, about" in err


def test_signal_handlers_threads_bars_and_random_numbers_are_left_as_they_were(
    options: dict[str, object], tmp_path: Path
) -> None:
    def mine(number: int, frame: object) -> None:
        pass

    before, interrupt = signal.signal(signal.SIGTERM, mine), signal.getsignal(signal.SIGINT)
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    try:
        with pytest.raises(apdm.UserError):
            apdm.harden(**{**options, "instance_data_dir": tmp_path / "nowhere"}, output_dir=tmp_path / "bad")
        apdm.verify(output_dir=apdm.harden(**{**options, "num_threads": 3}, output_dir=tmp_path / "run").output_dir)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGINT) is interrupt
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.rand(2), drawn)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_next_call_may_use_another_precision(options: dict[str, object], tmp_path: Path) -> None:
    code = """
import apdm, json, sys
options = json.loads(sys.argv[1]) | {"overwrite_output_dir": True}
for precision in ("no", "bf16", "no"):
    apdm.harden(**options, output_dir=f"{sys.argv[2]}/{precision}", mixed_precision=precision)
"""
    run_python(code, json.dumps(options, default=str), tmp_path)
    assert not equal(weights(tmp_path / "no"), weights(tmp_path / "bf16"))


def test_processes_that_were_launched_together_go_on_with_the_next_call(
    options: dict[str, object], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import apdm, json, os, sys\n"
        "options = json.loads(sys.argv[1])\n"
        "for name in ('first', 'second'):\n"
        "    result = apdm.harden(**options, output_dir=f'{sys.argv[2]}/{name}')\n"
        "assert (result.moved is None) is (os.environ['RANK'] == '1')\n"
    )
    words = [program, json.dumps({**options, "train_batch_size": 2}, default=str), tmp_path]
    done = run_launcher("cpu_2proc_ddp", 2, [*words])
    assert done.returncode == 0, done.stderr
    assert equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


def test_a_job_runs_in_a_thread_as_well(options: dict[str, object], tmp_path: Path) -> None:
    results: list[apdm.HardenResult] = []
    thread = threading.Thread(target=lambda: results.append(apdm.harden(**options, output_dir=tmp_path / "run")))
    thread.start()
    thread.join()
    assert results[0].steps == 2


def test_groups_are_given_as_mappings_as_objects_or_by_dotted_names() -> None:
    required = {"pretrained_model_name_or_path": Path("m"), "instance_data_dir": "i", "output_dir": "o"}
    words = [word for key, value in required.items() for word in (f"--{key}", str(value))]
    wanted = load_config(HardenConfig, [*words, "--l2p.inner_steps", "7", "--pool.size", "2"])
    for groups in (
        {"l2p": {"inner_steps": 7}, "pool": {"size": 2}},
        {"l2p": L2PConfig(inner_steps=7), "pool": PoolConfig(size=2)},
        {"l2p.inner_steps": 7, "pool.size": 2},
    ):
        assert make_config(HardenConfig, {**required, **groups}) == wanted


def test_values_may_be_those_of_numpy() -> None:
    required = {"pretrained_model_name_or_path": np.str_("m"), "photos": "i", "output_dir": "o", "attack": ("lora",)}
    arrays = {"learning_rate": np.float32(0.5), "max_train_steps": np.int64(7), "eval_steps": range(1, 4, 2)}
    plain = {"learning_rate": 0.5, "max_train_steps": 7, "eval_steps": [1, 3]}
    wanted = make_config(AttackConfig, {**required, **plain})
    assert make_config(AttackConfig, {**required, **arrays}) == wanted
    assert make_config(AttackConfig, {**required, **arrays, "eval_steps": np.array([1, 3])}) == wanted
    with pytest.raises(apdm.UserError, match="it needs a whole number"):
        make_config(AttackConfig, {**required, "max_train_steps": np.float64(7.5)})


def test_a_file_gives_options_that_arguments_override(
    options: dict[str, object], tiny_pipeline: Path, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"pretrained_model_name_or_path: {tiny_pipeline}\nmax_train_steps: 9\nclass_prompt: a photo\n")
    given = {key: value for key, value in options.items() if key != "pretrained_model_name_or_path"}
    result = apdm.harden(file, **given, output_dir=tmp_path / "run")
    written = (result.output_dir / "config.yaml").read_text()
    assert "max_train_steps: 2" in written and "class_prompt: a photo\n" in written


class Pipeline(torch.nn.Module):
    """Something that can be saved, and whose `repr` has more than one line."""

    def save_pretrained(self, folder: str) -> None:
        pass

    def __repr__(self) -> str:
        return "two\nlines"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apdm.harden(output_dir="o"), "pretrained_model_name_or_path must be given"),
        (lambda: apdm.harden(outputdir="o"), 'unknown option "outputdir" in the call; did you mean "output_dir"'),
        (lambda: apdm.harden(seed="x"), 'seed in the call is "x" (str); it needs a whole number'),
        (
            lambda: apdm.harden(l2p={"inner_steps": 0}),
            "l2p.inner_steps in the call is 0 (int); it needs to be",
        ),
        (
            lambda: apdm.harden(apdm.VerifyConfig(output_dir="o")),
            "the first argument is the configuration, a YAML file or the object HardenConfig, and it is a VerifyConfig"
            "; give options by name: pretrained_model_name_or_path=...",
        ),
        (lambda: apdm.harden(l2p=L2PConfig), "l2p in the call is a group of options; set one of them"),
        (lambda: apdm.reproduce(ROOT), f"{ROOT} is a folder; give options by name: recipe=..."),
        (lambda: apdm.verify(ROOT), f"{ROOT} is a folder; give options by name: output_dir=..."),
        (lambda: apdm.compare(["a", "b"]), "and it is a list; give options by name: results=..."),
        (lambda: apdm.attack(attack="dreambooth"), 'each item text; write ["dreambooth"]'),
        (lambda: apdm.attack(attack=[LoRA]), 'write the class into a file, and give "file.py:LoRA"'),
        (
            lambda: apdm.attack(attack=[LoRA(instance_prompt="a", class_prompt="b")]),
            'give it as text, such as "name:option=value"',
        ),
        (lambda: apdm.attack(photos=[Image.new("RGB", (8, 8))]), "save it into a folder, and give the folder"),
        (
            lambda: apdm.attack(pretrained_model_name_or_path=Pipeline()),
            "is two lines (Pipeline); it needs text; save it with save_pretrained, and give the folder",
        ),
        (
            lambda: apdm.verify(output_dir=apdm.HardenResult(output_dir=ROOT, model_dir=ROOT / "model", steps=1)),
            "it needs text; give its output_dir or its model_dir",
        ),
        (lambda: apdm.verify(apdm.VerifyConfig(output_dir="o"), prompts=[]), "prompts beside a VerifyConfig"),
        (lambda: apdm.verify("nowhere.yaml"), "nowhere.yaml cannot be read"),
    ],
)
def test_a_mistake_in_the_arguments_is_an_exception_that_names_it(call, message: str) -> None:
    with pytest.raises(apdm.UserError) as error:
        call()
    assert message in str(error.value)


def test_an_interrupted_job_raises_and_keeps_its_checkpoint(options: dict[str, object], tmp_path: Path) -> None:
    def denoisers() -> int:
        gc.collect()
        return sum(type(one) is UNet2DConditionModel for one in gc.get_objects())

    before = denoisers()
    with signal_when(tmp_path / "run/checkpoint-000001", signal.SIGINT), pytest.raises(apdm.Interrupted) as kept:
        apdm.harden(**{**options, "max_train_steps": 500}, output_dir=tmp_path / "run")
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert denoisers() == before  # although `kept` holds the error, as a notebook does
    assert kept.tb is not None


def test_perturb_returns_the_photos_and_their_figures(
    options: dict[str, object], people: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = {key: options[key] for key in ("pretrained_model_name_or_path", "instance_data_dir", "resolution")}
    layer = {"method": "noise", "zero_shot": {"enabled": False}}
    result = apdm.perturb(**given, output_dir=tmp_path / "photos", image_layer=layer)
    assert sorted(path.name for path in (result.image_dir / "s01").iterdir()) == sorted(
        path.name for path in (people / "protected/s01").glob("*.png")
    )
    assert result.figures is not None and {photo.subject for photo in result.figures.photos} == {"s01"}
    assert tuple(capfd.readouterr()) == ("", "")


def test_audit_returns_the_verdict_whether_or_not_its_package_was_imported(
    hardened: apdm.HardenResult, options: dict[str, object], people: Path, tmp_path: Path
) -> None:
    import apdm.audit.verdict  # takes the name of the function

    names = {"subjects": "protected", "holdout_data_dir": "holdout", "strangers_data_dir": "strangers"}
    subjects = {option: people / folder for option, folder in names.items()}
    short = {"max_train_steps": 2, "num_images": 2, "num_inference_steps": 2, "num_class_images": 2, "seeds": 1}
    result = apdm.audit(
        base=options["pretrained_model_name_or_path"],
        hardened=hardened.model_dir,
        output_dir=tmp_path / "audit",
        attacks=["dreambooth"],
        resolution=16,
        num_threads=1,
        **subjects,
        **short,
    )
    assert isinstance(result, apdm.AuditResult)
    assert repr(result) == f"AuditResult(output_dir={result.output_dir!r}, protected=False)"
    assert result.protected is False and result.verdict.reasons
    assert result.results is not None
    written = json.loads((result.output_dir / "results.json").read_text())
    assert written["verdict"]["protected"] is False and written["command"] is None


def test_verify_returns_the_problems(hardened: apdm.HardenResult, tmp_path: Path) -> None:
    assert apdm.verify(output_dir=hardened.output_dir).ok
    (hardened.output_dir / "stray.txt").write_text("what is this?")
    result = apdm.verify(output_dir=hardened.output_dir)
    (hardened.output_dir / "stray.txt").unlink()
    assert not result.ok and len(result.problems) == 1 and "stray.txt" in result.problems[0]
