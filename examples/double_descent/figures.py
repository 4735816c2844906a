"""The figures, in Matplotlib: Okabe and Ito's colours, and a marker for each method besides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare import standard_error
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from problems import TITLES
from protocol import BY_KEY, METHODS, Row
from summary import names, of

STYLES = {
    "linf": ("#D55E00", "o", "-"),
    "exact": ("#0072B2", "s", "-"),
    "l1": ("#009E73", "^", "-"),
    "l2": ("#CC79A7", "v", "-"),
    "epoch": ("#D55E00", "o", ":"),
    "anova": ("#000000", "D", "--"),
    "random": ("#888888", "x", "--"),
    "copy": ("#888888", "x", "--"),
    "numpy": ("#000000", "D", "--"),
}
LOOK = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "projgen",
        "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


def draw(rows: Sequence[Row], measured: dict[str, Any], folder: Path) -> None:
    """Write accuracy.png, informative.png and time.png to `folder`."""
    known = [name for name in names(rows) if not math.isnan(of(rows, name, "none")[0].recall)]
    with rc_context(LOOK):
        folds = measured["whole"]["folds"]
        _save(_accuracy(rows, folds), folder / "accuracy.png")
        _save(_informative(rows, known, folds), folder / "informative.png")
        _save(_time(measured["uniform"]), folder / "time.png")


def _save(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110, metadata={"Software": None})  # the same bytes each time


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(9, height * rows + 0.9), layout="constrained")
    return figure, list(np.ravel(figure.subplots(rows, columns, squeeze=False)))


def _series(rows: Iterable[Row], what: str, folds: int) -> list[tuple[float, float, float]]:
    """By setting: the mean of features left and of `what`, both in percent, and the latter's
    standard error over folds and seeds, NaN if they are too few."""
    by_setting: dict[float, list[Row]] = {}
    for row in rows:
        by_setting.setdefault(row.setting, []).append(row)
    points = []
    for _, group in sorted(by_setting.items()):
        values = 100 * np.array([getattr(row, what) for row in group])
        values = values[~np.isnan(values)]
        if len(values):
            error = standard_error(values, folds)
            left = 100 * float(np.mean([row.left / row.features for row in group]))
            points.append((left, float(values.mean()), error))
    return points


def _plot(axes: Axes, points: Sequence[tuple[float, float, float]], key: str, label: str) -> None:
    colour, marker, line = STYLES[key]
    left, mean, error = np.array(points).T
    axes.errorbar(
        left, mean, yerr=error, color=colour, marker=marker, linestyle=line, label=label,
        markersize=5, linewidth=1.4, elinewidth=0.9, capsize=2,
        markerfacecolor="white" if key == "epoch" else colour,
    )  # fmt: skip


def _percent(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("features left, %")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)


def _accuracy(rows: Sequence[Row], folds: int) -> Figure:
    found = names(rows)
    figure, panels = _figure(math.ceil(len(found) / 2), min(2, len(found)), 3.3)
    for axes, name in zip(panels, found, strict=False):
        ((_, mean, error),) = _series(of(rows, name, "none"), "test", folds)
        if not math.isnan(error):
            axes.axhspan(mean - error, mean + error, color="#E69F00", alpha=0.25, linewidth=0)
        axes.axhline(mean, color="#E69F00", label=BY_KEY["none"].label)
        for method in METHODS[1:]:
            points = _series(of(rows, name, method.key), "test", folds)
            _plot(axes, points, method.key, method.label)
        _percent(axes)
        axes.set_title(TITLES[name], fontsize=10)
        axes.set_ylabel("test accuracy, %")
    for axes in panels[len(found) :]:
        axes.remove()
    _legend(figure, panels[0])
    return figure


def _informative(rows: Sequence[Row], known: Sequence[str], folds: int) -> Figure:
    figure, panels = _figure(len(known), 2, 3.0)
    for number, name in enumerate(known):
        for axes, what in zip(panels[2 * number :], ("precision", "recall"), strict=False):
            for method in METHODS[1:]:
                points = _series(of(rows, name, method.key), what, folds)
                _plot(axes, points, method.key, method.label)
            _percent(axes)
            axes.set_ylim(-4, 104)
            axes.set_title(TITLES[name], fontsize=10)
            axes.set_ylabel(f"{what} of informative features, %")
    _legend(figure, panels[0])
    return figure


def _time(found: Sequence[dict[str, Any]]) -> Figure:
    figure, (axes,) = _figure(1, 1, 3.6)
    columns = [each["columns"] for each in found]
    for key, label in (("numpy", "NumPy, bi-level"), ("exact", "exact"), ("linf", "bi-level"),
                       ("copy", "a copy")):  # fmt: skip
        low, middle, high = np.array([each["times"][key] for each in found]).T
        colour, marker, line = STYLES[key]
        axes.errorbar(columns, middle, yerr=(middle - low, high - middle), color=colour,
                      marker=marker, linestyle=line, label=label, capsize=2)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(columns, [f"{each}" for each in columns])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("columns (groups) of 1000 float64, uniform on [0, 1]; radius 1")
    axes.set_ylabel("time, ms: median and quartiles")
    _legend(figure, axes)
    return figure
