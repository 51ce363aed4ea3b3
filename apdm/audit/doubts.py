"""What makes an audit or an attack unreliable, so that no protection is claimed. Every function here is pure.

Each function returns reasons, one clause each, with the remedy where there is one; an empty list if there is no doubt.
`weaker_than_transferred` returns them by attack. What makes a single row unreliable is in `rows.row_flags`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean

from apdm.audit.results.common import Check
from apdm.audit.results.models import AttackRow, LeftOut
from apdm.audit.results.rows import by_spec
from apdm.faces.described import NamedThreshold, distinct
from apdm.metrics.judges import NO_FEATURES, JudgesDescription
from apdm.metrics.utility import StrangersLikeness

MIN_STRANGERS = 10  # their cosines deviate by 0.1, so the mean of ten is off by a third of the margin of 0.1
MIN_PICTURES = 10  # if a quarter of a model's pictures match, ten of them show no match in 6 % of cases
TRANSFER_MARGIN = 0.05  # a white-box attack is in doubt if a transferred attack gives this much more likeness


# -- of a single attack ---------------------------------------------------------------------------------------


def unmeasured(checks: Sequence[Check]) -> list[str]:
    """The checks that had to be measured and could not be, one clause each."""
    return [
        f"the {check.name.replace('_', ' ')} could not be measured"
        for check in checks
        if check.value is None and check.passed is False
    ]


def few_drawn(rows: Sequence[AttackRow]) -> list[str]:
    """The clause on a match rate that rests on few pictures of a person; rows of older versions keep no pictures."""
    drawn: dict[str, int] = {}
    for row in rows:
        if row.scores and row.is_sound_on("hardened"):
            drawn[row.subject] = drawn.get(row.subject, 0) + min(map(len, row.scores.values()))
    return few_pictures(min(drawn.values())) if drawn else []


def few_pictures(number: int) -> list[str]:
    """The clause on a match rate that rests on `number` pictures, in a list of one; empty if there are enough.

    Args:
        number: pictures that an attack drew of one person with all seeds, at one step.
    """
    if number >= MIN_PICTURES:
        return []
    return [f"the match rate rests on {number} pictures, and {MIN_PICTURES} are needed: raise num_images"]


def weaker_than_transferred(rows: Sequence[AttackRow], encoders: Sequence[str]) -> dict[str, list[str]]:
    """Find white-box attacks that gave less likeness on the hardened model than a transferred attack.

    An attacker who has the weights can also do everything that an attacker without the weights can do. So such a
    white-box attack was weaker than it could be.

    Returns:
        {spec of the white-box attack: clauses that say which attack gave more}.
    """
    flags: dict[str, list[str]] = {}
    means = {}
    for spec, of_attack in by_spec(rows).items():
        hardened = [row for row in of_attack if row.is_sound_on("hardened")]
        if hardened:
            means[spec] = {e: fmean(row.identity[e].mean for row in hardened) for e in encoders}
    for spec, of_attack in by_spec(rows).items():
        white_box = of_attack[0].white_box
        if white_box is not None and white_box in means and spec in means:
            for encoder in encoders:
                if (gain := means[spec][encoder] - means[white_box][encoder]) > TRANSFER_MARGIN:
                    flags.setdefault(white_box, []).append(
                        f"{spec}, which needs no training on this model, gave {gain:.2f} more likeness ({encoder})"
                    )
    return flags


# -- of the whole audit ---------------------------------------------------------------------------------------


def not_attacked(left_out: Sequence[LeftOut], subjects: Sequence[str], attacked: Collection[str]) -> list[str]:
    """Required attacks that are not run, one clause for each reason, with the remedy.

    Args:
        left_out: the attacks that are not run.
        subjects: ids of the protected people.
        attacked: ids of those who are attacked by a required attack.
    """
    missing = reasons_left_out([entry for entry in left_out if entry.required], ", which the verdict requires,")
    if not attacked:
        return [*missing, "no attack that the verdict requires is run"]
    if spared := [subject for subject in subjects if subject not in attacked]:
        missing.append(f"no required attack is run on {', '.join(spared)}: choose a suite that attacks everybody")
    return missing


def reasons_left_out(left_out: Sequence[LeftOut], what: str = "") -> list[str]:
    """Why attacks are left out, one clause for each reason. `what` stands behind their names."""
    specs: dict[str, list[str]] = {}
    for entry in left_out:
        specs.setdefault(entry.reason, []).append(entry.spec)
    return [
        f"{' and '.join(names)}{what} {'is' if len(names) == 1 else 'are'} left out: {reason}"
        for reason, names in specs.items()
    ]


def among_strangers(
    strangers: Mapping[str, StrangersLikeness], matched: Mapping[str, float], max_match_rate: float
) -> list[str]:
    """Protected people who are among the strangers, one clause each.

    Their likeness is then not likeness by chance, and the check of the likeness would always pass. Among photos of
    strangers nobody may be protected. Among class pictures, which the base draws, some look like a person by chance.
    """
    photos = all(band.source == "photos" for band in strangers.values())
    allowed, who = (0.0, "strangers") if photos else (max_match_rate, "base's class pictures")
    mend = "take these photos out of the folder" if photos else "give photos of strangers"
    return [
        f"{share:.3f} of the {who} are {subject} to every encoder, so likeness by chance was not measured: {mend}"
        for subject, share in matched.items()
        if share > allowed
    ]


def too_few_strangers(strangers: Mapping[str, StrangersLikeness]) -> list[str]:
    """The clause on a likeness by chance that rests on few strangers, in a list of one; empty if there are enough."""
    found = [(band.count, band.source) for band in strangers.values() if band.count is not None]
    return few_strangers(*min(found)) if found else []


def few_strangers(number: int, source: str = "photos") -> list[str]:
    """As `too_few_strangers`, for `number` faces in photos of strangers or in class pictures."""
    if number >= MIN_STRANGERS:
        return []
    return [f"likeness by chance rests on {number} {source}, and {MIN_STRANGERS} are needed: give photos of strangers"]


def few_class_pictures(number: int) -> list[str]:
    """As `few_pictures`, for what is read from `number` class pictures of each model."""
    if number >= MIN_PICTURES:
        return []
    return [f"the class rests on {number} pictures, and {MIN_PICTURES} are needed: raise num_class_images"]


# -- of the judges --------------------------------------------------------------------------------------------


def lacking_judges(judges: JudgesDescription) -> list[str]:
    """Return which networks an audit of models lacks for any claim, one clause each."""
    without_features = judges.quality.get("kernel_distance_to_class") == NO_FEATURES
    unseen = f"nothing shows whether hardening changes the class ({NO_FEATURES})"
    return one_encoder(judges) + [unseen] * without_features


def one_encoder(judges: JudgesDescription) -> list[str]:
    """The clause on likeness that a single face encoder judged, alone or as several copies. Objects need only one."""
    encoders = judges.encoders
    if judges.face_score is None or len(distinct(encoders)) != 1:
        return []
    copies = " are copies of one network" if len(encoders) > 1 else ""
    names = ", ".join(encoder.name for encoder in encoders)
    return [f"one encoder only ({names}{copies}): judge by another one too that was trained separately"]


def doubtful_thresholds(judges: JudgesDescription) -> list[str]:
    """Thresholds that were measured on too few photos or do not tell subjects apart, one clause each."""
    return [doubt for encoder, how in (judges.measured or {}).items() for doubt in how.doubts(encoder)]


def doubts_about_judges(judges: Sequence[NamedThreshold], misled: Sequence[str]) -> list[str]:
    """The clauses on judges that cannot show that photos protect.

    Args:
        judges: the encoders that judge.
        misled: the names of those that the zero-shot layer misled.
    """
    if not judges or any(judge.name not in misled for judge in judges):
        return []
    names = ", ".join(misled)
    return [f"the zero-shot layer misled every encoder that judges ({names}): judge by another, unrelated one too"]
