"""Pictures that the models draw for the class prompt without an attack. They show if hardening changed the class."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from apdm.audit.doubts import too_few_strangers
from apdm.audit.inputs.plan import CLASS_NOISE, SECOND_CLASS_NOISE, AuditPlan
from apdm.audit.results.models import OtherPerson, Utility
from apdm.audit.results.store import CellStore, key_of
from apdm.core.errors import UserError
from apdm.core.logging import get_logger
from apdm.distributed.processes import ProcessGroup
from apdm.metrics.judges import Features, Judges
from apdm.metrics.utility import StrangersLikeness, class_utility, strangers_likeness, strangers_matched

logger = get_logger(__name__)

AGAIN = "base_again"  # class pictures of the base with a second set of seeds


def class_keys(plan: AuditPlan) -> dict[str, str]:
    """{name of a set of class pictures: its key in the store}. Each model has a set, and the base also "base_again"."""
    drawn_by = {AGAIN: "base"} | {name: name for name in plan.attacked}
    common = plan.common_facts()
    return {name: key_of({**common, "class": name, "model": plan.facts_of(model)}) for name, model in drawn_by.items()}


def draw_class_pictures(plan: AuditPlan, keys: Mapping[str, str], store: CellStore, processes: ProcessGroup) -> None:
    """Draw the class pictures that are not in the store yet. The processes share the work.

    There are two sets of seeds. The base draws "base" with the first set and "base_again" with the second set. All
    other models draw with the second set. So "hardened" and "base_again" are compared with "base" in the same way, and
    if the hardened model equals the base, the ratio of distances is exactly 1.

    Args:
        keys: {name of the set: its key in the store} of the sets to draw; see `class_keys`.
    """
    for name, key in list(keys.items())[processes.index :: processes.size]:
        if key not in store:
            images = plan.drawing.draw(
                plan.models["base" if name == AGAIN else name],
                [plan.class_prompt] * plan.options.num_class_images,
                plan.seed,
                CLASS_NOISE if name == "base" else SECOND_CLASS_NOISE,
                like=plan.subjects.protected[0].photos,
            )
            store.save(key, {"finite": bool(images.isfinite().all())}, {"class": images})
    processes.wait()


def class_pictures(key: str, store: CellStore) -> Tensor:
    """Read a set of class pictures, `[N, 3, H, W]` in [0, 1]; NaN if the model drew values that are not finite.

    200 pictures of 1024 pixels are 2.5 GB, so no set is kept during the attacks.
    """
    row, kept = store.load(key)
    # The store keeps pictures as PNG files, which cannot hold NaN, so the row says if they were finite.
    return kept["class"] if row["finite"] else torch.full_like(kept["class"], torch.nan)


def measure_utility(
    plan: AuditPlan, pictures: Mapping[str, Tensor], features: Mapping[str, Features], others: list[OtherPerson]
) -> Utility:
    """Compare the class pictures of the models with the base's.

    Args:
        pictures: {name of the set: pictures [N, 3, H, W] in [0, 1]}, as `class_pictures` returns them.
        features: {name of the set: what the judges read from its pictures}.
        others: the likeness of people who are not protected, which becomes part of the result.
    """
    clip = partial(plan.judges.clip_score, prompts=[plan.class_prompt] * plan.options.num_class_images)
    read = {name: plan.judges.attributes(images) for name, images in pictures.items()}
    values = plan.judges.reader.values if plan.judges.reader else {}
    return Utility(
        **vars(class_utility(features, plan.judges.extractor, read, values)),
        clip=clip(pictures["hardened"]),
        clip_base=clip(pictures["base"]),
        other_subjects=others,
    )


def measure_strangers(
    plan: AuditPlan, protected: Mapping[str, Mapping[str, Tensor]], drawn: Features
) -> tuple[dict[str, StrangersLikeness], dict[str, float]]:
    """Measure likeness by chance; see `strangers_likeness`, and `strangers_matched` for whether it is by chance.

    Args:
        plan: the audit's plan, which may hold photos of strangers.
        protected: {person: {encoder: reference embeddings [M, D]}}.
        drawn: what the judges read from the base's class pictures.

    Returns:
        {encoder: likeness by chance}, and {person: share of the strangers who are this person}.

    Raises:
        UserError: there are no photos of strangers, and the base's class pictures show no face either.
    """
    photos = plan.subjects.strangers
    if photos is None:
        require_face(drawn.detected, option="strangers_data_dir")
    faces = None if photos is None else plan.judges.embed_seen(photos)
    thresholds = {encoder.name: encoder.threshold for encoder in plan.judges.encoders}
    return strangers_likeness(protected, faces, drawn), strangers_matched(protected, faces, drawn, thresholds)


def warn_of_few_faces(judges: Judges, detected: Tensor) -> None:
    """Say before the attacks that few class pictures of the base show a face, which makes their outcome doubtful.

    Args:
        judges: whose face score looked at the pictures.
        detected: `[N]` bool, whether each picture shows a face.
    """
    if judges.face_score is not None and 2 * int(detected.sum()) < len(detected):
        logger.warning(
            "%s sees a face in %d of the base's %d class pictures, so the audit will show little: give a "
            "class_prompt that shows faces, or another detector",
            *(judges.face_score.name, int(detected.sum()), len(detected)),
        )


def warn_of_few_strangers(strangers: Mapping[str, StrangersLikeness]) -> None:
    """Say before the attacks that there are few strangers, in photos or among the class pictures."""
    for doubt in too_few_strangers(strangers):
        logger.warning("the audit will be unreliable: %s", doubt)


def require_face(detected: Tensor, *, option: str) -> None:
    """Raise UserError if no class picture of the base shows a face; `option` names photos of strangers instead.

    Args:
        detected: `[N]` bool, whether each class picture shows a face.
        option: the name of the option, for the message.
    """
    if not detected.any():
        raise UserError(f"the base draws no face for the class prompt: give photos in {option}")
