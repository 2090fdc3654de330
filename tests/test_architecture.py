"""The house keeps its shape: imports go one way, modules stay small, catalogues are complete."""

import ast
import importlib
import inspect
from pathlib import Path

import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from analysis.ntk import spectrum
from dlf.losses import accuracy

ROOT = Path(__file__).parent.parent
PACKAGES = ("dlf", "analysis", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN = {
    "dlf": {"analysis", "experiments", "ml_collections", "absl"},
    "analysis": {"experiments", "ml_collections", "absl"},
    "experiments": set(),
}
STRAY = {"tests", "examples"}  # neural-tangents installs packages of these names


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_checkout(package):
    assert Path(importlib.import_module(package).__file__).parent == ROOT / package


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    assert not (FORBIDDEN[package] | STRAY) & set(_imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_fit_on_a_few_screens(path):
    assert len(path.read_text().splitlines()) <= 300


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if "experiments" not in p.relative_to(ROOT).parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_library_code_sets_no_global_flag_and_writes_no_float_dtype(path):
    text = path.read_text()
    for word in ("config.update", "jnp.float", "np.float", '"float32"', '"float64"'):
        assert word not in text, word


def test_shapes_are_checked_in_both_packages(x64):
    with pytest.raises(TypeCheckError):
        accuracy(jnp.zeros(3), jnp.zeros(3, int))
    with pytest.raises(TypeCheckError):
        spectrum(jnp.zeros(3))


@pytest.mark.parametrize(
    "module", ["dlf.schedules", "dlf.losses", "dlf.data", "dlf.models", "analysis.probes", "analysis.figures"]
)
def test_catalogue_entries_are_documented_functions(module):
    catalogue = importlib.import_module(module)
    assert catalogue.__all__
    for name in catalogue.__all__:
        entry = getattr(catalogue, name)
        assert inspect.isfunction(inspect.unwrap(entry))
        assert inspect.getdoc(entry)
        assert entry.__module__.startswith(module)  # a package re-exports its own
