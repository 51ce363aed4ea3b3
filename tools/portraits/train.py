"""Remake the bundled weights from nothing: `python -m tools.portraits.train STAGE [--work_dir DIR]`.

Stages: encoders, vae, denoiser, pack, adapter, figures.

Each stage reads what the stages before it left and writes its own files; on two cores all of them together take under
four hours. `encoders` and `vae` do not need each other and may run side by side.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from apdm.portraits import ADAPTER, PIPELINE, WEIGHTS


def encoders(work_dir: Path, only: list[str]) -> None:
    """Writes <name>.safetensors and <name>.json (figures on unseen people, thresholds) for each network."""
    from tools.portraits import train_encoders as T

    makers: dict[str, Callable[[Path], torch.nn.Module]] = {
        "portrait-a": T.train_residual,
        "portrait-face": T.train_reader,
        "portrait-b": T.train_patches,
    }
    for seed, name in enumerate(makers):
        if only and name not in only:
            continue
        torch.manual_seed(seed)
        model = T.timed(name, functools.partial(makers[name], work_dir))
        model.half().float()  # the rounding of the file, so that the figures are of what is shipped
        figures = T.figures(model, work_dir)
        print(name, json.dumps(figures), flush=True)
        WEIGHTS.mkdir(parents=True, exist_ok=True)
        save_file(halved(model), WEIGHTS / f"{name}.safetensors")
        (WEIGHTS / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def halved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state in half precision; counters stay whole numbers."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}


def pack(source: Path) -> None:
    """Put the trained pipeline into the package: unet and vae in half precision, which diffusers loads as float32.

    The text encoder stays in float32, because transformers loads what it finds.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(source)
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(PIPELINE)
    for path in sorted(PIPELINE.rglob("*.json")):  # diffusers notes where it loaded from: a path of this machine
        facts = json.loads(path.read_text())
        if facts.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoders", "vae", "denoiser", "pack", "adapter", "figures"])
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("outputs/world"),
        help="rendered pictures and intermediate states",
    )
    parser.add_argument("--only", nargs="*", default=[], help="with `encoders`: only these networks")
    parser.add_argument("--people", type=int, default=10, help="with `figures`: how many unseen people to personalise")
    arguments = parser.parse_args()
    if arguments.stage == "encoders":
        encoders(arguments.work_dir, arguments.only)
    elif arguments.stage == "vae":
        from tools.portraits.train_pipeline import write_autoencoder

        torch.manual_seed(10)
        write_autoencoder(arguments.work_dir, arguments.work_dir / "pipeline")
    elif arguments.stage == "denoiser":
        from tools.portraits.train_pipeline import train_denoiser

        torch.manual_seed(11)
        train_denoiser(arguments.work_dir, arguments.work_dir / "pipeline")
    elif arguments.stage == "pack":
        pack(arguments.work_dir / "pipeline")
    elif arguments.stage == "adapter":
        from tools.portraits.train_adapter import train_adapter

        torch.manual_seed(12)
        save_file(train_adapter(arguments.work_dir, PIPELINE), ADAPTER)
    else:
        from tools.portraits.card import write_card
        from tools.portraits.figures import write_figures

        figures = write_figures(PIPELINE, WEIGHTS / "pipeline.json", arguments.work_dir, people=arguments.people)
        print(json.dumps(figures, indent=1))
        write_card(WEIGHTS)


if __name__ == "__main__":
    main()
