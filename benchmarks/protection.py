"""What each way of hardening costs the attacker, at equal utility: the rows behind docs/results.md.

    python -m benchmarks.protection --output_dir outputs/protection --recipes base default algorithm-1 --seeds 0 1 2
    python -m benchmarks.protection --output_dir outputs/protection --summary

Every recipe hardens the bundled pipeline until its minutes are over, or its class pictures are much further from the
base's than the audit allows; what is attacked is the last state within the audit's bounds. Each attack is on protected
people, and on one whom no recipe knows and who must stay learnable. A seed is of hardening, attack and pictures, and
has people of its own. Hardened models and rows stay in the folder, and what is there is not made again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from apdm.config import HardenConfig, load_config
from apdm.config.groups.audit import AuditConfig
from apdm.data.separate_photos import Role
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.faces.portrait import PortraitFaceScore, PortraitReader
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.jobs.hardening.encoding import encode_subjects
from apdm.jobs.hardening.files import Photos
from apdm.jobs.hardening.training import Training
from apdm.metrics.drift import class_drift
from apdm.metrics.fidelity import frechet_distance
from apdm.portraits import PIPELINE
from apdm.portraits.subjects import write_subjects
from benchmarks.attacks import ENCODERS, Study, read
from benchmarks.imma import Imma
from benchmarks.leaderboard.entry import student_interval
from tools.portraits.attacks import PROMPTS
from tools.portraits.figures import draw

MAX_CLASS_DISTANCE, MAX_DRIFT = AuditConfig.max_class_distance, AuditConfig.max_class_drift
HOPELESS = 1.5  # times the allowed class distance: what nothing comes back from
CLASS_PICTURES = 128
POINTS = ("100", "300", "500", "1000")  # of the curves, for the table
PEOPLE_PER_SEED = 10
OTHER = 40  # the person, numbered as the protected are, who must stay learnable
# Longer than the nominal attack; the other two are as long, LoRA at a rate that suits it.
DREAMBOOTH = "dreambooth:max_train_steps=1000"
LORA = "lora:target=all,rank=32,learning_rate=1e-3,max_train_steps=1000"
RENAMED = "dreambooth:identifier=h@h,max_train_steps=1000"
NO_PRIOR = "dreambooth:prior_loss_weight=0,max_train_steps=300"  # which is enough for it on the base
KINDS = {DREAMBOOTH: "DreamBooth", LORA: "LoRA", RENAMED: "DreamBooth, h@h", NO_PRIOR: "DreamBooth, no prior"}

PAPER = ["--pool.size", "0", "--pool.benign_size", "0", "--variety.prior_loss_weights", "1"]
# An attacker who takes one step too small to matter: the gradient is that at theta.
AT_THETA = [*PAPER, "--l2p.inner_steps", "1", "--l2p.learning_rate", "1e-12"]
# Those of the LoRA attack.
ADAPTERS = ["--l2p.lora_rank", "32", "--l2p.lora_target", "all", "--l2p.lora_learning_rate", "1e-3"]
VARIETY = [
    *("--variety.instance_prompts", "a photo of sks person", "a portrait of t@t person", "a photo of t@t face"),
    *("--variety.learning_rates", "1e-4", "3e-4"),
    *("--variety.inner_steps", "50", "100", "200", "400"),
    *("--variety.photos", "flip", "crop"),
]
# Attackers of many kinds: prompts, rates, lengths, photos, prior preservation, and a third of them with a LoRA.
DISTRIBUTION = [
    *("--variety.instance_prompts", "a photo of sks person", "a portrait of t@t person", "a photo of h@h person"),
    *("--variety.learning_rates", "3e-5", "1e-4", "3e-4"),
    *("--variety.inner_steps", "100", "300", "1000"),
    *("--variety.photos", "flip", "crop"),
    *("--variety.prior_loss_weights", "0", "1"),
]


@dataclass(frozen=True)
class Recipe:
    """options: on top of configs/portrait.yaml. people: how many are protected. every: outer steps between two looks at
    the class pictures. attacked: the people, by number, whom DreamBooth is on. widely: the first of them is attacked in
    other ways too. paired: each photo has one fixed partner, drawn by the base with the class prompt. steps: the outer
    steps after which it ends, whatever time they take; 0 for those that fit into the minutes. bounded: whether the
    class must stay sound; otherwise the last state is attacked, whatever the class has become.
    """

    options: list[str] = field(default_factory=list)
    people: int = 1
    every: int = 50
    attacked: tuple[int, ...] = (0,)
    widely: bool = False
    paired: bool = False
    steps: int = 0
    bounded: bool = True


def weak_anchor(weight: str) -> Recipe:
    """The default with a weaker anchor, and no bound on what the class pays."""
    return Recipe(["--preservation.anchor_weight", weight], steps=400, every=100, widely=True, bounded=False)


RECIPES: Mapping[str, Recipe] = {
    "base": Recipe(widely=True),
    "default": Recipe(widely=True),
    "default-400": Recipe(steps=400),
    # As long, compared with the attack, as in the paper: 20 times its 700 steps, with 6 of an attacker in each.
    "default-long": Recipe(steps=2334, every=150),
    "anchor-10": weak_anchor("10"),
    "anchor-2.5": weak_anchor("2.5"),
    "anchor-0.6": weak_anchor("0.6"),
    "weakly-held": Recipe(["--preservation.anchor_weight", "10"]),
    "paired": Recipe(paired=True),
    "progress": Recipe(["--objective", "benchmarks/objectives/progress.py:Progress:beta=10,weight=3"]),
    "persistent": Recipe(["--objective", "benchmarks/objectives/persistent.py:Persistent:beta=10,steps=8"]),
    "guided": Recipe(["--objective", "benchmarks/objectives/guided.py:Guided:beta=1,scale=3"]),
    "conditional": Recipe(
        [
            "--objective",
            "benchmarks/objectives/conditional.py:Conditional:trap=1,trap_noise=0.5,keep=10,keep_benign=5",
        ]
    ),
    "distribution": Recipe([*DISTRIBUTION, *ADAPTERS, "--l2p.lora_share", "0.34"], widely=True),
    "with-prior": Recipe(["--variety.prior_loss_weights", "1"], widely=True),
    "short-paths": Recipe(["--pool.depth", "200"]),
    "fast-attackers": Recipe(["--l2p.learning_rate", "3e-4"]),
    "batch-12": Recipe(["--train_batch_size", "12"]),
    "not-benign": Recipe(["--pool.benign_size", "0"]),
    "sample-dpo": Recipe(["--objective", "dpo:reduction=sample,beta=50"]),
    "ascent": Recipe(["--objective", "ascent:limit=2"]),
    "variety": Recipe(VARIETY, widely=True),
    "lora": Recipe([*ADAPTERS, "--l2p.lora_share", "0.5"], widely=True),
    "lora-only": Recipe([*ADAPTERS, "--l2p.lora_share", "1"], widely=True),
    "naive": Recipe([*AT_THETA, "--objective", "ascent"]),
    # A sum of twenty gradients, which hardly disagree, against an anchor as much heavier.
    "algorithm-1": Recipe(
        [*PAPER, "--l2p.inner_steps", "20", "--preservation.anchor_weight", "400", "--ema_decay", "0.8"], every=10
    ),
    "projected": Recipe(["--objective", "benchmarks/objectives/projected.py:Projected:beta=10"]),
    "displaced": Recipe(["--objective", "benchmarks/objectives/displaced.py:Displaced"]),
    # Other papers' defences, as baselines only. PersGuard's teaches the model the person's photos.
    "persguard": Recipe([*AT_THETA, "--objective", "benchmarks/objectives/persguard.py:PersGuard"]),
    "meta-unlearning": Recipe(
        ["--objective", "benchmarks/objectives/meta_unlearning.py:MetaUnlearning:harmful=1,related=1,keep=1"]
    ),
    "resalign": Recipe(["--objective", "benchmarks/objectives/resalign.py:ResAlign:beta=10"]),
    "imma": Recipe(["--learning_rate", "1e-4", "--l2p.learning_rate", "3e-5"], every=10),
    "people-3": Recipe(people=3, attacked=(0, 2)),
    "people-10": Recipe(people=10, attacked=(0, 2), widely=True),
}


class Utility:
    """What the class paid, as the audit has it: distance of class pictures to the base's in distances between two seeds
    of the base, the share with a face, and the share that changed in the most altered attribute.
    """

    def __init__(self, base: Family) -> None:
        self.face, self.attributes = PortraitFaceScore(), PortraitReader()
        self.base, self.again = self._draw(base, 1000), self._draw(base, 5000)
        self.chance = self._distance(self.again)

    def __call__(self, model: Family) -> dict[str, float]:
        pictures = self._draw(model, 5000)
        faces = (self.face.score(pictures) >= self.face.threshold).float().mean().item()
        read = {
            name: self.attributes.read(images)
            for name, images in (("base", self.base), ("base_again", self.again), ("hardened", pictures))
        }
        drift = class_drift(read, self.attributes.values)
        return {
            "class_distance": round(self._distance(pictures) / self.chance, 3),
            "face_rate": round(faces, 3),
            "drift": max(of.distance["hardened"] for of in drift.values()),
        }

    def _distance(self, pictures: Tensor) -> float:
        return frechet_distance(self.face.features(self.base), self.face.features(pictures))

    def _draw(self, model: Family, seed: int) -> Tensor:
        return draw(model, [PROMPTS["class_prompt"]] * CLASS_PICTURES, seed=seed)


def harden(name: str, recipe: Recipe, folder: Path, minutes: float, seed: int = 0) -> dict[str, Any]:
    """Write `folder`/model, hardened as far as utility allows; what was seen on the way."""
    write_subjects(folder / "people", protected=recipe.people, others=0, strangers=0, first=PEOPLE_PER_SEED * seed)
    config = load_config(
        HardenConfig,
        [
            *("--config", "configs/portrait.yaml", "--output_dir", str(folder / "unused")),
            *("--instance_data_dir", str(folder / "people/protected")),
            *("--pool.benign_data_dir", str(folder / "people/consenting")),
            *("--seed", str(seed)),
            *recipe.options,
        ],
    )
    base = load_family(PIPELINE)
    utility = Utility(base)
    with torch.no_grad():
        class_images = encode_images(
            base, draw(base, [config.class_prompt] * config.num_class_images, seed=50_000) * 2 - 1, batch_size=64
        )
        protected, consenting = (
            Photos.load(source, config.resolution, Role.PROTECTED, caption_column=column)
            for source, column in (
                (config.instance_data_dir, config.variety.caption_column),
                (str(config.pool.benign_data_dir), None),
            )
        )
        if recipe.paired:
            protected = replace(protected, safe=partners(base, protected, config.class_prompt, seed))
        people, benign = (encode_subjects(config, base, photos, class_images) for photos in (protected, consenting))
    hardened = base.with_denoiser(copy.deepcopy(base.denoiser))
    reference = base.denoiser.eval().requires_grad_(False)
    method: Any
    if name == "imma":
        method = Imma(config, hardened, people)
    else:
        method = Training(config, Accelerator(cpu=True), SINGLE_PROCESS, reference, hardened, people, benign)
    walk, kept, spent, steps = [], copy.deepcopy(base.denoiser.state_dict()), 0.0, 0
    while steps < recipe.steps if recipe.steps else spent < 60 * minutes:
        started = time.process_time()
        turn = min(recipe.every, recipe.steps - steps) if recipe.steps else recipe.every
        for _ in range(turn):
            method.outer_step()
        spent, steps = spent + time.process_time() - started, steps + turn
        method.publish()
        walk.append({"outer_steps": steps, "cpu_seconds": round(spent), **utility(hardened)})
        print(name, walk[-1], flush=True)
        if bearable(walk[-1]) or not recipe.bounded:
            kept = copy.deepcopy(hardened.denoiser.state_dict())
        elif walk[-1]["class_distance"] > HOPELESS * MAX_CLASS_DISTANCE:  # it goes up and down from look to look
            break
    hardened.denoiser.load_state_dict(kept)
    hardened.save(folder / "model")
    pairs = list(zip(base.denoiser.parameters(), hardened.denoiser.parameters(), strict=True))
    moved, norm = (
        sum(value.double().square().sum().item() for value in values) ** 0.5
        for values in ([b - a for a, b in pairs], [a for a, _ in pairs])
    )
    return {"recipe": name, "walk": walk, "moved": moved / norm, "options": recipe.options, "people": recipe.people}


def partners(base: Family, photos: Photos, class_prompt: str, seed: int) -> dict[str, Tensor]:
    """One fixed picture of the class for each photo of each person, `[N, 3, 64, 64]` in [-1, 1]."""
    return {
        person: draw(base, [class_prompt] * len(images), seed=2**40 + seed + 1000 * number) * 2 - 1
        for number, (person, images) in enumerate(sorted(photos.instance.items()))
    }


def bearable(look: Mapping[str, float]) -> bool:
    """Whether the audit would call the class sound."""
    return look["class_distance"] <= MAX_CLASS_DISTANCE and look["drift"] <= MAX_DRIFT


def attacks(name: str, recipe: Recipe) -> list[tuple[str, int]]:
    """(attack, person) of a recipe's rows; the base's are the partners of all others'."""
    people = sorted({p for r in RECIPES.values() for p in r.attacked}) if name == "base" else recipe.attacked
    others = [(attack, people[0]) for attack in (NO_PRIOR, LORA, RENAMED)] if recipe.widely else []
    return [*((DREAMBOOTH, person) for person in (*people, OTHER)), *others]


def area(row: Mapping[str, Any]) -> float:
    """Likeness averaged over the curve and the encoders: one number for a curve that jumps from point to point."""
    points = [point for step, point in row["curve"].items() if step != "0"]
    return fmean(point[judge]["mean"] for point in points for judge in ENCODERS)


def summary(folder: Path) -> list[str]:
    """The table of benchmarks/results/recipes.md: means over seeds, and the difference to the base by equal seed."""
    groups: dict[tuple[str, str, int], dict[tuple[int, int], dict[str, Any]]] = defaultdict(dict)
    for row in sorted(read(folder / "rows.jsonl"), key=lambda row: list(RECIPES).index(row["recipe"])):
        seeds = row["seed"], row.get("attack_seed", row["seed"])
        groups[row["recipe"], row["attack"], row["person"]][seeds] = row
    head = [
        "recipe",
        "people",
        "class distance",
        "drift",
        "attack",
        "person",
        "runs",
        *POINTS,
        "mean",
        "less than the base's",
    ]
    lines = [_line(head), _line(["---"] * len(head))]
    for (name, attack, person), runs in groups.items():
        looks = [_utility(folder / f"{name}-{seed}", RECIPES[name]) for seed, _ in runs if name != "base"]
        cost = [
            f"{fmean(look[figure] for look in looks):.2f}" if looks else "" for figure in ("class_distance", "drift")
        ]
        who = "other" if person == OTHER else f"{person + 1}"
        base = groups.get(("base", attack, person), {})
        less = [area(base[seeds]) - area(row) for seeds, row in runs.items() if seeds in base and name != "base"]
        people = "" if name == "base" else str(RECIPES[name].people)
        cells = [name, people, *cost, KINDS[attack], who, str(len(runs))]
        cells += [_point(list(runs.values()), step) for step in POINTS]
        lines.append(_line([*cells, f"{fmean(map(area, runs.values())):.2f}", _with_interval(less)]))
    return lines


def _utility(folder: Path, recipe: Recipe) -> Mapping[str, float]:
    """Of the state that was attacked; that of the base where no look was bearable."""
    walk = json.loads((folder / "facts.json").read_text())["walk"]
    allowed = filter(bearable, reversed(walk)) if recipe.bounded else reversed(walk)
    return next(allowed, {"class_distance": 0.0, "drift": 0.0})


def _point(rows: list[dict[str, Any]], step: str) -> str:
    if any(step not in row["curve"] for row in rows):
        return ""
    return " / ".join(f"{fmean(row['curve'][step][judge]['mean'] for row in rows):.2f}" for judge in ENCODERS)


def _with_interval(values: list[float]) -> str:
    """The mean, and Student's 95 % interval of it where there are several values."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    low, high = student_interval(values)
    return f"{fmean(values):.2f} ({low:.2f} to {high:.2f})"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def study(name: str, recipe: Recipe, seed: int, folder: Path, *, dreambooth_only: bool, attack_seeds: int = 1) -> None:
    """Attack what a recipe left in `folder`/<name>-<seed>; rows are added to `folder`/rows.jsonl.

    The first attack has the seed of the hardening, further ones the smallest other seeds.
    """
    output = folder / "rows.jsonl"
    done = {
        (row["recipe"], row["attack"], row["person"], row["seed"], row.get("attack_seed", row["seed"]))
        for row in read(output)
    }
    wanted = [
        (attack, person, attack_seed)
        for attack, person in attacks(name, recipe)
        for attack_seed in [seed, *(other for other in range(attack_seeds) if other != seed)][:attack_seeds]
        if (name, attack, person, seed, attack_seed) not in done and not (dreambooth_only and attack != DREAMBOOTH)
    ]
    if not wanted:
        return
    models = {"base": load_family(PIPELINE)}
    if name != "base":
        models["hardened"] = load_family(folder / f"{name}-{seed}" / "model")
    judged = Study(models, "base" if name == "base" else "hardened")
    for attack, person, attack_seed in wanted:
        seen = judged.run(attack, PEOPLE_PER_SEED * seed + person, attack_seed, 4)
        row = {"recipe": name, "attack": attack, "person": person, "seed": seed, "attack_seed": attack_seed} | seen
        with output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(name, seed, attack, person, attack_seed, f"{area(row):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--attack_seeds", type=int, default=1, help="attacks on each person")
    parser.add_argument("--dreambooth_only", action="store_true", help="without a recipe's other attacks")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of each hardening, looks not counted")
    parser.add_argument("--outer_steps", type=int, default=0, help="end each hardening after so many, not by minutes")
    parser.add_argument("--summary", action="store_true", help="print the table of the rows that are there")
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    folder: Path = options.output_dir
    if options.summary:
        print("\n".join(summary(folder)))
        return
    torch.set_num_threads(options.num_threads)
    for seed, name in itertools.product(options.seeds, options.recipes):
        recipe, own = RECIPES[name], folder / f"{name}-{seed}"
        recipe = replace(recipe, steps=options.outer_steps or recipe.steps)
        if name != "base" and not (own / "facts.json").exists():
            own.mkdir(parents=True, exist_ok=True)
            facts = harden(name, recipe, own, options.minutes, seed)
            (own / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        study(
            name,
            recipe,
            seed,
            folder,
            dreambooth_only=options.dreambooth_only,
            attack_seeds=options.attack_seeds,
        )


if __name__ == "__main__":
    main()
