"""`apdm reproduce`: make a table of a paper again, and show ours beside the published figures.

A row of a table is what other commands do: `apdm harden` or `apdm perturb` protects, `apdm attack` attacks and judges.
Recipes (`apdm.jobs.reproducing.recipes`) say with which options, and `apdm.jobs.reproducing.steps` runs them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from apdm.audit.results.schema import to_json
from apdm.audit.tables import SCHEMA, Table, TableCell, TableRow, doubts_about
from apdm.config import ReproduceConfig
from apdm.core.errors import Faults, UserError
from apdm.core.files import claim_output_dir, write_json, write_text
from apdm.core.logging import get_logger
from apdm.core.terminal import count
from apdm.core.versions import package_versions
from apdm.distributed.launch import join_processes, stop_on_signals_or_loss
from apdm.export.layout import TABLE, TABLE_PAGE
from apdm.jobs.common.prepare import keep_apart, prepare_process
from apdm.jobs.common.results import ReproduceResult
from apdm.jobs.reproducing.checks import check_captions, check_options, check_photo_numbers
from apdm.jobs.reproducing.figures import Figures
from apdm.jobs.reproducing.listing import all_tables, state_of
from apdm.jobs.reproducing.models import BUNDLED, read_models
from apdm.jobs.reproducing.recipes import Recipe, RecipeRow, load_recipe, missing_for, missing_for_column
from apdm.jobs.reproducing.steps import DRAWN_PEOPLE, Done, Steps
from apdm.jobs.reproducing.subjects import Subject, draw_people, read_subjects, too_few_spare
from apdm.report.table_page import markdown, write_table_page

logger = get_logger(__name__)

KEPT = "what is finished is kept"
MINIATURE = (
    "This table is of the miniature world: drawn people and a small bundled model. Its figures are not the paper's "
    "figures, and say nothing about Stable Diffusion."
)
TEXT = "table.md"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a table needs, read and checked before any work.

    Attributes:
        recipe: the table.
        models: {name: place} of what models.yaml names.
        rows: {id: row} of the rows that are wanted.
        missing: {id: what the row needs} of the rows that cannot be run.
    """

    recipe: Recipe
    models: Mapping[str, str]
    rows: Mapping[str, RecipeRow]
    missing: Mapping[str, str]

    @property
    def places(self) -> dict[str, str]:
        """{name of a model: where it is}, with the bundled ones."""
        return {**self.models, **BUNDLED}

    @property
    def runnable(self) -> dict[str, RecipeRow]:
        """The rows that can be run."""
        return {name: row for name, row in self.rows.items() if name not in self.missing}

    def with_subjects(self, subjects: Sequence[Subject]) -> Job:
        """The same, without the rows for which the subjects have too few photos.

        Raises:
            UserError: an attack of the other rows names more photos than a subject has.
        """
        short = {name: text for name, row in self.rows.items() if (text := too_few_spare(subjects, row.unseen))}
        attacked = [row for name, row in self.rows.items() if self.recipe.attacks and name not in short]
        for row, kind in product(attacked, self.recipe.attacked_kinds):
            counts = {one.id: len(one.photos) + row.unseen for one in subjects if one.kind == kind}
            check_photo_numbers(self.recipe.for_kind(kind), row, counts)
        return replace(self, missing=short | dict(self.missing))


def list_tables(config: ReproduceConfig) -> dict[str, str]:
    """Return {table: whether it runs here, what it needs, and what it shows}."""
    models = read_models(config.models)
    return {name: f"{state_of(name, table, models)}. {table.title}" for name, table in all_tables().items()}


def load_job(config: ReproduceConfig) -> Job:
    """Read the recipe and the models, and check the options of all rows.

    Raises:
        UserError: something is wrong. All that was found is told.
    """
    with Faults() as faults:
        recipe = faults.of(lambda: load_recipe(str(config.recipe)))
        models = faults.of(lambda: read_models(config.models))
    if config.output_dir is None and not config.plan:
        raise UserError("output_dir must be given, the folder for the table; or --plan, which writes nothing")
    if unknown := [name for name in config.rows if name not in recipe.rows]:
        raise UserError(f"{config.recipe} has no row {unknown[0]}; there are {', '.join(recipe.rows)}")
    if not recipe.is_miniature and config.data is None and not config.plan:
        raise UserError(f"data must be given for {config.recipe}: the folder of the photos, <id>/set_A or <id>/*.jpg")
    if recipe.is_miniature and (config.data or config.models):
        given = "data" if config.data else "models"
        raise UserError(f"{config.recipe} draws its people and uses the bundled model; leave out {given}")
    rows = {name: row for name, row in recipe.rows.items() if not config.rows or name in config.rows}
    missing = {name: text for name, row in rows.items() if (text := missing_for(recipe, row, models)) is not None}
    check_options(recipe, str(config.recipe))
    if len(missing) < len(rows):
        check_captions(recipe, str(config.recipe), {**models, **BUNDLED})
    return Job(recipe=recipe, models=models, rows=rows, missing=missing)


def reproduce(config: ReproduceConfig, *, command: str | None = None) -> ReproduceResult:
    """Make a table: protect, attack and judge as its rows say, and write table.json, table.md and table.html.

    The command `apdm reproduce` runs this function, in one process or in the processes that `accelerate launch`
    started.

    Args:
        command: the command line that was given, for table.json.

    Returns:
        The output folder, and in the main process the table.

    Raises:
        UserError: the input cannot be used. This is found before any long work starts.
        Interrupted: the process was asked to stop. What is finished is kept, and the same call goes on from there.
    """
    if config.plan or config.list:
        raise UserError("list and plan are for the command line; leave them out")
    job, output = load_job(config), Path(str(config.output_dir))
    if config.data is not None:
        keep_apart({"data": config.data}, output_dir=str(output))
    processes, device = join_processes()
    with stop_on_signals_or_loss(processes, KEPT, kept=lambda: True, runs_jobs=True), ExitStack() as held:
        prepare_process(config.num_threads)
        subjects = processes.broadcast(lambda: prepare(config, job, output, held))
        job = job.with_subjects(subjects)
        attacked = [one for one in subjects if one.kind in job.recipe.attacked_kinds]
        steps = Steps(
            recipe=job.recipe,
            output=output,
            places=job.places,
            num_threads=config.num_threads,
            processes=processes,
            device=device,
            protected=next((one for one in subjects if one not in attacked), None),
            allow_pickle=config.allow_pickle,
        )
        runs: dict[str, dict[str, list[Done]]] = {}
        for name, row in job.runnable.items():
            logger.info("row %s: %s", name, row.title)
            runs[name] = {one.id: [steps.run(row, one, seed) for seed in range(config.seeds)] for one in attacked}
        figures = Figures(recipe=job.recipe, models=job.models, fill=steps.filled, allow_pickle=config.allow_pickle)
        table = processes.on_main(lambda: table_of(config, job, [one.id for one in attacked], runs, figures, command))
        processes.on_main(lambda: write_table(table, output) if table is not None else None)
    return ReproduceResult(output_dir=output, table=table)


def prepare(config: ReproduceConfig, job: Job, output: Path, held: ExitStack) -> list[Subject]:
    """Claim the output folder, and return the subjects. People of the miniature world are drawn first.

    Raises:
        UserError: the folder holds another table or files of other programs, or there are no photos.
    """
    recipe, drawn = job.recipe, output / DRAWN_PEOPLE
    count_wanted = config.people or recipe.people
    if not recipe.is_miniature:
        subjects = read_subjects(str(config.data), recipe, count_wanted)
    if job.runnable:
        # The places of networks are in the models, and no option has to be filled in for them.
        figures = Figures(recipe, job.models, fill=lambda options: options, allow_pickle=config.allow_pickle)
        figures.check_networks()
    claim_output_dir(output, overwrite=True, until=held)
    if (output / TABLE).is_file() and (earlier := _title(output / TABLE)) != recipe.title:
        raise UserError(f"{output} holds another table: {earlier}; choose another output_dir")
    if recipe.is_miniature:
        draw_people(drawn, count_wanted or 1)
        subjects = read_subjects(str(drawn), recipe, count_wanted or 1)
    return subjects


def _title(table: Path) -> str:
    """The title of a table that was made before. Raises UserError if it cannot be read."""
    try:
        return str(json.loads(table.read_text(encoding="utf-8"))["title"])
    except (ValueError, LookupError, TypeError):
        raise UserError(f"{table} is damaged; delete it, and the same command makes it again") from None


def table_of(
    config: ReproduceConfig,
    job: Job,
    subjects: list[str],
    runs: Mapping[str, Mapping[str, list[Done]]],
    figures: Figures,
    command: str | None,
) -> Table:
    """Return the table of what was made, {row: {subject: what was made, one for each seed}}."""
    recipe = job.recipe
    unprotected = [name for name, row in job.rows.items() if row.protect is None and name in runs]
    found = [one.row for name in unprotected for of in runs[name].values() for one in of if one.row is not None]
    doubts = [MINIATURE] if recipe.is_miniature else []
    doubts += doubts_about(found if unprotected else None) if recipe.attacks else []
    return Table(
        schema=SCHEMA,
        recipe=str(config.recipe),
        title=recipe.title,
        source=recipe.source,
        command=command,
        package=package_versions(),
        miniature=recipe.is_miniature,
        doubts=doubts,
        differs=recipe.differs,
        model=recipe.model,
        subjects=subjects,
        seeds=list(range(config.seeds)),
        columns={
            name: replace(column, needs=missing_for_column(recipe, column, job.models))
            for name, column in recipe.columns.items()
        },
        rows={name: _row(job, name, runs.get(name), figures) for name in job.rows},
    )


def _row(job: Job, name: str, runs: Mapping[str, list[Done]] | None, figures: Figures) -> TableRow:
    recipe, row = job.recipe, job.rows[name]
    protection = recipe.protection(row)
    if runs is None:
        cells = {column: TableCell(published=row.published.get(column)) for column in recipe.columns}
        return TableRow(title=row.title, not_run=f"needs {job.missing[name]}", cells=cells)
    every = [one.row for of in runs.values() for one in of if one.row is not None]
    return TableRow(
        title=row.title,
        not_run=None,
        cells={column: figures.cell(one, runs, row.published.get(column)) for column, one in recipe.columns.items()},
        failed=sum(one.status == "failed" for one in every),
        differs=[*protection.differs, *row.differs],
        seconds=sum(one.seconds for one in every),
        line=row.line,
        place=row.place,
    )


def write_table(table: Table, output: Path) -> None:
    """Write table.json, table.md and table.html."""
    write_json(output / TABLE, to_json(table))
    write_text(output / TEXT, "\n".join(markdown(table)) + "\n")
    write_table_page(table, output / TABLE_PAGE)


def summary_rows(result: ReproduceResult) -> dict[str, str | list[str]]:
    """Return what to tell at the end."""
    table = result.table
    if table is None:
        return {}
    left = [name for name, row in table.rows.items() if row.not_run is not None]
    rows: dict[str, str | list[str]] = {
        "table": str(result.output_dir / TABLE_PAGE),
        "text": str(result.output_dir / TEXT),
    }
    rows["rows"] = (
        f"{len(table.rows) - len(left)} of {count(len(table.rows), 'row')}, {count(len(table.subjects), 'subject')}"
    )
    if left:
        rows["not run"] = [f"{name}: {table.rows[name].not_run}" for name in left]
    if table.doubts:
        rows["note"] = table.doubts
    return rows
