"""What the image layer is worth: the same attacks on a person's photos as they were, as they are shipped, and purified.

On the base model, since protected photos are meant for models that nobody hardened. Arms are paired: equal draws.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apdm.attacks import Material
from apdm.attacks.faceid import FaceIDAdapter
from apdm.attacks.registry import is_zero_shot, make_purifier, make_zero_shot
from apdm.audit.cells import check_finite
from apdm.audit.rows import file_name
from apdm.audit.store import CellStore, kept, key_of, tensor_hash
from apdm.audit.suites import AttackFactory, code_hash
from apdm.config import AuditOptions
from apdm.core.errors import UserError
from apdm.core.terminal import progress_bar
from apdm.data.subjects import Subject, load_images
from apdm.distributed.processes import SINGLE_PROCESS, ProcessGroup
from apdm.faces import load_encoder
from apdm.families import Family, Posterior
from apdm.metrics.judges import Judges

Attack = Callable[[Tensor], Tensor]  # photos [N, 3, R, R] in [-1, 1] -> pictures [M, 3, R, R] in [0, 1]
ARMS = ("clean", "protected")
NOMINAL = "dreambooth"
DRAWN = "drawn"  # name of a cell's pictures
PICTURE_SEED = 7_000_000  # away from the seeds of the weight audit's pictures
SAMPLE_BATCH_SIZE = 16


@dataclass(frozen=True)
class PhotoPair:
    """A protected person's photos before and after, `[N, 3, R, R]` in [-1, 1] as a trainer sees them, and reference
    embeddings {encoder: [M, D]}."""

    clean: Tensor
    protected: Tensor
    references: Mapping[str, Tensor]


@dataclass(frozen=True)
class PhotoCell:
    """One attack on one arm of a person's photos, after one purifier or none."""

    person: str
    pair: PhotoPair
    name: str
    attack: Attack
    arm: str
    purifier: str | None


def load_pair(original: Subject, folder: Path, protected: Sequence[Path], resolution: int) -> tuple[Tensor, Tensor]:
    """A person's photos and the protected ones in `folder`, [N, 3, R, R] in [-1, 1] each, photo i of both the same.

    Paired by the name before the dot: `apdm perturb` may save another kind of file, and so another order.
    Raises UserError for photos that do not pair off.
    """
    by_stem = {path.stem: path for path in protected}
    stems = [path.stem for path in original.images]
    if len(by_stem) != len(protected) or sorted(by_stem) != sorted(stems):
        raise UserError(
            f"{folder}/{original.id} and {original.images[0].parent} are not photos of equal names; "
            "run apdm perturb on the latter again"
        )
    return load_images(original.images, resolution), load_images([by_stem[stem] for stem in stems], resolution)


def check_specs(config: AuditOptions, instance_prompt: str, class_prompt: str) -> None:
    """Raise UserError for a purifier or attack on photos that there is not, or that needs more than photos."""
    for spec in config.purifiers:
        make_purifier(spec)
    for spec in config.photo_attacks:
        if is_zero_shot(spec):
            make_zero_shot(spec)
            continue
        attack = AttackFactory.of(config, instance_prompt, class_prompt).make(spec, seed=0)
        if set(attack.needs) - {"base"}:
            raise UserError(f'"{spec}" attacks weights by means of other models; leave it out of photo_attacks')


def load_adapter(config: AuditOptions, *, allow_pickle: bool) -> FaceIDAdapter | None:
    """The zero-shot adapter of the audit, None where none is named. Raises UserError for a bad encoder."""
    if config.faceid_adapter is None:
        return None
    return FaceIDAdapter(
        path=Path(config.faceid_adapter),
        encoder=load_encoder(config.faceid_encoder, allow_pickle=allow_pickle),
        controlnet=None if config.faceid_controlnet is None else Path(config.faceid_controlnet),
        allow_pickle=allow_pickle,
    )


@dataclass(frozen=True, kw_only=True)
class PhotoAudit:
    """The attacks on photos, and what they share.

    config: has, as texts of `apdm.attacks.registry`, what is done with the photos beside the nominal attack,
    photo_attacks, and what to protected ones first, purifiers, each alone. adapter: None leaves FaceID's attack out.
    store: where finished rows are kept and found, under `facts`, which say what else determines them; None keeps
    nothing.
    """

    config: AuditOptions
    base: Family
    class_images: Posterior
    judges: Judges
    adapter: FaceIDAdapter | None
    instance_prompt: str
    class_prompt: str
    seed: int
    store: CellStore | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, people: Mapping[str, PhotoPair], processes: ProcessGroup = SINGLE_PROCESS
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]] | None:
        """Attack everybody's clean and protected photos: rows for results.json, and pictures [N, 3, H, W] in [0, 1]
        under "layer/<attack>/<arm>/<person>", "<arm>+<purifier>" after one. An attack that fails is a row that says so.
        Several processes share the attacks; all but the main one return None.
        """
        attacks: dict[str, Attack] = {NOMINAL: partial(self.train, NOMINAL)}
        if self.adapter is not None:
            attacks["faceid"] = self.faceid
        for spec in self.config.photo_attacks:
            attacks[spec] = partial(self.edit if is_zero_shot(spec) else self.train, spec)
        arms = [*((arm, None) for arm in ARMS), *(("protected", purifier) for purifier in self.config.purifiers)]
        cells = [
            PhotoCell(person, people[person], name, attack, arm, purifier)
            for person, (name, attack), (arm, purifier) in product(people, attacks.items(), arms)
        ]
        keys = [self._key(cell) for cell in cells]
        with kept(self.store) as store:
            if processes.is_main:
                store.tidy(keys)
            processes.wait()
            with progress_bar(total=len(cells), desc="attack photos", unit="attack", shown=processes.is_main) as bar:
                for key, cell in list(zip(keys, cells, strict=True))[processes.index :: processes.size]:
                    if key not in store:
                        row, images = self._row(cell)
                        store.save(key, row, {} if images is None else {DRAWN: images})
                    bar.update(sum(key in store for key in keys) - bar.n)
                processes.wait()
                bar.update(len(cells) - bar.n)
            return self._collect(cells, keys, store) if processes.is_main else None

    def _collect(
        self, cells: list[PhotoCell], keys: list[str], store: CellStore
    ) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        rows, pictures = [], {}
        for key, cell in zip(keys, cells, strict=True):
            row, drawn = store.load(key)
            rows.append(row)
            place = cell.arm if cell.purifier is None else f"{cell.arm}+{file_name(cell.purifier)}"
            if DRAWN in drawn:
                pictures[f"layer/{file_name(cell.name)}/{place}/{cell.person}"] = drawn[DRAWN]
        return rows, pictures

    def train(self, spec: str, photos: Tensor) -> Tensor:
        """Pictures for the audit's first prompt, after an attack that trains on `photos` [N, 3, R, R] in [-1, 1]."""
        with torch.no_grad():
            latents = self.base.posterior(photos)
        attack = self._attack_factory.make(spec, seed=self.seed)
        material = Material(latents, self.class_images, photos, {"base": self.base})
        attacked = attack.run(self.base, material).model
        prompts = [attack.prompt(self.config.prompts[0])] * self.config.num_images
        return attacked.sample(prompts, **self._drawing(photos))

    def edit(self, spec: str, photos: Tensor) -> Tensor:
        """The photos after an attack that trains nothing, as `edit_prompt` or the class prompt asks."""
        prompts = [self.config.edit_prompt or self.class_prompt] * self.config.num_images
        return make_zero_shot(spec).draw(self.base, photos / 2 + 0.5, prompts, **self._drawing(photos))

    def faceid(self, photos: Tensor) -> Tensor:
        """Pictures for the class prompt with the adapter on the first of `photos`."""
        if self.adapter is None:
            raise UserError("there is no zero-shot adapter: name one with audit.faceid_adapter")
        attacked, prompts = self.adapter.with_adapter(self.base), [self.class_prompt] * self.config.num_images
        return self.adapter.run(attacked, photos[:1] / 2 + 0.5, prompts, **self._drawing(photos))

    def _key(self, cell: PhotoCell) -> str:
        """A name for everything that determines a row."""
        pair = cell.pair
        photos = tensor_hash(pair.clean, pair.protected, *(pair.references[key] for key in sorted(pair.references)))
        what = [cell.name, self._params(cell.name), cell.arm, cell.purifier, cell.person, photos, self.seed]
        return key_of({**self.facts, "photos": what, "code": code_hash(cell.name)})

    def _row(self, cell: PhotoCell) -> tuple[dict[str, Any], Tensor | None]:
        status, error, identity, images, started = "ok", None, {}, None, time.perf_counter()
        try:
            photos = cell.pair.clean if cell.arm == "clean" else cell.pair.protected
            if cell.purifier is not None:
                photos = make_purifier(cell.purifier)(photos / 2 + 0.5, self.base, self.seed) * 2 - 1
            images = cell.attack(photos)
            check_finite(images)
            seen = self.judges.identity(self.judges.features(images), cell.pair.references)
            identity = {name: asdict(entry) for name, entry in seen.items()}
        except Exception as problem:  # whatever went wrong, the other rows are worth having
            status, error = "failed", f"{type(problem).__name__}: {' '.join(str(problem).split())}"
            images = None
        row: dict[str, Any] = {
            "attack": cell.name,
            "params": self._params(cell.name),
            "photos": cell.arm,
            "purifier": cell.purifier,
            "subject": cell.person,
            "seed": self.seed,
        }
        seconds = round(time.perf_counter() - started, 3)
        return row | {"identity": identity, "seconds": seconds, "status": status, "error": error}, images

    def _params(self, name: str) -> dict[str, object]:
        if name == "faceid" and self.adapter:
            return self.adapter.params()
        if is_zero_shot(name):
            return {**make_zero_shot(name).params(), "prompt": self.config.edit_prompt or self.class_prompt}
        return self._attack_factory.make(name, seed=self.seed).params()

    @property
    def _attack_factory(self) -> AttackFactory:
        return AttackFactory.of(self.config, self.instance_prompt, self.class_prompt)

    def _drawing(self, photos: Tensor) -> dict[str, Any]:
        return {
            "seed": self.seed + PICTURE_SEED,
            "num_inference_steps": self.config.num_inference_steps,
            "guidance_scale": self.config.guidance_scale,
            "height": photos.shape[-2],
            "width": photos.shape[-1],
            "batch_size": SAMPLE_BATCH_SIZE,
        }
