"""What several pages say alike: the verdict, the checks, the judges, and the likeness after an attack."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from apdm.audit.results.common import PhotoCounts, Verdict
from apdm.audit.results.file import AnyResults
from apdm.audit.results.models import AttackRow, PersonRole
from apdm.metrics.judges import NO_FEATURES, JudgesDescription
from apdm.report.curves import Encoder
from apdm.report.numbers import mean

CHECKS = {  # {check: (label, kind of threshold)}
    "match_rate": ("Pictures that match the subject", "at most"),
    "likeness_over_strangers": ("Likeness above that of strangers", "at most"),
    "search_over_strangers": ("Likeness above that of strangers, best of the search", "at most"),
    "cost_factor": ("Steps for base-level likeness, hardened / base", "at least"),
    "other_ratio": ("Likeness of others, hardened / base", "at least"),
    "class_face_rate": ("Class pictures that show a face, hardened / base", "at least"),
    "class_drift": ("Class pictures changed in an attribute", "at most"),
    "class_distance": ("Class pictures' distance to the base, base against itself is 1", "at most"),
}


def common_content(results: AnyResults) -> dict[str, Any]:
    """What the pages of an audit of models and of photos alone have in common, by the names in the templates."""
    return {
        "results": results,
        "counted": photos_counted(results.photos),
        **_about_judges(results.judges),
        "encoders": [Encoder(one.name, one.threshold, results.strangers[one.name]) for one in results.judges.encoders],
        "headline": headline_of(results.verdict),
        "checks": [(check, *CHECKS[check.name]) for check in results.verdict.checks],
        "thresholds": asdict(results.thresholds),
    }


def photos_counted(photos: PhotoCounts | None) -> dict[str, int] | None:
    """How many photos of all people were attacked and held out; None if the results do not say it."""
    if photos is None:
        return None
    return {name: sum(getattr(photos, name).values()) for name in ("attacked", "held_out")}


def _about_judges(judges: JudgesDescription) -> dict[str, Any]:
    """What the templates say differently for different judges, by the names that they use."""
    # The headings name a network, but not BRISQUE twice, or the reason why there is none.
    networks = {key: name for key, name in judges.quality.items() if key != "brisque" and name != NO_FEATURES}
    return {
        "with_faces": judges.face_score is not None,
        "who": ("person", "people") if judges.face_score is not None else ("subject", "subjects"),
        "networks": networks | ({"clip": judges.clip} if judges.clip else {}),
    }


def parameters(used: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, list[Any]]]:
    """{attack: {parameter: its values}}. `used` are the attack and its parameters in each row."""
    found: dict[str, dict[str, list[Any]]] = {}
    for attack, params in used:
        values = found.setdefault(attack, {})
        for key, value in params.items():
            if value not in values.setdefault(key, []):
                values[key].append(value)
    return found


@dataclass(frozen=True)
class Headline:
    """The verdict as the page's headline.

    Attributes:
        state: "protected", "failed" (a check failed) or "unknown" (nothing is claimed).
    """

    state: str
    title: str
    sentence: str


def headline_of(verdict: Verdict) -> Headline:
    """The verdict as the page's headline. A check that could not be measured makes the audit unreliable."""
    checks = [check for check in verdict.checks if check.passed is not None]
    failed = [check for check in checks if not check.passed and check.value is not None]
    if verdict.protected:
        return Headline("protected", "Protected", f"all {len(checks)} checks passed.")
    if failed:
        doubt = ", and the audit is not reliable" if verdict.unreliable else ""
        return Headline("failed", "Not protected", f"{len(failed)} of {len(checks)} checks failed{doubt}.")
    return Headline("unknown", "Not shown to be protected", "the audit is not reliable.")


def mean_likeness(
    rows: Sequence[AttackRow], model: str, encoder: str, *, role: PersonRole = "protected", subject: str | None = None
) -> float | None:
    """Mean likeness after the nominal attack over the rows of one model; failed rows are left out."""
    return mean(
        [
            row.identity[encoder].mean
            for row in rows
            if (row.model, row.role, row.status) == (model, role, "ok") and subject in (None, row.subject)
        ]
    )
