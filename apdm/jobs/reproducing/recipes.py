"""Recipes of tables: YAML files that hold nothing but data, read into dataclasses.

A recipe names what is protected and how, the attack, what is measured, and the published figures. Its options are those
of `apdm harden`, `apdm perturb` and `apdm attack`. In their texts `{sd15}` and the like stand for the models that
models.yaml names, `{people}` for the folder of the drawn people of the miniature world, and `{clean}` for a folder with
further clean photos of the subject. An option with `{clean}` is left out where the data have no such photos.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from apdm.audit.results.schema import WrongShape, from_json
from apdm.audit.tables import CAPTIONS, PHOTOS, Column
from apdm.config.yaml_text import read_yaml
from apdm.core.errors import UserError
from apdm.jobs.reproducing.models import (
    BUNDLED,
    FIGURE_MODELS,
    IN_THE_MINIATURE,
    MODELS,
    Options,
    listed,
    needed_models,
)
from apdm.recipes import RECIPES

TWIN, KEPT = "twin_of", {"rows": "keep_rows", "columns": "keep_columns"}


@dataclass(frozen=True, kw_only=True)
class Protection:
    """How a row protects: hardened weights, changed photos, or both.

    Attributes:
        harden: options of `apdm harden`; None if the weights are not hardened.
        perturb: options of `apdm perturb`; None if the photos are not changed.
        needs: why this program cannot do it; None if it can.
        differs: how it differs from the paper's, one sentence each.
    """

    harden: Options | None = None
    perturb: Options | None = None
    needs: str | None = None
    differs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One of several kinds of subjects.

    Attributes:
        subject: the attacker's words for one, such as "sks cat".
        class_prompt: the prompt of the class.
        folders: names of the folders of such subjects; empty for all.
        prompts: what the attacker draws, with {subject} for these words; empty for the recipe's own prompts.
        prompt_list: the name of a list of prompts in the recipe, in their place.
    """

    subject: str
    class_prompt: str
    folders: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    prompt_list: str | None = None


@dataclass(frozen=True, kw_only=True)
class Captions:
    """Pictures that a row's model draws for captions, without an attack, and the photos they are compared with.

    Attributes:
        photos: a folder of photos. If `file` names a photo for each caption, these are used.
        number: how many pictures.
        file: a file of captions, see `apdm.data.captions`.
        prompts: captions in place of a file, which are drawn in turn.
        num_inference_steps, guidance_scale, batch_size: how they are drawn.
        side: pictures and photos are cut to squares of this side before they are compared.
    """

    photos: str
    number: int
    file: str | None = None
    prompts: list[str] = field(default_factory=list)
    num_inference_steps: int = 20
    guidance_scale: float = 7.5
    batch_size: int = 8
    side: int = 256


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """One row of a table.

    Attributes:
        title: what the paper calls it.
        protect: one of the recipe's protections; None for no protection.
        clean: how many of the attacker's photos are not protected.
        unseen: how many further photos the attacker has, which were not there when the subject was protected.
        attack: options of `apdm attack` that differ from the recipe's.
        published: {column: the paper's figure}.
        differs: how the row differs from the paper's, one sentence each.
        line, place: on which curve of the table's drawing the row is a point, and where, such as a number of steps.
            A row with a place and without a line is the beginning of all curves. None where there is no drawing.
    """

    title: str
    protect: str | None = None
    clean: Literal[0, 1, "N-1"] = 0
    unseen: int = 0
    attack: Options = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)
    line: str | None = None
    place: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A table of a paper.

    Attributes:
        title: which table it is.
        source: where the published figures stand.
        subjects: whose photos are attacked. Portraits are the drawn people of the miniature world.
        model: the attacked model, by its name in models.yaml.
        protect_model: the model that photos are protected against; None for the attacked model.
        instance_prompt: the prompt that a subject is learnt with.
        class_prompt: the prompt of its class.
        resolution: side in pixels of the squares that are cut out of photos.
        people: how many subjects by default; None for all.
        kinds: {name: kind of subjects}, where there are several, or where prompts come from a list.
        protects: the kind whose first subject is protected, while those of the other kinds are attacked; None if every
            subject is protected and attacked.
        prompt_lists: {name: prompts with {subject}}.
        captions: pictures for captions; None if no column is about them.
        likeness_to: whether likeness is measured against photos that nobody attacked, or against the photos themselves
            as they were before protection. The latter goes with attacks that train nothing.
        edits: whether each photo has a prompt of its own beside it, see `apdm.data.edit_prompts`.
        harden, perturb, attack: options of these commands, in all rows.
        columns, protections, rows: {id: column, protection, row}, in their order.
        differs: how the table differs from the paper's, one sentence each.
    """

    title: str
    source: str
    subjects: Literal["person", "object", "portraits"]
    model: str
    instance_prompt: str
    class_prompt: str
    resolution: int
    columns: dict[str, Column]
    rows: dict[str, RecipeRow]
    protections: dict[str, Protection] = field(default_factory=dict)
    protect_model: str | None = None
    people: int | None = None
    kinds: dict[str, Kind] = field(default_factory=dict)
    protects: str | None = None
    prompt_lists: dict[str, list[str]] = field(default_factory=dict)
    captions: Captions | None = None
    likeness_to: Literal["held_out", "originals"] = "held_out"
    edits: bool = False
    harden: Options = field(default_factory=dict)
    perturb: Options = field(default_factory=dict)
    attack: Options = field(default_factory=dict)
    differs: list[str] = field(default_factory=list)

    @property
    def is_miniature(self) -> bool:
        """Whether the table is of the miniature world."""
        return self.subjects == "portraits"

    @property
    def protects_with(self) -> str:
        """The model that is hardened, or that photos are protected against."""
        return self.protect_model or self.model

    def protection(self, row: RecipeRow) -> Protection:
        """How a row protects."""
        return Protection() if row.protect is None else self.protections[row.protect]

    @property
    def uses_spare(self) -> bool:
        """Whether attackers have photos that were not there when the subject was protected."""
        return any(row.unseen for row in self.rows.values())

    @property
    def attacks(self) -> bool:
        """Whether a column is about attacks."""
        without = {*PHOTOS, *CAPTIONS, "other"}
        return any(column.figure not in without for column in self.columns.values())

    @property
    def protected_kinds(self) -> list[str | None]:
        """The kinds whose subjects are protected; None stands for subjects without a kind."""
        if self.protects is not None:
            return [self.protects]
        return [*self.kinds] if self.kinds else [None]

    @property
    def attacked_kinds(self) -> list[str | None]:
        """The kinds whose subjects are attacked."""
        return [name for name in self.kinds if name != self.protects] if self.kinds else [None]

    @property
    def drawn_captions(self) -> Captions | None:
        """The pictures for captions; None if no column is about them."""
        return self.captions if any(column.figure in CAPTIONS for column in self.columns.values()) else None

    def for_kind(self, name: str | None) -> Recipe:
        """The recipe for subjects of one kind: with their prompts."""
        if name is None:
            return self
        kind = self.kinds[name]
        instance = f"a photo of {kind.subject}"
        texts = kind.prompts if kind.prompt_list is None else self.prompt_lists[kind.prompt_list]
        prompts = [text.replace("{subject}", kind.subject) for text in texts]
        attack = merged(self.attack, {"prompts": prompts} if prompts else {})
        return replace(self, instance_prompt=instance, class_prompt=kind.class_prompt, attack=attack)


def recipe_names() -> list[str]:
    """Return the names of the package's recipes. Files whose names begin with _ are parts of recipes."""
    files = sorted(RECIPES.glob("*/[!_]*.yaml"))
    return [file.relative_to(RECIPES).with_suffix("").as_posix() for file in files]


def recipe_file(name: str) -> Path:
    """Return the file of a recipe. Raises UserError if there is none of this name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    file = RECIPES / f"{name}.yaml"
    if not re.fullmatch(r"[\w-]+/[\w-]+", name) or not file.is_file():
        raise UserError(
            f'there is no recipe "{name}"; apdm reproduce --list names all, or give a YAML file of your own'
        )
    return file


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe.

    Raises:
        UserError: there is no such recipe, or something in its file is wrong. The message names file and key.
    """
    file = recipe_file(name)
    try:
        recipe = from_json(Recipe, _stated(_tree(file)))
    except WrongShape as error:
        raise UserError(f"{file}: {error}; the recipes of the package show the form, {RECIPES}") from None
    _check(recipe, file)
    return recipe


def _tree(file: Path, twins: tuple[Path, ...] = ()) -> Options:
    """The content of a recipe's file. `twins` are the files whose `twin_of` led to this one.

    A recipe with `twin_of` takes over what the recipes named there say; where they differ, the last one counts. What
    the recipe itself says wins over all of them, and a key that it gives as null is left out. With `keep_rows` and
    `keep_columns` only these rows and columns are taken over.
    """
    if file in twins:
        raise UserError(f"{file}: {TWIN} leads back to this file; name another recipe")
    own = read_yaml(str(file), line="key: value")
    others, kept = _names(own, TWIN, file) or [], {part: _names(own, key, file) for part, key in KEPT.items()}
    under: Options = {}
    for other in others:
        under = merged(under, _tree(recipe_file(other), (*twins, file)))
    for part, names in kept.items():
        if names is not None:
            there = under.get(part, {})
            if unknown := [name for name in names if name not in there]:
                raise UserError(f"{file}: {KEPT[part]} has {unknown[0]}; the {part} are {', '.join(there)}")
            under[part] = {name: there[name] for name in names}
    return merged(under, own)


def _names(own: Options, key: str, file: Path) -> list[str] | None:
    """Take the names out that a recipe states under a key; None if it states none."""
    names = own.pop(key, None)
    names = [names] if key == TWIN and isinstance(names, str) else names
    if names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return names
    raise UserError(f"{file}: {key} is {names}; it needs a list of names, such as [a, b]")


def _stated(options: Mapping[str, Any]) -> Options:
    """Nested options without those that are null: parts of recipes leave them out of what they are merged with."""
    found = {key: _stated(value) if isinstance(value, Mapping) else value for key, value in options.items()}
    return {key: value for key, value in found.items() if value is not None}


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> Options:
    """Two nested mappings as one. The values of `over` win, and those that are None leave a key out."""
    both: Options = dict(under)
    for key, value in over.items():
        if value is None:
            both.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(both.get(key), Mapping):
            both[key] = merged(both[key], value)
        else:
            both[key] = value
    return both


def _check(recipe: Recipe, file: Path) -> None:
    """Check that a recipe's parts fit together."""
    for key in ("model", "protects_with"):
        if (model := getattr(recipe, key)) not in {**MODELS, **BUNDLED}:
            key = key if key == "model" else "protect_model"
            raise UserError(f"{file}: {key} is {model}; it needs one of {', '.join([*MODELS, *BUNDLED])}")
    for name, protection in recipe.protections.items():
        if (protection.needs is None) == (protection.harden is None and protection.perturb is None):
            raise UserError(f"{file}: protections.{name} needs harden or perturb or both, or else needs")
    for name, row in recipe.rows.items():
        if row.protect not in (None, *recipe.protections):
            known = ", ".join(recipe.protections)
            raise UserError(f"{file}: rows.{name}.protect is {row.protect}, which is none of protections: {known}")
        if unknown := row.published.keys() - recipe.columns.keys():
            raise UserError(f"{file}: rows.{name}.published has {sorted(unknown)[0]}, which is none of columns")
    _check_kinds(recipe, file)
    for name, column in recipe.columns.items():
        if column.figure in CAPTIONS and recipe.captions is None:
            raise UserError(f"{file}: columns.{name} is about pictures for captions; it needs captions in the recipe")


def _check_kinds(recipe: Recipe, file: Path) -> None:
    """Check what names a kind of subjects."""
    for name, kind in recipe.kinds.items():
        if kind.prompt_list is not None and kind.prompt_list not in recipe.prompt_lists:
            known = ", ".join(recipe.prompt_lists) or "none"
            raise UserError(f"{file}: kinds.{name}.prompt_list is {kind.prompt_list}; prompt_lists has {known}")
    if recipe.protects is not None and (recipe.protects not in recipe.kinds or len(recipe.kinds) < 2):
        raise UserError(f"{file}: protects is {recipe.protects}; it needs one of kinds, and others that are attacked")
    used = [recipe.protection(row) for row in recipe.rows.values()]
    if recipe.protects is not None and any(one.perturb is not None for one in used):
        raise UserError(f"{file}: protects goes with protections that harden, and one of the rows changes photos")
    for name, column in recipe.columns.items():
        if column.kind is not None and column.kind not in recipe.kinds:
            raise UserError(f"{file}: columns.{name}.kind is {column.kind}, which is none of kinds")


def missing_for(recipe: Recipe, row: RecipeRow, models: Mapping[str, str]) -> str | None:
    """Say what a row needs and does not have; None if it can be run."""
    protection = recipe.protection(row)
    if protection.needs is not None:
        return protection.needs
    options = [recipe.attack, row.attack, protection.harden, protection.perturb]
    options += [recipe.harden] * (protection.harden is not None) + [recipe.perturb] * (protection.perturb is not None)
    options = options if recipe.attacks else options[2:]
    if (captions := recipe.drawn_captions) is not None:
        options += [{"file": captions.file, "photos": captions.photos}]
    used = {recipe.model} if row.protect is None else {recipe.model, recipe.protects_with}
    named = needed_models(options) | (used & MODELS.keys())
    return listed(named - models.keys())


def missing_for_column(recipe: Recipe, column: Column, models: Mapping[str, str]) -> str | None:
    """Say why a column cannot be computed; None if it can, or if each row says so itself."""
    if column.needs is not None:
        return column.needs
    model = FIGURE_MODELS.get(column.figure)
    if model is None or model in models or (recipe.is_miniature and model in IN_THE_MINIATURE):
        return None
    return f"needs {listed({model})}"
