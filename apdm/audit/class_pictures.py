"""Pictures that the models draw for the class prompt, without an attack: does the class still look as it did?"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from apdm.audit.cells import CLASS_NOISE, SECOND_CLASS_NOISE, draw
from apdm.audit.plan import AuditPlan, to_unit
from apdm.audit.results import OtherPerson, Utility
from apdm.audit.store import CellStore, key_of
from apdm.core.errors import UserError
from apdm.distributed.processes import ProcessGroup
from apdm.metrics.judges import Features
from apdm.metrics.utility import StrangersLikeness, class_utility, strangers_likeness

AGAIN = "base_again"


def class_keys(plan: AuditPlan) -> dict[str, str]:
    """{set of class pictures: its key in the store}: one for each model, and "base_again"."""
    drawn_by = {AGAIN: "base"} | {arm: arm for arm in plan.arms}
    common = plan.common_facts()
    return {name: key_of({**common, "class": name, "model": plan.sha256(arm)}) for name, arm in drawn_by.items()}


def draw_class_pictures(plan: AuditPlan, store: CellStore, processes: ProcessGroup) -> dict[str, Tensor]:
    """Draw the class pictures that are not in the store yet; the processes share the work.

    The base draws with two sets of seeds, "base" with the first and "base_again" with the second; the other models draw
    with the second. So "hardened" stands to "base" as "base_again" does, and two equal models have an FID ratio of
    exactly 1.

    Returns:
        {set: pictures [N, 3, H, W] in [0, 1]}; those of a broken model are NaN.
    """
    keys = class_keys(plan)
    for name, key in list(keys.items())[processes.index :: processes.size]:
        if key not in store:
            height, width = plan.subjects.protected[0].photos.shape[-2:]
            images = draw(
                plan.drawing,
                plan.models["base" if name == AGAIN else name],
                [plan.class_prompt] * plan.num_class_images,
                plan.seed,
                CLASS_NOISE if name == "base" else SECOND_CLASS_NOISE,
                height=height,
                width=width,
            )
            store.save(key, {"finite": bool(images.isfinite().all())}, {"class": images})
    processes.wait()
    pictures = {}
    for name, key in keys.items():
        row, kept = store.load(key)
        # The store keeps pictures as files, which cannot hold numbers that are not finite.
        pictures[name] = kept["class"] if row["finite"] else torch.full_like(kept["class"], torch.nan)
    return pictures


def measure_utility(
    plan: AuditPlan, pictures: Mapping[str, Tensor], features: Mapping[str, Features], others: list[OtherPerson]
) -> Utility:
    """Compare the models' class pictures; `features` are those of `pictures`."""
    clip = partial(plan.judges.clip_score, prompts=[plan.class_prompt] * plan.num_class_images)
    read = {name: plan.judges.attributes(images) for name, images in pictures.items()}
    values = plan.judges.reader.values if plan.judges.reader else {}
    return Utility(
        **vars(class_utility(features, read, values)),
        clip=clip(pictures["hardened"]),
        clip_base=clip(pictures["base"]),
        other_subjects=others,
    )


def measure_strangers(
    plan: AuditPlan, protected: Mapping[str, Mapping[str, Tensor]], drawn: Features
) -> dict[str, StrangersLikeness]:
    """Measure likeness by chance; see `strangers_likeness`.

    Raises:
        UserError: there are no photos of strangers, and the base's class pictures show no face either.
    """
    photos = plan.subjects.strangers
    if photos is None and not drawn.detected.any():
        raise UserError("the base draws no face for the class prompt: give photos in strangers_data_dir")
    return strangers_likeness(protected, None if photos is None else plan.judges.embed(to_unit(photos)), drawn)
