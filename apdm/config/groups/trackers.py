"""The options about trackers, which several commands have with the same words."""

from __future__ import annotations

from typing import Any

from apdm.config.options import option
from apdm.core.errors import UserError

# They change nothing that a run makes, so a run goes on with others. {option: default}
TRACKER_OPTIONS: dict[str, Any] = {"report_to": None, "logging_dir": "logs", "report_people": False}


def report_to_option() -> Any:
    """Declare the option `report_to`."""
    return option(
        TRACKER_OPTIONS["report_to"],
        "The tracker that figures and pictures go to: losses, likeness curves, samples. By default none. Prompts, "
        "photos, and ids and pictures of subjects never go there unless report_people is true.",
        common="output",
    )


def logging_dir_option() -> Any:
    """Declare the option `logging_dir`."""
    return option(TRACKER_OPTIONS["logging_dir"], "Folder of the tracker's files, inside output_dir.", holds="path")


def report_people_option() -> Any:
    """Declare the option `report_people`."""
    return option(
        TRACKER_OPTIONS["report_people"],
        "Also send the tracker what shows the protected people: pictures of attacks on them, under their ids, "
        "protected photos, and the page of the report. A tracker that is a web service shows them to everybody who "
        "may open the project, and keeps them; so this is off by default. Pictures that are drawn without an attack "
        "go there anyway. Needs report_to.",
    )


def check_trackers(config: Any) -> None:
    """Raise UserError if pictures of people are to go to a tracker, and none is named."""
    if config.report_people and config.report_to is None:
        raise UserError("report_people sends pictures to a tracker; name it with report_to, or leave report_people out")
