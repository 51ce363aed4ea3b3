"""The trackers that a run reports to: TensorBoard and Weights & Biases, by accelerate's interface.

accelerate only warns if a tracker's package is missing, and then logs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from apdm.core.disk import told_of_faults
from apdm.core.errors import UserError, first_line

PROJECT = "apdm"
WANDB = "wandb"
# wandb would also upload the command line, what the run prints, and the code. They name prompts, people and folders.
ONLY_FIGURES = {"console": "off", "save_code": False, "disable_code": True, "disable_git": True, "x_disable_meta": True}
MODULES = {"tensorboard": "torch.utils.tensorboard"}  # what accelerate imports, if it is not the tracker's own name


class Tracker:
    """A tracker that has been started. Only the main process has one. Leaving its `with` block closes it.

    Attributes:
        name: accelerate's name of the tracker.
        shows_people: whether the operator allows pictures of protected people, and of attacks on them, to go there.
    """

    def __init__(self, name: str, folder: Path, *, shows_people: bool) -> None:
        """Start the tracker.

        Args:
            name: accelerate's name of the tracker.
            folder: where it writes its files.
            shows_people: whether pictures of protected people may go there.

        Raises:
            UserError: the tracker cannot start, for example because nobody is logged in.
        """
        self.name, self.shows_people = name, shows_people
        self._folder = folder
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        try:
            if name == WANDB:
                folder.mkdir(parents=True, exist_ok=True)
                self._tracker = kind(PROJECT, settings=ONLY_FIGURES, dir=str(folder))
            else:
                self._tracker = kind(PROJECT, logging_dir=str(folder))
            self._tracker.start()
        except (Exception, SystemExit) as error:
            offline = ", set WANDB_MODE=offline" if name == WANDB else ""
            mend = f"mend this{offline} or leave it out"
            raise UserError(f"report_to {name} cannot start ({_said(error)}); {mend}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None and self.name == WANDB:
            self._tracker.tracker.finish(exit_code=1)
        else:
            self._tracker.finish()

    def numbers(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log {name: number}. `step` counts the outer steps of a training; None for what belongs to no step.

        Raises:
            CannotWrite: the disk takes no more.
        """
        with told_of_faults(self._folder):
            self._tracker.log(dict(values), step=step)

    def text(self, name: str, words: str) -> None:
        """Log a text, as Markdown."""
        with told_of_faults(self._folder):
            self._tracker.log({name: words})

    def curves(self, curves: Mapping[str, Sequence[tuple[int, float]]], *, axis: str) -> None:
        """Log curves, {name: [(step, value)]}, whose steps are not those of the training.

        Args:
            axis: what the steps count, such as "attack step".
        """
        by_step: dict[int, dict[str, float]] = {}
        for name, points in curves.items():
            for step, value in points:
                by_step.setdefault(step, {})[name] = value
        if self.name == WANDB:  # which takes no step that is lower than one before, so the axis is a figure of its own
            for name in curves:
                self._tracker.tracker.define_metric(name, step_metric=axis)
        for step, values in sorted(by_step.items()):
            if self.name == WANDB:
                self._tracker.log({axis: step, **values})
            else:
                self.numbers(values, step)

    def pictures(
        self, pictures: Mapping[str, Sequence[Image.Image]], *, of_people: bool, step: int | None = None
    ) -> None:
        """Log pictures, {name: RGB pictures of one size}.

        Args:
            of_people: whether they show protected people, or come from attacks on them. Such pictures are left out
                unless `shows_people`.
            step: as for `numbers`.

        Raises:
            CannotWrite: the disk takes no more.
        """
        if of_people and not self.shows_people:
            return
        with told_of_faults(self._folder):
            for name, images in pictures.items():
                shown: Any = list(images)
                if shown and self.name != WANDB:
                    shown = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
                if len(shown):
                    self._tracker.log_images({name: shown}, step=step)

    def page(self, name: str, file: Path) -> None:
        """Log an HTML page that shows protected people, if `shows_people`, and if the tracker can show pages."""
        if self.shows_people and self.name == WANDB:
            html = importlib.import_module(WANDB).Html(file.read_text(encoding="utf-8"), inject=False)
            self._tracker.log({name: html})


def require_tracker(name: str | None) -> None:
    """Raise UserError if the package of a tracker is not installed or cannot be imported.

    Args:
        name: accelerate's name of the tracker; None for no tracker.
    """
    if name is None:
        return
    mend = 'install it with pip install "apdm[track]", or leave out report_to'
    if name not in [str(tracker) for tracker in get_available_trackers()]:
        raise UserError(f"report_to {name} needs the package {name}, which is not installed; {mend}")
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # whatever a broken installation raises
        raise UserError(f"report_to {name}: the package cannot be imported ({_said(error)}); {mend}") from None


def _said(error: BaseException) -> str:
    """The first line of an exception's message, with its type."""
    return ": ".join(dict.fromkeys([type(error).__name__, first_line(error)]))
