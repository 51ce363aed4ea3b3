"""The options that name a Hugging Face dataset in place of folders of photos, called as in diffusers' scripts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from apdm.config.options import option
from apdm.core.errors import UserError

PHOTOS = ".photos"  # the folder beside the output folder where the photos of datasets lie during a run
PEOPLE, CLASS = "people", "class"  # the folders in it


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Options of jobs that can take photos and class pictures from datasets."""

    dataset_name: str | None = option(
        None,
        "Take the photos from this Hugging Face dataset, not from instance_data_dir: a name on the Hub, a local "
        "folder (imagefolder, parquet, webdataset, or what save_to_disk wrote), or a local .parquet, .arrow or .tar "
        "file. The photos lie in a folder beside output_dir while the run or the dry run lasts, and are deleted then.",
        holds="path",
        common="photos",
    )
    dataset_config_name: str | None = option(
        None, "The configuration of the dataset, if it has several. By default its only one."
    )
    dataset_split: str = option("train", "The split of the dataset.")
    image_column: str = option("image", "The column of the dataset that holds the photos.")
    subject_column: str | None = option(
        None,
        "The column of the dataset that says whom a photo shows: a text, a whole number or a class label. Values that "
        "may be names of people are replaced by ids. By default all photos show one subject, s01.",
    )
    dataset_subjects: list[str] = option(
        [],
        "Values of subject_column, or the ids that a run made of them: take the photos of these subjects only. By "
        "default those of everybody. Only the ids are written into config.yaml.",
    )
    max_subjects: int | None = option(
        None,
        "Take only so many subjects of the dataset, those whose photos come first. By default everybody.",
        at_least=1,
    )
    class_dataset_name: str | None = option(
        None,
        "Take num_class_images class pictures from this dataset instead of class_data_dir; see dataset_name.",
        holds="path",
    )
    class_dataset_config_name: str | None = option(
        None, "The configuration of the dataset of class pictures, if it has several."
    )
    class_dataset_split: str = option("train", "The split of the dataset of class pictures.")
    class_image_column: str = option("image", "The column of the dataset that holds the class pictures.")

    def check_datasets(self) -> None:
        """Check that the options belong together. Raises UserError if they do not."""
        for name in ("dataset_config_name", "subject_column", "dataset_subjects", "max_subjects"):
            if getattr(self, name) and self.dataset_name is None:
                raise UserError(f"{name} belongs to a dataset; give its name with dataset_name, or leave {name} out")
        for name in ("dataset_subjects", "max_subjects"):
            if getattr(self, name) and self.subject_column is None:
                raise UserError(f"{name} needs subject_column, the column of the dataset that says who is who")
        if self.class_dataset_config_name and self.class_dataset_name is None:
            raise UserError("class_dataset_config_name belongs to class_dataset_name; give that too")

    @staticmethod
    def place(output_dir: str) -> Path:
        """The folder where the photos of datasets lie while a run lasts."""
        return Path(f"{Path(output_dir)}{PHOTOS}")


def folder_for(
    dataset: str | None, given: str | None, kind: str, output_dir: str, *, names: tuple[str, str]
) -> str | None:
    """Return the folder in which a job finds photos.

    Args:
        dataset: the dataset of the photos; None for a folder of the user's.
        given: the folder that was given. It may be one that an earlier run wrote into its config.yaml.
        kind: PEOPLE or CLASS.
        output_dir: the output folder of the job.
        names: the options of the dataset and of the folder, for messages.

    Raises:
        UserError: both are given.
    """
    if dataset is None:
        return given
    if given and not given.endswith(os.path.join(PHOTOS, kind)):
        raise UserError(f"{names[0]} and {names[1]} are both given; leave one of them out")
    return str(DatasetConfig.place(output_dir) / kind)
