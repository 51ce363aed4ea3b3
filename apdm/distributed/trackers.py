"""The trackers that losses are logged to: tensorboard and wandb, by accelerate.

accelerate only warns if a tracker's package is missing, and then logs nothing.
"""

from __future__ import annotations

import importlib

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from apdm.core.errors import UserError

PROJECT = "apdm"
# wandb would also upload the command line, what the run prints, and the code. They name prompts, people and folders.
ONLY_FIGURES = {"console": "off", "save_code": False, "disable_code": True, "disable_git": True, "x_disable_meta": True}
MODULES = {"tensorboard": "torch.utils.tensorboard"}  # what accelerate imports, if it is not the tracker's own name


def require_tracker(name: str) -> None:
    """Raise UserError if the package of a tracker is not installed or cannot be imported.

    Args:
        name: accelerate's name of the tracker.
    """
    mend = 'install it with pip install "apdm[track]", or leave out report_to'
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise UserError(f"report_to {name} needs the package {name}, which is not installed; {mend}")
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # whatever a broken installation raises
        raise UserError(f"report_to {name}: the package cannot be imported ({_said(error)}); {mend}") from None


def start_tracker(accelerator: Accelerator, name: str) -> None:
    """Start the tracker that `accelerator` was made with. Every process must call this.

    Raises:
        UserError: the tracker cannot start, for example because nobody is logged in.
    """
    try:
        accelerator.init_trackers(PROJECT, init_kwargs={"wandb": {"settings": ONLY_FIGURES}})
    except (Exception, SystemExit) as error:
        offline = ", set WANDB_MODE=offline" if name == "wandb" else ""
        raise UserError(f"report_to {name} cannot start ({_said(error)}); mend this{offline} or leave it out") from None


def _said(error: BaseException) -> str:
    """The first line of an exception's message, with its type."""
    return ": ".join(filter(None, [type(error).__name__, (str(error).splitlines() or [""])[0]]))
