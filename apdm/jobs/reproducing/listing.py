"""All tables of the papers: those with a recipe, and those without one and why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from apdm.audit.results.schema import WrongShape, from_json
from apdm.config.yaml_text import read_yaml
from apdm.core.errors import UserError
from apdm.jobs.reproducing.recipes import load_recipe, missing_for, missing_for_column, recipe_names
from apdm.recipes import TABLES


@dataclass(frozen=True, kw_only=True)
class ListedTable:
    """A table of a paper, whether it has a recipe or not.

    Attributes:
        title: what it shows.
        state: why it has no recipe; None if it has one.
    """

    title: str
    state: str | None = None


def all_tables() -> dict[str, ListedTable]:
    """Return {id: table} of the papers' tables and of their twins on the miniature world."""
    try:
        listed = {name: from_json(ListedTable, table, name) for name, table in read_yaml(str(TABLES)).items()}
    except WrongShape as error:
        raise UserError(f"{TABLES}: {error}") from None
    listed |= {name: ListedTable(title=load_recipe(name).title) for name in recipe_names()}
    return dict(sorted(listed.items(), key=lambda item: list_order(item[0])))


def list_order(name: str) -> tuple[bool, str, bool, int, str]:
    """The place of a table in the list: by paper and number, figures after tables, the miniature world last."""
    miniature, named = name.startswith("miniature/"), name.removeprefix("miniature/")
    paper, _, table = re.sub(r"-(?=table|figure)", "/", named, count=1).partition("/")
    number = re.search(r"(?:table|figure)(\d+)", table)
    return miniature, paper, "figure" in table, int(number[1]) if number else 0, table


def state_of(name: str, table: ListedTable, models: Mapping[str, str]) -> str:
    """Say whether a table runs here, and what it needs if not."""
    if table.state is not None:
        return table.state
    recipe = load_recipe(name)
    missing = {title: missing_for(recipe, row, models) for title, row in recipe.rows.items()}
    parts = dict.fromkeys(filter(None, missing.values()))
    columns = {column.title: missing_for_column(recipe, column, models) for column in recipe.columns.values()}
    if all(missing.values()):
        return f"needs {next(iter(parts))}" + ("" if recipe.is_miniature else ", and photos")
    photos = "" if recipe.is_miniature else ", with photos"
    left = f"; {sum(map(bool, missing.values()))} of {len(missing)} rows not: {'; '.join(parts)}" if parts else ""
    lacking = {text for text in columns.values() if text and text.startswith("needs ")}
    for text in sorted(lacking):
        left += f"; {', '.join(title for title, why in columns.items() if why == text)}: {text}"
    return f"runs here{photos}{left}"
