"""A table of a paper, measured again: ours beside the published figures. The content of table.json, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal, get_args

from apdm.audit.results.models import AttackRow
from apdm.audit.results.rows import row_flags
from apdm.metrics.perception import brisque_missing, lpips_missing
from apdm.metrics.statistics import bootstrap_interval, independent_values

SCHEMA = 1
QUALITY = ("similarity", "brisque", "face_score", "edit_similarity", "edit_lpips", "edit_direction")
OfAttack = Literal["similarity", "brisque", "face_score", "mean", "detected_mean", "face_rate", "match_rate"]
OfEdits = Literal["edit_similarity", "edit_lpips", "edit_direction"]
OfPictures = Literal["trained_similarity", "frechet", "kernel", "clip", "fiqa", "unsafe_rate"]
OfPhotos = Literal["psnr", "ssim", "lpips", "photo_likeness"]
OfCaptions = Literal["caption_frechet", "caption_kernel", "caption_clip"]
Figure = Literal[OfAttack, OfEdits, OfPictures, OfPhotos, OfCaptions, "other"]
UNCHANGED = "the photos are not changed"
PICTURES, PHOTOS, CAPTIONS = (frozenset(get_args(kind)) for kind in (OfPictures, OfPhotos, OfCaptions))
BY_PROMPT = PICTURES | {"mean", "detected_mean", "face_rate"}  # figures that are known of each prompt's pictures


@dataclass(frozen=True, kw_only=True)
class Column:
    """One figure of a table.

    Attributes:
        title: what the paper calls it, or what it is.
        figure: what is measured. similarity is the mean cosine of whole pictures to the hold-out photos (DINO score),
            brisque and face_score are means over the pictures, and mean to match_rate are those of
            `IdentityStatistics`. Those of OfEdits compare edited pictures with their photos, see `edit_quality`. Those
            of OfPictures are measured on the saved pictures of the attack: the similarity to the photos that the attack
            is about, as they were before protection; the distance to these photos; the CLIP score, the quality of
            faces, and the share that a safety checker flags. Those of OfPhotos compare saved protected photos with
            their originals; photo_likeness is the cosine of their faces. Those of OfCaptions are of pictures that the
            row's model draws for captions, without an attack. other is a figure that is not computed.
        better: which figures are better for the person who is protected, or for those who use the model.
        encoder: the number of the likeness encoder, from 0.
        prompt: only the pictures of this prompt, from 0, for figures of BY_PROMPT; None for all pictures.
        pooled: frechet and kernel compare the pictures of all subjects with the photos of all, and not each subject's.
        kind: only subjects of this kind; None for all.
        needs: why the figure is not computed.
        network: what ours is measured with, where it is not what the title stands for.
    """

    title: str
    figure: Figure
    better: Literal["lower", "higher"]
    encoder: int = 0
    prompt: int | None = None
    pooled: bool = False
    kind: str | None = None
    needs: str | None = None
    network: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One figure of one row.

    Attributes:
        ours: the mean over people, of each the mean over seeds; None if it was not measured.
        interval: 95 % bootstrap interval over people, or over the seeds of a single person; None for a single value.
        published: the paper's figure; None if it gives none.
        n: number of people.
        reason: why it was not measured; None if it was.
    """

    ours: float | None = None
    interval: list[float] | None = None
    published: float | None = None
    n: int = 0
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row.

    Attributes:
        not_run: what it needs; None if it was run.
        cells: {column: figure}.
        failed: how many attacks failed. Their figures are not counted.
        differs: how the row differs from the paper's, one sentence each.
        seconds: time of all attacks of the row, with drawing and judging.
        line, place: on which curve of the table's drawing the row is a point, and where; see
            `apdm.jobs.reproducing.recipes`.
    """

    title: str
    not_run: str | None
    cells: dict[str, TableCell]
    failed: int = 0
    differs: list[str] = field(default_factory=list)
    seconds: float = 0.0
    line: str | None = None
    place: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """The content of table.json.

    Attributes:
        recipe: the recipe's name.
        title, source: which table it is, and where the published figures stand.
        miniature: whether it is of the miniature world.
        doubts: why the figures say nothing or little, one sentence each.
        differs: how the table differs from the paper's, one sentence each.
        subjects: ids of the subjects.
        columns, rows: {id: column, row}, in their order.
    """

    schema: int
    recipe: str
    title: str
    source: str
    command: str | None
    package: dict[str, str]
    miniature: bool
    doubts: list[str]
    differs: list[str]
    model: str
    subjects: list[str]
    seeds: list[int]
    columns: dict[str, Column]
    rows: dict[str, TableRow]


def figure_of(column: Column, row: AttackRow, prompts: int) -> float | None:
    """Return one figure of one attack; None if it was not measured.

    Args:
        column: which figure.
        row: the attack, which did not fail.
        prompts: how many prompts the attacker drew with. All have equally many pictures, one prompt after the other.
    """
    if column.figure in QUALITY:
        return row.quality.get(column.figure)
    if column.figure == "other" or column.encoder >= len(row.identity):
        return None
    name = list(row.identity)[column.encoder]
    if column.prompt is None:
        value: float | None = getattr(row.identity[name], column.figure)
        return value
    each = len(row.scores[name]) // prompts
    scores = row.scores[name][column.prompt * each : (column.prompt + 1) * each]
    seen = [score for score in scores if score is not None]
    if column.figure == "mean":
        return sum(seen) / len(scores)
    if column.figure == "face_rate":
        return len(seen) / len(scores)
    return fmean(seen) if column.figure == "detected_mean" and seen else None


def measured_cell(
    column: Column, attacks: Mapping[str, Sequence[AttackRow]], prompts: int, published: float | None
) -> TableCell:
    """Return the figure of a row.

    Args:
        column: which figure.
        attacks: {person: attacks, one for each seed}. Those that failed do not count.
        prompts: how many prompts the attacker drew with.
    """
    found = {
        person: [value for row in rows if row.status == "ok" and (value := figure_of(column, row, prompts)) is not None]
        for person, rows in attacks.items()
    }
    return cell_of(found, published, reason=_why_not(column, attacks))


def cell_of(found: Mapping[str, Sequence[float]], published: float | None, *, reason: str) -> TableCell:
    """Return a cell of {person: figures, one for each seed}. `reason` says why there are none, if there are none."""
    values = [of for of in found.values() if of]
    if not values:
        return TableCell(published=published, reason=reason)
    units = independent_values(values)
    return TableCell(
        ours=fmean(map(fmean, values)),
        interval=list(bootstrap_interval(units)) if len(units) > 1 else None,
        published=published,
        n=len(values),
    )


def _why_not(column: Column, attacks: Mapping[str, Sequence[AttackRow]]) -> str:
    if column.needs is not None:
        return column.needs
    if all(row.status == "failed" for rows in attacks.values() for row in rows):
        return "every attack failed"
    if column.figure == "brisque" and (reason := brisque_missing()):
        return reason
    if column.figure == "edit_lpips" and (reason := lpips_missing()):
        return reason
    return "no picture has a value" if column.figure != "similarity" else "no network for whole pictures"


def doubts_about(unprotected: Sequence[AttackRow] | None) -> list[str]:
    """Reasons why the figures of a table say nothing, from the attacks on what nobody protected; None: not run."""
    if unprotected is None:
        return ["The row without protection was not run, so nothing shows that the attack works here."]
    flagged = [flags for row in unprotected if (flags := row_flags(row))]
    if not flagged:
        return []
    why = flagged[0][0]
    if len(flagged) == len(unprotected):
        return [f"Even without protection the attack does not learn the subjects: {why}. This table is meaningless."]
    some = f"{len(flagged)} of {len(unprotected)} attacks"
    return [f"Without protection {some} learn nobody, so the figures say little: {why}."]
