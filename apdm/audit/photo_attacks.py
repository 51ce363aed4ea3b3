"""The audit of protected photos: the same attacks with a person's original photos and with the protected photos.

The attacks run on the base model, because protected photos are meant for models that nobody hardened. The attacks on
clean and on protected photos use the same random numbers, so their rows can be compared as pairs. A purifier changes
photos in order to undo their protection. Every attack also runs on the protected photos after each purifier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.registry import is_zero_shot, make_purifier, make_zero_shot
from apdm.audit.cells import check_finite
from apdm.audit.plan import AuditPlan, Drawing, to_unit
from apdm.audit.protected_photos import PhotoPair
from apdm.audit.results import IdentityByEncoder, PhotoAttackRow
from apdm.audit.rows import file_name
from apdm.audit.schema import from_json, to_json
from apdm.audit.store import CellStore, key_of, store_or_temporary, tensor_hash
from apdm.audit.suites import AttackFactory, code_hash
from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.core.terminal import progress_bar
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.faces import load_encoder
from apdm.families import Family, Posterior
from apdm.families.encoding import encode_images
from apdm.metrics.judges import Judges

DrawFromPhotos = Callable[[Tensor], Tensor]  # photos [N, 3, R, R] in [-1, 1] -> pictures [M, 3, R, R] in [0, 1]
NOMINAL_ATTACK = "dreambooth"
DRAWN = "drawn"  # name of a cell's pictures in the store
PICTURE_SEED = 7_000_000  # added to the seed, so that no seed is shared with the audit of the models
DIFFERENCE_GAIN = 10  # the report shows the change of a photo times this factor, added to grey


@dataclass(frozen=True, kw_only=True)
class PhotoAttackSpecs:
    """The attacks that run with the photos, besides the nominal attack.

    Attributes:
        adapter: the zero-shot adapter, which uses one photo; None leaves this attack out.
        attacks: specs of further attacks, see `apdm.attacks.registry`.
        purifiers: specs of purifiers. Every attack also runs on protected photos after each of them.
        edit_prompt: the prompt for attacks that edit photos.
    """

    adapter: FaceIDAdapter | None
    attacks: Sequence[str] = ()
    purifiers: Sequence[str] = ()
    edit_prompt: str

    @staticmethod
    def load(options: AuditOptions, *, instance_prompt: str, class_prompt: str, allow_pickle: bool) -> PhotoAttackSpecs:
        """Read and check the attacks and purifiers that `options` name.

        Raises:
            UserError: there is no such attack or purifier, an attack needs more than photos, or the adapter's encoder
                cannot be loaded.
        """
        for spec in options.purifiers:
            make_purifier(spec)
        for spec in options.photo_attacks:
            if is_zero_shot(spec):
                make_zero_shot(spec)
                continue
            attack = AttackFactory.of(options, instance_prompt, class_prompt).make(spec, seed=0)
            if set(attack.needs) - {"base"}:
                raise UserError(f'"{spec}" attacks weights by means of other models; leave it out of photo_attacks')
        return PhotoAttackSpecs(
            adapter=load_adapter(options, allow_pickle=allow_pickle),
            attacks=options.photo_attacks,
            purifiers=options.purifiers,
            edit_prompt=options.edit_prompt or class_prompt,
        )

    def check(self, base: Family) -> None:
        """Raise UserError if the adapter's file is no adapter, or does not fit the base model."""
        if self.adapter is not None:
            self.adapter.check(base)


def load_adapter(options: AuditOptions, *, allow_pickle: bool) -> FaceIDAdapter | None:
    """The zero-shot adapter that `options` name, or None. Raises UserError if its encoder cannot be loaded."""
    if options.faceid_adapter is None:
        return None
    return FaceIDAdapter(
        path=Path(options.faceid_adapter),
        encoder=load_encoder(options.faceid_encoder, allow_pickle=allow_pickle),
        controlnet=None if options.faceid_controlnet is None else Path(options.faceid_controlnet),
        allow_pickle=allow_pickle,
    )


@dataclass(frozen=True)
class PhotoCell:
    """One attack with one person's photos.

    Attributes:
        person: the person's id.
        pair: the person's clean and protected photos.
        name: spec of the attack.
        photos: which photos of the pair the attacker has.
        purifier: spec of the purifier that changes the photos first; None: no purifier.
    """

    person: str
    pair: PhotoPair
    name: str
    photos: Literal["clean", "protected"]
    purifier: str | None

    @property
    def used(self) -> Tensor:
        """The photos that the attacker has."""
        return self.pair.clean if self.photos == "clean" else self.pair.protected


@dataclass(frozen=True, kw_only=True)
class PhotoAudit:
    """Attacks the base model with clean and protected photos.

    Attributes:
        base: the attacked model, which is only read.
        class_images: latents of the attacker's class pictures, for prior preservation.
        judges: the networks that look at the pictures.
        specs: the attacks besides the nominal attack, and the purifiers.
        factory: makes the attacks that train.
        drawing: how pictures are drawn.
        seed: seed of all random numbers.
        facts: everything else that determines the rows. If a fact changes, finished attacks are run again.
    """

    base: Family
    class_images: Posterior
    judges: Judges
    specs: PhotoAttackSpecs
    factory: AttackFactory
    drawing: Drawing
    seed: int
    facts: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(plan: AuditPlan, class_images: Posterior, specs: PhotoAttackSpecs) -> PhotoAudit:
        """Make a photo audit with the base, the judges and the nominal attack of an audit of models."""
        return PhotoAudit(
            base=plan.models["base"],
            class_images=class_images,
            judges=plan.judges,
            specs=specs,
            factory=plan.attacks,
            drawing=plan.drawing,
            seed=plan.seed,
            facts=plan.common_facts(),
        )

    def run(
        self,
        pairs: Mapping[str, PhotoPair],
        references: Mapping[str, Mapping[str, Tensor]],
        *,
        store: CellStore | None = None,
        processes: ProcessGroup = SINGLE_PROCESS,
        show_progress: bool = True,
    ) -> tuple[list[PhotoAttackRow], dict[str, Tensor]] | None:
        """Attack with the clean and the protected photos of all people. If an attack fails, its row says so.

        Args:
            pairs: {person: photos}.
            references: {person: {encoder: embeddings [M, D] of the hold-out photos}}.
            store: where finished attacks are kept and found; None keeps nothing.
            processes: the processes that share the attacks.
            show_progress: whether the main process shows a progress bar.

        Returns:
            The main process returns the rows, and pictures {name: [N, 3, H, W] in [0, 1]}. A name is
            "layer/<attack>/<photos>/<person>", or "layer/<attack>/<photos>+<purifier>/<person>" after a purifier. The
            other processes return None.
        """
        attacks = self._attacks()
        kinds: list[tuple[Literal["clean", "protected"], str | None]] = [("clean", None), ("protected", None)]
        kinds += [("protected", purifier) for purifier in self.specs.purifiers]
        cells = [
            PhotoCell(person, pairs[person], name, photos, purifier)
            for person, name, (photos, purifier) in product(pairs, attacks, kinds)
        ]
        keys = [self._key(cell, references[cell.person]) for cell in cells]
        shown = show_progress and processes.is_main
        with store_or_temporary(store) as finished:
            if processes.is_main:
                finished.tidy(keys)
            processes.wait()
            with progress_bar(total=len(cells), desc="attack photos", unit="attack", shown=shown) as bar:
                for key, cell in list(zip(keys, cells, strict=True))[processes.index :: processes.size]:
                    if key not in finished:
                        row, images = self._row(cell, attacks[cell.name], references[cell.person])
                        finished.save(key, to_json(row), {} if images is None else {DRAWN: images})
                    bar.update(sum(key in finished for key in keys) - bar.n)
                processes.wait()
                bar.update(len(cells) - bar.n)
            return _collect(cells, keys, finished) if processes.is_main else None

    # -- the attacks ---------------------------------------------------------------------------------------------

    def _attacks(self) -> dict[str, DrawFromPhotos]:
        attacks: dict[str, DrawFromPhotos] = {NOMINAL_ATTACK: partial(self._train, NOMINAL_ATTACK)}
        if self.specs.adapter is not None:
            attacks["faceid"] = partial(self._adapt, self.specs.adapter)
        for spec in self.specs.attacks:
            attacks[spec] = partial(self._edit if is_zero_shot(spec) else self._train, spec)
        return attacks

    def _train(self, spec: str, photos: Tensor) -> Tensor:
        """Train on the photos, then draw pictures for the audit's first prompt."""
        latents = encode_images(self.base, photos, batch_size=self.drawing.batch_size)
        attack = self.factory.make(spec, seed=self.seed)
        material = Material(latents, self.class_images, photos, {"base": self.base})
        attacked = attack.run(self.base, material).model
        prompts = [attack.prompt(self.drawing.prompts[0])] * self.drawing.num_images
        return attacked.sample(prompts, **self._drawing_options(photos))

    def _edit(self, spec: str, photos: Tensor) -> Tensor:
        """Edit the photos by `edit_prompt`, with an attack that needs no training."""
        prompts = [self.specs.edit_prompt] * self.drawing.num_images
        return make_zero_shot(spec).draw(self.base, photos / 2 + 0.5, prompts, **self._drawing_options(photos))

    def _adapt(self, adapter: FaceIDAdapter, photos: Tensor) -> Tensor:
        """Draw pictures for the class prompt with the adapter, which gets the first photo."""
        attacked, prompts = adapter.with_adapter(self.base), [self.factory.class_prompt] * self.drawing.num_images
        return adapter.run(attacked, photos[:1] / 2 + 0.5, prompts, **self._drawing_options(photos))

    def _drawing_options(self, photos: Tensor) -> dict[str, Any]:
        return {
            "seed": self.seed + PICTURE_SEED,
            "num_inference_steps": self.drawing.num_inference_steps,
            "guidance_scale": self.drawing.guidance_scale,
            "height": photos.shape[-2],
            "width": photos.shape[-1],
            "batch_size": self.drawing.batch_size,
        }

    # -- rows ----------------------------------------------------------------------------------------------------

    def _key(self, cell: PhotoCell, references: Mapping[str, Tensor]) -> str:
        """A hash of everything that determines a cell's row; the cell's key in the store."""
        photos = tensor_hash(cell.used, *(references[name] for name in sorted(references)))
        what = [cell.name, self._params(cell.name), cell.photos, cell.purifier, cell.person, photos, self.seed]
        return key_of({**self.facts, "photos": what, "code": code_hash(cell.name)})

    def _row(
        self, cell: PhotoCell, attack: DrawFromPhotos, references: Mapping[str, Tensor]
    ) -> tuple[PhotoAttackRow, Tensor | None]:
        """Run a cell: its row, and its pictures unless it failed."""
        error, images, started = None, None, time.perf_counter()
        identity: IdentityByEncoder = {}
        try:
            photos = cell.used
            if cell.purifier is not None:
                photos = make_purifier(cell.purifier)(photos / 2 + 0.5, self.base, self.seed) * 2 - 1
            images = attack(photos)
            check_finite(images)
            identity = self.judges.identity(self.judges.features(images), references)
        except Exception as problem:  # a failed attack must not stop the other attacks
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
            images = None
        row = PhotoAttackRow(
            attack=cell.name,
            params=self._params(cell.name),
            photos=cell.photos,
            purifier=cell.purifier,
            subject=cell.person,
            seed=self.seed,
            identity=identity,
            seconds=round(time.perf_counter() - started, 3),
            status="ok" if error is None else "failed",
            error=error,
        )
        return row, images

    def _params(self, name: str) -> dict[str, Any]:
        if name == "faceid" and self.specs.adapter is not None:
            return self.specs.adapter.params()
        if is_zero_shot(name):
            return {**make_zero_shot(name).params(), "prompt": self.specs.edit_prompt}
        return self.factory.make(name, seed=self.seed).params()


def _collect(
    cells: Sequence[PhotoCell], keys: Sequence[str], store: CellStore
) -> tuple[list[PhotoAttackRow], dict[str, Tensor]]:
    rows, pictures = [], {}
    for key, cell in zip(keys, cells, strict=True):
        row, drawn = store.load(key)
        rows.append(from_json(PhotoAttackRow, row, f"{store.folder.name}/{key}"))
        photos = cell.photos if cell.purifier is None else f"{cell.photos}+{file_name(cell.purifier)}"
        if DRAWN in drawn:
            pictures[f"layer/{file_name(cell.name)}/{photos}/{cell.person}"] = drawn[DRAWN]
    return rows, pictures


def photos_and_changes(pairs: Mapping[str, PhotoPair]) -> dict[str, Tensor]:
    """Return the photos of all people, and their changes, for a report that may show them.

    Returns:
        {name: pictures [N, 3, R, R] in [0, 1]} under the names "layer/original/<person>", "layer/shipped/<person>" and
        "layer/difference/<person>".
    """
    pictures = {}
    for person, pair in pairs.items():
        pictures[f"layer/original/{person}"] = to_unit(pair.clean)
        pictures[f"layer/shipped/{person}"] = to_unit(pair.protected)
        pictures[f"layer/difference/{person}"] = 0.5 + DIFFERENCE_GAIN * (pair.protected - pair.clean) / 2
    return pictures
