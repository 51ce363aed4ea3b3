"""Figures of a table that are measured on saved files: pictures of attacks, protected photos, pictures for captions.

Pictures are read from the PNG files in which the attacks keep them, with 8 bits, as everybody else would read them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from apdm.audit.results.store import CellStore, finished_cells
from apdm.audit.tables import CAPTIONS, PHOTOS, PICTURES, UNCHANGED, Column, TableCell, cell_of, measured_cell
from apdm.core.devices import to_float64
from apdm.core.pictures import to_unit
from apdm.data.subjects import find_subjects, list_all_images, load_images
from apdm.export.layout import CELLS, IMAGES, PERTURBATION
from apdm.faces import FaceEncoder
from apdm.faces.person import embed_person
from apdm.faces.portrait import PortraitFeatures
from apdm.jobs.common.face_networks import face_networks
from apdm.jobs.reproducing.models import FIGURE_MODELS, Options
from apdm.jobs.reproducing.recipes import Recipe, missing_for_column
from apdm.jobs.reproducing.steps import Done, attack_config, caption_texts, picture
from apdm.metrics.fidelity import Extractor, frechet_distance, kernel_distance
from apdm.metrics.perception import lpips_missing

BATCH = 32  # pictures that a network looks at together
DISTANCES = {"frechet": frechet_distance, "kernel": kernel_distance}
Runs = Mapping[str, Sequence[Done]]  # {subject: what was made, one for each seed}


@dataclass(frozen=True)
class Figures:
    """Measures the columns of a table.

    Attributes:
        recipe: the table.
        models: {name: place} of what models.yaml names.
        fill: puts places into the recipe's texts.
        allow_pickle: whether networks may be read from pickles.
    """

    recipe: Recipe
    models: Mapping[str, str]
    fill: Callable[[Options], Options]
    allow_pickle: bool = False
    _seen: dict[Any, Tensor] = field(default_factory=dict)

    def check_networks(self) -> None:
        """Load the networks that the columns need, so that a file that cannot be used is told before any work.

        Raises:
            UserError: a network cannot be read.
        """
        for column in self.recipe.columns.values():
            of_files = column.figure in PICTURES | CAPTIONS
            if of_files and not missing_for_column(self.recipe, column, self.models):
                getattr(self, FIGURE_MODELS[column.figure])

    def cell(self, column: Column, runs: Runs, published: float | None) -> TableCell:
        """Return the figure of a row.

        Raises:
            UserError: a network or a file cannot be read.
        """
        runs = {name: of for name, of in runs.items() if column.kind in (None, of[0].subject.kind)}
        if (missing := missing_for_column(self.recipe, column, self.models)) is not None:
            return TableCell(published=published, reason=missing)
        if column.figure == "photo_likeness" and column.encoder >= len(self.encoders):
            return TableCell(published=published, reason=f"there is no encoder {column.encoder}, counted from 0")
        if column.figure == "photo_likeness":
            likeness = {name: [self._photo_likeness(column, of[0])] for name, of in runs.items()}
            return cell_of(likeness, published, reason="no photos")
        if column.figure in PHOTOS:
            found = {name: self._of_photos(column.figure, of[0]) for name, of in runs.items()}
            return cell_of(found, published, reason=_why_no_photos(column.figure, runs))
        if column.figure in CAPTIONS:
            found = {name: [self._of_captions(column.figure, of[0])] for name, of in runs.items()}
            return cell_of(found, published, reason="no pictures")
        if column.figure in PICTURES:
            return self._of_pictures(column, runs, published)
        rows = {name: [one.row for one in of if one.row is not None] for name, of in runs.items()}
        prompts = max((len(one.prompts) for of in runs.values() for one in of), default=1)
        return measured_cell(column, rows, prompts, published)

    # -- photos ------------------------------------------------------------------------------------------------------

    def _of_photos(self, figure: str, done: Done) -> list[float]:
        """The mean over a subject's protected photos, as `apdm perturb` measured it on the saved files."""
        if done.changed is None:
            return []
        photos = json.loads((done.changed / PERTURBATION).read_text(encoding="utf-8"))["photos"]
        values = [value for photo in photos if (value := photo["visible"][figure]) is not None]
        return [fmean(values)] if values else []

    @torch.no_grad()
    def _photo_likeness(self, column: Column, done: Done) -> float:
        """The mean cosine of protected photos to their originals; 1 for photos that are not changed."""
        if done.changed is None:
            return 1.0
        (saved,) = find_subjects(done.changed / IMAGES)
        encoder = self.encoders[column.encoder]
        sides = (to_unit(load_images(files, self.recipe.resolution)) for files in (done.subject.photos, saved.images))
        before, after = (normalize(to_float64(embed_person(encoder, side)), dim=1) for side in sides)
        return (before * after).sum(1).mean().item()

    # -- pictures of attacks -----------------------------------------------------------------------------------------

    def _of_pictures(self, column: Column, runs: Runs, published: float | None) -> TableCell:
        sound = {name: [one for one in of if one.row and one.row.status == "ok"] for name, of in runs.items()}
        if column.figure in DISTANCES and self._too_few(column, list(sound.values())):
            return TableCell(published=published, reason="a distance needs two pictures and two photos")
        if column.pooled:
            seeds = max(map(len, sound.values()), default=0)
            groups = [[of[seed] for of in sound.values() if seed < len(of)] for seed in range(seeds)]
            cell = cell_of({"all": [self._measured(column, group) for group in groups]}, published, reason=FAILED)
            return TableCell(**{**vars(cell), "n": len(sound)}) if cell.n else cell
        found = {name: [self._measured(column, [one]) for one in of] for name, of in sound.items()}
        return cell_of(found, published, reason=FAILED)

    def _too_few(self, column: Column, runs: Sequence[Sequence[Done]]) -> bool:
        """Whether a distance would compare fewer than two pictures, or with fewer than two photos."""
        groups = [[of[0] for of in runs if of]] if column.pooled else [[one] for of in runs for one in of]
        for of in filter(None, groups):
            pictures = sum(len(_of_prompt(column, _pictures(one), one)) for one in of)
            if min(pictures, sum(len(one.subject.photos) for one in of)) < 2:
                return True
        return False

    def _measured(self, column: Column, runs: Sequence[Done]) -> float:
        """The figure of the pictures of some attacks together."""
        figure = column.figure
        if figure == "trained_similarity":
            (done,) = runs
            drawn, photos = (normalize(to_float64(self._drawn(column, done, self.dino))), self._photos(done, self.dino))
            return (drawn @ normalize(to_float64(photos)).T).mean().item()
        if figure in DISTANCES:
            drawn = torch.cat([self._drawn(column, done, self.inception) for done in runs])
            photos = torch.cat([self._photos(done, self.inception) for done in runs])
            return DISTANCES[figure](drawn, photos)
        networks = {"clip": self._clip_scores, "fiqa": self._quality, "unsafe_rate": self._flags}
        return to_float64(torch.cat([_of_prompt(column, networks[figure](done), done) for done in runs])).mean().item()

    def _drawn(self, column: Column, done: Done, network: Extractor) -> Tensor:
        """Features [N, D] of the pictures of an attack."""
        features = self._once((id(network), done.attack), lambda: _features(network, _pictures(done)))
        return _of_prompt(column, features, done)

    def _photos(self, done: Done, network: Extractor) -> Tensor:
        """Features [M, D] of the subject's photos, as they were before protection."""
        files = done.subject.photos

        def look() -> Tensor:
            return _features(network, to_unit(load_images(files, self.recipe.resolution)))

        return self._once((id(network), *files), look)

    def _clip_scores(self, done: Done) -> Tensor:
        def look() -> Tensor:
            pictures = _pictures(done)
            each = len(pictures) // len(done.prompts)
            return self._fit(pictures, [prompt for prompt in done.prompts for _ in range(each)])

        return self._once(("clip", done.attack), look)

    def _fit(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        starts = range(0, len(images), BATCH)
        return torch.cat([self.clip.score(images[i : i + BATCH], texts[i : i + BATCH]) for i in starts])

    def _quality(self, done: Done) -> Tensor:
        return self._once(("fiqa", done.attack), lambda: self.fiqa.score(_pictures(done)))

    def _flags(self, done: Done) -> Tensor:
        def look() -> Tensor:
            return torch.cat([self.safety_checker.flagged(part) for part in _pictures(done).split(BATCH)])

        return self._once(("unsafe", done.attack), look)

    # -- pictures for captions ---------------------------------------------------------------------------------------

    def _of_captions(self, figure: str, done: Done) -> float:
        captions, folder = self.recipe.captions, done.captions
        if captions is None or folder is None:
            raise ValueError("no pictures were drawn for captions")
        listed = caption_texts(captions, self.fill)
        drawn = [picture(folder, i) for i in range(len(listed))]
        if figure == "caption_clip":
            scores = [
                self._fit(
                    to_unit(load_images(part, self.recipe.resolution)), [one.text for one in listed[i : i + BATCH]]
                )
                for i, part in _parts(drawn)
            ]
            return to_float64(torch.cat(scores)).mean().item()
        place = Path(self.fill({"photos": captions.photos})["photos"])
        named = [place / one.photo for one in listed if one.photo is not None]
        real = named or list_all_images(place)[: len(drawn)]
        first, second = (self._of_files(files, captions.side) for files in (drawn, real))
        return DISTANCES[figure.removeprefix("caption_")](first, second)

    def _of_files(self, files: Sequence[Path], side: int) -> Tensor:
        """Features [N, D] of pictures in files, cut to squares."""

        def look() -> Tensor:
            parts = (to_unit(load_images(part, side)) for _, part in _parts(files))
            return torch.cat([_features(self.inception, part) for part in parts])

        return self._once(("files", side, *files), look)

    # -- networks, by their names in models.yaml ---------------------------------------------------------------------

    @cached_property
    def inception(self) -> Extractor:
        """The network of FID; on the miniature world the bundled features."""
        if self.recipe.is_miniature:
            return self._bundled
        from apdm.metrics.inception import Inception

        return Inception(Path(self.models["inception"]), allow_pickle=self.allow_pickle)

    @cached_property
    def dino(self) -> Extractor:
        """The network for likeness of whole pictures; on the miniature world the bundled features."""
        if self.recipe.is_miniature:
            return self._bundled
        from apdm.metrics.extractors import VisionModel

        return VisionModel(self.models["dino"], allow_pickle=self.allow_pickle)

    @cached_property
    def encoders(self) -> Sequence[FaceEncoder]:
        """The encoders that judge the attacks."""
        row = next(iter(self.recipe.rows.values()))
        (model,) = self.fill({"model": f"{{{self.recipe.model}}}"}).values()
        return face_networks(attack_config(self.recipe, row, self.fill, model=model)).encoders

    @cached_property
    def _bundled(self) -> Extractor:
        return PortraitFeatures()

    @cached_property
    def clip(self) -> Any:
        """Scores pictures with their prompts."""
        from apdm.metrics.extractors import ClipModel

        return ClipModel(self.models["clip"], allow_pickle=self.allow_pickle)

    @cached_property
    def fiqa(self) -> Any:
        """Scores the quality of faces."""
        from apdm.metrics.face_quality import FaceQuality

        return FaceQuality(self.models["fiqa"])

    @cached_property
    def safety_checker(self) -> Any:
        """Flags unsafe pictures."""
        from apdm.metrics.unsafe import SafetyChecker

        return SafetyChecker(self.models["safety_checker"], allow_pickle=self.allow_pickle)

    def _once(self, key: Any, look: Callable[[], Tensor]) -> Tensor:
        if key not in self._seen:
            self._seen[key] = look()
        return self._seen[key]


FAILED = "every attack failed"


def _why_no_photos(figure: str, runs: Runs) -> str:
    if all(one.changed is None for of in runs.values() for one in of):
        return UNCHANGED
    return (lpips_missing() if figure == "lpips" else None) or "no photo has a value"


def _pictures(done: Done) -> Tensor:
    """The pictures [N, 3, H, W] in [0, 1] that an attack drew at its end."""
    if done.attack is None:
        raise ValueError("nothing was attacked")
    store = CellStore(done.attack / CELLS)
    for cell in finished_cells(done.attack / CELLS):
        pictures = store.load(cell.name)[1]
        if "attacked" in pictures:
            return pictures["attacked"]
    raise ValueError(f"{done.attack} keeps no pictures of the attack")


def _of_prompt(column: Column, values: Tensor, done: Done) -> Tensor:
    """What belongs to the pictures of the column's prompt, or to all."""
    if column.prompt is None:
        return values
    each = len(values) // len(done.prompts)
    return values[column.prompt * each : (column.prompt + 1) * each]


def _features(network: Extractor, images: Tensor) -> Tensor:
    return torch.cat([network(part).cpu() for part in images.split(BATCH)])


def _parts(files: Sequence[Path]) -> Iterator[tuple[int, Sequence[Path]]]:
    for start in range(0, len(files), BATCH):
        yield start, files[start : start + BATCH]
