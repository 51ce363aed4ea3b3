"""The whole way of a host on real photos: harden, protect photos, attack, judge with real networks, verify.

    python -m benchmarks.real_world --assets DIR --output DIR [--quick] [--resolution 512] [--attack_steps 500]

It takes some sixteen minutes of one core of its own, and with --quick two and a half. Each number of `Size` is an
option.

The folder of --assets has photos of two people in `photos/faces/f01` and `f02`, of strangers in `photos/orl/<id>`, of
animals and things in `photos/subjects/<name>`; an InsightFace pack in `encoders/insightface_pack`, a YuNet in
`detectors`, and TAESD's weights as `vae/taesd-sd1-fp8.safetensors`. None of it comes with the package.

The model is `benchmarks.small_sd15`, which is trained first. So this shows that every part of the software works with
photos, and that real networks judge. It says nothing about how well anybody is protected in a real model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from apdm.audit import Results, read_model_results
from apdm.data.subjects import find_subjects
from apdm.faces import load_detector
from apdm.image_layer.photos import read_photo
from benchmarks.small_sd15 import build_pipeline, encode_photos, train

ROOT = Path(__file__).parents[1]
PACK, YUNET = "encoders/insightface_pack", "detectors/yunet_n_dynamic.onnx"
THRESHOLD = 0.255  # of the pack's MobileFaceNet, at a false accept rate of 1 % on the strangers
TAESD = "vae/taesd-sd1-fp8.safetensors"
FEATURES = "random-vit"
CLASSES = {"cat2": "cat", "dog6": "dog", "clock": "clock", "teapot": "teapot"}
CAVEAT = (
    "The model is a toy that was trained on the spot, and the network that judges is the one that the photo protection "
    "misled. These figures show that the parts work together. They show no protection."
)


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        small_steps, steps: steps of the toy's training, with photos of half the resolution and of the whole.
        outer_steps: of the hardening.
        attack_steps: of the nominal attack.
        num_images, num_inference_steps: of the pictures that are drawn.
        photos: protected photos of the person.
        layer_steps: the longest run of the zero-shot layer.
        rounds: of the fine-tuning layer.
    """

    small_steps: int
    steps: int
    outer_steps: int
    attack_steps: int
    num_images: int
    num_inference_steps: int
    photos: int
    layer_steps: int
    rounds: int


QUICK = Size(40, 10, 2, 2, 2, 4, 2, 30, 1)
WHOLE = Size(2500, 500, 20, 100, 8, 20, 4, 100, 5)


def lay_out(photos: Path, people: Path, count: int) -> Path:
    """Copy photos into the folders that the commands take, and return the top of these folders.

    The first person is protected, with `count` photos. The second one consents. Nobody is in two roles, and no photo is
    in two folders.
    """
    first, second = (sorted((photos / "faces" / name).glob("*.jpg")) for name in ("f01", "f02"))
    groups: dict[str, Iterable[Path]] = {
        "protected/s01": first[:count],
        "attacker/s01": first[4:8],
        "holdout/s01": first[8:],
        "other/s02": second[:4],
        "holdout/s02": second[8:],
    }
    for stranger in sorted(folder for folder in (photos / "orl").iterdir() if folder.is_dir()):
        groups[f"strangers/{stranger.name}"] = sorted(stranger.glob("*.png"))[:1]
    for name, files in groups.items():
        (people / name).mkdir(parents=True)
        for file in files:
            shutil.copyfile(file, people / name / file.name)
    return people


def make_base(assets: Path, folder: Path, size: Size, resolution: int) -> Path:
    """Train the toy on photos of the second person, strangers, animals and things, and write a pipeline folder.

    It does not learn the protected person, whom its training photos must not show.
    """
    photos = assets / "photos"
    shown = {"a photo of person": sorted((photos / "faces/f02").glob("*.jpg"))[:8]}
    shown["a photo of person"] += sorted((photos / "orl").glob("*/10.png"))[:4]
    for name, word in CLASSES.items():
        shown[f"a photo of {word}"] = sorted((photos / "subjects" / name).glob("*.jpg"))[:2]
    pipeline = build_pipeline(assets / TAESD, resolution)
    for side, steps in ((resolution // 2, size.small_steps), (resolution, size.steps)):
        train(pipeline, encode_photos(pipeline, shown, side), steps)
    pipeline.save_pretrained(folder)
    return folder


def layer_options(size: Size) -> dict[str, Any]:
    """Options of the photo protection, with both of its layers."""
    return {
        "image_layer.dladiff.static_steps": size.attack_steps,
        "image_layer.dladiff.rounds": size.rounds,
        "image_layer.dladiff.attention_steps": 1,
        "image_layer.dladiff.conditional_steps": 1,
        "image_layer.dladiff.surrogate_steps": min(size.attack_steps, 20),
        "image_layer.dladiff.learning_rate": 1e-4,
        "image_layer.zero_shot.max_steps": size.layer_steps,
        "image_layer.zero_shot.step_size": 0.1 / size.layer_steps,  # so that its budget can be used
        "image_layer.zero_shot.jitter": 0.05,
    }


def perturb_options(base: Path, people: Path, output: Path, pack: Path, size: Size, resolution: int) -> dict[str, Any]:
    """Options of the photo protection alone; `apdm harden` has them too."""
    return {
        "pretrained_model_name_or_path": base,
        "instance_data_dir": people / "protected",
        "output_dir": output,
        "resolution": resolution,
        "num_class_images": size.num_images,
        "num_inference_steps": size.num_inference_steps,
        "guidance_scale": 3,
        "num_threads": 1,
        "faces": f"{pack}={THRESHOLD}",
        **layer_options(size),
    }


def harden_options(base: Path, people: Path, output: Path, pack: Path, size: Size, resolution: int) -> dict[str, Any]:
    """Options of the main job: harden, protect the photos with both layers, attack both, and judge."""
    strength = 0.2 if size.num_inference_steps >= 5 else 0  # keeps the face, so the judges have one to look at
    return {
        **perturb_options(base, people, output, pack, size, resolution),
        "max_train_steps": size.outer_steps,
        "learning_rate": 1e-4,
        "l2p.inner_steps": 2,
        "l2p.learning_rate": 1e-4,
        "image_layer.enabled": "true",
        "audit.enabled": "true",
        "audit.judge": f"dino:{write_features(base.parent / FEATURES)}",
        "audit.attack_data_dir": people / "attacker",
        "audit.holdout_data_dir": people / "holdout",
        "audit.other_data_dir": people / "other",
        "audit.strangers_data_dir": people / "strangers",
        "audit.learning_rate": 1e-4,
        "audit.max_train_steps": size.attack_steps,
        "audit.train_batch_size": 2,
        "audit.num_class_images": size.num_images,
        "audit.num_images": size.num_images,
        "audit.num_inference_steps": size.num_inference_steps,
        "audit.guidance_scale": 3,
        "audit.prompts": "a photo of sks person",
        "audit.photo_attacks": f"img2img:strength={strength}",
    }


def write_features(folder: Path) -> Path:
    """Write a small vision transformer with random weights, and return its folder.

    No DINO is at hand. Features of random weights see that pictures changed, and the results name them for what they
    are.
    """
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ViTModel(ViTConfig(image_size=64, patch_size=16, **shape), add_pooling_layer=False)
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def command(name: str, options: Mapping[str, Any]) -> list[str]:
    """The command line of `apdm NAME` with these options."""
    return [
        sys.executable,
        "-m",
        "apdm",
        name,
        *(str(part) for key, value in options.items() for part in (f"--{key}", value)),
    ]


def run(name: str, options: Mapping[str, Any], package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `apdm NAME` as a user does, in a process of its own, offline.

    Args:
        name: the command.
        options: its options.
        package: the folder from which `apdm` is imported.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    line = command(name, options)
    return subprocess.run(line, cwd=package, env=environment, capture_output=True, text=True, check=False)


def detected(assets: Path) -> dict[str, dict[str, float]]:
    """{folder: {detector: share of the photos with a face}}."""
    photos = assets / "photos"
    folders = {"f01": photos / "faces/f01", "f02": photos / "faces/f02", "strangers": photos / "orl"}
    folders["animals and things"] = photos / "subjects"
    detectors = {"SCRFD": load_detector(str(assets / PACK)), "YuNet": load_detector(str(assets / YUNET))}
    shares: dict[str, dict[str, float]] = {}
    for name, folder in folders.items():
        files = [file for subject in find_subjects(folder) for file in subject.images]
        found = [read_photo(file).unit for file in files]
        shares[name] = {
            kind: sum(bool(detector.detect(photo)) for photo in found) / len(found)
            for kind, detector in detectors.items()
        }
    return shares


def figures(results: Results) -> dict[str, Any]:
    """What the audit found, in short: judges, likeness by model, by photos, and of the photos themselves."""
    layer = results.image_layer
    return {
        "caveat": CAVEAT,
        "judges": {
            "faces": {one.name: one.threshold for one in results.judges.encoders},
            "misled_by_the_photos": list(layer.misled_judges or []) if layer else [],
            **results.judges.quality,
        },
        "models": {
            f"{row.attack}, {row.model}, {row.role}": {name: asdict(seen) for name, seen in row.identity.items()}
            for row in results.attacks
        },
        "photos": {
            f"{row.attack}, {row.photos}": {name: asdict(seen) for name, seen in row.identity.items()}
            for row in (layer.attacks if layer else [])
        },
        "cosine_to_original": [
            {name: seen.to_original for name, seen in face.cosine.items()}
            for photo in (layer.photos if layer else [])
            for face in photo.faces
        ],
        "face_rate_of_class_pictures": results.utility.class_face_rate,
    }


def table(found: Mapping[str, Any]) -> list[str]:
    """The figures as lines of a table in Markdown."""
    lines = ["| pictures of | judge | face found | likeness | match rate |", "| --- | --- | --- | --- | --- |"]
    for group in ("models", "photos"):
        for what, by_judge in found[group].items():
            lines += [
                f"| {what} | {judge} | {seen['face_rate']:.2f} | {seen['mean']:.2f} | {seen['match_rate']:.2f} |"
                for judge, seen in by_judge.items()
            ]
    return [*lines, "", found["caveat"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--quick", action="store_true")
    for field in fields(Size):
        parser.add_argument(f"--{field.name}", type=int, help=f"default {getattr(WHOLE, field.name)}")
    given = parser.parse_args()
    assets, output, size = given.assets.resolve(), given.output.resolve(), QUICK if given.quick else WHOLE
    size = replace(size, **{name: number for name in asdict(size) if (number := getattr(given, name)) is not None})
    if (output / "people").exists():
        parser.error(f"{output} holds the photos of an earlier run; name another folder with --output")
    torch.set_num_threads(1)
    seconds: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        seconds[name] = round(time.perf_counter() - started, 1)
        print(f"{name}: {seconds[name]} s", flush=True)

    started = time.perf_counter()
    people = lay_out(assets / "photos", output / "people", size.photos)
    base = make_base(assets, output / "base", size, given.resolution)
    timed("training of the toy", started)
    for name, options in (
        ("harden", harden_options(base, people, output / "hardened", assets / PACK, size, given.resolution)),
        ("perturb", perturb_options(base, people, output / "perturbed", assets / PACK, size, given.resolution)),
        ("verify", {"output_dir": output / "hardened", "subjects": people / "protected"}),
    ):
        started = time.perf_counter()
        done = run(name, options)
        if done.returncode:
            sys.exit(f"apdm {name} ended with {done.returncode}:\n{done.stderr}")
        timed(name, started)
    found = {
        "size": {"resolution": given.resolution, **asdict(size)},
        "detected": detected(assets),
        **figures(read_model_results(output / "hardened/results.json")),
        "seconds": seconds,
    }
    (output / "real-world.json").write_text(json.dumps(found, indent=1) + "\n")
    print(*(f"faces found in {name}: {shares}" for name, shares in found["detected"].items()), sep="\n")
    print(*table(found), sep="\n")


if __name__ == "__main__":
    main()
