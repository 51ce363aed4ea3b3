"""Photos from a Hugging Face dataset: the chosen ones are written into a folder, which the rest of the program reads.

A dataset is a name on the Hub, a local folder (imagefolder, parquet, webdataset, or what `save_to_disk` wrote) or a
local .parquet, .arrow or .tar file. It is read row by row, so that it never has to fit into memory, and nothing of it
is kept in the cache of the Hugging Face libraries. Photos are not decoded: the files that the dataset holds are written
as they are.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from apdm.core.disk import told_of_faults
from apdm.core.errors import Faults, UserError, first_line
from apdm.core.files import delete
from apdm.core.libraries import are_told
from apdm.core.lock import locked
from apdm.core.logging import get_logger
from apdm.core.opaque_ids import opaque_id, plain
from apdm.data.photo_files import formats, printable

logger = get_logger(__name__)

NOTE = ".made_by_apdm"  # marks the folder as one that this program may delete; hidden files are no photos
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp"}
FILES = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}  # kinds of files: their reader in `datasets`


@dataclass(frozen=True, kw_only=True)
class DatasetSource:
    """Where photos come from.

    Attributes:
        option: the option that names the dataset, for messages.
        name: a name on the Hub, or the path of a local folder or file.
        config_name: which configuration of the dataset; None for its only one.
        split: which split.
        image_column: the column of the pictures.
        subject_column: the column that says whom a picture shows; None if all show the same person, or nobody in
            particular.
        subjects: values of this column, or the ids that stand in their place; only these subjects are taken. Empty
            takes everybody.
        max_subjects: take only so many subjects, those whose photos come first; None takes all.
        max_photos: take only so many photos, those that come first; None takes all.
    """

    option: str
    name: str
    config_name: str | None = None
    split: str = "train"
    image_column: str = "image"
    subject_column: str | None = None
    subjects: Sequence[str] = ()
    max_subjects: int | None = None
    max_photos: int | None = None

    @property
    def called(self) -> str:
        """The dataset in messages."""
        return f"dataset {self.name}"

    def photos(self) -> Iterator[tuple[int, str | None, bytes]]:
        """Yield the number of the row, the id of the subject and the encoded picture of each photo that is taken.

        Raises:
            UserError: the dataset, a column or a picture cannot be read, or a row has no subject.
        """
        wanted = {opaque_id(name): name for name in self.subjects}
        taken: set[str] = set()
        photos = 0
        for row, example in enumerate(self._examples()):
            if photos == self.max_photos:
                break
            subject = None
            if self.subject_column is not None:
                subject = opaque_id(self._value(example[self.subject_column], row))
                if wanted and subject not in wanted:
                    continue
                if subject not in taken and len(taken) == self.max_subjects:
                    continue
                taken.add(subject)
            photos += 1
            yield row, subject, self._picture(example[self.image_column], row)
        for number, (subject, name) in enumerate(wanted.items(), 1):
            if subject not in taken:
                raise UserError(
                    f"{self.called} has no photos of {name} in the column {self.subject_column}, which is number "
                    f"{number} of dataset_subjects; correct it, or leave it out"
                )
        if not photos:
            raise self._empty()

    def _examples(self) -> Iterator[dict[str, Any]]:
        try:
            with _quiet():
                data = self._open()
                columns = {self.image_column, *([self.subject_column] if self.subject_column else [])}
                features = self._check_columns(data, columns)
                data = data.select_columns(sorted(columns))
                if type(features.get(self.image_column)).__name__ == "Image":
                    from datasets import Image as Pictures

                    data = data.cast_column(self.image_column, Pictures(decode=False))
                names = getattr(features.get(self.subject_column or ""), "names", None)
                for example in data:
                    if names and isinstance(label := example[self.subject_column], int):
                        example[self.subject_column] = names[label] if label >= 0 else None
                    yield example
        except (UserError, MemoryError):
            raise
        except Exception as error:  # whatever the readers raise on a dataset that is not there or not intact
            raise UserError(
                f"{self.called} cannot be read: {printable(first_line(error))}; {self._mend(error)}"
            ) from None

    def _open(self) -> Any:
        """Open the dataset, so that its rows are read one after the other."""
        import datasets

        place = Path(self.name)
        if place.is_dir() and any((place / note).exists() for note in ("state.json", "dataset_dict.json")):
            return self._saved(place).to_iterable_dataset()
        if place.is_file():
            kind = FILES.get(place.suffix.lower())
            if kind is None:
                raise UserError(f"{self.name} is no {', '.join(FILES)} file; give {self.option} one, or a folder")
            return datasets.load_dataset(kind, data_files=self.name, split=self.split, streaming=True)
        return datasets.load_dataset(self.name, self.config_name, split=self.split, streaming=True)

    def _saved(self, place: Path) -> Any:
        """Return the wanted split of what `save_to_disk` wrote: a dataset, or several splits with a folder each."""
        import datasets

        if (place / "dataset_dict.json").exists():
            splits = json.loads((place / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            if self.split not in splits:
                raise UserError(f"{self.called} has no split {self.split}, only {', '.join(splits)}; choose another")
            place = place / self.split
        try:
            return datasets.load_from_disk(str(place))
        except IndexError:  # a dataset without rows is saved without a data file, which `datasets` cannot read
            raise self._empty() from None

    def _check_columns(self, data: Any, columns: set[str]) -> dict[str, Any]:
        """Return the types of the columns. Raises UserError if one of the wanted columns is not there."""
        features = data.features or {name: None for name in next(iter(data), {})}
        for column in sorted(columns):
            if column not in features:
                which = "image_column" if column == self.image_column else "subject_column"
                raise UserError(
                    f"{self.called} has no column {column}, only {', '.join(features)}; choose one with "
                    f"--{self.option.replace('dataset_name', which)}"
                )
        labels = [name for name, kind in features.items() if type(kind).__name__ == "ClassLabel"]
        if labels and self.subject_column is None and self.option == "dataset_name":
            logger.warning(
                "%s: all photos count as one person's; if its column %s says who is who, give --subject_column %s",
                *(self.called, labels[0], labels[0]),
            )
        return dict(features)

    def _value(self, value: Any, row: int) -> str:
        """Return the value of the subject column as a text."""
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise UserError(
                f"row {row} of {self.called} has no subject in the column {self.subject_column}, which must hold a "
                "text or a whole number; mend the row, or choose another column"
            )
        return plain(str(value))

    def _picture(self, value: Any, row: int) -> bytes:
        """Return the encoded picture of one row."""
        content, path = value, None
        if isinstance(value, dict):
            content, path = value.get("bytes"), value.get("path")
        if content is None and isinstance(path, str):
            content = self._read(path, row)
        if not isinstance(content, bytes):
            raise UserError(
                f"row {row} of {self.called} has no picture in the column {self.image_column}; choose the column of "
                f"the pictures with --{self.option.replace('dataset_name', 'image_column')}, or remove the row"
            )
        return content

    def _read(self, path: str, row: int) -> bytes:
        """Return the content of a file that the dataset names. One on the Hub may not name files of this machine."""
        from datasets.utils.file_utils import xopen

        if "://" not in path and not os.path.exists(self.name):
            raise UserError(f"row {row} of {self.called} names a file of this machine, which is not read")
        with xopen(path, "rb") as file:
            return bytes(file.read())

    def _empty(self) -> UserError:
        return UserError(f"{self.called} has no photos in its split {self.split}; choose another")

    def _mend(self, error: Exception) -> str:
        if isinstance(error, ConnectionError):
            return f"connect to the Hub, or give {self.option} a local folder"
        if type(error).__name__ in ("DatasetNotFoundError", "GatedRepoError"):
            return "check the name; for a private or gated dataset, log in with hf auth login"
        return f"check {self.option} and the options that belong to it"


def write_photos(source: DatasetSource, folder: Path) -> None:
    """Write the photos of a dataset into a folder: `<id>/<row>.jpg`, or `<row>.jpg` if they are nobody's in particular.

    Raises:
        UserError: the dataset cannot be read, or a picture in it is of no kind that can be read.
    """
    for row, subject, content in source.photos():
        try:
            with Image.open(io.BytesIO(content), formats=formats()) as image:
                kind = str(image.format)
        except Exception:  # whatever a decoder raises
            raise UserError(
                f"row {row} of {source.called} holds no picture that can be read in the column {source.image_column}; "
                "mend or remove the row"
            ) from None
        target = folder / (subject or "") / f"{row:06d}{SUFFIXES.get(kind, '.' + kind.lower())}"
        with told_of_faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _write_all(source: DatasetSource, folder: Path) -> None:
    """Write the photos of a dataset into a folder; none, if one of them cannot be written."""
    try:
        write_photos(source, folder)
    except UserError as error:
        delete(folder)
        error.path = str(folder)
        raise


@contextmanager
def photos_on_disk(place: Path, sources: dict[str, DatasetSource], faults: Faults | None = None) -> Iterator[None]:
    """Write the photos of datasets into folders, and delete them at the end of the block, however it ends.

    Args:
        place: the folder for all of them. Nothing else may be in it.
        sources: {name of a folder in `place`: the dataset}.
        faults: keeps what is wrong with the datasets, so that the block runs all the same. The folder of a dataset that
            cannot be used is then missing. By default such mistakes are raised.

    Raises:
        UserError: a dataset cannot be used, or `place` is not ours.
    """
    if not sources:
        yield
        return
    if place.exists() and not (place.is_dir() and (place / NOTE).exists()):
        raise UserError(f"{place} is needed for the photos of the dataset, but it is not from this program; rename it")
    with told_of_faults(place):
        place.mkdir(parents=True, exist_ok=True)
    try:
        with locked(place):
            try:
                (place / NOTE).touch()
                with Faults() if faults is None else nullcontext(faults) as found:
                    for name, source in sources.items():
                        delete(place / name)  # what a run that was killed has left
                        found.of(partial(_write_all, source, place / name))
                yield
            finally:
                delete(place)
    except BlockingIOError:
        raise UserError(
            f"another run has its photos in {place}: wait until it ends, or choose another output_dir"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep `datasets` from drawing progress bars, from writing warnings, and from telling the Hub what is loaded."""
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    if are_told():
        yield
        return
    bars, hub = datasets.is_progress_bar_enabled(), logging.getLogger("huggingface_hub")
    levels = datasets.logging.get_verbosity(), hub.level
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # of an error that it logs, the exception says more
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        if bars:
            datasets.enable_progress_bars()
        datasets.logging.set_verbosity(levels[0])
        hub.setLevel(levels[1])
