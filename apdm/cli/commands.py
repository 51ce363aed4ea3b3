"""The commands of `apdm`: each reads its options, calls the function of the Python API's job, and prints the result.

A job's module is imported only when its command runs: it imports torch.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from apdm.config import (
    AppConfig,
    AttackConfig,
    AuditJobConfig,
    CompareConfig,
    DemoConfig,
    EnvConfig,
    HardenConfig,
    InitConfig,
    PerturbConfig,
    PushConfig,
    ReportConfig,
    ReproduceConfig,
    VerifyConfig,
    load_config,
)
from apdm.config.filling import command_line
from apdm.core.errors import UserError
from apdm.core.launcher import is_main_process
from apdm.core.logging import get_logger
from apdm.core.quick_imports import quick_imports
from apdm.core.terminal import columns, count, say, tell

Config = TypeVar("Config")
logger = get_logger(__name__)

# Exit codes. FAILED: the audit does not show protection, or `apdm verify` found a problem.
DONE, FAILED, BAD_INPUT = 0, 1, 2


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        summary: what it does, for `apdm --help`.
        run: runs it with the words that follow its name, and returns the exit code.
        codes: what its exit codes 0 and 1 mean, for `--help`.
        summarizes: whether it ends with a summary, which `--json` prints as JSON.
    """

    summary: str
    run: Callable[[Sequence[str]], int]
    codes: str = "0 done"
    summarizes: bool = False


def _options(cls: type[Config], argv: Sequence[str]) -> Config:
    """The checked configuration. All processes of a run read the same words, so only the main one reports a mistake."""
    from apdm.jobs.common.first_checks import check_first

    try:
        config = load_config(cls, argv)
        check_first(config)
    except UserError as error:
        error.reported_by_other_process = not is_main_process()
        raise
    return config


def _harden(argv: Sequence[str]) -> int:
    config = _options(HardenConfig, argv)
    if config.dry_run:
        return _dry_run(config)
    with quick_imports():
        from apdm.jobs.common.summary import of_hardening
        from apdm.jobs.harden import harden

    result = harden(config, command=command_line("harden", argv))
    if is_main_process():
        tell(of_hardening(result))
    # Only the main process knows the results. In the others `protected` is None.
    return FAILED if config.fail_if_unprotected and result.protected is False else DONE


def _demo(argv: Sequence[str]) -> int:
    config = load_config(DemoConfig, argv)
    with quick_imports():
        from apdm.jobs.demo import harden_config, next_step, other_process, prepare

    prepare(config)
    with other_process(config, argv):
        with quick_imports():
            from apdm.jobs.common.summary import of_hardening
            from apdm.jobs.harden import harden

        result = harden(harden_config(config), command=command_line("demo", argv))
    if is_main_process():
        tell(of_hardening(result, next_step=next_step()))
    return DONE


def _init(argv: Sequence[str]) -> int:
    config = load_config(InitConfig, argv)
    logger.info("loading torch and diffusers, which look at the model and the photos")
    with quick_imports():
        from apdm.jobs.init import init

    def ask(question: str) -> str:
        try:
            return input(question)
        except EOFError:
            say("")  # the error stands on a line of its own
            raise UserError("the answers ended before the last question; nothing was written") from None

    result = init(config, ask if sys.stdin.isatty() and sys.stdout.isatty() else None)
    command = f"apdm {result.command} --config {shlex.quote(str(result.file))}"
    next_steps = [f"{command} --dry_run   (checks everything and prints the plan)", command]
    say(*columns({"written": str(result.file), "try next": next_steps}))
    return DONE


def _dry_run(config: object) -> int:
    with quick_imports():
        from apdm.jobs.common.summary import Summary
        from apdm.jobs.dry_run import dry_run

    dry_run(config)
    if is_main_process():
        text = "dry run: everything that the run needs is there; nothing was written"
        tell(Summary(verdict=text, facts={"dry_run": True}))
    return DONE


def _perturb(argv: Sequence[str]) -> int:
    config = _options(PerturbConfig, argv)
    if config.dry_run:
        return _dry_run(config)
    with quick_imports():
        from apdm.jobs.common.summary import of_perturbation
        from apdm.jobs.perturb import perturb

    result = perturb(config, command=command_line("perturb", argv))
    if is_main_process():
        tell(of_perturbation(result))
    return DONE


def _audit(argv: Sequence[str]) -> int:
    config = _options(AuditJobConfig, argv)
    if config.dry_run:
        return _dry_run(config)
    with quick_imports():
        from apdm.jobs.audit import audit_models
        from apdm.jobs.common.summary import of_audit

    result = audit_models(config, command=command_line("audit", argv))
    if not is_main_process():
        return DONE
    # The verdict alone stands on the first line, for scripts.
    tell(of_audit(result), first="protected" if result.protected else "not protected")
    return DONE if result.protected else FAILED


def _attack(argv: Sequence[str]) -> int:
    config = _options(AttackConfig, _named("pretrained_model_name_or_path", argv))
    if config.dry_run:
        return _dry_run(config)
    with quick_imports():
        from apdm.jobs.attack import attack_model
        from apdm.jobs.common.summary import of_attack

    result = attack_model(config, command=command_line("attack", argv))
    if result.results is not None:
        tell(of_attack(result, result.results))
    return FAILED if result.failed else DONE


def _verify(argv: Sequence[str]) -> int:
    config = _options(VerifyConfig, _named("output_dir", argv))
    with quick_imports():
        from apdm.jobs.common.summary import of_verification
        from apdm.jobs.verify import verify

    result = verify(config)
    tell(of_verification(result, with_subjects=config.subjects is not None))
    return DONE if result.ok else FAILED


def _push(argv: Sequence[str]) -> int:
    config = load_config(PushConfig, _named("output_dir", argv))
    with quick_imports():
        from apdm.jobs.common.summary import of_push
        from apdm.jobs.push import push

    tell(of_push(push(config)))
    return DONE


def _report_again(argv: Sequence[str]) -> int:
    config = load_config(ReportConfig, _named("results", argv))
    with quick_imports():
        from apdm.jobs.report import report

    result = report(config)
    rows = {"report": str(result.report)}
    if result.missing:
        rows["missing pictures"] = f"{len(result.missing)} of {count(result.sheets, 'sheet')}; the page says where"
    say(*columns(rows))
    return DONE


def _compare(argv: Sequence[str]) -> int:
    config = load_config(CompareConfig, _named("results", argv))
    with quick_imports():
        from apdm.jobs.compare import compare
        from apdm.report.comparison import text_lines

    say(*text_lines(compare(config)))
    if config.output is not None:
        say(*columns({"page": config.output}))
    return DONE


def _app(argv: Sequence[str]) -> int:
    config = load_config(AppConfig, argv)
    with quick_imports():
        from apdm.app.server import serve

    serve(config)
    return DONE


def _reproduce(argv: Sequence[str]) -> int:
    config = load_config(ReproduceConfig, _named("recipe", argv))
    if config.list:
        with quick_imports():
            from apdm.jobs.reproduce import list_tables

        say(*columns(list_tables(config)))
        return DONE
    if config.plan:
        with quick_imports():
            from apdm.jobs.reproducing.plan import plan_rows

        say(*columns(plan_rows(config)))
        return DONE
    with quick_imports():
        from apdm.jobs.reproduce import reproduce, summary_rows

    result = reproduce(config, command=command_line("reproduce", argv))
    say(*columns(summary_rows(result)))
    return DONE


def _named(option: str, argv: Sequence[str]) -> list[str]:
    """Put the name of an option before its values, which may come first without it."""
    return [f"--{option}", *argv] if argv and not argv[0].startswith("-") else list(argv)


def _environment(argv: Sequence[str]) -> int:
    """Print the versions and devices that a bug report needs; with --models, what these models can be used for."""
    config = load_config(EnvConfig, argv)
    if config.models is not None:
        with quick_imports():
            from apdm.jobs.env_models import look_at_models

        lines, complete = look_at_models(config.models, allow_pickle=config.allow_pickle)
        say(*lines)
        return DONE if complete else BAD_INPUT
    with quick_imports():
        from apdm.jobs.env_machine import machine_lines

    say(*machine_lines())
    return DONE


COMMANDS = {
    "demo": Command("show everything on the bundled miniature model, in minutes", _demo, summarizes=True),
    "init": Command("ask five questions and write a configuration with comments", _init),
    "harden": Command(
        "harden a pipeline against personalisation",
        _harden,
        "0 done, whatever the audit says; 1 not protected, only with --fail_if_unprotected true",
        summarizes=True,
    ),
    "perturb": Command("protect photos against fine-tuning and zero-shot adapters", _perturb, summarizes=True),
    "audit": Command(
        "attack base and hardened model, or protected photos, and say whether they protect",
        _audit,
        "0 protected, 1 not protected or not shown to be",
        summarizes=True,
    ),
    "attack": Command(
        "attack one model with photos of a person, and show the likeness while the attack runs",
        _attack,
        "0 done, 1 an attack failed",
        summarizes=True,
    ),
    "verify": Command(
        "check a folder that a run wrote, and that nothing of a subject is in it",
        _verify,
        "0 all is well, 1 a problem found",
        summarizes=True,
    ),
    "push": Command("push a hardened model to the Hugging Face Hub", _push, summarizes=True),
    "report": Command("make the page of an audit or an attack again from its figures", _report_again),
    "compare": Command("show several audits of models side by side", _compare),
    "app": Command(
        "show a page in the browser that protects photos, and reports",
        _app,
        "0 done, also when Ctrl-C or SIGTERM ends the page",
    ),
    "reproduce": Command(
        "make a published table again, with its baselines, ours beside the published figures",
        _reproduce,
    ),
    "env": Command(
        "print versions, devices and what is missing for which job, or what models can be used for",
        _environment,
        "0 done; with --models: all of them were loaded",
    ),
}
