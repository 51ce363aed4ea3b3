"""The notebook of examples/: it runs from any folder with the package alone, and is committed without outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook() -> object:
    nbformat = pytest.importorskip("nbformat", reason="the notebook's runner is not installed: pip install nbclient")
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_small_and_has_no_outputs(notebook: object) -> None:
    cells = notebook["cells"]  # type: ignore[index]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
    assert cells[0]["cell_type"] == "markdown" and NOTEBOOK.stat().st_size < 20_000


def test_every_cell_runs_in_an_empty_folder(notebook: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the notebook's runner is not installed")
    pytest.importorskip("ipykernel", reason="the notebook's kernel is not installed")
    monkeypatch.setenv("APDM_QUICKSTART", "short")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [one for cell in notebook["cells"] for one in cell.get("outputs", ())]  # type: ignore[index]
    kinds = {kind for one in outputs for kind in one.get("data", ())}
    assert {"image/png", "image/svg+xml"} <= kinds
    texts = "".join(one["text"] for one in outputs if one["output_type"] == "stream" and one["name"] == "stdout")
    assert "step" in texts and "largest change" in texts
    assert {path.name for path in tmp_path.iterdir()} <= {"quickstart", "ipython"}
