"""Protect people from being learned by text-to-image models, in the weights and in the photos.

The commands as functions:

    import apdm

    apdm.harden(pretrained_model_name_or_path="sd15", instance_data_dir="subjects", output_dir="hardened")
    apdm.perturb(pretrained_model_name_or_path="sd15", instance_data_dir="subjects", output_dir="protected")
    apdm.audit(base="sd15", hardened="hardened/model", subjects="people", output_dir="audit").protected
    apdm.verify(output_dir="hardened").problems
    apdm.attack(pretrained_model_name_or_path="sd15", photos="people/s01", output_dir="attacked").results.attacks
    apdm.push(output_dir="hardened", hub_model_id="name").address
    apdm.report(results="audit").report
    apdm.compare(results=["audit", "another audit"]).lines
    apdm.reproduce(recipe="miniature/apdm-table12", output_dir="table").table.rows

Each takes the options of the command of the same name, as keyword arguments or as one configuration object. A group of
options, `--l2p.inner_steps` of the command, is a nested mapping: `l2p={"inner_steps": 10}`. Each returns a frozen
dataclass. Bad input raises `UserError`; a request to stop (SIGTERM, Ctrl-C, SIGHUP and others) raises
`Interrupted` once what can be kept is written; its `resumable` says whether the same call goes on from there. Nothing
is printed: messages go to the logger "apdm", and progress bars are shown if `progress=True`. diffusers and transformers
are asked to report errors only, unless they were imported before or their environment variables say otherwise.
Afterwards the calling program has its own signal handlers, number of threads, random state and progress bars again.

Importing this package imports neither torch nor diffusers; the first call does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

from apdm.core.versions import VERSION as __version__

if TYPE_CHECKING:
    from apdm.config import (
        AttackConfig,
        AuditJobConfig,
        CompareConfig,
        HardenConfig,
        PerturbConfig,
        PushConfig,
        ReportConfig,
        ReproduceConfig,
        VerifyConfig,
    )
    from apdm.core.errors import Interrupted, UserError
    from apdm.jobs.common.results import (
        AttackResult,
        AuditResult,
        HardenResult,
        PerturbResult,
        PushResult,
        ReproduceResult,
        VerifyResult,
    )
    from apdm.jobs.report import ReportResult
    from apdm.report.comparison import RunsSideBySide

__all__ = [
    "AttackConfig",
    "AttackResult",
    "AuditJobConfig",
    "AuditResult",
    "CompareConfig",
    "HardenConfig",
    "HardenResult",
    "Interrupted",
    "PerturbConfig",
    "PerturbResult",
    "PushConfig",
    "PushResult",
    "ReportConfig",
    "ReportResult",
    "ReproduceConfig",
    "ReproduceResult",
    "RunsSideBySide",
    "UserError",
    "VerifyConfig",
    "VerifyResult",
    "__version__",
    "attack",
    "audit",
    "compare",
    "harden",
    "perturb",
    "push",
    "report",
    "reproduce",
    "verify",
]

Config = TypeVar("Config")
Result = TypeVar("Result")
_HOMES = {
    "apdm.config": (
        *("AttackConfig", "AuditJobConfig", "CompareConfig", "HardenConfig", "PerturbConfig", "ReportConfig"),
        *("PushConfig", "ReproduceConfig", "VerifyConfig"),
    ),
    "apdm.core.errors": ("Interrupted", "UserError"),
    "apdm.jobs.report": ("ReportResult",),
    "apdm.jobs.common.results": (
        *("AttackResult", "AuditResult", "HardenResult", "PerturbResult", "PushResult", "ReproduceResult"),
        "VerifyResult",
    ),
    "apdm.report.comparison": ("RunsSideBySide",),
}


def harden(
    config: HardenConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> HardenResult:
    """Harden a text-to-image pipeline against personalisation of the given subjects.

    It runs on the devices of this process, or on all processes of a distributed run if the calling program was started
    by `accelerate launch`.

    Args:
        config: a complete `HardenConfig`; or a YAML file such as those of configs/, whose options the keyword arguments
            override.
        progress: show progress bars on stderr.
        options: options of `apdm harden` by name. A group is a nested mapping or a configuration object:
            `l2p={"inner_steps": 10}` or `l2p=L2PConfig(inner_steps=10)`.

    Returns:
        Where the hardened model is, and the audit's results if `audit={"enabled": True}` asked for one.

    Raises:
        UserError: bad options or input, found before any long work starts; or a loss that is not finite.
        Interrupted: the process was asked to stop. A checkpoint is written; call again with
            `resume_from_checkpoint="latest"` to go on.
    """
    from apdm.config import HardenConfig

    resolved = _resolve(HardenConfig, config, options)
    from apdm.jobs.harden import harden as harden_model

    # The processes of a distributed run stay together, because the program may go on with its next call.
    return _run(partial(harden_model, part=False), resolved, progress)


def perturb(
    config: PerturbConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> PerturbResult:
    """Protect photos, so that models that nobody hardened learn less from them.

    Args:
        config: a complete `PerturbConfig`; or a YAML file, whose options the keyword arguments override.
        progress: show progress bars on stderr.
        options: options of `apdm perturb` by name, such as `image_layer={"preset": "low"}`.

    Returns:
        Where the protected photos are, and how visible the changes are.

    Raises:
        UserError: bad options or input, found before any long work starts.
        Interrupted: the process was asked to stop. Finished photos are kept; the same call goes on from there.
    """
    from apdm.config import PerturbConfig

    resolved = _resolve(PerturbConfig, config, options)
    from apdm.jobs.perturb import perturb as perturb_photos

    return _run(perturb_photos, resolved, progress)


def audit(
    config: AuditJobConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> AuditResult:
    """Attack base and hardened model, or clean and protected photos, and judge whether the subjects are protected.

    A verdict of "not protected" is a result, not an error.

    Args:
        config: a complete `AuditJobConfig`; or a YAML file, whose options the keyword arguments override.
        progress: show progress bars on stderr.
        options: options of `apdm audit` by name, such as `suite="quick"`.

    Returns:
        The verdict and all measured values.

    Raises:
        UserError: bad options or input, found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept; the same call goes on from there.
    """
    from apdm.config import AuditJobConfig

    resolved = _resolve(AuditJobConfig, config, options)
    from apdm.jobs.audit import audit_models

    return _run(audit_models, resolved, progress)


def verify(
    config: VerifyConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> VerifyResult:
    """Check a folder that a run wrote: all files as shipped, the model loads, nothing of a subject is in it.

    Args:
        config: a complete `VerifyConfig`; or a YAML file, whose options the keyword arguments override.
        progress: show progress bars on stderr.
        options: options of `apdm verify` by name: `output_dir`, and what to look for in the files.

    Returns:
        The problems that were found, if any.

    Raises:
        UserError: bad options, or a folder without a manifest.
    """
    from apdm.config import VerifyConfig

    resolved = _resolve(VerifyConfig, config, options)
    from apdm.jobs.verify import verify as verify_folder

    return _run(verify_folder, resolved, progress)


def push(config: PushConfig | str | PathLike[str] | None = None, **options: Any) -> PushResult:
    """Check a run, and push its hardened model to the Hugging Face Hub.

    Args:
        config: a complete `PushConfig`; or a YAML file, whose options the keyword arguments override.
        options: options of `apdm push` by name, such as `output_dir="hardened"`.

    Returns:
        Where the model is on the Hub, and the files that were pushed.

    Raises:
        UserError: bad options, the run is not sound, the Hub cannot be used, or the repository holds something else.
    """
    from apdm.config import PushConfig

    resolved = _resolve(PushConfig, config, options, first=False)
    from apdm.jobs.push import push as push_model

    return _run(push_model, resolved, False)


def attack(
    config: AttackConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> AttackResult:
    """Attack one model with photos of people, and measure likeness while each attack runs.

    Each attack gives exactly what it gives in an audit of this model as base, with the same options, photos and seed.
    An attack that fails does not raise; its row says why.

    Args:
        config: a complete `AttackConfig`; or a YAML file, whose options the keyword arguments override.
        progress: show progress bars on stderr.
        options: options of `apdm attack` by name, such as `attack=["lora:rank=32"]`.

    Returns:
        Where the page and the pictures are, and for each attack and person the likeness curve: cosines in [-1, 1] by
        face encoder, after numbers of attack steps.

    Raises:
        UserError: bad options or input, found before any long work starts.
        Interrupted: the process was asked to stop. Finished attacks are kept; the same call goes on from there.
    """
    from apdm.config import AttackConfig

    resolved = _resolve(AttackConfig, config, options)
    from apdm.jobs.attack import attack_model

    return _run(attack_model, resolved, progress)


def report(config: ReportConfig | str | PathLike[str] | None = None, **options: Any) -> ReportResult:
    """Make the page of an audit or of attacks on one model again, from its figures and the pictures beside them.

    Args:
        config: a complete `ReportConfig`; or a YAML file, whose options the keyword arguments override.
        options: options of `apdm report` by name: `results`, the results.json or attack.json or its folder, and
            `output`, the page.

    Returns:
        Where the page is, and which sheets of pictures could not be read.

    Raises:
        UserError: there are no results that this version can read, or something else is in the page's place.
    """
    from apdm.config import ReportConfig

    resolved = _resolve(ReportConfig, config, options, first=False)
    from apdm.jobs.report import report as make_page

    return _run(make_page, resolved, False)


def compare(config: CompareConfig | str | PathLike[str] | None = None, **options: Any) -> RunsSideBySide:
    """Compare audits of models, and write a page of them if `output` names one.

    Args:
        config: a complete `CompareConfig`; or a YAML file, whose options the keyword arguments override.
        options: options of `apdm compare` by name: `results`, a list of at least two, and `output`.

    Returns:
        The table: one line for each audit, with its cells as texts, and the points of the plot. A figure that cannot be
        compared with the first audit's says so in its cell.

    Raises:
        UserError: there are no results that this version can read, or something else is in the page's place.
    """
    from apdm.config import CompareConfig

    resolved = _resolve(CompareConfig, config, options, first=False)
    from apdm.jobs.compare import compare as compare_audits

    return _run(compare_audits, resolved, False)


def reproduce(
    config: ReproduceConfig | str | PathLike[str] | None = None, *, progress: bool = False, **options: Any
) -> ReproduceResult:
    """Make a table of a paper again: protect, attack and judge as its rows say.

    Args:
        config: a complete `ReproduceConfig`; or a YAML file, whose options the keyword arguments override.
        progress: show progress bars on stderr.
        options: options of `apdm reproduce` by name, such as `recipe="apdm/table1-person"`.

    Returns:
        The table, with our figures beside the published ones. A row that could not be run says what it needs.

    Raises:
        UserError: bad options or input, found before any long work starts.
        Interrupted: the process was asked to stop. What is finished is kept; the same call goes on from there.
    """
    from apdm.config import ReproduceConfig

    resolved = _resolve(ReproduceConfig, config, options, first=False)
    from apdm.jobs.reproduce import reproduce as make_table

    return _run(make_table, resolved, progress)


# Python replaces these two functions by the packages apdm.audit and apdm.report when something imports those. The
# packages can be called, and then call the functions that are kept here.
_functions = {"audit": audit, "report": report}


def _resolve(
    cls: type[Config], config: Config | str | PathLike[str] | None, options: Mapping[str, Any], *, first: bool = True
) -> Config:
    """Build the configuration, and check what can be checked before torch is imported; not if `first` is false."""
    from apdm.config.filling import config_of_call
    from apdm.jobs.common.first_checks import check_first

    resolved = config_of_call(cls, config, options)
    if first:
        check_first(resolved)
    return resolved


def _run(job: Callable[[Config], Result], config: Config, progress: bool) -> Result:
    """Run the job, or its dry run if the options ask for it, and restore what it changed in this process."""
    from apdm.core.terminal import show_progress
    from apdm.jobs.common.process_state import frames_freed, restored_process_state

    if getattr(config, "dry_run", False):
        from apdm.jobs.dry_run import dry_run

        job = dry_run
    with frames_freed(), show_progress(progress), restored_process_state():
        return job(config)


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
