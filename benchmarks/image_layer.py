"""What attackers learn from protected photos on the miniature world: the rows behind docs/photo-results.md.

    python -m benchmarks.image_layer --output rows.jsonl --attacks dreambooth,lora --arms clean,dladiff,aspl --people 10
    python -m benchmarks.image_layer --output rows.jsonl --summary

An arm is one way to protect photos. One row is one arm, one person, one attack and one seed. Rows that the file already
has are not made again, so a study can be stopped and continued, and --first splits it over processes. All arms of a
person and seed make equal random draws.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.fine_tuning import FineTuning
from apdm.config.groups.image_layer import (
    AntiDiffusionConfig,
    ASPLConfig,
    DLADiffConfig,
    FSMGConfig,
    ImageLayerConfig,
    PAPConfig,
    TransformConfig,
    ZeroShotConfig,
)
from apdm.data.transforms import RandomTransform
from apdm.faces import load_detector, load_encoders
from apdm.faces.portrait import PortraitFaceScore
from apdm.families import load_family
from apdm.families.encoding import encode_images
from apdm.image_layer.layers import LayeredProtection
from apdm.image_layer.photos import Photo, read_photo, save_photo
from apdm.image_layer.task import ProtectionTask
from apdm.image_layer.zero_shot import FaceModels
from apdm.metrics.identity import identity_statistics, likeness
from apdm.metrics.perception import psnr
from apdm.metrics.statistics import bootstrap_interval
from apdm.portraits import ADAPTER, PIPELINE
from apdm.portraits.people import OTHER_PEOPLE
from apdm.portraits.subjects import DEFENCE, HOLDOUT
from benchmarks.attacks import portraits, read
from tools.portraits.attacks import nominal
from tools.portraits.figures import draw

ENCODERS = ["portrait-a", "portrait-b"]
ATTACKS = ("dreambooth", "lora", "faceid", "photos")  # methods of `Study`
LORA = "lora:target=all,rank=32,learning_rate=1e-3,max_train_steps=500"
PROMPTS = {"optimised": "a photo of t@t person", "another": "a portrait of t@t person"}
FIRST_PERSON = OTHER_PEOPLE.start + 6000
RATE = 3e-4  # learning rate of surrogates: three times the nominal attack's, because they take fewer steps
# Most arms have a budget of 5 grey levels. Noise of this budget has a PSNR of 34.15 dB; no method has a lower one.
NO_FACES = ZeroShotConfig(enabled=False)
FACES = ZeroShotConfig(encoders=["portrait-a"], margin=4.0)
DIVERSE = TransformConfig(
    jpeg_probability=0.2, resize_probability=0.4, blur_probability=0.2, noise_probability=0.2, resize_factor=[0.4, 1.0]
)
METHOD: dict[str, Any] = {
    "dladiff": DLADiffConfig(static_steps=200, learning_rate=RATE),
    "anti_diffusion": AntiDiffusionConfig(learning_rate=RATE),
    "aspl": ASPLConfig(learning_rate=RATE, batch_size=4),
    "fsmg": FSMGConfig(static_steps=200, learning_rate=RATE, batch_size=4, ascent_steps=200),
    # This world's encoded prompts have few elements, over which the default rate would spread prompts widely.
    "pap": PAPConfig(ascent_steps=100, prompt_steps=10, prompt_learning_rate=10.0),
}


def layer(method: str, levels: int = 5, faces: ZeroShotConfig = NO_FACES, **options: Any) -> ImageLayerConfig:
    """The options of one arm. `levels` is the budget of the fine-tuning layer in grey levels."""
    return ImageLayerConfig(method=method, epsilon=levels / 255, zero_shot=faces, **{**METHOD, **options})


def sdl(weight: float) -> ImageLayerConfig:
    """Anti-Diffusion with another weight of attention in the semantic disturbance loss."""
    return layer("anti_diffusion", anti_diffusion=AntiDiffusionConfig(learning_rate=RATE, attention_weight=weight))


ARMS: dict[str, ImageLayerConfig | None] = {
    "clean": None,
    "noise": layer("noise"),
    "encoder": layer("encoder"),
    "mist": layer("mist"),
    "pap": layer("pap"),
    "fsmg": layer("fsmg"),
    "aspl": layer("aspl"),
    "disdiff": layer("disdiff", greedy_timesteps=True),  # as its release, with the options of ASPL
    "anti_diffusion": layer("anti_diffusion"),
    "anti_diffusion_0": sdl(0),
    "anti_diffusion_1": sdl(1),
    "anti_diffusion_10": sdl(10),
    "dladiff": layer("dladiff"),
    "without_dsur": layer("dladiff", dladiff=DLADiffConfig(static_surrogate=False, learning_rate=RATE)),
    "without_adft": layer("dladiff", dladiff=DLADiffConfig(static_steps=200, alternate=False, learning_rate=RATE)),
    "dladiff_16": layer("dladiff", 16),
    "dladiff_32": layer("dladiff", 32),
    "faces": layer("none", faces=FACES),
    "faces_5": layer("none", faces=replace(FACES, epsilon=5 / 255)),
    "faces_momentum": layer("none", faces=replace(FACES, momentum=0.9)),
    "faces_jitter": layer("none", faces=replace(FACES, jitter=0.1)),
    "faces_transforms": layer("none", faces=FACES, transform=DIVERSE),
    "faces_all": layer("none", faces=replace(FACES, momentum=0.9, jitter=0.1), transform=DIVERSE),
    "faces_ensemble": layer("none", faces=replace(FACES, encoders=ENCODERS)),
    "both": layer("dladiff", 7, FACES),
    "both_reversed": layer("dladiff", 7, FACES, order="zero_shot_first"),
}


class Study:
    """The models of the miniature world, and what is done to the photos of one person.

    Args:
        scratch: a file for photos that are saved and read again.
    """

    def __init__(self, scratch: Path) -> None:
        self.family = load_family(PIPELINE)
        self.judges, self.reader = load_encoders(ENCODERS), PortraitFaceScore()
        self.attack, self.adapter = cast(FineTuning, nominal("dreambooth")), cast(FineTuning, nominal(LORA))
        with torch.no_grad():
            pictures = draw(self.family, [self.attack.class_prompt] * 64, seed=10_000)
            self.prior = encode_images(self.family, pictures * 2 - 1, batch_size=64)
            self.prompts = self.family.encode_prompts([self.attack.instance_prompt, self.attack.class_prompt]).float()
        self.scratch = scratch

    def protect(self, arm: str, person: int) -> tuple[Tensor, dict[str, float | None]]:
        """Protect a person's photos.

        Returns:
            The photos as they were saved, `[4, 3, 64, 64]` in [0, 1]; and their PSNR and the time for one photo.
        """
        photos = [Photo(Path("photo.png"), (p * 255).round().byte()) for p in portraits(person, DEFENCE)]
        config, started = ARMS[arm], time.perf_counter()
        if config is None:
            return torch.stack([photo.unit for photo in photos]), {}
        task = ProtectionTask(
            family=self.family,
            originals=[photo.unit for photo in photos],
            prompt_embeds=self.prompts[:1],
            class_prompt_embeds=self.prompts[1:],
            prior=self.prior,
            resolution=64,
            generator=torch.Generator().manual_seed(person),
            transform=RandomTransform.from_config(config.transform),
            prompt=self.attack.instance_prompt,
            class_prompt=self.attack.class_prompt,
        )
        faces = FaceModels(load_detector("portrait"), load_encoders(config.zero_shot.encoders))
        saved = []
        for pixels in LayeredProtection.from_config(config, faces).protect(photos, task):
            save_photo(pixels, self.scratch)
            saved.append(read_photo(self.scratch))
        seconds = (time.perf_counter() - started) / len(photos)
        visible = [
            psnr(*(np.asarray(p.pixels.permute(1, 2, 0)) for p in pair)) for pair in zip(photos, saved, strict=True)
        ]
        return torch.stack([photo.unit for photo in saved]), {
            "psnr": fmean(value for value in visible if value is not None),
            "seconds_per_photo": seconds,
        }

    def dreambooth(self, photos: Tensor, person: int, seed: int) -> dict[str, Any]:
        """Run the nominal attack on the photos and measure the likeness of 16 pictures for each prompt."""
        return self.fine_tune(replace(self.attack, seed=seed), photos, person)

    def lora(self, photos: Tensor, person: int, seed: int) -> dict[str, Any]:
        """Run LoRA on all layers and measure the likeness of 16 pictures for each prompt."""
        return self.fine_tune(replace(self.adapter, seed=seed), photos, person)

    def fine_tune(self, attack: FineTuning, photos: Tensor, person: int) -> dict[str, Any]:
        """Run an attack that trains, and measure likeness: {prompt: {encoder: statistics}}."""
        latents = encode_images(self.family, photos * 2 - 1)
        attacked = attack.run(self.family, Material(latents, self.prior)).model
        return {
            name: self.judge(draw(attacked, [prompt] * 16, seed=1000 * attack.seed + 77), person)
            for name, prompt in PROMPTS.items()
        }

    def faceid(self, photos: Tensor, person: int, seed: int) -> dict[str, Any]:
        """Give the FaceID adapter the first photo, and measure likeness."""
        adapter = FaceIDAdapter(path=ADAPTER, encoder=self.judges[0])
        pictures = adapter.run(
            adapter.with_adapter(self.family),
            photos[:1],
            [self.attack.class_prompt] * 16,
            seed=1000 * seed + 77,
            num_inference_steps=15,
            guidance_scale=3.0,
            batch_size=16,
        )
        return {"adapter": self.judge(pictures, person)}

    def photos(self, photos: Tensor, person: int, seed: int) -> dict[str, Any]:
        """No attack: measure the likeness of the protected photos themselves."""
        return {"photos": self.judge(photos, person)}

    def judge(self, pictures: Tensor, person: int) -> dict[str, Any]:
        """Likeness of pictures `[N, 3, H, W]` in [0, 1] to other photos of the person, by each encoder."""
        detected, known = self.reader.score(pictures) >= self.reader.threshold, portraits(person, HOLDOUT)
        return {
            judge.name: asdict(
                identity_statistics(likeness(judge.embed(pictures), judge.embed(known)), detected, judge.threshold)
            )
            for judge in self.judges
        }


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells one row from another."""
    return row["attack"], row["arm"], row["person"], row["seed"]


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: likeness in each arm, and how much lower it is than with clean photos.

    Values are means over people, and the value of a person is a mean over seeds. Differences are taken between rows of
    the same person and seed.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for prompt in row["likeness"]:
            groups[row["attack"], prompt, row["arm"]].append(row)
    order = list(ARMS)
    head = ["attack", "prompt", "photos", "people", "PSNR", "ISM a / b", "less than clean's, 95 %", "detected only"]
    yield f"| {' | '.join([*head, 'match a / b', 'faces'])} |"
    yield "| --- " * (len(head) + 2) + "|"
    for (attack, prompt, arm), some in sorted(groups.items(), key=lambda g: (g[0][0], g[0][1], order.index(g[0][2]))):
        clean = {(row["person"], row["seed"]): row for row in groups.get((attack, prompt, "clean"), [])}
        pairs = [(clean[own], row) for row in some if (own := (row["person"], row["seed"])) in clean]
        means = [
            " / ".join(f"{fmean(_by_person(some, prompt, judge, figure).values()):.2f}" for judge in ENCODERS)
            for figure in ("mean", "detected_mean", "match_rate")
        ]
        less = " / ".join(_less(pairs, prompt, judge) for judge in ENCODERS) if arm != "clean" and pairs else ""
        faces = fmean(row["likeness"][prompt][ENCODERS[0]]["face_rate"] for row in some)
        visible = [row["psnr"] for row in some if row.get("psnr")]
        shown = f"{fmean(visible):.1f}" if visible else ""
        people = len({row["person"] for row in some})
        cells = [attack, prompt, arm, str(people), shown, means[0], less, *means[1:], f"{faces:.2f}"]
        yield f"| {' | '.join(cells)} |"


def _by_person(rows: Iterable[dict[str, Any]], prompt: str, judge: str, figure: str) -> dict[int, float]:
    seen: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        seen[row["person"]].append(row["likeness"][prompt][judge][figure] or 0.0)
    return {person: fmean(values) for person, values in sorted(seen.items())}


def _less(pairs: list[tuple[dict[str, Any], dict[str, Any]]], prompt: str, judge: str) -> str:
    """How much lower the second row of each pair is, with an interval over people if there are several."""
    before, after = (list(_by_person(side, prompt, judge, "mean").values()) for side in zip(*pairs, strict=True))
    mean = f"{fmean(before) - fmean(after):.2f}"
    if len(before) == 1:
        return mean
    low, high = bootstrap_interval(before, after)
    return f"{mean} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Make the rows that the command line asks for, or print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of rows, one JSON object per line")
    parser.add_argument("--summary", action="store_true", help="print a table of the rows in the file and stop")
    parser.add_argument("--attacks", default="dreambooth", help=f"some of {', '.join(ATTACKS)}")
    parser.add_argument("--arms", default="clean,dladiff", help=f"some of {', '.join(ARMS)}")
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first person")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    if options.summary:
        print("\n".join(summary(read(options.output))))
        return
    torch.set_num_threads(options.num_threads)
    done, study = {key(row) for row in read(options.output)}, Study(options.output.with_suffix(".png"))
    for number in range(options.first, options.first + options.people):
        for arm in options.arms.split(","):
            asked = [(attack, seed) for attack in options.attacks.split(",") for seed in range(options.seeds)]
            if not (wanted := [(attack, seed) for attack, seed in asked if (attack, arm, number, seed) not in done]):
                continue
            photos, cost = study.protect(arm, FIRST_PERSON + number)
            for attack, seed in wanted:
                found = getattr(study, attack)(photos, FIRST_PERSON + number, seed)
                row = {"attack": attack, "arm": arm, "person": number, "seed": seed, **cost, "likeness": found}
                with options.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                ism = {p: [round(v[e]["mean"], 2) for e in ENCODERS] for p, v in found.items()}
                print(number, arm, attack, seed, {k: round(v, 1) for k, v in cost.items() if v}, ism, flush=True)


if __name__ == "__main__":
    main()
