"""The options of `apdm app`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from apdm.config.commands.perturb import PerturbConfig
from apdm.config.groups.dataset import CLASS, PHOTOS
from apdm.config.options import option
from apdm.core.errors import UserError
from apdm.portraits import PIPELINE

LOCAL = "127.0.0.1"
NOT_USED = "Not used: the page takes the photos, and keeps them in a private folder until it is closed."
MODEL = "pretrained_model_name_or_path"
# What configs/dladiff-portrait.yaml says, for a command without any option.
MINIATURE: Mapping[str, Any] = {
    MODEL: str(PIPELINE),
    "instance_prompt": "a photo of t@t person",
    "class_prompt": "a photo of a person",
    "num_class_images": 64,
    "num_inference_steps": 15,
    "guidance_scale": 3.0,
    "sample_batch_size": 64,
    "resolution": 64,
    "image_layer.method": "dladiff",
    "image_layer.dladiff.static_steps": 200,
    "image_layer.dladiff.learning_rate": 3e-4,
    "image_layer.zero_shot.margin": 4.0,
}


@dataclass(frozen=True, kw_only=True)
class AppConfig(PerturbConfig):
    """Show a page in the browser of this machine, which protects photos and shows reports."""

    port: int = option(
        7860, "The port of the page. 0 takes a free one.", at_least=0, at_most=65535, common={"app": "page"}
    )
    host: str = option(
        LOCAL,
        "The address that the page listens at. With any other than this one, everybody who reaches this machine at "
        "that address can use the page, without a password and without encryption.",
        common={"app": "page"},
    )
    report: list[str] = option(
        [],
        "Audits whose page the second tab shows: the output folder of a run, its results.json, or a report.html. "
        "Several may be given.",
        holds="path",
        common={"app": "page"},
    )
    pretrained_model_name_or_path: str = option(
        "",
        "The model that photos are protected against: a diffusers folder, a single-file checkpoint or a Hub name. By "
        "default the bundled model of the miniature world, with the settings of configs/dladiff-portrait.yaml. It "
        "knows only drawn people.",
        holds="path",
        common="model",
    )
    instance_data_dir: str = option("photos", NOT_USED, holds="path")
    output_dir: str = option("protected", NOT_USED, holds="path")
    overwrite_output_dir: bool = option(True, NOT_USED)
    dataset_name: str | None = option(None, NOT_USED, holds="path")
    report_to: Literal["tensorboard", "wandb"] | None = option(None, "Not used: the page sends nothing to a tracker.")

    def __post_init__(self) -> None:
        for name, why in (
            ("dataset_name", "the photos come from the page"),
            ("report_to", "the page sends nothing to a tracker"),
        ):
            if getattr(self, name) is not None:
                raise UserError(f"{name} is given, but {why}; leave it out")
        super().__post_init__()

    @staticmethod
    def defaults_from(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults that follow from what is given: without a model, those of the miniature world."""
        miniature = {} if given.get(MODEL) else {name: v for name, v in MINIATURE.items() if given.get(name) is None}
        return miniature | PerturbConfig.defaults_from({**miniature, **given})

    def for_photos(self, photos: Path, output: Path, class_pictures: Path) -> PerturbConfig:
        """Return the options of the run that protects the photos of one page, as `apdm perturb` would get them.

        Args:
            class_pictures: where class pictures are drawn if the options name no folder. All pages share them.
        """
        values = {field.name: getattr(self, field.name) for field in fields(PerturbConfig)}
        # A folder of this name is where the photos of class_dataset_name lie while a run lasts.
        if (drawn := self.class_data_dir) is None or drawn.endswith(f"{PHOTOS}/{CLASS}"):
            values["class_data_dir"] = str(class_pictures) if self.class_dataset_name is None else None
        values |= {"instance_data_dir": str(photos), "output_dir": str(output), "overwrite_output_dir": True}
        return replace(PerturbConfig(**values), dry_run=False)
