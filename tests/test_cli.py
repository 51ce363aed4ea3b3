"""The `apdm` command: exit codes, help, and how mistakes are told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from real_signals import LAUNCHED

import apdm
from apdm import cli
from apdm.cli import program
from apdm.cli.commands import Command
from apdm.cli.program import CRASHED
from apdm.config.help import COMMANDS, MANY
from apdm.config.options import options_by_path
from apdm.core.errors import Interrupted, OtherProcessCrashed, UserError

ROOT = Path(__file__).parents[1]


def raising(error: BaseException):
    def run(argv):
        raise error

    return run


def test_help_lists_every_command_and_exits_with_0(capsys):
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"{name}" in printed and command.summary in printed


def test_no_command_prints_the_help_on_stderr_and_exits_with_2(capsys):
    assert cli.main([]) == 2
    assert "usage: apdm" in capsys.readouterr().err


def test_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"apdm {apdm.__version__}\n"


def test_an_unknown_command_exits_with_2_and_names_the_nearest(capsys):
    assert cli.main(["hardn"]) == 2
    assert capsys.readouterr().err == 'apdm: error: unknown command "hardn"; did you mean "harden"?\n'


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("photo is\nbroken; replace it"), 2, "apdm: error: photo is broken; replace it\n"),
        (
            Interrupted("at step 5; resume with --x", resumable=True),
            3,
            "apdm: interrupted: at step 5; resume with --x\n",
        ),
        (Interrupted("too early", number=signal.SIGHUP), 129, "apdm: interrupted: too early\n"),
        (Interrupted(number=signal.SIGTERM), 143, "apdm: interrupted\n"),
        (KeyboardInterrupt(), 130, "apdm: interrupted\n"),
    ],
)
def test_a_stopped_command_prints_one_line_and_exits_with_its_code(monkeypatch, capsys, error, code, message):
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", raising(error)))
    assert cli.main(["harden"]) == code
    assert capsys.readouterr().err == message


def test_a_process_that_leaves_the_report_to_another_does_not_end_before_it(monkeypatch, capsys):
    """The launcher ends all processes as soon as one has ended."""
    error = UserError("told by the main process")
    error.reported_by_other_process = True
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", raising(error)))
    monkeypatch.setattr(program, "PATIENCE", 1.0)
    spent = []
    for environment in ({}, LAUNCHED):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        began = time.monotonic()
        assert cli.main(["harden"]) == 2
        spent.append(time.monotonic() - began)
    assert spent[0] < 1.0 <= spent[1] and capsys.readouterr().err == ""


def test_a_commands_own_exit_code_is_passed_on(monkeypatch):
    seen = []
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", lambda argv: seen.append(list(argv)) or 1))
    assert cli.main(["harden", "--seed", "1"]) == 1
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", lambda argv: 0))
    assert cli.main(["harden"]) == 0
    assert seen == [["--seed", "1"]]


def test_a_programming_error_is_not_hidden(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", raising(KeyError("x"))))
    with pytest.raises(KeyError):
        cli.main(["harden"])


@pytest.mark.parametrize(
    ("fault", "said"),
    [("KeyError('x')", "KeyError: 'x'"), ("SystemExit(1)", "SystemExit: 1"), ("MemoryError()", "MemoryError")],
)
def test_a_crash_has_an_exit_code_of_its_own(tmp_path, fault, said):
    """Python's own code for it is 1, which says "not protected"."""
    script = f"""
import sys
from apdm import cli
from apdm.cli.commands import Command
def crash(argv):
    raise {fault}
cli.COMMANDS["audit"] = Command("", crash)
cli.console(["audit"])
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == CRASHED == 4
    assert said in run.stderr and "Traceback" in run.stderr
    assert run.stderr.endswith("apdm: crashed with exit code 4; the lines above say where\n")


def test_a_crash_of_another_process_is_no_bad_input(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "harden", Command("", raising(OtherProcessCrashed("KeyError: 'x'"))))
    assert cli.main(["harden"]) == CRASHED
    assert capsys.readouterr().err == "apdm: error: another process of this run has crashed: KeyError: 'x'\n"


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_of_every_command_says_what_its_exit_codes_mean(command, capsys):
    for word in ("--help", "--help-all"):
        assert cli.main([command, word]) == 0
        lines = capsys.readouterr().out.splitlines()
        (first,) = [number for number, line in enumerate(lines) if line.startswith("Exit codes: 0 ")]
        assert "4 a fault of the program" in " ".join(map(str.strip, lines[first : first + 3]))


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_short_and_help_all_has_every_option(command, capsys):
    printed = {}
    for word in ("-h", "--help", "--help-all", "--help_all"):
        assert cli.main([command, "--seed", "1", word]) == 0
        printed[word] = capsys.readouterr().out
    assert printed["-h"] == printed["--help"] and printed["--help-all"] == printed["--help_all"]
    everything = options_by_path(COMMANDS[command])
    assert all(f"\n--{path}  " in printed["--help-all"] for path in everything)
    if len(everything) <= MANY:
        assert printed["--help"] == printed["--help-all"]
        return
    shown = [line for line in printed["--help"].splitlines() if line.startswith("  --")]
    assert 15 <= len(shown) <= 40 and max(map(len, shown)) <= 120
    assert (
        printed["--help"]
        .splitlines()[-1]
        .startswith(f"`apdm {command} --help-all` shows all {len(everything)} options")
    )


def test_env_names_the_versions_and_devices(capsys):
    import torch

    assert cli.main(["env"]) == 0
    versions, jobs = capsys.readouterr().out.split("\n\n")
    assert "harden SD 1.5  " in jobs
    lines = dict(line.split(maxsplit=1) for line in versions.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["apdm"] == apdm.__version__
    assert str(torch.get_num_threads()) in lines["cpu"]


def test_env_takes_no_unknown_options(capsys):
    assert cli.main(["env", "--x"]) == 2
    assert 'unknown option "x"' in capsys.readouterr().err


def test_help_comes_without_importing_torch():
    code = "import sys; from apdm import cli; cli.main(sys.argv[1:]); print('torch' in sys.modules)"
    for argv in (["--help"], ["harden", "--help"]):
        run = subprocess.run([sys.executable, "-c", code, *argv], cwd=ROOT, capture_output=True, text=True)
        assert run.stdout.splitlines()[-1] == "False", run.stderr


def test_train_apdm_is_apdm_harden():
    run = subprocess.run([sys.executable, "train_apdm.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    whole = [
        subprocess.run([sys.executable, *command, "--help-all"], cwd=ROOT, capture_output=True, text=True)
        for command in (["train_apdm.py"], ["-m", "apdm", "harden"])
    ]
    assert run.returncode == whole[0].returncode == whole[1].returncode == 0
    assert "  --l2p.inner_steps  " in run.stdout and "--l2p.accumulate" not in run.stdout
    assert "--l2p.accumulate" in whole[0].stdout
    assert whole[0].stdout == whole[1].stdout


LEAVING = """
import atexit, sys
from apdm.cli import leave
class Held:
    def __del__(self):
        print("taken apart")
held = Held()
atexit.register(print, "atexit")
print("printed", end=" ")
leave(3)
"""


@pytest.mark.parametrize(
    ("size", "printed"),
    [
        ("1", "printed atexit\ntaken apart\n"),
        ("", "printed atexit\ntaken apart\n"),
        ("2", "printed atexit\n"),
        ("two", "printed atexit\n"),
    ],
)
def test_a_launched_process_leaves_with_its_code_and_its_output_and_is_not_taken_apart(size, printed):
    """Taking it apart is when gloo's threads may abort it."""
    environment = {**os.environ, **LAUNCHED, "RANK": "0", "WORLD_SIZE": size}
    result = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stdout) == (3, printed), result.stderr


def test_a_reader_who_has_seen_enough_changes_no_exit_code(tmp_path):
    (tmp_path / "out").mkdir()
    gone = {"path": "model/gone", "sha256": "0"}
    (tmp_path / "out/manifest.json").write_text(json.dumps({"files": [gone], "include": ["model"]}))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "apdm", "verify", str(tmp_path / "out")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert "Broken pipe" not in process.stderr.read()
    assert process.wait(timeout=60) == 1


def test_a_broken_pipe_within_a_command_is_no_success(monkeypatch):
    def broken(argv):
        raise BrokenPipeError(32, "a tracker's process has ended")

    monkeypatch.setitem(cli.COMMANDS, "env", Command("", broken))
    with pytest.raises(BrokenPipeError):
        cli.main(["env"])
