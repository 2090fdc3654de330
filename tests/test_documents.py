"""What the documents show is what happens: the README's tour and the notebooks are executed."""

import re
from pathlib import Path

import jax
import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
README = (ROOT / "README.md").read_text()


def test_the_tour_in_the_readme_runs_and_prints_what_it_says(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    namespace = {}
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)  # as in a fresh interpreter
    try:
        for block in blocks:
            exec(block, namespace)
    finally:
        jax.config.update("jax_enable_x64", before)
    promised = re.findall(r"print\(.*\)  # (.*)", "".join(blocks))
    assert promised
    assert capsys.readouterr().out.splitlines() == promised


@pytest.mark.parametrize(
    "name",
    sorted(
        set(re.findall(r"\]\(([\w/.]+)\)|`((?:dlf|analysis|experiments|notebooks|tests)/[\w/.]+)`", README))
    ),
)
def test_files_that_the_readme_names_exist(name):
    assert (ROOT / "".join(name)).exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_are_the_same_and_outputs_are_there(path):
    script = jupytext.read(path)
    notebook = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in script.cells
    ]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
