"""Of other libraries a command shows errors only, unless --verbose asks for more."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import types
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from torch.nn import RMSNorm

from apdm.cli import main
from apdm.core.errors import UserError
from apdm.core.libraries import bars_as_before, library_messages, quiet_bars, quiet_libraries

ROOT = Path(__file__).parents[2]


def module(name: str) -> types.ModuleType:
    """A module of another library that prints without a logger."""
    made = types.ModuleType(name)
    exec("import sys\ndef tell(text): print(text)\ndef warn(text): print(text, file=sys.stderr)", vars(made))
    return made


def test_prints_of_deepspeed_are_hidden_and_everybody_elses_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with library_messages(shown=False):
        for name in (
            "deepspeed.comm.torch",
            "torch.utils.cpp_extension",
            "insightface.app",
            "users_plugin",
            "deepspeed_of_mine",
        ):
            module(name).tell(f"{name} tells")
            module(name).warn(f"{name} warns")
        assert not sys.stdout.isatty()  # tqdm and others ask the stream
    said = capsys.readouterr()
    assert said.out == "users_plugin tells\ndeepspeed_of_mine tells\n"
    assert said.err == "users_plugin warns\ndeepspeed_of_mine warns\n"
    with library_messages(shown=True):
        module("deepspeed").tell("built successfully")
    assert capsys.readouterr().out == "built successfully\n"


def test_the_environment_is_as_before_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSERS_VERBOSITY", raising=False)
    with pytest.raises(UserError), library_messages(shown=True):
        assert os.environ["DIFFUSERS_VERBOSITY"] == "info"
        raise UserError("bad input")
    assert "DIFFUSERS_VERBOSITY" not in os.environ


def test_announcements_of_later_changes_are_hidden_and_other_warnings_are_not() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with library_messages(shown=False):
            warnings.warn("renamed in 3.0", FutureWarning, stacklevel=1)
            warnings.warn("gone in 3.0", DeprecationWarning, stacklevel=1)
            warnings.warn("the disk is full", UserWarning, stacklevel=1)
        with library_messages(shown=True):
            warnings.warn("renamed in 3.0, told", FutureWarning, stacklevel=1)
    told = [str(warning.message) for warning in seen]
    assert told == ["the disk is full", "renamed in 3.0, told"]


@pytest.mark.parametrize("shown", [False, True])
def test_norms_in_half_precision_are_not_warned_of(shown: bool) -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with library_messages(shown=shown):
                RMSNorm(8)(torch.ones(2, 8, dtype=torch.bfloat16))
    finally:
        torch.set_warn_always(before)
    assert bool(seen) == shown


def test_libraries_report_errors_only_even_if_they_set_their_own_level(capsys: pytest.CaptureFixture[str]) -> None:
    quiet_libraries()
    logger = logging.getLogger("DeepSpeed")
    before, handler = (logger.level, logger.propagate), logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    try:
        logger.setLevel(logging.WARNING)  # as DeepSpeed does when it is imported
        logger.warning("Setting accelerator to CPU")
        logger.error("out of memory")
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
    assert capsys.readouterr().out == "out of memory\n"
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


IMPORTS = """
import sys
from apdm.cli import main
code = main(["verify", sys.argv[1], *sys.argv[2:]])
import diffusers.loaders, bitsandbytes
from transformers import CLIPImageProcessor, CLIPTextModel
print("after", file=sys.stderr)
"""


@pytest.mark.parametrize("verbose", [False, True])
def test_importing_the_libraries_says_nothing_unless_the_user_wants_it(tmp_path: Path, verbose: bool) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    words = [sys.executable, "-c", IMPORTS, str(tmp_path), *["--verbose"] * verbose]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stderr.splitlines()
    assert said[-1] == "after"
    ours = [line for line in said if line.startswith("apdm: ")]
    assert ours[0].startswith("apdm: loading torch, diffusers and transformers") and "cannot be read" in ours[-1]
    assert (said[:-1] == ours) is not verbose


@pytest.mark.parametrize("words", [["--verbose"], ["--verbose", "true"], ["--verbose=true"]])
def test_every_command_takes_verbose_in_every_way_that_other_switches_are_given(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("harden", "perturb", "audit"):
        assert main([command, *words, "--output_dir", str(tmp_path)]) == 2
        said = capsys.readouterr().err
        assert "must be given" in said and "verbose" not in said
    assert main([*words, "--help"]) == 0
    assert "--verbose" in capsys.readouterr().out


def test_a_program_that_loads_a_model_hears_nothing_from_the_libraries_and_neither_do_their_makers(
    tmp_path: Path,
) -> None:
    """It imports no job, so it meets the libraries at another door than the commands."""
    script = (
        "import apdm.metrics.extractors, apdm.distributed.launch\n"
        "from apdm.families import load_family\n"
        "from apdm.portraits import PIPELINE\n"
        "load_family(PIPELINE)\n"
        "import onnxruntime\n"  # diffusers has imported it
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_TELEMETRY"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.rglob("onnxruntime.db"))  # where ONNX Runtime keeps its reports until they are sent


def test_progress_bars_of_a_program_are_shown_again() -> None:
    import diffusers
    import transformers
    from huggingface_hub import utils as hub

    def shown() -> list[bool]:
        libraries = [library.utils.logging.is_progress_bar_enabled() for library in (diffusers, transformers)]
        return [*libraries, not hub.are_progress_bars_disabled()]

    with bars_as_before():
        for library in (diffusers, transformers):
            library.utils.logging.enable_progress_bar()
        with bars_as_before():
            quiet_bars()
            assert shown() == [False, False, False]
        assert shown() == [True, True, True]
        diffusers.utils.logging.disable_progress_bar()
        with bars_as_before():
            quiet_bars()
        assert shown() == [False, True, True]


def test_the_tests_cannot_reach_the_network() -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(pytest.fail.Exception, match=r"asks the network for huggingface\.co"):
        socket.create_connection(("huggingface.co", 443), timeout=1)
