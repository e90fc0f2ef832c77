"""The notebooks, run as a student runs them, with a tiny model: on a CPU, in a copy of this checkout."""

import shutil

from conftest import ROOT, TINY

from nbclient import NotebookClient
import nbformat
import pytest

SMALL = ["data.pocket_words=20000", "data.validation_kb=20", "tokenizer.vocab_size=500", *TINY[2:]]


def outputs(notebook):
    """(all that its cells print, how many pictures they show)"""
    printed, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            printed += output.get("text", "")
            pictures += "image/png" in output.get("data", {})
    assert "error:" not in printed and "Traceback" not in printed, printed[-3000:]
    return printed, pictures


@pytest.mark.parametrize(
    "name, shown, pictures",
    [
        ("quick", ["mean over 28 paradigms", "checkpoint: out/mine/ckpt.pt"], 2),
        ("tricks", ["rank of q_proj: 6", "all four  "], 5),
    ],
)
def test_every_cell_runs(name, shown, pictures, tmp_path, monkeypatch):
    for folder in ("lab", "docs", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.py", "*.md", "config.yaml", "pyproject.toml"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, tmp_path)
    monkeypatch.setenv("NOTEBOOK_SETTINGS", " ".join(SMALL))
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    for cell in notebook.cells:  # no copy that goes away is installed into the environment of the tests
        cell.source = cell.source.replace("%pip", "# %pip")
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}})
    client.execute()
    printed, drawn = outputs(notebook)
    assert all(text in printed for text in shown) and drawn == pictures, printed[-3000:]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_it_shows_is_of_a_whole_run_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    _, pictures = outputs(notebook)
    assert pictures and path.stat().st_size < 300_000
