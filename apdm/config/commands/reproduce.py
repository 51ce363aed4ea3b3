"""The options of `apdm reproduce`."""

from __future__ import annotations

from dataclasses import dataclass

from apdm.config.groups.model_options import allow_pickle_option, num_threads_option
from apdm.config.options import option
from apdm.core.errors import UserError

Names = list[str]  # an option is called `list`, too


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """Make a table of a paper again: protect, attack and judge as its rows say, and show ours beside the published."""

    recipe: str | None = option(
        None,
        "The table, such as apdm/table1-person, or a YAML file with a recipe of your own. On the command line it may "
        "come first without a name. --list names all tables.",
        holds="path",
    )
    list: bool = option(False, "List the tables of the papers, say which of them run here and what the others need.")
    data: str | None = option(
        None,
        "Folder of the subjects' photos: <id>/set_A and set_C, as in Anti-DreamBooth's data, or <id>/*.jpg, of which "
        "the last third by name is held out. Tables of the miniature world draw their own people.",
        holds="folder",
    )
    models: str | None = option(
        None,
        'YAML file that says where models are, one "name: folder, file or name on the Hub" a line. The names are those '
        "that --list says are needed. A row whose models are not named is not run, and the table says so.",
        holds="file",
    )
    output_dir: str | None = option(
        None,
        "Folder for the table and all that it is made of. If the command is stopped, the same command goes on. The "
        "photos are copied there, and hardened models and protected photos are kept.",
        holds="path",
    )
    people: int | None = option(
        None,
        "Only the first so many subjects by name. By default all of them, or as many as the recipe says.",
        at_least=1,
    )
    rows: Names = option([], "Only these rows of the table, by their ids, which --plan shows. By default all.")
    seeds: int = option(
        1,
        "How often each attack is repeated, with the seeds 0, 1, ... What is protected is protected once. 1 is the "
        "papers' number. Time of the attacks in proportion.",
        at_least=1,
    )
    plan: bool = option(
        False,
        "Print the rows, how much has to be drawn and computed, and what is missing, and end. Nothing is written.",
    )
    allow_pickle: bool = allow_pickle_option()
    num_threads: int | None = num_threads_option()

    def __post_init__(self) -> None:
        if self.list:
            return
        if self.recipe is None:
            raise UserError("recipe must be given, such as apdm/table1-person; apdm reproduce --list names all tables")
