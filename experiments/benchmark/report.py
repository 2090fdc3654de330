"""What a benchmark found: rows of repeated measurements, beside their targets."""

import operator
import os
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

_RELATIONS = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


class Row(NamedTuple):
    """One measured quantity: its values, one a repeat, and the target for their median."""

    precision: str
    quantity: str
    unit: str
    values: np.ndarray | tuple[()] = ()
    target: tuple[str, float] | None = None

    @property
    def median(self) -> float | None:
        """The median over the repeats, None where nothing was measured."""
        return float(np.median(self.values)) if len(self.values) else None

    @property
    def verdict(self) -> str:
        """Whether the median has reached the target, in words."""
        if self.target is None or self.median is None:
            return "not measured" if self.target else ""
        relation, bound = self.target
        return "reached" if _RELATIONS[relation](self.median, bound) else "missed"

    def as_json(self) -> dict[str, Any]:
        """Return what the JSON file holds of this row."""
        return self._asdict() | {"values": list(self.values), "median": self.median, "verdict": self.verdict}


def header(repeats: int) -> dict[str, Any]:
    """Return where and how a benchmark was run."""
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "jax": jax.__version__}
    return machine | {"repeats": repeats}


def tables(found: list[Row]) -> Iterator[Table]:
    """Lay out the rows of each precision: median, extremes over the repeats, target."""
    for precision in dict.fromkeys(row.precision for row in found):
        layout = Table(
            precision, "median", "min .. max", "unit", "target", "", box=SIMPLE_HEAD, pad_edge=False
        )
        for row in found:
            if row.precision == precision:
                median = "" if row.median is None else _number(row.median)
                extremes = " .. ".join(_number(v) for v in np.sort(row.values)[[0, -1]]) if median else ""
                target = " ".join(map(str, row.target or ()))
                layout.add_row(row.quantity, median, extremes, row.unit, target, row.verdict)
        yield layout


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
