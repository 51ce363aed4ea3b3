"""Whether an attack can run on a model. It is asked before any work."""

from __future__ import annotations

from apdm.attacks import Attack
from apdm.attacks.drawing import DrawnOtherwise
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.staged import stages
from apdm.audit.untrained import Untrained
from apdm.core.errors import UserError
from apdm.families import Family
from apdm.families.prompts import check_distinct


def check_fits(attack: Attack, base: Family) -> None:
    """Check that a model has what an attack trains, and can draw as it draws.

    Raises:
        UserError: it has not, or cannot.
    """
    if isinstance(attack, Untrained):
        attack.check_fits(base)
        return
    for stage in stages(attack):
        if isinstance(stage, DrawnOtherwise):
            stage.drawn(base, base)
        if isinstance(stage, FineTuning):
            stage.check_fits(base)


def check_on_model(spec: str, attack: Attack, base: Family, num_inference_steps: int) -> None:
    """Check, before any work, that an attack can run on a model.

    Args:
        spec: how the user named the attack, for messages.
        num_inference_steps: sampling steps of the pictures.

    Raises:
        UserError: the attack does not fit the model, its prompt says nothing that the class prompt does not say, or an
            attack that edits photos does nothing in so many sampling steps.
    """
    check_fits(attack, base)  # first: options are not worth mending if the attack does not fit the model
    if isinstance(attack, Untrained):
        attack.check_steps(num_inference_steps)
    last = stages(attack)[-1]
    if isinstance(last, FineTuning):
        check_distinct(base, f"{spec}: instance_prompt", last.instance_prompt, last.class_prompt)


def misfit(attack: Attack, base: Family) -> str | None:
    """Why an attack does not fit a model; None if it fits."""
    try:
        check_fits(attack, base)
    except UserError as error:
        return str(error)
    return None
