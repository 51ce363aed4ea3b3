"""`apdm push`: a hardened model is checked and pushed to the Hugging Face Hub, with a card that says what was measured.

Only the files of the pipeline folder that the manifest names are sent. The card names no person, prompt, photo or path.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from apdm.audit import Results, read_results
from apdm.audit.results.rows import by_spec, protected_curve
from apdm.config import HardenConfig, PushConfig, VerifyConfig
from apdm.core.errors import UserError, UserErrors
from apdm.core.logging import get_logger
from apdm.core.terminal import count
from apdm.export.hub import (
    Destination,
    check_destination,
    check_name,
    licence_of,
    make_repository,
    push_files,
    why_not_asked,
)
from apdm.export.hub_card import hub_card
from apdm.export.layout import MANIFEST, MODEL, RESULTS
from apdm.jobs.common.first_checks import check_given
from apdm.jobs.common.results import PushResult
from apdm.jobs.verify import verify

logger = get_logger(__name__)

CARD = "README.md"


def push(config: PushConfig) -> PushResult:
    """Check a run and push its model. `apdm push` runs this function.

    Returns:
        Where the model is on the Hub, and the files that were pushed.

    Raises:
        UserError: the run is not sound, the Hub cannot be used, or the repository holds something else.
    """
    root = Path(config.output_dir)
    names = _model_files(root)
    checked = VerifyConfig(output_dir=config.output_dir, subjects=config.subjects, family=config.family)
    check_given(checked)
    unasked = why_not_asked() if config.dry_run else None
    destination = _destination(config) if unasked is None else _unasked_destination(config, unasked)
    found = verify(checked)
    if found.problems:
        raise UserErrors([UserError(f"nothing was pushed: {problem}") for problem in found.problems])
    files: dict[str, Path | bytes] = {inside: root / MODEL / inside for inside in names}
    files[CARD] = _card(root, destination, config.base_model, ask=unasked is None).encode()
    address = None
    if not config.dry_run:
        logger.info("pushing %s of %s to %s", count(len(files), "file"), root / MODEL, destination.name)
        address = push_files(destination, files)
        if destination.exists and destination.public:
            logger.info("%s keeps its visibility; it is changed in its settings on the Hub", destination.name)
    return PushResult(output_dir=root, repository=destination.name, address=address, files=tuple(sorted(files)))


def check_hub(config: HardenConfig) -> Destination | None:
    """Check before a hardening run that its model can be pushed afterwards; None if it shall not be pushed.

    Raises:
        UserError: as `check_destination`.
    """
    return _destination(config) if config.push_to_hub else None


def _unasked_destination(config: PushConfig, why: str) -> Destination:
    """Where a dry run says that it would push to, without asking the Hub. Raises UserError if that is no name."""
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    check_name(name)
    logger.warning("the repository %s was not looked at: %s", name, why)
    return Destination(name=name, public=config.hub_public)


def _destination(config: PushConfig | HardenConfig) -> Destination:
    """Look the repository up. It is called like the output folder, unless the options name it."""
    name = config.hub_model_id or Path(config.output_dir).resolve().name
    return check_destination(name, public=config.hub_public, overwrite=config.hub_overwrite)


def reserve_repository(config: HardenConfig) -> None:
    """Make the repository before a hardening run. So one that may not be made is found before the long work.

    Raises:
        UserError: as `check_destination`, or it may not be made.
    """
    destination = check_hub(config)
    if destination is not None:
        make_repository(destination)


def push_hardened(config: HardenConfig) -> str | None:
    """Push the model of a finished hardening run, if that is asked for.

    Returns:
        The address on the Hub; None if the model shall not be pushed.

    Raises:
        UserError: the model could not be pushed. The message says how to do that again.
    """
    if not config.push_to_hub:
        return None
    options = PushConfig(
        output_dir=config.output_dir,
        hub_model_id=config.hub_model_id,
        hub_public=config.hub_public,
        hub_overwrite=config.hub_overwrite,
        subjects=None if config.dataset_name is not None else config.instance_data_dir,
        family=config.family,
    )
    try:
        return push(options).address
    except UserError as error:
        name = f" --hub_model_id {config.hub_model_id}" if config.hub_model_id else ""
        raise UserError(f"{error}; the run is finished: apdm push {config.output_dir}{name} pushes it") from None


def _model_files(root: Path) -> list[str]:
    """The names in the pipeline folder of all its files that the manifest lists.

    Raises:
        UserError: there is no manifest, or it lists no model.
    """
    try:
        listed = [str(entry["path"]) for entry in json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{root / MANIFEST} cannot be read; name the output folder of a finished run") from None
    names = [name.removeprefix(f"{MODEL}/") for name in listed if name.startswith(f"{MODEL}/")]
    if CARD not in names:
        raise UserError(f"{root} holds no hardened model; name the output folder of apdm harden")
    return names


def _card(root: Path, destination: Destination, base_model: str | None, *, ask: bool) -> str:
    """The card on the Hub. `ask` is whether the Hub is asked for the licence of the base."""
    text = (root / MODEL / CARD).read_text(encoding="utf-8")
    named = re.search(r"^base_model: (\S+)$", text, flags=re.MULTILINE)
    base = base_model or (named[1] if named else None)
    results = read_results(root / RESULTS) if (root / RESULTS).exists() else None
    models = results if isinstance(results, Results) else None
    return hub_card(
        text,
        name=destination.name,
        base_model=base,
        licence=licence_of(base) if base and ask else {},
        table=results_table(models) if models else [],
        notes=results_notes(models) if models else "",
    )


def results_table(results: Results) -> list[tuple[str, str, str]]:
    """What an audit measured, as rows of texts: what it is, on the base, and on the hardened model.

    The ids of people are not in them, nor paths.
    """
    headline, table = results.cost_factor, list[tuple[str, str, str]]()
    rows = by_spec(results.attacks)[headline.spec]
    for place, encoder in enumerate(results.encoders, start=1):
        curves = [dict(protected_curve(rows, model, encoder)) for model in ("base", "hardened")]
        base, hardened = (_figure(curve.get(headline.nominal_step)) for curve in curves)
        chance = results.strangers[encoder].mean
        by = _public_name(encoder, place, [*results.subjects, *results.others])
        what = f"likeness after {headline.nominal_step} steps of an attack, by {by} (strangers: {chance:.2f})"
        table.append((what, base, hardened))
    faces = results.utility.class_face_rate or {}
    if "base" in faces and "hardened" in faces:
        table.append(("pictures of the class that show a face", _figure(faces["base"]), _figure(faces["hardened"])))
    return table


def results_notes(results: Results) -> str:
    """What else an audit found, in sentences without ids and paths."""
    worst, headline = results.cost_factor.worst, results.cost_factor
    attack = re.split(r"[:/\\]", headline.spec)[0].removesuffix(".py")
    word = "protected" if results.verdict.protected else "not protected"
    people = "1 person" if len(results.subjects) == 1 else f"{len(results.subjects)} people"
    notes = (
        f"Likeness is the mean cosine to photos of {people} that were not trained on, over "
        f"{count(len(results.seeds), 'seed')}; 1 is the same face. By the audit's thresholds the model is **{word}**."
    )
    if worst is not None:
        notes += (
            f" The attack is {attack}. For the same likeness the hardened model takes {worst} as many steps as the "
            f"base; {results.thresholds.min_cost_factor:.1f} times are asked for."
        )
    return notes


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _public_name(encoder: str, place: int, people: Sequence[str]) -> str:
    """The name of a recogniser, unless there is a path or somebody's id in it."""
    words = re.split(r"[^\w]+", encoder.casefold())
    private = "/" in encoder or "\\" in encoder or any(person.casefold() in words for person in people)
    return f"recogniser {place}" if private else encoder
