"""Draws the plots of the documents from the rows in benchmarks/results/.

    python -m tools.plots            # writes docs/images/plot-*.svg

`tools.svg` draws them. A test compares the committed plots with what this script draws, so that plots and rows cannot
drift apart.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any

from apdm.core.files import write_text
from benchmarks.attacks import course
from benchmarks.leaderboard.__main__ import read_all
from benchmarks.leaderboard.entry import BASE, MAX_CLASS_DISTANCE, figures
from benchmarks.protection import DREAMBOOTH
from tools.svg import Curve, Dots, Point, dot_plot, line_plot, scatter_plot

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
IMAGES = ROOT / "docs/images"
ENCODERS = ("portrait-a", "portrait-b")
OTHER = 40  # the number of the person in recipes.jsonl whom nobody hardened against


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (RESULTS / name).read_text(encoding="utf-8").splitlines()]


def audit_curves(name: str, labels: Mapping[tuple[str, str], tuple[str, str]]) -> dict[str, list[Curve]]:
    """Mean likeness over people under the nominal attack of an audit, for each encoder.

    Args:
        name: a results.json in benchmarks/results/.
        labels: (model, role) -> (label, kind) of the curve; role is "protected" or "other".
    """
    results = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    panels: dict[str, list[Curve]] = {encoder: [] for encoder in ENCODERS}
    for (model, role), (label, kind) in labels.items():
        rows = [
            row
            for row in results["attacks"]
            if (row["spec"], row["model"], row["role"]) == ("dreambooth", model, role) and row["curve"]
        ]
        for encoder in ENCODERS:
            seen = [{point["step"]: point["identity"][encoder]["mean"] for point in row["curve"]} for row in rows]
            steps = sorted(set.intersection(*map(set, seen)))
            points = [(step, fmean(one[step] for one in seen)) for step in steps]
            panels[encoder].append(Curve(label, kind, points))
    return panels


def demo() -> str:
    """The demo: one person, one seed."""
    labels = {("base", "protected"): ("base model", "base"), ("hardened", "protected"): ("hardened model", "hardened")}
    return line_plot("Demo: likeness of one protected person", audit_curves("demo.json", labels), last_step=1400)


def ten_people() -> str:
    """Ten people in one checkpoint, and two whom nobody hardened against."""
    labels = {
        ("base", "protected"): ("base, the ten", "base"),
        ("base", "other"): ("base, two others", "base dashed"),
        ("hardened", "protected"): ("hardened, the ten", "hardened"),
        ("hardened", "other"): ("hardened, two others", "other dashed"),
    }
    panels = audit_curves("ten-people-audit.json", labels)
    return line_plot("Ten protected people in one model: mean likeness", panels, last_step=1400)


def people() -> str:
    """The default: one model hardened against each person, and several seeds of the attack."""
    entries = {entry.name: entry for entry in read_all()}
    labels = {BASE: ("base model", "base"), "default-400": ("hardened model", "hardened")}
    panels: dict[str, list[Curve]] = {}
    for seed in sorted(one.seed for one in entries["default-400"].hardenings):
        curves = panels.setdefault(f"person {seed + 1}", [])
        for name, (label, kind) in labels.items():
            key = (DREAMBOOTH, seed, 0)
            runs = [one.likeness for one in entries[name].attacks if (one.attack, one.seed, one.person) == key]
            curves.append(Curve(label, kind, [(int(step), fmean(run[step] for run in runs)) for step in runs[0]]))
    return line_plot("The default: mean likeness of three attacks on each person", panels, last_step=1000, width=190)


def recipes() -> str:
    """How much less likeness than on the base, averaged over the curve of 1000 steps, for each way of hardening."""
    names = {
        "default": "default: pool of attackers",
        "lora-only": "pool of LoRA attackers",
        "projected": "default, gradients projected",
        "displaced": "theta moved against the attackers",
        "naive": "naive ascent",
        "algorithm-1": "Algorithm 1, no pool",
        "imma": "IMMA",
        "people-3": "default, three people",
        "people-10": "default, ten people",
    }
    means: dict[str, dict[tuple[int, int, int], float]] = defaultdict(dict)
    for row in read_rows("recipes.jsonl"):
        if row["attack"] == "dreambooth:max_train_steps=1000":
            means[row["recipe"]][row["person"], row["seed"], row.get("attack_seed", row["seed"])] = fmean(course(row))
    rows = []
    for recipe, label in names.items():
        values = [
            (means["base"][own] - value, "other" if own[0] == OTHER else "hardened full")
            for own, value in sorted(means[recipe].items())
        ]
        rows.append(Dots(label, values))
    legend = [("a protected person", "hardened full"), ("a person nobody hardened against", "other")]
    return dot_plot("Less likeness than on the base, mean of 1000 steps", rows, legend, ends=(-0.1, 0.4))


def five_people() -> dict[tuple[str, str, str], dict[int, list[float]]]:
    """{(attack, kind of prompt, model): {person: mean likeness by both encoders after 100, 200, ... steps}}.

    The kind is "nominal", "described" (the whole description of the person), "bare" (the rare word alone), or the
    prompt itself.
    """
    likeness: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(dict)
    for row in read_rows("attacks-five-people.jsonl"):
        kind: str = row.get("instance_prompt", "nominal")
        kind = "bare" if kind == "t@t" else kind
        if " with " in kind and not row.get("part"):
            kind = "described"
        likeness[row["attack"], kind, row["model"]][row["person"]] = course(row)
    return likeness


def attacks() -> str:
    """What each attack reaches on the base and on models that were hardened against the person, five people."""
    labels = {
        ("dreambooth:max_train_steps=300", "nominal"): "DreamBooth",
        ("dreambooth:learning_rate_factor=3,max_train_steps=300", "nominal"): "three times the rate",
        ("dreambooth:train_text_encoder=true,max_train_steps=300", "nominal"): "text encoder too",
        ("lora:target=all,rank=32,learning_rate=1e-3,max_train_steps=300", "nominal"): "LoRA",
        ("release_unconditional:max_train_steps=300", "nominal"): "received model answers the empty prompt",
        ("dreambooth:max_train_steps=300", "described"): "prompt describes the person",
        ("dreambooth:prior_loss_weight=0,max_train_steps=300", "nominal"): "no class pictures",
        ("dreambooth:max_train_steps=300", "bare"): 'prompt "t@t" alone',
    }
    likeness = five_people()
    rows = [
        Dots(
            label,
            [(fmean(chain(*likeness[*key, model].values())), f"{model} full") for model in ("base", "hardened")],
        )
        for key, label in labels.items()
    ]
    legend = [("base model", "base full"), ("hardened against the person", "hardened full")]
    return dot_plot("Likeness, mean of 300 steps and five people", rows, legend, ends=(0.0, 1.0))


def photos() -> str:
    """Likeness drawn from clean and from protected photos, by the encoder that no method attacked."""
    arms = {
        ("dreambooth", "optimised", "noise"): "DreamBooth, noise",
        ("dreambooth", "optimised", "aspl"): "DreamBooth, ASPL",
        ("dreambooth", "optimised", "anti_diffusion"): "DreamBooth, Anti-Diffusion",
        ("dreambooth", "optimised", "dladiff"): "DreamBooth, DLADiff layer 1",
        ("dreambooth", "optimised", "encoder"): "DreamBooth, encoder attack",
        ("lora", "optimised", "dladiff"): "LoRA, DLADiff layer 1",
        ("faceid", "adapter", "faces"): "FaceID adapter, DLADiff layer 2",
        ("faceid", "adapter", "both"): "FaceID adapter, both layers",
        ("faceid", "adapter", "both_reversed"): "FaceID adapter, layers reversed",
    }
    seen: dict[tuple[str, str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in read_rows("image-layer.jsonl"):
        for prompt, judged in row["likeness"].items():
            seen[row["attack"], prompt, row["arm"]][row["person"]].append(judged["portrait-b"]["mean"])
    rows = []
    for (attack, prompt, arm), label in arms.items():
        protected, clean = seen[attack, prompt, arm], seen[attack, prompt, "clean"]
        values = [
            (fmean(fmean(clean[person]) for person in protected), "base full"),
            (fmean(fmean(found) for found in protected.values()), "hardened full"),
        ]
        rows.append(Dots(f"{label} ({len(protected)} people)", values))
    legend = [("clean photos", "base full"), ("protected photos", "hardened full")]
    return dot_plot("Likeness by portrait-b, which no method attacked", rows, legend, ends=(0.0, 1.0))


def leaderboard() -> str:
    """What each entry of the leaderboard takes from DreamBooth, against what it costs the class."""
    entries = read_all()
    base = next(entry for entry in entries if entry.name == BASE)
    points = []
    for entry in entries:
        seen = figures(entry, base, DREAMBOOTH)
        if seen is not None and entry.name != BASE:
            label = f"{entry.name} ({seen.people})"
            points.append(Point(label, seen.class_distance, fmean(seen.less), seen.interval))
    return scatter_plot(
        "What a defence takes from the attacker, against its cost (number of people)",
        points,
        across=("class distance, where 1 is two seeds of the base; the line is the leaderboard's bound", (1.0, 2.0)),
        up=("less likeness than on the base, mean of 1000 steps; 95 % over people", (-0.2, 0.6)),
        bound=MAX_CLASS_DISTANCE,
    )


PLOTS = {
    "leaderboard": leaderboard,
    "demo": demo,
    "ten-people": ten_people,
    "people": people,
    "attacks": attacks,
    "recipes": recipes,
    "photos": photos,
}


def main() -> None:
    for name, draw in PLOTS.items():
        write_text(IMAGES / f"plot-{name}.svg", draw())


if __name__ == "__main__":
    main()
