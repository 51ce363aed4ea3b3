"""What each lever of docs/memory.md does to the weights and to protection, on the miniature world.

    OMP_NUM_THREADS=1 python -m benchmarks.levers --output benchmarks/results/memory-levers.json
    python -m benchmarks.levers --output benchmarks/results/memory-levers.json --summary

Each arm hardens the bundled model against one person with configs/portrait.yaml's recipe, shortened and without the
pool, whose attackers some levers cannot be; then DreamBooth and LoRA attack it at a third of their nominal rates: at
the nominal ones nothing protects so far, so nothing could be told apart (docs/what-was-tried.md). Rows that the file
has already are not made again. Hardened weights are kept in --folder, for the attacks and for distances.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from apdm.attacks import Material
from apdm.config import HardenConfig, load_config
from apdm.core.files import write_text
from apdm.distributed.processes import SINGLE_PROCESS
from apdm.families import Family, load_family
from apdm.families.encoding import encode_images
from apdm.jobs.hardening.training import Training
from apdm.metrics.fidelity import frechet_distance
from apdm.portraits import PIPELINE
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import ATTACK, DEFENCE, HOLDOUT
from apdm.protection.subject_data import SubjectData
from benchmarks.attacks import Study, portraits
from tools.portraits.attacks import PROMPTS, nominal
from tools.portraits.figures import draw

ROOT = Path(__file__).resolve().parents[1]
PERSON = PROTECTED_PEOPLE.start
CLASS_PICTURES = 96
RECIPE = {
    "pool.size": 0,
    "pool.benign_size": 0,
    "l2p.inner_steps": 10,
    "variety.prior_loss_weights": 1,
    "preservation.anchor_weight": 20.0,  # twice the inner steps
    "max_train_steps": 30,
    "learning_rate": 4e-4,
    "l2p.lora_learning_rate": 1e-2,  # LoRA's nominal rate in this world
}
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "another seed": {"seed": 1},  # how far two runs of the same differ
    "phi in bfloat16": {"memory.reference_dtype": "bfloat16"},
    "AdamW in 8 bits": {"l2p.optimizer": "adamw8bit"},
    "Adafactor": {"l2p.optimizer": "adafactor"},
    "LoRA attackers": {"l2p.lora_share": 1.0},
    "half of them LoRA": {"l2p.lora_share": 0.5},
}
ATTACKS = {
    "dreambooth": "dreambooth:learning_rate=1e-4",
    "lora": "lora:learning_rate=3.3e-3",
}
MEASURED = (25, 50, 100)
BATCH = 8


def configuration(arm: str) -> HardenConfig:
    options = {"instance_data_dir": "-", "output_dir": "-", **RECIPE, **ARMS[arm]}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value).lower())]
    return load_config(HardenConfig, ["--config", str(ROOT / "configs/portrait.yaml"), *words])


class World:
    """The base model, the person, and what both are judged by."""

    def __init__(self) -> None:
        self.base = load_family(PIPELINE)
        self.study = Study({"base": self.base}, "base")
        photos = portraits(PERSON, ATTACK) * 2 - 1
        self.material = Material(encode_images(self.base, photos), self.study.prior, photos)
        self.known = portraits(PERSON, HOLDOUT)
        self.start = weights(self.base)
        self.looks = [self.class_features(self.base, seed) for seed in (0, 10_000)]

    def harden(self, arm: str) -> tuple[Family, float]:
        """A hardened copy of the base, and the seconds of processor time that hardening took."""
        with torch.no_grad():
            prompts = self.base.encode_prompts([PROMPTS["instance_prompt"], PROMPTS["class_prompt"]]).float()
        photos = encode_images(self.base, portraits(PERSON, DEFENCE) * 2 - 1)
        data = SubjectData(photos, self.study.prior, prompts[:1], prompts[1:], self.base.draw_timesteps)
        config = configuration(arm)
        reference = self.base.denoiser.eval().requires_grad_(False)
        hardened = self.base.with_denoiser(copy.deepcopy(reference))
        training = Training(config, Accelerator(cpu=True), SINGLE_PROCESS, reference, hardened, {"s01": [data]}, {})
        started = time.process_time()
        for _ in range(config.max_train_steps):
            training.outer_step()
        seconds = time.process_time() - started
        training.publish()
        hardened.denoiser.requires_grad_(False)
        return hardened, seconds

    def class_features(self, family: Family, seed: int = 0) -> Tensor:
        return self.study.reader.features(draw(family, [PROMPTS["class_prompt"]] * CLASS_PICTURES, seed=seed))

    def attack(self, family: Family, spec: str) -> dict[str, Any]:
        """Likeness of what is drawn after so many steps, by encoder."""
        attack, curve = nominal(spec, train_batch_size=BATCH, max_train_steps=MEASURED[-1]), {}

        def evaluate(step: int, attacked: Family) -> None:
            pictures = draw(attacked, [attack.prompt(PROMPTS["instance_prompt"])] * 16, seed=77)
            seen = self.study.judge(pictures, self.known)
            curve[str(step)] = {name: round(entry["mean"], 3) for name, entry in seen.items()}

        attack.run(family, self.material, eval_steps=MEASURED, evaluate=evaluate)
        return curve


def weights(family: Family) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in family.denoiser.named_parameters()}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum(((one[name] - other[name]).double().square().sum() for name in one), torch.zeros(())).sqrt())


def measure(world: World, arm: str, folder: Path, rows: dict[str, Any]) -> None:
    """Fill in what is missing of an arm's row; `base` is the model that nobody hardened."""
    row = rows.setdefault(arm, {})
    family, file = world.base, folder / f"{arm.replace(' ', '-')}.safetensors"
    if arm != "base":
        if file.exists():
            family = world.base.with_denoiser(copy.deepcopy(world.base.denoiser))
            family.denoiser.load_state_dict(load_file(file))
        else:
            family, seconds = world.harden(arm)
            row["cpu_seconds"] = round(seconds, 1)
            save_file(weights(family), file)
        plain = load_file(folder / "none.safetensors")
        row["moved"] = distance(weights(family), world.start) / distance(plain, world.start)
        row["distance"] = distance(weights(family), plain) / distance(plain, world.start)
    if "class_distance" not in row:
        features = world.looks[1] if arm == "base" else world.class_features(family)
        row["class_distance"] = frechet_distance(world.looks[0], features) / frechet_distance(*world.looks)
    for name, spec in ATTACKS.items():
        if name not in row:
            row[name] = world.attack(family, spec)


def table(rows: dict[str, Any]) -> str:
    """Likeness by the encoder that sees more of it."""
    steps = " / ".join(map(str, MEASURED))
    lines = [
        "| lever | theta: distance from that of none | class distance "
        f"| DreamBooth at {steps} steps | LoRA at {steps} |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm, row in rows.items():
        moved = f"{row['distance']:.3f}" if "distance" in row else "not hardened"
        curves = [
            " / ".join(f"{max(row[name][str(step)].values()):.2f}" for step in MEASURED)
            for name in ATTACKS
            if name in row
        ]
        cells = [arm, moved, f"{row['class_distance']:.2f}", *curves]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="JSON file of the rows, added to")
    parser.add_argument("--folder", type=Path, default=Path("outputs/levers"), help="where hardened weights go")
    parser.add_argument("--arms", nargs="+", default=["base", *ARMS], choices=["base", *ARMS])
    parser.add_argument("--summary", action="store_true", help="print the table of the rows that are there")
    options = parser.parse_args()
    rows = json.loads(options.output.read_text()) if options.output.exists() else {}
    if not options.summary:
        torch.set_num_threads(1)
        options.folder.mkdir(parents=True, exist_ok=True)
        world = World()
        for arm in options.arms:
            measure(world, arm, options.folder, rows)
            write_text(options.output, json.dumps(rows, indent=1) + "\n")
            print(table({arm: rows[arm]}).splitlines()[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
