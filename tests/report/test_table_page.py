"""The notes under a table of a paper."""

from apdm.audit.tables import Table, TableRow
from apdm.report.table_page import notes


def test_what_holds_for_most_rows_is_said_of_all_but_the_others() -> None:
    said = {"a": ["X."], "b": ["X.", "Y."], "c": ["X."], "d": ["X."], "e": ["Z."]}
    table = Table(
        schema=1,
        recipe="r",
        title="T",
        source="S",
        command=None,
        package={},
        miniature=True,
        doubts=[],
        differs=[],
        model="m",
        subjects=["s01"],
        seeds=[0],
        columns={},
        rows={name: TableRow(title=name, not_run=None, cells={}, differs=[*own, "W."]) for name, own in said.items()},
    )
    assert list(notes(table))[2:] == ["All rows but e: X.", "All rows: W.", "b: Y.", "e: Z."]
