"""Made-up measurements of an audit that are as good as can be, changes of them, and the verdict on them."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from apdm.audit.results.models import AttackOutcome, AttackRow, Measurements, Thresholds
from apdm.audit.results.rows import other_people, with_row_figures
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.verdict import judge, judge_attacks
from apdm.config import AuditConfig

JUDGES = ("enc", "second")  # they agree on everything


def identity(mean: float, match_rate: float, face_rate: float | None = 1.0) -> dict[str, float | None]:
    detected = mean / face_rate if face_rate else None
    return {"mean": mean, "detected_mean": detected, "face_rate": face_rate, "match_rate": match_rate}


def made_up_row(model: str, role: str, curve: dict[int, dict[str, Any]], **facts: Any) -> dict[str, Any]:
    points = [
        {"step": s, "identity": dict.fromkeys(JUDGES, entry), "quality": {}, "loss": 1.0 - s / 1e4}
        for s, entry in curve.items()
    ]
    subject = "s01" if role == "protected" else "o01"
    at_nominal = next(point for point in points if point["step"] == 10)
    return {
        "attack": "dreambooth",
        "spec": "dreambooth",
        "params": {},
        "assumes": "the weights",
        "white_box": None,
        "required": True,
        "long": True,
        "nominal_step": 10,
        "horizon": max(curve),
        "model": model,
        "role": role,
        "subject": subject,
        "seed": 0,
        "status": "ok",
        "error": None,
        "curve": points,
        "identity": at_nominal["identity"],
        "quality": {},
        "scores": {},
        "seconds": 1.0,
        "unreliable": [],
        "steps_to_match": None,
    } | facts


def made_up_results(change: Callable[[dict[str, Any]], None] = lambda draft: None) -> Measurements:
    """Measurements that are as good as can be, but for what `change` does to the draft of them."""
    learned, safe = identity(0.6, 1.0), identity(0.05, 0.0)
    draft: dict[str, Any] = {
        "base": made_up_row("base", "protected", {0: safe, 10: learned}),
        "hardened": made_up_row("hardened", "protected", {0: safe, 10: safe, 100: safe}),
        "other_base": made_up_row("base", "other", {0: safe, 10: learned}),
        "other_hardened": made_up_row("hardened", "other", {0: safe, 10: learned}),
        "utility": {
            "num_images": 20,
            "class_face_rate": {"base": 1.0, "hardened": 0.95},
            "frechet": {"name": "Frechet distance", "network": "inception", "to_base": 1.5, "base_seed_to_seed": 1.0},
            "kernel": {"name": "KID", "network": "inception", "to_base": None, "base_seed_to_seed": None},
            "drift": {
                "hair": {"values": [], "shares": {}, "distance": {"hardened": 0.1}, "base_seed_to_seed": 0.05},
            },
            "clip": None,
            "clip_base": None,
        },
        "strangers": {
            "enc": {
                "mean": 0.0,
                "std": 0.1,
                "source": "photos",
                "subjects": {"s01": 0.0},
                "class_pictures": {"mean": None, "std": None},
            },
        },
        "seeds": [0, 1, 2],
        "subjects": ["s01"],
        "others": ["o01"],
        "judges": {
            "encoders": [{"name": name, "threshold": 0.5} for name in JUDGES],
            "face_score": {"name": "face", "threshold": 0.5},
            "quality": {"similarity": "features"},
            "clip": None,
            "attributes": None,
        },
        "left_out": [],
    }
    draft["strangers"]["second"] = draft["strangers"]["enc"]
    change(draft)
    drafts = [draft.pop(key) for key in ("base", "hardened", "other_base", "other_hardened") if key in draft]
    rows = with_row_figures([from_json(AttackRow, row) for row in drafts + draft.pop("more", [])])
    others = other_people(rows, list(JUDGES))
    draft |= {"schema": 2, "command": None, "package": {}, "models": {}, "attacks": []}
    draft["utility"]["other_subjects"] = []
    measured = from_json(Measurements, draft)
    return replace(measured, attacks=rows, utility=replace(measured.utility, other_subjects=others))


def thresholds_of(config: AuditConfig) -> Thresholds:
    return Thresholds(**{field.name: getattr(config, field.name) for field in fields(Thresholds)})


def outcomes_of(measured: Measurements) -> list[AttackOutcome]:
    return judge_attacks(measured, thresholds_of(AuditConfig()))


def verdict_on(measured: Measurements, config: AuditConfig | None = None) -> dict[str, Any]:
    """The verdict as JSON, and with it the outcome of every attack under "by_attack"."""
    thresholds = thresholds_of(config or AuditConfig())
    outcomes = judge_attacks(measured, thresholds)
    return to_json(judge(measured, outcomes, thresholds)) | {"by_attack": [to_json(outcome) for outcome in outcomes]}


def curve(role: str, model: str, points: dict[int, dict[str, Any]]) -> Callable[[dict[str, Any]], None]:
    name = model if role == "protected" else f"other_{model}"
    return lambda draft: draft.update({name: made_up_row(model, role, points)})


def fact(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(draft: dict[str, Any]) -> None:
        for key in path[:-1]:
            draft = draft[key]
        draft[path[-1]] = value

    return change


SAFE, LEARNED = identity(0.05, 0.0), identity(0.6, 1.0)
LEARNS, STAYS, BREAKS = {0: SAFE, 10: LEARNED}, {0: SAFE, 10: SAFE}, {0: SAFE, 10: identity(0.6, 0.5)}
