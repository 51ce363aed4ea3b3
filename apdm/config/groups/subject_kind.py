"""What the subjects are: people, or objects and animals. For objects no network that knows faces is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from apdm.config.judges import EXAMPLE, judge_places
from apdm.config.options import option
from apdm.config.prompts import CLASS_PROMPT, INSTANCE_PROMPT
from apdm.core.errors import UserError

SubjectKind = Literal["person", "object"]


def subject_kind_option() -> Any:
    """The option `subject_kind`, which several commands have."""
    return option(
        "person",
        "What the subjects are: people, or objects and animals. person: faces are judged, and photos are also "
        "protected against face adapters. object: no face network is loaded, likeness is judged by DINO and CLIP (see "
        'judge) with a threshold that is measured on the photos, and instance_prompt must name the class: "a photo of '
        'sks dog".',
        common="photos",
    )


def check_object(
    instance_prompt: str, class_prompt: str, about_faces: Mapping[str, Any], *, is_meant: bool = False
) -> None:
    """Check the options of a run on objects.

    Args:
        instance_prompt: the prompt that a subject is learnt with.
        class_prompt: the prompt of the class that it belongs to.
        about_faces: {option: its value} of options that make sense for people only.
        is_meant: whether the prompts were given on purpose. Then they may name a person, whose whole pictures are
            judged, and not the face.

    Raises:
        UserError: a prompt is the default, which names a person; or an option about faces is given.
    """
    if instance_prompt == INSTANCE_PROMPT and not is_meant:
        raise UserError(
            f'subject_kind is object, but instance_prompt is "{instance_prompt}"; write the class of the object: '
            '"a photo of sks dog"'
        )
    if class_prompt == CLASS_PROMPT and not is_meant:
        raise UserError(
            f'subject_kind is object, but class_prompt is "{class_prompt}", because instance_prompt '
            f'"{instance_prompt}" has no rare word before the class; write "a photo of sks dog", or give class_prompt'
        )
    for name, value in about_faces.items():
        if value:
            raise UserError(f"{name} is about faces, but subject_kind is object; leave it out")


def check_object_judges(specs: list[str], option: str) -> None:
    """Raise UserError if no network is given that can judge the likeness of objects."""
    if not {"dino", "clip"} & judge_places(specs, option).keys():
        raise UserError(
            f"subject_kind is object, so likeness is judged by DINO or CLIP; name one: {option} {EXAMPLE}, a folder or "
            "a name on the Hub"
        )
