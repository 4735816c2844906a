"""Regularisation paths and training in Matplotlib: the only module that imports it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path as FilePath
from typing import Any, BinaryIO

import numpy as np

from projgen.arrays import Array
from projgen.sweep import Path, place
from projgen.terminal import format_shape

SUFFIXES = (".png", ".svg", ".pdf")
PIXELS = 512  # of a pattern, along an axis: a larger one is drawn in shades

_INK, _PAPER, _MARK = "#1f3b73", "#eef1f6", "#6c757d"
_LINES = ("#1f3b73", "#d1495b", "#2a9d8f", "#e9a03b", "#7d5ba6", "#6c757d")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "projgen",  # the same picture gives the same file
}


def matplotlib(module: str = "") -> Any:
    """Matplotlib, or a module of it; an ImportError that says how to get it."""
    try:
        return import_module(f"matplotlib.{module}" if module else "matplotlib")
    except ImportError:
        raise ImportError("pictures need Matplotlib: pip install matplotlib") from None


def check_target(target: FilePath) -> None:
    """A ValueError unless a picture can be written there; an ImportError without Matplotlib."""
    if target.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{target}: a picture's name must end in {', '.join(SUFFIXES[:-1])} or "
                         f"{SUFFIXES[-1]}")  # fmt: skip
    if not target.resolve().parent.is_dir():
        raise ValueError(f"{target.parent} is not a directory")
    if target.is_dir():
        raise ValueError(f"{target} is a directory")
    matplotlib()


def save(path: Path, at: int | None, suffix: str, out: BinaryIO) -> None:
    """Write `figure` as a file of this kind."""
    kind = suffix.lower().lstrip(".")
    drawn = figure(path, at, matplotlib("figure").Figure)
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same file each day
    with matplotlib().rc_context(_STYLE):
        drawn.savefig(out, format=kind, dpi=160, metadata=dated.get(kind))


def figure(path: Path, at: int | None = None, kind: Any = None) -> Any:
    """All there is to see of a path. `kind` makes the figure: by default pyplot, which shows it."""
    kind = matplotlib("pyplot").figure if kind is None else kind
    index = path.middle if at is None else place(path, at)
    with matplotlib().rc_context(_STYLE):
        made = kind(figsize=(11, 7.5), layout="constrained")
        made.suptitle(_title(path), x=0.01, ha="left", fontsize=11)
        axes = made.subplots(2, 2, gridspec_kw={"height_ratios": (3, 4)})
        sparsity(path, axes[0, 0])
        _mark(path, axes[0, 0], index)
        _moved(path, axes[0, 1])
        _mark(path, axes[0, 1], index)
        _survival(path, axes[1, 0], index)
        _pattern(path, axes[1, 1], index)
    return made


def sparsity(path: Path, ax: Any) -> Any:
    """The fractions of entries and groups that are zero, against the radius."""
    x, _ = abscissa(path)
    curves = [("entries", path.sparsity)]
    levels = zip(path.levels, path.groups, path.group_sparsity, strict=True)
    for name, count, zero in reversed(list(levels)):
        if path.radii[0].size * count > 1:
            curves.append((f"{name} groups, of {path.radii[0].size * count:,}", zero))
    for i, (label, zero) in enumerate(curves):
        beneath = i == 0 and len(curves) > 1  # they often are the same
        width, opacity = (5, 0.3) if beneath else (1.5, 1.0)
        style = ("-", "-", "--", ":")[min(i, 3)]
        colour = _LINES[i % len(_LINES)]
        ax.plot(x, 100 * zero, style, color=colour, lw=width, alpha=opacity, label=label)
    _frame(path, ax, "zero (%)", "Sparsity")
    ax.legend(loc="upper right")
    return ax


def _moved(path: Path, ax: Any) -> None:
    x, _ = abscissa(path)
    for i, (label, y) in enumerate(
        (
            (f"Euclidean distance moved, of {_length(path.length):.4g}",
             path.distance_fractions),
            (f"norm after, of {np.sum(path.norm):.4g}", path.norm_fractions),
        )
    ):  # fmt: skip
        ax.plot(x, 100 * y, "--" if i else "-", color=_LINES[i], marker=".", ms=4, label=label)
    _frame(path, ax, "of the value before (%)", "Distance and norm")
    ax.legend(loc="center left", bbox_to_anchor=(0.0, 0.5))


def _survival(path: Path, ax: Any, index: int) -> None:
    """Which groups, in their order, are not zero at which radius."""
    grouped = path.has_groups
    units = (path.alive_groups if grouped else path.alive).reshape(-1)
    what = f"{path.levels[-1]} group" if grouped else "entry"
    rows = len(path.radii) - np.arange(len(path.radii))
    alive = shades([(units >= row)[np.newaxis] for row in rows], PIXELS)
    x, label = abscissa(path)
    edges = _edges(x, _is_log(path))
    columns = np.linspace(0, units.size, alive.shape[1] + 1) - 0.5
    ax.pcolormesh(columns, edges, alive, cmap=_colours(), vmin=0, vmax=1, rasterized=True)
    ax.axhline(x[index], color="#d1495b", lw=1, ls=":")
    if _is_log(path):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    ax.set_ylim(edges[0], edges[-1])
    ax.set_xlabel(f"{what}, of {units.size:,}" + (" in C order" if _many(path) else ""))
    ax.set_ylabel(label)
    plural = "groups" if grouped else "entries"
    ax.set_title(f"Which {plural} are not zero (dark) at which radius")


def _pattern(path: Path, ax: Any, index: int) -> None:
    """The array's zero pattern at one radius, as a matrix."""
    left = as_matrix(path.pattern(index))
    image = shades([left[i : i + 1] for i in range(len(left))], PIXELS, PIXELS)
    height, width = left.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    ax.imshow(
        image, cmap=_colours(), vmin=0, vmax=1, extent=extent, interpolation="nearest",
        aspect="equal" if 0.4 < height / width < 2.5 else "auto",
    )  # fmt: skip
    across, down = _axes_of(path)
    ax.set_xlabel(across)
    ax.set_ylabel(down)
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    x, label = abscissa(path)
    at = f"radius {x[index]:.4g}" if label == "radius" else f"{x[index]:.3g}% of each norm"
    share = 100 * path.sparsity[index]
    ax.set_title(f"Entries that are not zero (dark) at {at}: {share:.1f}% are zero")


def training(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], what: str, ax: Any = None
) -> Any:
    """Of each parameter the fraction of `what` that was zero, against the steps: on `ax`, or a
    new figure."""
    with matplotlib().rc_context(_STYLE):
        made = None
        if ax is None:
            made = matplotlib("pyplot").figure(figsize=(7, 4), layout="constrained")
            ax = made.subplots()
        for i, (name, zero) in enumerate(curves.items()):
            style = ("-", "--", ":", "-.")[i // len(_LINES) % 4]
            colour = _LINES[i % len(_LINES)]
            ax.plot(steps, 100 * np.asarray(zero), style, color=colour, label=name)
        ax.set_ylim(-3, 103)
        ax.set_xlabel("step")
        ax.set_ylabel(f"{what} that are zero (%)")
        ax.set_title("Sparsity while training")
        ax.grid(alpha=0.25, lw=0.5)
        ax.legend(loc="best")
    return ax if made is None else made


def abscissa(path: Path) -> tuple[Array, str]:
    """The radii to draw against, and their name: of a batch whose radii differ, parts of norms."""
    first = path.radii.reshape(len(path.radii), -1)
    if np.all(first == first[:, :1]):
        return first[:, 0], "radius"
    return 100 * path.fractions, "radius (% of each norm)"


def as_matrix(pattern: Array) -> Array:
    """An array as rows and columns: its first axis, and all others; a vector as a block."""
    if pattern.ndim > 1:
        return pattern.reshape(len(pattern), -1)
    width = min(max(1, pattern.size), math.ceil(math.sqrt(2 * pattern.size)) or 1)
    rows = max(1, -(-pattern.size // width))
    block = np.zeros(rows * width, pattern.dtype)
    block[: pattern.size] = pattern.reshape(-1)
    return block.reshape(rows, width)


def shades(rows: Sequence[Array], width: int, height: int | None = None) -> Array:
    """How many of the cells that fall together are true, as fractions: at most height x width."""
    across = min(width, rows[0].shape[1])
    down = len(rows) if height is None else min(height, len(rows))
    total, counts = np.zeros((down, across)), np.zeros((down, across))
    columns = np.arange(across) * rows[0].shape[1] // max(across, 1)
    sizes = np.diff(np.append(columns, rows[0].shape[1]))
    for i, row in enumerate(rows):
        j = i * down // len(rows)
        total[j] += np.add.reduceat(row[0].astype(np.int64), columns) if across else 0
        counts[j] += sizes
    return np.divide(total, counts, out=np.zeros_like(total), where=counts > 0)


def _axes_of(path: Path) -> tuple[str, str]:
    if len(path.shape) < 2:
        return "entries, line after line", "line"
    others = path.shape[1:]
    rest = f"axis 1, of {others[0]:,}" if len(others) == 1 else (
        f"axes 1 to {len(others)}, {format_shape(others)}"
    )  # fmt: skip
    return rest, f"axis 0, of {path.shape[0]:,}"


def _title(path: Path) -> str:
    batch = path.radii[0].size
    each = f", {batch:,} projections" if np.ndim(path.norm) else ""
    return f"{path.spec}   on {format_shape(path.shape)} {path.dtype}{each}"


def _frame(path: Path, ax: Any, name: str, title: str) -> None:
    if _is_log(path):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    ax.set_ylim(-3, 103)
    ax.set_xlabel(abscissa(path)[1])
    ax.set_ylabel(name)
    ax.set_title(title)
    ax.grid(alpha=0.25, lw=0.5)


def _mark(path: Path, ax: Any, index: int) -> None:
    """Mark the radius whose pattern is shown, and give parts of the norm above."""
    x, label = abscissa(path)
    ax.axvline(x[index], color=_MARK, lw=1, ls=":", zorder=0)
    if label == "radius" and not np.ndim(path.norm):
        percent = 100 / path.norm
        ax.set_xlabel("radius (above: % of the norm)")
        top = ax.secondary_xaxis("top", functions=(lambda r: r * percent, lambda p: p / percent))
        top.xaxis.set_major_formatter("{x:g}%")
        top.tick_params(labelsize=8, colors=_MARK)
        top.spines["top"].set_visible(False)


def _is_log(path: Path) -> bool:
    """Whether the radii are spread so that a logarithmic axis suits them."""
    x, _ = abscissa(path)
    return len(x) > 1 and x[0] > 0 and x[-1] / x[0] > 20 and bool(x[len(x) // 2] < 0.3 * x[-1])


def _edges(x: Array, log: bool) -> Array:
    """The ends of the cells whose middles are `x`."""
    if len(x) == 1:
        return np.array([0.5 * x[0], 1.5 * x[0]]) if x[0] > 0 else np.array([0.0, 1.0])
    places = np.log(x) if log else x
    inner = (places[1:] + places[:-1]) / 2
    first, last = places[0] - (inner[0] - places[0]), places[-1] + (places[-1] - inner[-1])
    edges = np.concatenate([[first], inner, [last]])
    return np.asarray(np.exp(edges) if log else np.maximum(edges, 0.0))


def _many(path: Path) -> bool:
    return path.has_groups and path.alive_groups.ndim > 1


def _length(lengths: Any) -> float:
    return float(np.sqrt(np.sum(np.square(lengths))))


def _colours() -> Any:
    return matplotlib("colors").LinearSegmentedColormap.from_list("zeros", [_PAPER, _INK])


__all__ = [
    "abscissa",
    "as_matrix",
    "check_target",
    "figure",
    "save",
    "shades",
    "sparsity",
    "training",
]
