"""What the documents show is what happens: snippets and notebooks are executed, numbers come from data."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import jupytext
import nbformat
import pytest
import xarray as xr
from nbclient import NotebookClient

from dlf import store
from experiments import config_files, documents, figure
from experiments.configs import phase_width_rate

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
README = (ROOT / "README.md").read_text()
SMOKE = ('scale = "small"', 'scale = "smoke"')  # how a notebook says how much it trains


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180 and len(README.split()) <= 2_000


def snippets(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize(("path", "num"), [("README.md", 2), ("dlf/README.md", 7)])
def test_the_snippets_of_a_document_run_and_print_what_they_say(path, num):
    blocks = snippets((ROOT / path).read_text())
    assert len(blocks) == num
    namespace, printed = {}, io.StringIO()
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)  # as in a fresh interpreter
    try:
        with contextlib.redirect_stdout(printed):
            for block in blocks:
                exec(block, namespace)
    finally:
        jax.config.update("jax_enable_x64", before)
    promised = re.findall(r"^print\(.*\)  # (.*)$", "".join(blocks), flags=re.MULTILINE)
    assert len(promised) == "".join(blocks).count("print(")
    assert printed.getvalue().splitlines() == promised


def test_the_file_of_the_readme_is_launched_from_another_folder(tmp_path):
    mine = snippets(README)[1]
    assert len(mine.splitlines()) <= 40
    (tmp_path / "mine.py").write_text(mine)
    command = [str(Path(sys.executable).parent / "dlf-train"), "--config=mine.py", "--workdir=rings"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    run = store.load(tmp_path / "rings")
    assert run["accuracy"][-100:].mean() > 0.95
    assert run["learning_rate"].values[[0, 300]].tolist() == pytest.approx([0.5, 0.3])
    assert json.loads((tmp_path / "rings" / "meta.json").read_text())["sources"] == {"mine.py": mine}


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_a_document_names_exist(path):
    text = path.read_text()
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (path.parent / link).exists(), link
    for name in re.findall(r"[`=]((?:dlf|analysis|experiments|notebooks|tests)/[\w/.]+)", text):
        name = name.replace("NAME", "train")  # stands for any test
        assert (ROOT / name).exists() or (path.parent / name).exists(), name


@pytest.mark.parametrize("path", documents.DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_are_those_of_the_data(path):
    text = path.read_text()
    assert text == documents.filled(text), "python -m experiments.documents writes them"


@pytest.mark.parametrize("name", sorted({*documents.FIGURES} - {"tiny"}))
def test_the_minutes_of_a_run_card_are_those_of_the_data(name):
    card = (figure.CONFIGS / f"{name}.py").read_text().split('"""')[1]
    minutes = re.findall(r"([\w.]+) minutes?\b", card)
    seconds = json.loads((figure.CONFIGS / f"{name}.json").read_text())["seconds"]
    assert minutes == [str(round(seconds / 60)) if seconds >= 90 else "one"]


@pytest.mark.parametrize("name", documents.FIGURES)
def test_shipped_numbers_to_expect_are_those_of_the_config(name):
    shipped = json.loads((figure.CONFIGS / f"{name}.json").read_text())["expected"]
    rows, _ = figure.compare(xr.Dataset(), config_files.find(name).EXPECTED)
    assert [[*row[:4], row[-1]] for row in rows] == [[*row[:4], row[-1]] for row in shipped]


@pytest.mark.parametrize("name", sorted(path.stem for path in figure.CONFIGS.glob("*.nc")))
def test_shipped_tables_are_those_of_the_shipped_data(name):
    module, found = config_files.find(name), xr.load_dataset(figure.CONFIGS / f"{name}.nc", engine="scipy")
    shipped = json.loads((figure.CONFIGS / f"{name}.json").read_text())
    told = {"tables": module.in_words(found), "expected": figure.compare(found, module.EXPECTED)[0]}
    assert json.loads(json.dumps(told)) == {key: shipped[key] for key in told}


@pytest.mark.parametrize("quantity", ["accuracy_mean", "validation_accuracy_mean"])
def test_the_cell_that_other_diagrams_use_is_among_the_best(quantity):
    found = xr.load_dataset(figure.CONFIGS / "phase_amplitude_period.nc", engine="scipy")[quantity]
    cell = found.sel(amplitude=phase_width_rate.AMPLITUDE, period=phase_width_rate.PERIOD)
    assert int((found > cell).sum()) < found.size / 10


@pytest.mark.parametrize("path", documents.DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_number_in_words_stands_in_a_table(path):
    """Results are told in tables, which come from data: prose has no decimals of its own."""
    no_prose = r"<!-- table.*?<!-- end -->|`[^`]*`|^ {4}.*?$|\]\([^)]*\)|https?:\S+"
    prose = re.sub(no_prose, "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    found = set(re.findall(r"(?<![\w.])\d*\.\d+(?![\w.])|\d{4,}", prose))
    found -= {"0.6.5", "0.5", "12868", "1989", "2022", "2024"}  # versions, an issue of JAX, years
    assert not found


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
    for cell in notebook.cells:
        cell.source = cell.source.replace(*SMOKE)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
