"""Does hardening slow the attacker's learning? How much of the model's error on the person's photos an attack removes.

    python -m benchmarks.learning --output rows.jsonl --models base default=outputs/hardened/model
    python -m benchmarks.learning --output rows.jsonl --summary

The nominal attack trains on four photos. Before it and after some steps, the models predict the noise of noisy photos:
those that the attack trained on, and others of the same person. `start` is the length of the error before the attack.
`covered` is how far the attack has moved the prediction along that error, as a share of it: 1 would be all. `prompts`
is the cosine between the attack's change under the instance prompt and its change under the empty prompt.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from apdm.attacks import Material
from apdm.families import Family, Posterior, load_family
from apdm.families.encoding import encode_images
from apdm.portraits import PIPELINE
from apdm.portraits.people import PROTECTED_PEOPLE
from apdm.portraits.subjects import ATTACK, HOLDOUT
from benchmarks.attacks import portraits, read
from tools.portraits.attacks import PROMPTS, nominal
from tools.portraits.figures import draw

TIMESTEPS = (200, 500, 800)
DEPTHS = (100, 300)  # steps of the attack
SAMPLES = 32  # noisy photos for each timestep


def measure(model: Family, base: Family, person: int, prior: Posterior) -> Iterator[dict[str, Any]]:
    """Attack a model with a person's photos, and yield one row for each kind of photos and each timestep."""
    seed = PROTECTED_PEOPLE.start + person
    photos = {"trained": portraits(seed, range(ATTACK.start, ATTACK.start + 4)), "other": portraits(seed, HOLDOUT)[:8]}
    latents = {kind: encode_images(base, pixels * 2 - 1) for kind, pixels in photos.items()}
    material = Material(latents["trained"], prior)
    attacked = {
        depth: nominal(f"dreambooth:max_train_steps={depth}", seed=0).run(model, material).model for depth in DEPTHS
    }
    for kind, encoded in latents.items():
        draws = torch.Generator().manual_seed(3)
        for timestep in TIMESTEPS:
            clean = encoded.mean.repeat(SAMPLES // len(encoded), 1, 1, 1)
            noise = torch.randn(clean.shape, generator=draws)
            before = predictions(model, clean, noise, timestep)
            after = {depth: predictions(one, clean, noise, timestep) for depth, one in attacked.items()}
            yield {"photos": kind, "timestep": timestep, **compare(noise, before, after)}


@torch.no_grad()
def predictions(model: Family, clean: Tensor, noise: Tensor, timestep: int) -> dict[str, Tensor]:
    """{prompt: prediction} on noisy photos, `[N, C, h, w]` each."""
    steps = torch.full((len(clean),), timestep)
    noisy = model.add_noise(clean, noise, steps)
    embeds = {"instance": PROMPTS["instance_prompt"], "empty": ""}
    return {
        name: model.predict(
            model.denoiser, noisy, steps, model.encode_prompts([text]).float().expand(len(clean), -1, -1)
        )
        for name, text in embeds.items()
    }


def compare(
    noise: Tensor, before: Mapping[str, Tensor], after: Mapping[int, Mapping[str, Tensor]]
) -> dict[str, float | dict[str, float]]:
    """The figures that the module describes, as means over the photos; {attack steps: figure} after an attack."""
    error = (noise - before["instance"]).flatten(1)
    covered, left, prompts = {}, {}, {}
    for depth, attacked in after.items():
        change, unprompted = ((attacked[name] - before[name]).flatten(1) for name in ("instance", "empty"))
        covered[str(depth)] = float(((change * error).sum(1) / error.square().sum(1)).mean())
        left[str(depth)] = float((error - change).norm(dim=1).mean())
        prompts[str(depth)] = float(cosine_similarity(change, unprompted).mean())
    return {"start": float(error.norm(dim=1).mean()), "covered": covered, "left": left, "prompts": prompts}


def summary(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown: means over timesteps."""
    yield "| person | model | photos | error before | covered after 100 / 300 steps | error left | cosine of prompts |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: |"
    for person, model in dict.fromkeys((row["person"], row["model"]) for row in rows):
        for kind in ("trained", "other"):
            some = [row for row in rows if (row["person"], row["model"], row["photos"]) == (person, model, kind)]
            shares, lengths = (
                " / ".join(f"{fmean(row[name][str(depth)] for row in some):.2f}" for depth in DEPTHS)
                for name in ("covered", "left")
            )
            least = min(value for row in some for value in row["prompts"].values())
            start = fmean(row["start"] for row in some)
            yield f"| {person} | {model} | {kind} | {start:.2f} | {shares} | {lengths} | {least:.2f} |"


def main() -> None:
    """Make the rows that the command line asks for, or print their table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="file of rows, one JSON object per line")
    parser.add_argument("--summary", action="store_true", help="print a table of the rows in the file and stop")
    parser.add_argument("--models", nargs="+", default=["base"], help="base, or NAME=pipeline folder")
    parser.add_argument("--person", type=int, default=0, help="number of the person")
    parser.add_argument("--num_threads", type=int, default=1)
    options = parser.parse_args()
    if not options.summary:
        torch.set_num_threads(options.num_threads)
        base = load_family(PIPELINE)
        pictures = draw(base, [PROMPTS["class_prompt"]] * 64, seed=10_000)
        prior = encode_images(base, pictures * 2 - 1, batch_size=64)
        done = {(row["model"], row["person"]) for row in read(options.output)}
        for name, _, folder in (text.partition("=") for text in options.models):
            if (name, options.person) in done:
                continue
            rows = list(measure(load_family(folder) if folder else base, base, options.person, prior))
            with options.output.open("a") as file:
                for row in rows:
                    file.write(json.dumps({"model": name, "person": options.person, **row}) + "\n")
    print("\n".join(summary(read(options.output))))


if __name__ == "__main__":
    main()
