"""What the results of an audit, of attacks on one model and of protected photos look like in a tracker.

Curves and figures are means over people and seeds, so that no id of a person stands in their names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean

from apdm.attacks.registry import without_words
from apdm.audit.results.common import Verdict
from apdm.audit.results.file import AnyResults
from apdm.audit.results.models import Results
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.picture_names import COURSE
from apdm.audit.results.rows import by_spec, protected_curve
from apdm.config import AuditingConfig, PerturbConfig
from apdm.core.errors import first_line
from apdm.core.logging import get_logger
from apdm.core.pictures import read_grid, to_pil, to_unit
from apdm.data.subjects import find_subjects, load_images
from apdm.distributed.trackers import Tracker
from apdm.export.layout import IMAGES
from apdm.image_layer.results import Perturbation
from apdm.report.pictures import Pictures
from apdm.report.strips import strip_image, strips

logger = get_logger(__name__)

AXIS = "attack step"
SHOWN = 4  # protected photos of each person that a tracker gets


def start_tracker(options: AuditingConfig | PerturbConfig, held: ExitStack) -> Tracker | None:
    """Start the tracker that a job reports to, if any. `held` closes it.

    Raises:
        UserError: the tracker cannot start.
    """
    if options.report_to is None:
        return None
    folder = Path(options.output_dir) / options.logging_dir
    return held.enter_context(Tracker(options.report_to, folder, shows_people=options.report_people))


@contextmanager
def kept_without(tracker: Tracker, files: str) -> Iterator[None]:
    """Log what goes wrong with the tracker as a warning: the results are on the disk already."""
    try:
        yield
    except Exception as error:  # whatever a service's client raises
        said = first_line(error)
        logger.warning("%s did not take everything (%s: %s); %s", tracker.name, type(error).__name__, said, files)


def track_audit(tracker: Tracker, results: AnyResults, pictures: Pictures, report: Path) -> None:
    """Send the figures, pictures and report of a finished audit to a tracker.

    Args:
        pictures: what the report shows of the audit's pictures, by name; those of the class show no protected person.
            Of the course of the attacks only the strips are sent.
    """
    with kept_without(tracker, f"all results are in {report.parent}"):
        if isinstance(results, Results):
            tracker.curves(likeness_curves(results), axis=AXIS)
        tracker.numbers(audit_figures(results))
        tracker.text("audit/verdict", verdict_table(results.verdict))
        shown = {name: images for name, images in pictures.items() if name.split("/")[0] != COURSE}
        if isinstance(results, Results):
            shown |= {f"strips/{spec}": [strip_image(one)] for spec, one in strips(results, pictures).items()}
        for name, images in shown.items():
            tracker.pictures({f"audit/{name}": images}, of_people=not name.startswith("class/"))
        tracker.page("audit/report", report)


def track_attack(tracker: Tracker, results: AttackResults, sheets: Mapping[str, Path], report: Path) -> None:
    """Send the likeness curves of attacks on one model to a tracker; the pictures and the page if it may show people.

    Args:
        sheets: the files of the sheets of pictures by name. All come from attacks on people.
    """
    with kept_without(tracker, f"all results are in {report.parent}"):
        tracker.curves(likeness_curves(results), axis=AXIS)
        for name, sheet in sheets.items():
            tracker.pictures({f"attack/{name}": [read_grid(sheet)]}, of_people=True)
        tracker.page("attack/report", report)


def likeness_curves(results: Results | AttackResults) -> dict[str, list[tuple[int, float]]]:
    """Return the mean likeness to protected people while each attack runs.

    Returns:
        {"likeness/<attack>/<model>/<encoder>": [(attack step, likeness)]}.
    """
    curves, of_attacks = {}, by_spec(results.attacks)
    names = names_without_words(of_attacks)
    for spec, rows in of_attacks.items():
        for model in dict.fromkeys(row.model for row in rows):
            for encoder in results.encoders:
                if points := protected_curve(rows, model, encoder):
                    curves[f"likeness/{names[spec]}/{model}/{encoder}"] = [(int(step), value) for step, value in points]
    return curves


def names_without_words(specs: Iterable[str]) -> dict[str, str]:
    """Return {attack: its name in a tracker}; see `without_words`. Those with the same name are numbered."""
    names: dict[str, str] = {}
    for spec in specs:
        plain = without_words(spec)
        same = sum(without_words(other) == plain for other in names)
        names[spec] = f"{plain} {same + 1}" if same else plain
    return names


def audit_figures(results: AnyResults) -> dict[str, float]:
    """Return the verdict, the measured checks, and the mean likeness that attacks on photos reach."""
    figures = {"audit/protected": float(results.verdict.protected)}
    figures |= {f"audit/{one.name}": one.value for one in results.verdict.checks if one.value is not None}
    if results.image_layer is not None:
        rows = results.image_layer.attacks
        attacks = names_without_words(dict.fromkeys(row.attack for row in rows))
        purifiers = names_without_words(dict.fromkeys(row.purifier for row in rows if row.purifier is not None))
        seen: dict[str, list[float]] = {}
        for row in rows:
            photos = row.photos if row.purifier is None else f"{row.photos} after {purifiers[row.purifier]}"
            for encoder, entry in row.identity.items():
                seen.setdefault(f"likeness/photos/{attacks[row.attack]}/{photos}/{encoder}", []).append(entry.mean)
        figures |= {name: fmean(values) for name, values in seen.items()}
    return figures


def verdict_table(verdict: Verdict) -> str:
    """Return the verdict and its checks as Markdown, without the sentences that name people."""
    lines = [f"**{'protected' if verdict.protected else 'not protected'}**", "", "| check | value | limit | |"]
    lines.append("| --- | --- | --- | --- |")
    words = {True: "passed", False: "failed", None: "not measured"}
    for one in verdict.checks:
        value = "" if one.value is None else f"{one.value:.3g}"
        lines.append(f"| {one.name} | {value} | {one.limit:.3g} | {words[one.passed]} |")
    return "\n".join([*lines, "", "report.html in the output folder shows the pictures and explains the checks."])


def track_photos(tracker: Tracker, figures: Perturbation, output: Path, resolution: int) -> None:
    """Send the mean figures of protected photos to a tracker, and some of the photos if it may show people.

    Args:
        resolution: side of the shown photos.
    """
    with kept_without(tracker, f"all figures are in {output}"):
        tracker.numbers(photo_figures(figures))
        for subject in find_subjects(output / IMAGES) if tracker.shows_people else []:
            photos = to_unit(load_images(subject.images[:SHOWN], resolution))
            tracker.pictures({f"photos/{subject.id}": list(map(to_pil, photos))}, of_people=True)


def photo_figures(figures: Perturbation) -> dict[str, float]:
    """Return means over all photos: how visible the changes are, and what the misled encoders make of the faces."""
    seen: dict[str, list[float]] = {}
    for photo in figures.photos:
        for name, value in vars(photo.visible).items():
            if value is not None:
                seen.setdefault(f"photos/{name}", []).append(value)
        for face in photo.faces:
            for encoder, cosine in face.cosine.items():
                seen.setdefault(f"photos/cosine to original/{encoder}", []).append(cosine.to_original)
    return {"photos/number": float(len(figures.photos)), **{name: fmean(values) for name, values in seen.items()}}
