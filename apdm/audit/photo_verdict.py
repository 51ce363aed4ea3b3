"""The verdict on protected photos: from the rows of the attacks to figures, checks and a verdict. All of it is pure.

It is as strict as the verdict on models. Every attack that was run counts, alone and after each purifier. The worst
counts: the worst person, encoder, prompt and seed, under the worse of the two conventions for pictures without a face.
An attack that does not work with clean photos says nothing about protected ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from apdm.audit.checks import likeness_check, match_check, photo_points
from apdm.audit.doubts import among_strangers, too_few_strangers, unmeasured
from apdm.audit.results.common import State, Verdict
from apdm.audit.results.models import Thresholds
from apdm.audit.results.photos import PhotoAttackRow, PhotoComparison, PhotoOutcome, PhotoQuality, PhotoThresholds
from apdm.audit.results.rows import MIN_BASE_MATCH_RATE, compared
from apdm.audit.verdict import common_notes, conclude, without_chance, worst_checks
from apdm.metrics.identity import face_rate
from apdm.metrics.statistics import independent_values
from apdm.metrics.utility import StrangersLikeness

NO_PURIFIER = (
    "No purifier was tried, so nothing is known about an attacker who first compresses, resizes or blurs the photos: "
    'see the option purifiers, such as "jpeg:quality=75".'
)
Pair = tuple[PhotoAttackRow, PhotoAttackRow]  # the rows of one person and seed, with clean and with protected photos


def judge_photo_attacks(
    rows: Sequence[PhotoAttackRow],
    strangers: Mapping[str, StrangersLikeness],
    thresholds: Thresholds | PhotoThresholds,
    *,
    doubts: Sequence[str],
) -> list[PhotoOutcome]:
    """Judge each attack, alone and after each purifier, in the order of the rows.

    Args:
        strangers: {encoder: likeness by chance}.
        thresholds: the thresholds of the checks.
        doubts: reasons why no attack shows protection, whatever was measured: see `doubts_about_judges`.
    """
    clean = {(row.attack, row.subject, row.seed): row for row in rows if row.photos == "clean"}
    groups: dict[tuple[str, str | None], list[PhotoAttackRow]] = {}
    for row in rows:
        if row.photos == "protected":
            groups.setdefault((row.attack, row.purifier), []).append(row)
    outcomes = []
    for (attack, purifier), protected in groups.items():
        pairs = [(clean[row.attack, row.subject, row.seed], row) for row in protected]
        points = photo_points(protected)
        checks = [
            match_check(points, thresholds.max_match_rate),
            likeness_check(points, strangers, thresholds.max_likeness_over_strangers),
        ]
        sound = [pair for pair in pairs if all(row.status == "ok" for row in pair)]
        void = [first for first, _ in pairs if is_void(first)]
        outcomes.append(
            PhotoOutcome(
                attack=attack,
                purifier=purifier,
                state=_state(pairs, [check.passed for check in checks], doubts),
                cells=len(protected),
                failed=sum(row.status == "failed" for pair in pairs for row in pair),
                void=len(void),
                checks=checks,
                comparison={encoder: _comparison(sound, encoder) for encoder in strangers} if sound else {},
                quality=_quality(sound),
                unreliable=[*doubts, *(flag for pair in pairs for flag in _flags(pair))],
            )
        )
    return outcomes


def judge_photos(
    outcomes: Sequence[PhotoOutcome],
    *,
    repeats: int,
    strangers: Mapping[str, StrangersLikeness],
    strangers_matched: Mapping[str, float],
    thresholds: PhotoThresholds,
) -> Verdict:
    """The verdict of an audit of photos alone. Every attack that was run counts, alone and after each purifier.

    Args:
        outcomes: the result of each attack, of `judge_photo_attacks`.
        repeats: number of seeds.
        strangers: {encoder: likeness by chance}.
        strangers_matched: {person: share of the strangers whom every encoder takes for this person}.
        thresholds: the thresholds of the checks.
    """
    checks = worst_checks([(outcome.spec, outcome.checks) for outcome in outcomes])
    prefixed = len(outcomes) > 1
    unreliable = [f"{one.spec}: {flag}" if prefixed else flag for one in outcomes for flag in one.unreliable]
    known = among_strangers(strangers, strangers_matched, thresholds.max_match_rate)
    unreliable += unmeasured(checks) + known + too_few_strangers(strangers)
    return conclude(without_chance(checks, known), unreliable, notes=_notes(outcomes, repeats, strangers))


def _notes(outcomes: Sequence[PhotoOutcome], repeats: int, strangers: Mapping[str, StrangersLikeness]) -> list[str]:
    notes = common_notes(repeats, strangers)
    if all(outcome.purifier is None for outcome in outcomes):
        notes.append(NO_PURIFIER)
    for outcome in outcomes:
        rate = outcome.quality.get("face_rate")
        if rate is not None and rate.clean and rate.protected is not None and rate.protected < rate.clean / 2:
            notes.append(
                f"{outcome.spec}: with protected photos {rate.protected:.2f} of the pictures show a face, with clean "
                f"ones {rate.clean:.2f}: part of the protection is that the pictures are destroyed."
            )
    return notes


def is_void(clean: PhotoAttackRow) -> bool:
    """Whether the attack does not work with clean photos: some encoder matches too few of the pictures."""
    return clean.status == "failed" or _weakest_match(clean)[0] < MIN_BASE_MATCH_RATE


def _weakest_match(row: PhotoAttackRow) -> tuple[float, str]:
    return min((entry.match_rate, encoder) for encoder, entry in row.identity.items())


def _flags(pair: Pair) -> list[str]:
    """Why a pair of rows proves nothing, one clause each."""
    flags = [
        f"{row.photos} photos/{row.subject}/seed {row.seed}: the attack failed: {row.error}"
        for row in pair
        if row.status == "failed"
    ]
    clean = pair[0]
    if clean.status == "ok" and is_void(clean):
        rate, encoder = _weakest_match(clean)
        flags.append(
            f"clean photos/{clean.subject}/seed {clean.seed}: the attack is too weak: match rate {rate:.2f} "
            f"({encoder}), below {MIN_BASE_MATCH_RATE}"
        )
    return flags


def _state(pairs: Sequence[Pair], passed: Sequence[bool | None], doubts: Sequence[str]) -> State:
    if all(is_void(clean) for clean, _ in pairs):
        return "void"
    if any(protected.status == "ok" for _, protected in pairs) and not all(passed):
        return "not protected"
    return "unreliable" if doubts or any(map(_flags, pairs)) else "protected"


def _comparison(pairs: Sequence[Pair], encoder: str) -> PhotoComparison:
    values: dict[str, list[list[float]]] = {}
    matched: dict[str, list[list[float]]] = {}
    for pair in pairs:
        for place, row in enumerate(pair):
            values.setdefault(row.subject, [[], []])[place].append(row.identity[encoder].mean)
            matched.setdefault(row.subject, [[], []])[place].append(row.identity[encoder].match_rate)
    rates = [fmean(independent_values([of[place] for of in matched.values()])) for place in (0, 1)]
    return PhotoComparison(
        **compared(values, ("clean", "protected")), clean_match_rate=rates[0], protected_match_rate=rates[1]
    )


def _quality(pairs: Sequence[Pair]) -> dict[str, PhotoQuality]:
    """{name of a quality figure: its means with clean and with protected photos}, "face_rate" first."""
    arms: list[dict[str, list[float]]] = [{}, {}]
    for pair in pairs:
        for found, row in zip(arms, pair, strict=True):
            rate = face_rate(row.identity)
            rates = {} if rate is None else {"face_rate": rate}
            for name, value in {**rates, **(row.quality or {})}.items():
                found.setdefault(name, []).extend([] if value is None else [value])
    means = [{name: fmean(values) if values else None for name, values in found.items()} for found in arms]
    return {name: PhotoQuality(clean=means[0][name], protected=means[1].get(name)) for name in means[0]}
