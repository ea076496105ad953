"""Notebooks are written as py:percent, generated as .ipynb, and executed here with few seeds."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
jupytext = pytest.importorskip("jupytext")


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_from_top_to_bottom(source, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("ICLDYN_SEEDS", "16")
    monkeypatch.setenv("MPLBACKEND", "agg")
    notebook = jupytext.read(source)
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.py")), ids=lambda p: p.stem)
@pytest.mark.filterwarnings("default")
def test_the_ipynb_is_the_one_its_source_makes(source):
    written, made = jupytext.read(source.with_suffix(".ipynb")), jupytext.read(source)
    assert [(c.cell_type, c.source) for c in written.cells] == [(c.cell_type, c.source) for c in made.cells]
