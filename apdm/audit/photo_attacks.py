"""The audit of protected photos: the same attacks with a person's original photos and with the protected photos.

The attacks run on the base model, because protected photos are meant for models that nobody hardened. The attacks on
clean and on protected photos use the same random numbers, so their rows can be compared as pairs. A purifier changes
photos in order to undo their protection. Every attack also runs on the protected photos after each purifier.

Attacks that train draw the audit's prompts. Attacks without training know no rare word, so they draw the same prompts
without it. Each attack runs once for every seed of the audit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import cycle, islice, product
from typing import Any, Literal

from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.mixed_photos import Mix
from apdm.attacks.parts.captions import drawn_captions
from apdm.attacks.registry import is_editing, is_zero_shot, make_purifier, make_zero_shot
from apdm.audit.cells.judging import References, check_finite, editing_quality, person_quality, picture_scores
from apdm.audit.doubts import doubtful_thresholds, doubts_about_judges, few_pictures, one_encoder
from apdm.audit.inputs.photo_attack_specs import ADAPTER_ATTACK, PhotoAttackSpecs
from apdm.audit.inputs.plan import AuditPlan
from apdm.audit.inputs.protected_photos import PhotoPair, ProtectedPhotos
from apdm.audit.photo_verdict import judge_photo_attacks
from apdm.audit.results.photos import ImageLayer, PhotoAttackRow
from apdm.audit.results.picture_names import photo_picture_name
from apdm.audit.results.schema import from_json, to_json
from apdm.audit.results.store import CellStore, KeptPictures, key_of, tensor_hash
from apdm.config.plugins import code_hash
from apdm.config.prompts import without_identifier
from apdm.core.disk import picture_size
from apdm.core.errors import one_line
from apdm.core.pictures import to_signed, to_unit
from apdm.core.signals import check_for_stop, interruption_in
from apdm.core.terminal import progress_bar
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.families import Posterior
from apdm.families.encoding import encode_images
from apdm.metrics.utility import StrangersLikeness

PHOTO_FORMAT = 4  # version of these cells in the store; cells of another version are run again
CAPTIONS = "captions"  # stands for the prompts of pictures that were drawn with captions, which rows never hold
DRAWN = "drawn"  # name of a cell's pictures in the store
PICTURE_SEED = 7_000_000  # added to the seed, so that no seed is shared with the audit of the models
SEED_STRIDE = 100_000  # between the first pictures of two seeds, so that no picture of one is a picture of the other
DIFFERENCE_GAIN = 10  # the report shows the change of a photo times this factor, added to grey


@dataclass(frozen=True)
class PhotoCell:
    """One attack with one person's photos.

    Attributes:
        person: the person's id.
        pair: the person's clean and protected photos.
        attack: spec of the attack.
        photos: which photos of the pair the attacker has.
        purifier: spec of the purifier that changes the photos first; None: no purifier.
        seed: the seed of all random numbers.
    """

    person: str
    pair: PhotoPair
    attack: str
    photos: Literal["clean", "protected"]
    purifier: str | None
    seed: int

    @property
    def used(self) -> Tensor:
        """The photos that the attacker has. Raises UserError if `mix` leaves none of them protected."""
        if self.photos == "clean":
            return self.pair.clean
        purifier = None if self.purifier is None else make_purifier(self.purifier, has_originals=True)
        return purifier.of(self.pair.clean, self.pair.protected) if isinstance(purifier, Mix) else self.pair.protected


@dataclass(frozen=True)
class PhotoAudit:
    """Attacks the base model with clean and protected photos.

    Attributes:
        plan: the base, the hold-out photos of the people, the judges, the nominal attack and the seeds of an audit.
        class_images: latents of the attacker's class pictures, for prior preservation.
        specs: the attacks besides the nominal attack, and the purifiers.
        pairs: {person: photos}.
    """

    plan: AuditPlan
    class_images: Posterior
    specs: PhotoAttackSpecs
    pairs: Mapping[str, PhotoPair]

    def run(
        self, store: CellStore, processes: ProcessGroup = SINGLE_PROCESS
    ) -> tuple[list[PhotoAttackRow], KeptPictures] | None:
        """Attack with the clean and the protected photos of all people. If an attack fails, its row says so.

        Args:
            store: where finished attacks are kept and found; `tidy` has made it ready.
            processes: the processes that share the attacks. Each takes the next attack when it is free.

        Returns:
            The main process returns the rows, and pictures {name: [N, 3, H, W] in [0, 1]}, see
            `apdm.audit.results.picture_names`. The other processes return None.
        """
        cells = self._cells
        references = {person: References.of(self.plan.judges, photos) for person, photos in self._holdout.items()}
        with progress_bar(total=len(cells), desc="attack photos", unit="attack") as bar:
            for key, cell in cells.items():
                if store.claim(key):
                    row, images = self._row(cell, references[cell.person])
                    check_for_stop()
                    store.save(key, to_json(row), {} if images is None else {DRAWN: images})
                bar.update(sum(key in store for key in cells) - bar.n)
            processes.wait()
            bar.update(len(cells) - bar.n)
        return _collect(cells, store) if processes.is_main else None

    @property
    def fewest_pictures(self) -> int:
        """The fewest pictures that an attack draws of one person with all seeds."""
        prompts = min(len(self._prompts(spec)) for spec in self.specs.names)
        return len(self.plan.seeds) * prompts * self.plan.drawing.num_images

    def pictures_size(self, store: CellStore) -> int:
        """Return an upper bound of the bytes of the pictures of the attacks that are not finished."""
        missing = [cell for key, cell in self._cells.items() if key not in store]
        prompts = sum(
            len(self._prompts(cell.attack)) * picture_size(cell.pair.clean.shape[-1] ** 2) for cell in missing
        )
        return prompts * self.plan.drawing.num_images

    def tidy(self, store: CellStore) -> None:
        """Make the store ready for `run`. The main process does so, and the others wait for it."""
        store.tidy(self._cells)

    @property
    def _holdout(self) -> dict[str, Tensor]:
        """{person: hold-out photos [M, 3, R, R], uint8}, which define likeness."""
        return {one.id: one.references for one in self.plan.subjects.protected if one.id in self.pairs}

    @cached_property
    def _cells(self) -> dict[str, PhotoCell]:
        """{key in the store: attack}, in the order of the rows."""
        kinds: list[tuple[Literal["clean", "protected"], str | None]] = [("clean", None), ("protected", None)]
        kinds += [("protected", purifier) for purifier in self.specs.purifiers]
        cells = [
            PhotoCell(person, self.pairs[person], attack, photos, purifier, seed)
            for person, attack, (photos, purifier), seed in product(
                self.pairs, self.specs.names, kinds, self.plan.seeds
            )
        ]
        common, holdout = self.plan.common_facts(), self._holdout
        return {self._key(cell, holdout[cell.person], common): cell for cell in cells}

    # -- the attacks ---------------------------------------------------------------------------------------------

    def _draw(self, cell: PhotoCell, photos: Tensor, prompts: Sequence[str]) -> Tensor:
        """Attack with photos [N, 3, R, R], uint8 or in [-1, 1], and draw a picture for each of M prompts.

        Returns:
            Pictures [M, 3, R, R] in [0, 1].
        """
        base, drawing = self.plan.models["base"], self.plan.drawing
        options = {"seed": PICTURE_SEED + cell.seed * SEED_STRIDE, **drawing.options(photos)}
        if not is_zero_shot(cell.attack):
            latents = encode_images(base, photos, batch_size=drawing.batch_size)
            pixels, captions = to_signed(photos), cell.pair.captions
            material = Material(latents, self.class_images, pixels, {"base": base}, captions=captions)
            attacked = self.plan.factory.make(cell.attack, seed=cell.seed).run(base, material).model
            return attacked.sample(prompts, **options)
        if cell.attack == ADAPTER_ATTACK and self.specs.adapter is not None:
            number = self._photo_number(len(photos), cell.seed)
            return self.specs.adapter.draw(base, to_unit(photos[number : number + 1]), prompts, **options)
        return make_zero_shot(cell.attack).draw(base, to_unit(photos), prompts, **options)

    def _photo_number(self, count: int, seed: int) -> int:
        """The number, from 0, of the one photo that the adapter gets out of `count`: another one for each seed."""
        return self.plan.seeds.index(seed) % count

    def _captions(self, cell: PhotoCell) -> list[str]:
        """The captions that an attack draws; empty if it draws other prompts."""
        if is_zero_shot(cell.attack):
            return []
        return drawn_captions(self.plan.factory.make(cell.attack, seed=cell.seed), cell.pair.captions)

    def _prompts(self, spec: str) -> list[str]:
        """The prompts that an attack draws, without repeats."""
        if not is_zero_shot(spec):
            attack = self.plan.factory.make(spec, seed=0)
            return list(dict.fromkeys(attack.prompt(prompt) for prompt in self.plan.drawing.prompts))
        if spec != ADAPTER_ATTACK and self.specs.edit_prompt is not None:
            return [self.specs.edit_prompt]
        return list(dict.fromkeys(map(self._without_identifier, self.plan.drawing.prompts)))

    def _without_identifier(self, prompt: str) -> str:
        return without_identifier(prompt, self.plan.factory.instance_prompt, self.plan.class_prompt)

    # -- rows ----------------------------------------------------------------------------------------------------

    def _key(self, cell: PhotoCell, holdout: Tensor, common: Mapping[str, Any]) -> str:
        """A hash of everything that determines a cell's row, `common` facts among it; the cell's key in the store."""
        photos = tensor_hash(cell.used, holdout)
        what = [
            PHOTO_FORMAT,
            cell.attack,
            self._params(cell),
            cell.photos,
            cell.purifier,
            cell.person,
            photos,
            cell.seed,
        ]
        more: dict[str, Any] = {"adapter": self._adapter_hash} if cell.attack == ADAPTER_ATTACK else {}
        if cell.pair.captions and not is_zero_shot(cell.attack):
            more["captions"] = {column: list(captions) for column, captions in sorted(cell.pair.captions.items())}
        return key_of({**common, **more, "photos": what, "code": code_hash(cell.attack, cell.purifier)})

    @cached_property
    def _adapter_hash(self) -> str | None:
        return None if self.specs.adapter is None else self.specs.adapter.file_hash()

    def _row(self, cell: PhotoCell, references: References) -> tuple[PhotoAttackRow, Tensor | None]:
        """Run a cell: its row, and its pictures unless it failed."""
        error, images, started = None, None, time.perf_counter()
        judged: dict[str, Any] = {"identity": {}, "by_prompt": {}, "quality": {}, "scores": {}}
        try:
            photos, prompts = cell.used, self._prompts(cell.attack)
            asked = [one for one in prompts for _ in range(self.plan.drawing.num_images)]
            if captions := self._captions(cell):
                prompts, asked = [CAPTIONS], list(islice(cycle(captions), len(asked)))
            if cell.purifier is not None:
                purifier = make_purifier(cell.purifier, has_originals=True)
                photos = purifier(to_unit(photos), self.plan.models["base"], cell.seed) * 2 - 1
            images = self._draw(cell, photos, asked)
            check_finite(images)
            judged = self._judge(images, prompts, asked, references)
            if is_editing(cell.attack):
                shown = [self.plan.class_prompt] * len(images)
                judged["quality"] |= editing_quality(self.plan.judges, images, photos, asked, shown)
        except Exception as problem:  # a failed attack must not stop the other attacks
            if interruption_in(problem):
                raise
            error = f"{type(problem).__name__}: {one_line(problem)}"
            images = None
        row = PhotoAttackRow(
            attack=cell.attack,
            params=self._params(cell),
            photos=cell.photos,
            purifier=cell.purifier,
            subject=cell.person,
            seed=cell.seed,
            **judged,
            seconds=round(time.perf_counter() - started, 3),
            status="ok" if error is None else "failed",
            error=error,
        )
        return row, images

    def _judge(
        self, images: Tensor, prompts: Sequence[str], asked: Sequence[str], references: References
    ) -> dict[str, Any]:
        """Judge the pictures, which are as many for each prompt: the fields of the row. `asked` is that of each one."""
        judges, embeddings = self.plan.judges, references.embeddings
        features, each = judges.features(images), len(images) // len(prompts)
        quality = person_quality(judges, features, references) | {"brisque": judges.brisque(images)}
        if judges.clip is not None:
            shown = list(map(self._without_identifier, asked))
            quality["clip"] = judges.clip_score(images, shown)
        return {
            "identity": judges.identity(features, embeddings),
            "by_prompt": {
                prompt: judges.identity(features.part(i * each, (i + 1) * each), embeddings)
                for i, prompt in enumerate(prompts)
            },
            "quality": quality,
            "scores": picture_scores(judges, features, references),
        }

    def _params(self, cell: PhotoCell) -> dict[str, Any]:
        """The attack's options, with what an attack without training draws from."""
        if not is_zero_shot(cell.attack):
            return self.plan.factory.make(cell.attack, seed=cell.seed).params()
        params: dict[str, Any] = {"prompts": self._prompts(cell.attack)}
        if cell.attack == ADAPTER_ATTACK and self.specs.adapter is not None:
            return {**self.specs.adapter.params(), **params, "photo": self._photo_number(len(cell.used), cell.seed)}
        return {**make_zero_shot(cell.attack).params(), **params}


def attack_and_judge_photos(
    audit: PhotoAudit,
    photos: ProtectedPhotos,
    strangers: Mapping[str, StrangersLikeness],
    store: CellStore,
    processes: ProcessGroup,
) -> tuple[ImageLayer, KeptPictures] | None:
    """Attack with clean and protected photos, and judge each attack.

    Args:
        strangers: {encoder: likeness by chance}. Only the main process needs it.

    Returns:
        The part of the results that is about photos, and the pictures of `PhotoAudit.run`, with `show_photos` also
        the photos themselves. None in all processes but the main one.
    """
    done = audit.run(store, processes)
    if done is None:
        return None
    rows, pictures = done
    if audit.plan.options.show_photos:
        pictures |= photos_and_changes(photos.pairs)
    judges = audit.plan.judges.describe()
    misled = photos.misled(judges.encoders)
    doubts = few_pictures(audit.fewest_pictures) + one_encoder(judges)
    doubts += doubtful_thresholds(judges) + doubts_about_judges(judges.encoders, misled)
    outcomes = judge_photo_attacks(rows, strangers, audit.plan.thresholds, doubts=doubts)
    return ImageLayer(**vars(photos.perturbation), attacks=rows, by_attack=outcomes, misled_judges=misled), pictures


def _collect(keys: Iterable[str], store: CellStore) -> tuple[list[PhotoAttackRow], KeptPictures]:
    rows: list[PhotoAttackRow] = []
    pictures: dict[str, Callable[[], Tensor]] = {}
    for key in keys:
        content, drawn = store.load(key)
        row = from_json(PhotoAttackRow, content, f"{store.folder.name}/{key}")
        rows.append(row)
        if DRAWN in drawn:
            pictures[photo_picture_name(row)] = partial(drawn.__getitem__, DRAWN)
    return rows, KeptPictures(pictures)


def photos_and_changes(pairs: Mapping[str, PhotoPair]) -> KeptPictures:
    """Return the photos of all people, and their changes, for a report that may show them.

    Returns:
        {name: pictures [N, 3, R, R] in [0, 1]}, see `apdm.audit.results.picture_names`.
    """
    pictures: dict[str, Callable[[], Tensor]] = {}
    for person, pair in pairs.items():
        pictures[f"layer/original/{person}"] = partial(to_unit, pair.clean)
        pictures[f"layer/shipped/{person}"] = partial(to_unit, pair.protected)
        pictures[f"layer/difference/{person}"] = partial(_difference, pair)
    return KeptPictures(pictures)


def _difference(pair: PhotoPair) -> Tensor:
    return 0.5 + DIFFERENCE_GAIN * (to_signed(pair.protected) - to_signed(pair.clean)) / 2
