"""Train the bundled models from scratch: `python -m tools.portraits.train STAGE [--work_dir DIR]`.

Run the stages in this order:
  encoders  the two face encoders and the attribute reader
  vae       the pipeline's autoencoder
  denoiser  the pipeline's denoiser and text encoder
  pack      copies the pipeline into the package
  adapter   the FaceID adapter
  figures   measures all models and writes their model card

Each stage reads the files of the stages before it. `encoders` and `vae` are independent of each other. All stages
together take under four hours on two cores.
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
    """Train the networks that look at portraits, and write <name>.safetensors and <name>.json for each.

    The JSON file holds the figures on unseen people and the threshold.

    Args:
        work_dir: the work folder with the training sets.
        only: names of the networks to train; all if it is empty.
    """
    from tools.portraits import train_encoders

    makers: dict[str, Callable[[Path], torch.nn.Module]] = {
        "portrait-a": train_encoders.train_residual,
        "portrait-face": train_encoders.train_reader,
        "portrait-b": train_encoders.train_patches,
    }
    for seed, name in enumerate(makers):
        if only and name not in only:
            continue
        torch.manual_seed(seed)
        model = train_encoders.timed(name, functools.partial(makers[name], work_dir))
        model.half().float()  # rounded as in the file, so that the figures describe what is shipped
        figures = train_encoders.figures(model, work_dir)
        print(name, json.dumps(figures), flush=True)
        WEIGHTS.mkdir(parents=True, exist_ok=True)
        save_file(halved(model), WEIGHTS / f"{name}.safetensors")
        (WEIGHTS / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def halved(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model in half precision. Counters stay whole numbers."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}


def pack(source: Path) -> None:
    """Copy the trained pipeline into the package.

    U-Net and VAE are written in half precision, and diffusers loads them as float32. The text encoder stays in float32,
    because transformers loads it in the type of the file.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(source)
    pipeline.unet.half()
    pipeline.vae.half()
    pipeline.save_pretrained(PIPELINE)
    for path in sorted(PIPELINE.rglob("*.json")):  # diffusers writes the path it loaded from
        facts = json.loads(path.read_text())
        if facts.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["encoders", "vae", "denoiser", "pack", "adapter", "figures"])
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("outputs/world"),
        help="folder for training sets and models in the making",
    )
    parser.add_argument("--only", nargs="*", default=[], help="for the stage encoders: train only these networks")
    parser.add_argument(
        "--people", type=int, default=10, help="for the stage figures: how many unseen people to train DreamBooth on"
    )
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
