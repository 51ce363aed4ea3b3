"""The steps of a table's rows: people, protection and attack, each in a folder of its own that is kept.

A folder's name is a hash of all that determines what is in it. So an interrupted table goes on where it was stopped,
and tables that are made in one output folder share what they have in common.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from apdm.audit.one_model import AttackResults
from apdm.audit.results import AttackRow
from apdm.audit.schema import from_json
from apdm.audit.store import key_of
from apdm.config import AttackConfig, HardenConfig, PerturbConfig, make_config
from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir, sha256_file, write_beside
from apdm.core.versions import VERSION
from apdm.data.photo_sets import Chosen, Letter, Part, has_sets
from apdm.data.subjects import find_subjects
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import ATTACK, ATTACKER_CLASS_IMAGES, IMAGES, MANIFEST, MODEL
from apdm.jobs.recipes import BUNDLED, Options, Recipe, RecipeRow, filled_in, merged, needed_models
from apdm.portraits.subjects import write_subjects

Config = TypeVar("Config")
WORK, DRAWN_PEOPLE = "work", "drawn-people"
PHOTOS, HOLDOUT = "photos", "holdout"
HELD_OUT_SET: Letter = "C"
PARTS: tuple[Part, Part] = ("kept", "held out")
PROTECTED_SET: Letter = "A"


@dataclass(frozen=True)
class Subject:
    """A subject of a table.

    Attributes:
        id: the name of the subject's folder.
        photos: the photos that are protected and attacked.
        holdout: the photos that likeness is measured against.
    """

    id: str
    photos: list[Path]
    holdout: list[Path]


def draw_people(folder: Path, count: int) -> None:
    """Draw people of the miniature world, once."""
    if not folder.is_dir():
        with write_beside(folder, folder=True) as partial:
            write_subjects(partial, protected=max(count, 1), others=0)


def read_subjects(data: str, *, drawn: bool, count: int | None) -> list[Subject]:
    """Find the subjects and their photos.

    Args:
        data: the folder; see `apdm reproduce --help`.
        drawn: whether it holds drawn people of the miniature world.
        count: only the first so many.

    Raises:
        UserError: there are no photos, or too few to hold some out.
    """
    if drawn:
        photos, holdout = (find_subjects(Path(data) / name) for name in ("protected", HOLDOUT))
    elif has_sets(data):
        photos = find_subjects(data, chosen=Chosen(PROTECTED_SET))
        holdout = find_subjects(data, chosen=Chosen(HELD_OUT_SET))
    else:
        photos, holdout = (find_subjects(data, chosen=Chosen(part=part)) for part in PARTS)
    held = {one.id: one.images for one in holdout}
    if count is not None and count > len(photos):
        raise UserError(f"people is {count}, and {data} has {len(photos)}; lower it, or give more photos")
    return [Subject(one.id, one.images, held[one.id]) for one in photos[:count]]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """What all rows of a table have in common.

    Every process must call the methods, and every process gets their results.

    Attributes:
        recipe: the table.
        output: the output folder.
        places: {name of a model: where it is}, with the bundled ones.
        num_threads: as in the other commands.
        processes: the processes that share the work.
    """

    recipe: Recipe
    output: Path
    places: Mapping[str, str]
    num_threads: int | None
    processes: ProcessGroup

    def attack(self, row: RecipeRow, subject: Subject, seed: int) -> AttackRow:
        """Protect a subject as a row says, attack it, and return what the attack found.

        Raises:
            UserError: the input cannot be used.
            Interrupted: the user stopped the run. What is finished is kept.
        """
        model, photos, made = self._protect(row, subject)
        options = attack_options(self.recipe, row)
        folder = self._folder("attack", options, [*photos, *subject.holdout], made, seed)
        found = self.processes.broadcast(lambda: read_attack(folder))
        if found is None or found.status != "ok":
            from apdm.jobs.attack import attack_model

            place = self._copies(photos, subject.holdout)
            config = attack_config(
                self.recipe,
                row,
                self._filled,
                model=model,
                photos=place,
                output=folder,
                seed=seed,
                threads=self.num_threads,
            )
            # Attacks with the same seed on the same model have the same class pictures.
            drawn = self._folder("class", options, [], made, seed)
            self.processes.on_main(lambda: take_class_pictures(drawn, folder))
            attack_model(config)
            self.processes.on_main(lambda: keep_class_pictures(folder, drawn))
            found = self.processes.broadcast(lambda: read_attack(folder))
        if found is None:
            raise UserError(f"{folder} holds no {ATTACK}; delete the folder, and run the same command again")
        return found

    def _protect(self, row: RecipeRow, subject: Subject) -> tuple[str, list[Path], str]:
        """Return the model and the photos that the attacker gets, and a name for the model's state."""
        protection = self.recipe.protection(row)
        model, state, photos = self.places[self.recipe.model], self.recipe.model, subject.photos
        if protection.harden is not None:
            options = merged(self.recipe.harden, protection.harden)
            folder = self._folder("harden", options, subject.photos)
            if not self._is_done(folder):
                from apdm.jobs.harden import harden

                goes_on = {"resume_from_checkpoint": "latest", "overwrite_output_dir": True}
                harden(self._configuration(HardenConfig, options, folder, subject, goes_on), part=False)
            model, state = str(folder / MODEL), folder.name
        if protection.perturb is not None:
            options = merged(self.recipe.perturb, protection.perturb)
            folder = self._folder("perturb", options, subject.photos)
            if not self._is_done(folder):
                from apdm.jobs.perturb import perturb

                perturb(self._configuration(PerturbConfig, options, folder, subject, {"overwrite_output_dir": True}))
            (protected,) = find_subjects(folder / IMAGES)
            photos = mixed(subject.photos, protected.images, row.clean)
        return model, photos, state

    def _is_done(self, folder: Path) -> bool:
        """Whether hardening or photo protection in a folder is finished: its manifest is written last."""
        return self.processes.broadcast((folder / MANIFEST).is_file)

    def _configuration(
        self, cls: type[Config], options: Options, folder: Path, subject: Subject, more: Options
    ) -> Config:
        photos = self._copies(subject.photos, subject.holdout) / PHOTOS
        model = self.places[self.recipe.protects_with]
        more = {**more, "pretrained_model_name_or_path": model, "num_threads": self.num_threads}
        return job_config(cls, self.recipe, self._filled(options), photos, folder, more)

    def _filled(self, options: Options) -> Options:
        return filled_in(options, {**self.places, "people": str(self.output / DRAWN_PEOPLE)})

    def _folder(self, kind: str, options: Options, photos: Sequence[Path], *more: Any) -> Path:
        """The folder of a step, by a hash of all that determines the step."""
        recipe = self.recipe
        prompts = [recipe.instance_prompt, recipe.class_prompt, recipe.resolution]
        used = recipe.protects_with if kind in ("harden", "perturb") else recipe.model
        named = [used, *sorted(needed_models(options))]
        where = {name: None if name in BUNDLED else self.places[name] for name in named}
        files = [sha256_file(photo) for photo in photos]
        return self.output / WORK / f"{kind}-{key_of({'of': [VERSION, kind, options, prompts, where, files, *more]})}"

    def _copies(self, photos: Sequence[Path], holdout: Sequence[Path]) -> Path:
        """Copy photos into a folder of their own, once: PHOTOS and HOLDOUT in the returned folder."""
        folder = self._folder("photos", {}, [*photos, *holdout], len(photos))

        def copy() -> None:
            if not folder.is_dir():
                with write_beside(folder, folder=True) as partial:
                    for name, files in ((PHOTOS, photos), (HOLDOUT, holdout)):
                        (partial / name).mkdir()
                        for file in files:
                            shutil.copyfile(file, partial / name / file.name)

        self.processes.on_main(copy)
        return folder


# -- configurations ---------------------------------------------------------------------------------------------------


def attack_options(recipe: Recipe, row: RecipeRow) -> Options:
    """The options of a row's attack, as the recipe has them."""
    return merged(recipe.attack, row.attack)


def attack_config(
    recipe: Recipe,
    row: RecipeRow,
    fill: Callable[[Options], Options],
    *,
    model: str,
    photos: Path,
    output: Path,
    seed: int,
    threads: int | None,
) -> AttackConfig:
    """Return the configuration of a row's attack.

    Args:
        recipe: the table.
        row: the row.
        fill: puts the places of models into options.
        model: the attacked model.
        photos: the folder with PHOTOS and HOLDOUT.
        output: the output folder.
        seed: the seed of all random numbers.
        threads: number of threads of torch.
    """
    given = {
        "pretrained_model_name_or_path": model,
        "photos": photos / PHOTOS,
        "holdout_data_dir": photos / HOLDOUT,
        "overwrite_output_dir": True,
        "seed": seed,
        "num_threads": threads,
    }
    if recipe.is_miniature:
        given["strangers_data_dir"] = fill({"strangers": "{people}/strangers"})["strangers"]
    common: Options = {"instance_prompt": recipe.instance_prompt, "class_prompt": recipe.class_prompt}
    common |= {"resolution": recipe.resolution, "output_dir": output}
    return make_config(AttackConfig, {**common, **fill(attack_options(recipe, row)), **given})


def job_config(
    cls: type[Config], recipe: Recipe, options: Options, photos: Path, output: Path, more: Options
) -> Config:
    """Return the configuration of a row's hardening or photo protection. `options` have their places filled in."""
    common: Options = {"instance_prompt": recipe.instance_prompt, "class_prompt": recipe.class_prompt}
    common |= {"resolution": recipe.resolution, "instance_data_dir": photos, "output_dir": output}
    return make_config(cls, {**common, **options, **more})


# -- files ------------------------------------------------------------------------------------------------------------


def mixed(originals: Sequence[Path], protected: Sequence[Path], clean: int | str) -> list[Path]:
    """Return the attacker's photos, of which the first `clean` by name are not protected; "N-1": all but one."""
    number = len(originals) - 1 if clean == "N-1" else int(clean)
    return [*originals[:number], *protected[number:]]


def read_attack(folder: Path) -> AttackRow | None:
    """Return the only row of a finished `apdm attack`; None if it is not finished."""
    file = folder / ATTACK
    if not file.is_file():
        return None
    (row,) = from_json(AttackResults, json.loads(file.read_text(encoding="utf-8")), ATTACK).attacks
    return row


def take_class_pictures(drawn: Path, folder: Path) -> None:
    """Give an attack the class pictures that another one has drawn. If they are others, the attack draws its own."""
    if drawn.is_dir() and not (folder / ATTACKER_CLASS_IMAGES).is_dir():
        claim_output_dir(folder, overwrite=True)
        with write_beside(folder / ATTACKER_CLASS_IMAGES, folder=True) as partial:
            shutil.copytree(drawn, partial, dirs_exist_ok=True)


def keep_class_pictures(folder: Path, drawn: Path) -> None:
    """Keep the class pictures of an attack for the next one."""
    if not drawn.is_dir():
        with write_beside(drawn, folder=True) as partial:
            shutil.copytree(folder / ATTACKER_CLASS_IMAGES, partial, dirs_exist_ok=True)
