"""Which captions an attack trains on, and what it draws with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apdm.attacks import Attack
from apdm.attacks.fine_tuning import FineTuning
from apdm.attacks.photo_treatment import PhotoTreatment
from apdm.attacks.staged import stages


def caption_column(attack: Attack) -> str | None:
    """The column of the captions that an attack, or its last stage, trains on; None if it trains on no captions."""
    last = stages(attack)[-1]
    return last.caption_column if isinstance(last, FineTuning) else None


def assumed(attack: Attack) -> str:
    """What the attacker must have, with the captions that the attack trains on, as half a sentence."""
    if caption_column(attack) is None:
        return attack.assumes
    return f"{attack.assumes}; captions say what the photos show{', and are drawn' if _draws(attack) else ''}"


def _draws(attack: Attack) -> bool:
    """Whether an attack draws the captions that it trains on, if there are some."""
    last = stages(attack)[-1]
    return isinstance(last, FineTuning) and last.draw_captions


def drawn_captions(attack: Attack, captions: Mapping[str, Sequence[str]]) -> list[str]:
    """The captions that an attack draws in turn, as the attacker writes them.

    An attacker draws what was learnt. On the miniature world the captions give far more likeness than the instance
    prompt, which then stands under no photo.

    Args:
        captions: {column: a caption of each photo that the person has}.

    Returns:
        The captions of the photos that the attack trains on; empty if it draws the prompts that it is asked for.
    """
    column = caption_column(attack)
    own = [] if column is None else captions[column]
    for stage in stages(attack):
        if isinstance(stage, PhotoTreatment):
            own = own[: stage.num_photos]
    return [attack.prompt(one) for one in own] if _draws(attack) else []
