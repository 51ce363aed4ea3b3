"""What is checked of a recipe before a table is made: its values, the options of all commands, and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from apdm.attacks.photo_treatment import check_enough_photos
from apdm.attacks.registry import is_editing, is_zero_shot
from apdm.audit.inputs.attack_factory import AttackFactory
from apdm.audit.inputs.untrained import Untrained
from apdm.audit.tables import BY_PROMPT, Column
from apdm.config import AttackConfig, HardenConfig, PerturbConfig
from apdm.core.errors import UserError
from apdm.core.terminal import count
from apdm.data.subjects import list_all_images
from apdm.image_layer.protections import make_protection
from apdm.jobs.reproducing.models import BUNDLED, MODELS, Options, filled_in
from apdm.jobs.reproducing.recipes import Captions, Protection, Recipe, RecipeRow, merged
from apdm.jobs.reproducing.steps import HERE, attack_config, caption_texts, job_config

Config = TypeVar("Config")
# Options that the table sets itself, or that keep a command from its work.
OWN_OPTIONS = ("output_dir", "instance_data_dir", "photos", "holdout_data_dir", "edit_prompts", "seed", "dry_run")
PEOPLE = "people"
STAND_INS = {name: name for name in [*MODELS, *BUNDLED, PEOPLE]}  # for places, where none is needed
DISTANCES = ("frechet", "kernel")  # figures that compare many pictures with many photos


def check_options(recipe: Recipe, name: str) -> None:
    """Check the values of a recipe, and that all its options are options of the commands that they are for.

    Raises:
        UserError: an option is not known or has a wrong value. The message names recipe and row.
    """
    if (wrong := next(_wrong_values(recipe), None)) is not None:
        raise UserError(f"recipe {name}: {wrong}")
    for row_name, row in recipe.rows.items():
        try:
            _check_row(recipe, row)
        except UserError as error:
            raise UserError(f"recipe {name}, row {row_name}: {error}") from None


def _wrong_values(recipe: Recipe) -> Iterator[str]:
    """Say what is wrong about values that a recipe's form allows."""
    if not recipe.rows or not recipe.columns:
        yield "it has no rows or no columns; name some"
    if recipe.people is not None and recipe.people < 1:
        yield f"people is {recipe.people}; it needs to be at least 1"
    if recipe.edits and recipe.is_miniature:
        yield "edits is true, and drawn people have no prompts of their own; leave it out"
    for name, kind in recipe.kinds.items():
        if not kind.subject.strip() or not kind.class_prompt.strip():
            yield f"kinds.{name} has an empty subject or class_prompt; write both"
    for name, row in recipe.rows.items():
        yield from (f"rows.{name}{wrong}" for wrong in _wrong_row(row, recipe.protection(row)))
    for name, column in recipe.columns.items():
        yield from (f"columns.{name}.{wrong}" for wrong in _wrong_column(column))
    if (captions := recipe.drawn_captions) is not None:
        yield from _wrong_captions(captions)


def _wrong_row(row: RecipeRow, protection: Protection) -> Iterator[str]:
    if row.unseen < 0:
        yield f".unseen is {row.unseen}; it needs to be at least 0"
    if row.clean and protection.perturb is None and protection.needs is None:
        yield f".clean is {row.clean}, and the row changes no photos; leave it out"
    if row.line is not None and row.place is None:
        yield " has a line and no place on it; give both"


def _wrong_column(column: Column) -> Iterator[str]:
    if column.pooled and column.figure not in DISTANCES:
        yield f"pooled goes with {' and '.join(DISTANCES)}, not with {column.figure}; leave it out"
    if column.prompt is not None and column.figure not in {*BY_PROMPT, "other"}:
        yield f"prompt goes with {', '.join(sorted(BY_PROMPT))}, not with {column.figure}; leave it out"
    for option in ("encoder", "prompt"):
        if (getattr(column, option) or 0) < 0:
            yield f"{option} is {getattr(column, option)}; they are counted from 0"


def _wrong_captions(captions: Captions) -> Iterator[str]:
    least = {"number": 2, "num_inference_steps": 1, "batch_size": 1, "side": 16}  # distances need two pictures
    for option, low in least.items():
        if getattr(captions, option) < low:
            yield f"captions.{option} is {getattr(captions, option)}; it needs to be at least {low}"
    if (captions.file is None) == (not captions.prompts):
        yield "captions needs either file or prompts"


def _check_row(recipe: Recipe, row: RecipeRow) -> None:
    protection = recipe.protection(row)
    for own in map(recipe.for_kind, recipe.protected_kinds):
        if protection.harden is not None:
            job_of(HardenConfig, own, merged(own.harden, protection.harden))
        if protection.perturb is not None:
            make_protection(job_of(PerturbConfig, own, merged(own.perturb, protection.perturb)).image_layer)
    for kind in recipe.attacked_kinds if recipe.attacks else []:
        own = recipe.for_kind(kind)
        config = attack_of(own, row)
        _check_attack(own, config)
        for name, column in recipe.columns.items():
            if column.kind in (None, kind) and (column.prompt or 0) >= len(config.prompts):
                raise UserError(
                    f"columns.{name}.prompt is {column.prompt}, counted from 0, and the attacker draws "
                    f"{count(len(config.prompts), 'prompt')}; lower it"
                )


def _foreign(options: Options) -> Options:
    """Return options. Raises UserError if one of them is the table's."""
    if own := [name for name in OWN_OPTIONS if name in options]:
        raise UserError(f"{own[0]} is set by the table; leave it out of the recipe")
    return options


def _check_attack(recipe: Recipe, config: AttackConfig) -> None:
    if len(config.attack) != 1:
        raise UserError(f"attack names {len(config.attack)} attacks; a row has one, so write a row for each")
    factory, (spec,) = AttackFactory(config.audit, config.instance_prompt, config.class_prompt), config.attack
    attack = factory.make(spec, seed=0)
    if isinstance(attack, Untrained):
        attack.check_steps(config.num_inference_steps)
    if needs := attack.needs:
        raise UserError(f"{spec} needs a {' and a '.join(needs)} model besides; a table has none, so leave it out")
    if recipe.edits and not is_editing(spec):
        raise UserError(f"edits goes with attacks that edit photos, and {spec} does not; leave one of them out")
    if recipe.likeness_to == "originals" and not is_zero_shot(spec):
        raise UserError(f"likeness_to originals goes with attacks that train nothing, and {spec} trains; leave it out")


def check_photo_numbers(recipe: Recipe, row: RecipeRow, counts: Mapping[str, int]) -> None:
    """Check that the attack of a row takes no more photos than each subject has.

    Args:
        recipe: the table, for subjects of one kind.
        counts: {subject: how many photos the attacker has}.

    Raises:
        UserError: a subject has fewer.
    """
    config = attack_of(recipe, row)
    factory = AttackFactory(config.audit, config.instance_prompt, config.class_prompt)
    for spec in config.attack:
        check_enough_photos(factory.make(spec, seed=0), spec, counts)


def job_of(cls: type[Config], recipe: Recipe, options: Options) -> Config:
    """Return the configuration of a row's hardening or photo protection, with names in place of folders and models."""
    model = {"pretrained_model_name_or_path": "model"}
    return job_config(cls, recipe, filled_in(_foreign(options), STAND_INS), HERE, HERE, model)


def attack_of(recipe: Recipe, row: RecipeRow) -> AttackConfig:
    """Return the configuration of a row's attack, with names in place of folders and models."""
    _foreign(merged(recipe.attack, row.attack))
    return attack_config(recipe, row, partial(filled_in, places=STAND_INS))


def check_captions(recipe: Recipe, name: str, places: Mapping[str, str]) -> None:
    """Check that the captions can be read, and that their photos are there. `places` say where models are.

    Raises:
        UserError: something is missing. The message names the recipe.
    """
    if (captions := recipe.drawn_captions) is None:
        return
    fill = partial(filled_in, places={PEOPLE: PEOPLE, **places})  # drawn people have no place yet
    listed = caption_texts(captions, fill)
    if f"{{{PEOPLE}}}" in captions.photos:  # they are drawn later
        return
    folder = Path(fill({"photos": captions.photos})["photos"])
    if not folder.is_dir():
        raise UserError(f"recipe {name}: captions.photos is {folder}, which is no folder; name that of the photos")
    named = [folder / one.photo for one in listed if one.photo is not None]
    if gone := next((file for file in named if not file.is_file()), None):
        raise UserError(f"recipe {name}: {gone} is missing, the photo of a caption; add it, or name another folder")
    if not named and len(list_all_images(folder)) < 2:
        raise UserError(f"recipe {name}: {folder} holds one photo, and distances need two; add more")
