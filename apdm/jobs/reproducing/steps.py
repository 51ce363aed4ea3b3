"""The steps of a table's rows: people, protection and attack, each in a folder of its own that is kept.

A folder's name is a hash of all that determines what is in it. So an interrupted table goes on where it was stopped,
and tables that are made in one output folder share what they have in common.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from apdm.audit.results.file import read_any_results
from apdm.audit.results.models import AttackRow
from apdm.audit.results.one_model import AttackResults
from apdm.audit.results.store import key_of
from apdm.config import AttackConfig, HardenConfig, PerturbConfig, make_config
from apdm.core.errors import UserError
from apdm.core.files import claim_output_dir, sha256_file, write_beside
from apdm.core.pictures import save_png, to_pil
from apdm.core.terminal import progress_bar
from apdm.core.versions import VERSION
from apdm.data.captions import Caption, read_captions
from apdm.data.edit_prompts import Edit, write_edits
from apdm.data.subjects import find_subjects
from apdm.distributed.processes import ProcessGroup
from apdm.export.layout import ATTACK, ATTACKER_CLASS_IMAGES, IMAGES, MANIFEST, MODEL
from apdm.families import load_family
from apdm.jobs.reproducing.models import BUNDLED, Options, content_of, filled_in, needed_models
from apdm.jobs.reproducing.recipes import Captions, Recipe, RecipeRow, merged
from apdm.jobs.reproducing.subjects import HOLDOUT, PHOTOS, Subject, mixed

Config = TypeVar("Config")
WORK, DRAWN_PEOPLE = "work", "drawn-people"
CLEAN = "{clean}"  # stands in a recipe for a folder with a subject's further clean photos
HERE = Path("table")  # in checks, in the place of folders
CAPTION_SEED = 0  # of the first picture for a caption, the paper's


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was made of one subject with one seed, for one row.

    Attributes:
        subject: the subject.
        row: what the attack found; None if the table has no attacks.
        attack: the output folder of the attack; None if the table has no attacks.
        changed: the output folder of the photo protection; None if the photos are not changed.
        captions: the folder of pictures for captions; None if the table has none.
        prompts: what the attacker drew, each prompt equally often, one after the other.
    """

    subject: Subject
    row: AttackRow | None = None
    attack: Path | None = None
    changed: Path | None = None
    captions: Path | None = None
    prompts: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attacker gets: a model, a name for its state, photos, and the folder of their protection if any."""

    model: str
    state: str
    photos: list[Path]
    changed: Path | None


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
        device: where pictures for captions are drawn.
        protected: the subject that is protected in place of each attacked one; None if each is protected itself.
        allow_pickle: whether models may be loaded from pickles.
    """

    recipe: Recipe
    output: Path
    places: Mapping[str, str]
    num_threads: int | None
    processes: ProcessGroup
    device: torch.device
    protected: Subject | None = None
    allow_pickle: bool = False

    def run(self, row: RecipeRow, subject: Subject, seed: int) -> Done:
        """Protect a subject as a row says, attack it, draw for captions, and return what was made.

        Raises:
            UserError: the input cannot be used.
            Interrupted: the user stopped the run. What is finished is kept.
        """
        given = self._protect(row, subject)
        done = Done(subject=subject, changed=given.changed)
        if (captions := self.recipe.drawn_captions) is not None:
            done = replace(done, captions=self._draw_captions(captions, given))
        if self.recipe.attacks:
            done = self._attack(row, done, given, seed)
        return done

    def _attack(self, row: RecipeRow, done: Done, given: Attacked, seed: int) -> Done:
        subject, recipe = done.subject, self.recipe.for_kind(done.subject.kind)
        photos = [*given.photos, *subject.spare[: row.unseen]]
        options = merged(recipe.attack, row.attack)
        folder = self._folder(
            recipe, "attack", options, [*photos, *subject.holdout], given.state, seed, *map(astuple, subject.edits)
        )
        place = self._copies(photos, subject.holdout, subject.edits)
        config = attack_config(
            recipe,
            row,
            self.filled,
            model=given.model,
            photos=place,
            output=folder,
            seed=seed,
            threads=self.num_threads,
            allow_pickle=self.allow_pickle,
        )
        found = self.processes.broadcast(lambda: read_attack(folder))
        if found is None or found.status != "ok":
            from apdm.jobs.attack import attack_model

            # Attacks with the same seed on the same model have the same class pictures.
            drawn = self._folder(recipe, "class", options, [], given.state, seed)
            self.processes.on_main(lambda: take_class_pictures(drawn, folder))
            attack_model(config)
            self.processes.on_main(lambda: keep_class_pictures(folder, drawn))
            found = self.processes.broadcast(lambda: read_attack(folder))
        if found is None:
            raise UserError(f"{folder} holds no {ATTACK}; delete the folder, and run the same command again")
        return replace(done, row=found, attack=folder, prompts=config.prompts)

    def _protect(self, row: RecipeRow, subject: Subject) -> Attacked:
        """Harden a model and change photos, as far as the row says so, and return what the attacker gets."""
        protection, protected = self.recipe.protection(row), self.protected or subject
        recipe = self.recipe.for_kind(protected.kind)
        model, state, photos, changed = self.places[recipe.model], recipe.model, subject.photos, None
        if protection.harden is not None:
            options = merged(recipe.harden, protection.harden)
            folder = self._folder(recipe, "harden", options, protected.photos)
            if not self._is_done(folder):
                from apdm.jobs.harden import harden

                goes_on = {"resume_from_checkpoint": "latest", "overwrite_output_dir": True}
                harden(self._configuration(HardenConfig, recipe, options, folder, protected, goes_on), part=False)
            model, state = str(folder / MODEL), folder.name
        if protection.perturb is not None:
            options = merged(recipe.perturb, protection.perturb)
            clean = protected.clean if CLEAN in str(options) else []
            if not clean:
                options = with_clean(options, None)
            changed = self._folder(recipe, "perturb", options, [*protected.photos, *clean])
            if clean:
                options = with_clean(options, str(self._copies(clean, []) / PHOTOS))
            if not self._is_done(changed):
                from apdm.jobs.perturb import perturb

                again = {"overwrite_output_dir": True}
                perturb(self._configuration(PerturbConfig, recipe, options, changed, protected, again))
            (saved,) = find_subjects(changed / IMAGES)
            photos = mixed(subject.photos, saved.images, row.clean)
        return Attacked(model=model, state=state, photos=photos, changed=changed)

    def _draw_captions(self, captions: Captions, given: Attacked) -> Path:
        """Draw a picture for each caption with the model that an attacker gets, and return their folder."""
        texts = [caption.text for caption in caption_texts(captions, self.filled)]
        how = [captions.num_inference_steps, captions.guidance_scale, self.recipe.resolution]
        folder = self._folder(self.recipe, "captions", {}, [], given.state, how, texts)
        missing = self.processes.broadcast(lambda: [i for i in range(len(texts)) if not picture(folder, i).is_file()])
        if missing:
            family = load_family(given.model, allow_pickle=self.allow_pickle)
            family.pipeline.to(self.device)
            own = missing[self.processes.index :: self.processes.size]
            with progress_bar(total=len(own), desc="pictures for captions", unit="picture") as bar:
                for start in range(0, len(own), captions.batch_size):
                    part = own[start : start + captions.batch_size]
                    images = family.sample(
                        [texts[i] for i in part],
                        seed=[CAPTION_SEED + i for i in part],
                        num_inference_steps=captions.num_inference_steps,
                        guidance_scale=captions.guidance_scale,
                        height=self.recipe.resolution,
                        width=self.recipe.resolution,
                        batch_size=captions.batch_size,
                    )
                    for i, image in zip(part, images, strict=True):
                        save_png(to_pil(image), picture(folder, i))
                    bar.update(len(part))
        self.processes.wait()
        return folder

    def _is_done(self, folder: Path) -> bool:
        """Whether hardening or photo protection in a folder is finished: its manifest is written last."""
        return self.processes.broadcast((folder / MANIFEST).is_file)

    def _configuration(
        self, cls: type[Config], recipe: Recipe, options: Options, folder: Path, subject: Subject, more: Options
    ) -> Config:
        photos = self._copies(subject.photos, subject.holdout) / PHOTOS
        model = self.places[recipe.protects_with]
        more = {**more, "pretrained_model_name_or_path": model, "num_threads": self.num_threads}
        more["allow_pickle"] = self.allow_pickle
        return job_config(cls, recipe, self.filled(options), photos, folder, more)

    def filled(self, options: Options) -> Options:
        """Options with places in the stead of names in braces."""
        return filled_in(options, {**self.places, "people": str(self.output / DRAWN_PEOPLE)})

    def _folder(self, recipe: Recipe, kind: str, options: Options, photos: Sequence[Path], *more: Any) -> Path:
        """The folder of a step, by a hash of all that determines the step: of models, what is in their files."""
        prompts = [recipe.instance_prompt, recipe.class_prompt, recipe.resolution]
        used = recipe.protects_with if kind in ("harden", "perturb") else recipe.model
        named = [used, *sorted(needed_models(options))]
        where = {name: None if name in BUNDLED else content_of(self.places[name]) for name in named}
        files = [sha256_file(photo) for photo in photos]
        return self.output / WORK / f"{kind}-{key_of({'of': [VERSION, kind, options, prompts, where, files, *more]})}"

    def _copies(self, photos: Sequence[Path], holdout: Sequence[Path], edits: Sequence[Edit] = ()) -> Path:
        """Copy photos into a folder of their own, once: PHOTOS and HOLDOUT in the returned folder.

        Their names begin with a number, so that files made of them keep the order although they have other suffixes.
        What is asked of each photo lies beside PHOTOS in the form that `read_edits` reads.
        """
        folder = self._folder(self.recipe, "photos", {}, [*photos, *holdout], len(photos), *map(astuple, edits))

        def copy() -> None:
            if not folder.is_dir():
                with write_beside(folder, folder=True) as partial:
                    for name, files in ((PHOTOS, photos), (HOLDOUT, holdout)):
                        (partial / name).mkdir()
                        for copied, file in zip(_numbered(files), files, strict=True):
                            shutil.copyfile(file, partial / name / copied)
                    if edits:
                        write_edits(partial / PHOTOS, _numbered(photos), edits)

        self.processes.on_main(copy)
        return folder


def _numbered(files: Sequence[Path]) -> list[str]:
    return [f"{i:04d}-{file.name}" for i, file in enumerate(files)]


def with_clean(options: Options, folder: str | None) -> Options:
    """Return options with a folder in the place of `CLEAN`; without those options where there is no folder."""
    filled = {key: with_clean(own, folder) if isinstance(own, dict) else own for key, own in options.items()}
    return {key: folder if own == CLEAN else own for key, own in filled.items() if folder or own != CLEAN}


# -- configurations ---------------------------------------------------------------------------------------------------


def attack_config(
    recipe: Recipe,
    row: RecipeRow,
    fill: Callable[[Options], Options],
    *,
    model: str = "model",
    photos: Path = HERE,
    output: Path = HERE,
    seed: int = 0,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> AttackConfig:
    """Return the configuration of a row's attack. For checks, names stand in for the model and the folders.

    Args:
        fill: puts the places of models into options.
        model: the attacked model.
        photos: the folder with PHOTOS and HOLDOUT.
        allow_pickle: whether models may be loaded from pickles.
    """
    given = {
        "allow_pickle": allow_pickle,
        "pretrained_model_name_or_path": model,
        "photos": photos / PHOTOS,
        "holdout_data_dir": photos / HOLDOUT,
        "overwrite_output_dir": True,
        "seed": seed,
        "num_threads": threads,
    }
    if recipe.edits:
        given["edit_prompts"] = photos / PHOTOS
    if recipe.is_miniature:
        given["strangers_data_dir"] = fill({"strangers": "{people}/strangers"})["strangers"]
    common: Options = {"instance_prompt": recipe.instance_prompt, "class_prompt": recipe.class_prompt}
    common |= {"resolution": recipe.resolution, "output_dir": output}
    return make_config(AttackConfig, {**common, **fill(merged(recipe.attack, row.attack)), **given})


def job_config(
    cls: type[Config], recipe: Recipe, options: Options, photos: Path, output: Path, more: Options
) -> Config:
    """Return the configuration of a row's hardening or photo protection. `options` have their places filled in."""
    common: Options = {"instance_prompt": recipe.instance_prompt, "class_prompt": recipe.class_prompt}
    common |= {"resolution": recipe.resolution, "instance_data_dir": photos, "output_dir": output}
    return make_config(cls, {**common, **options, **more})


# -- files ------------------------------------------------------------------------------------------------------------


def picture(folder: Path, index: int) -> Path:
    """The file of the picture for a caption, by the caption's number."""
    return folder / f"{index:05d}.png"


def caption_texts(captions: Captions, fill: Callable[[Options], Options]) -> list[Caption]:
    """The captions that pictures are drawn for. `fill` puts the places of models into options."""
    if captions.file is not None:
        return read_captions(fill({"file": captions.file})["file"], captions.number)
    return [Caption(captions.prompts[i % len(captions.prompts)]) for i in range(captions.number)]


def read_attack(folder: Path) -> AttackRow | None:
    """Return the only row of a finished `apdm attack`; None if it is not finished."""
    file = folder / ATTACK
    if not file.is_file():
        return None
    results = read_any_results(file)
    if not isinstance(results, AttackResults):
        raise UserError(f"{file} holds no attack; delete the folder, and run the same command again")
    (row,) = results.attacks
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
