"""The tables of the papers as data: one YAML file for each table, for `apdm reproduce`.

`<paper>/<table>.yaml` is a table, `miniature/<paper>-<table>.yaml` its twin on the miniature world, and `tables.yaml`
names all tables of the papers, also those that have no recipe.
"""

from pathlib import Path

RECIPES = Path(__file__).parent
TABLES = RECIPES / "tables.yaml"
