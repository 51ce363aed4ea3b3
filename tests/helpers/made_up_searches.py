"""Made-up rows of attacks and trials of searches, by their measured points."""

from __future__ import annotations

from typing import Any

from apdm.audit.results.models import AttackRow
from apdm.audit.results.schema import from_json
from apdm.audit.results.search import SearchTrial, TrialPoint


def point(step: int, likeness: float, face_rate: float | None = 1.0) -> TrialPoint:
    return TrialPoint(step=step, samples=10 * step, likeness=likeness, face_rate=face_rate)


def trial(number: int, *points: TrialPoint, likeness: float | None = None) -> SearchTrial:
    return SearchTrial(
        number=number,
        spec="dreambooth",
        samples_per_step=10,
        points=list(points),
        likeness=likeness,
        step=None,
        samples=None,
        seconds=9.0,
        train_seconds=4.0,
        status="ok",
        error=None,
    )


def at(step: int, mean: float, faces: float = 1.0) -> dict[str, Any]:
    identity = {"mean": mean, "detected_mean": mean, "face_rate": faces, "match_rate": 0.0}
    return {"step": step, "identity": {"one": identity}, "quality": {}, "loss": 1.0}


def attack_row(curve: list[dict[str, Any]], **values: Any) -> AttackRow:
    return from_json(
        AttackRow,
        {
            **dict.fromkeys(("attack", "spec", "assumes", "subject"), "x"),
            **dict.fromkeys(("seed", "nominal_step", "horizon"), 3),
            **{"white_box": None, "required": False, "long": False, "model": "base", "role": "protected"},
            **{"params": {"train_batch_size": 5}, "identity": {}, "quality": {}, "scores": {}, "seconds": 1.0},
            **{"status": "ok", "error": None, "unreliable": [], "steps_to_match": None},
            "curve": curve,
            **values,
        },
    )
