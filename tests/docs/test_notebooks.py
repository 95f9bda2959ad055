"""The notebooks of docs/notebooks run, and are committed with their outputs."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def printed(cell: nbformat.NotebookNode) -> str:
    """What a code cell prints to its standard output."""
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@notebook
# of the libraries that talk to the kernel
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_notebook(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    client = NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    client.execute()
    for before, after in zip(committed.cells, fresh.cells, strict=True):
        if before.cell_type == "code":
            assert bool(printed(before)) == bool(printed(after)), f"run {path.name} again and commit its outputs"
            assert {output.output_type for output in before.outputs} >= {o.output_type for o in after.outputs}


@notebook
def test_committed_outputs(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert outputs, f"{path.name} has no outputs"
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert not any(place in str(output) for output in outputs for place in ("/home/", "/root/", "/tmp/"))


def test_three_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3
