"""notebooks/quick.ipynb, run as a student runs it, with a tiny model: on a CPU, in a copy of this checkout."""

import os
import shutil

from conftest import ROOT

from nbclient import NotebookClient
import nbformat

NOTEBOOK = ROOT / "notebooks" / "quick.ipynb"
TINY = (
    "data.pocket_words=20000 data.validation_kb=20 tokenizer.vocab_size=500 model.hidden_size=32 "
    "model.num_hidden_layers=2 model.num_attention_heads=2 model.intermediate_size=48 train.max_steps=20 "
    "train.batch_size=8 train.eval_every=20 train.device=cpu train.compile=false"
)


def test_outputs_are_stripped():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None


def test_every_cell_runs(tmp_path, monkeypatch):
    for name in ("lab", "docs", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in ("*.py", "*.md", "config.yaml", "pyproject.toml"):
        for path in ROOT.glob(pattern):
            shutil.copy(path, tmp_path)
    monkeypatch.setenv("NOTEBOOK_SETTINGS", TINY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "notebooks")}})
    client.execute()
    printed, pictures = "", 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            printed += output.get("text", "")
            pictures += "image/png" in output.get("data", {})
    assert "error:" not in printed and "Traceback" not in printed, printed[-3000:]
    assert pictures == 2 and "mean over 28 paradigms" in printed and "checkpoint: out/mine/ckpt.pt" in printed
    assert os.path.getsize(tmp_path / "out/quick/grammar.png") > 5000
