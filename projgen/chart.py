"""Regularisation paths and training for a terminal: bars, and what is not zero in shades."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from projgen.arrays import Array
from projgen.picture import abscissa, as_matrix, shades
from projgen.terminal import Terminal, format_count, format_shape

if TYPE_CHECKING:
    from projgen.sweep import Path

LINES = 14  # of a pattern
WIDE = 4  # columns of one entry or group, at most
SHADES = " ░▒▓█"

_NUMBERS = 27  # columns of the radius, the norm and the distance
_NUMBER = 6  # columns of a percentage


def draw(path: Path, name: str, terminal: Terminal, at: int | None = None) -> None:
    """The path of the tensor `name`, as wide as the terminal is; `at`: see `Path.plot`."""
    index = path.middle if at is None else range(len(path.radii))[at]
    width = terminal.width
    terminal.write(
        terminal.paint(name, "bold") + f"  {format_shape(path.shape)}  {path.dtype}",
        f"  {path.spec}: norm {_range(path.norm)}, length {_range(path.length)}",
    )
    radii = f"{len(path.radii):,} radii" if len(path.radii) > 1 else "1 radius"
    for number, section in enumerate((_curves, _survival, _pattern)):
        title, note, lines = section(path, terminal, width, index)
        note = radii if number == 0 else note
        note = note if len(title) + len(note) + 10 < width else ""
        terminal.write("", terminal.heading(title, note, width), *lines)


def training(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], what: str, terminal: Terminal
) -> None:
    """Of each parameter the fraction of `what` that was zero while it was trained."""
    width = terminal.width
    longest = max(map(len, curves), default=0)
    room = max(8, width - min(longest, width // 2) - 12)
    chosen = np.linspace(0, len(steps) - 1, min(len(steps), room)).round().astype(int)
    note = f"steps {steps[0]:,} to {steps[-1]:,}; blank: zero"
    terminal.write(terminal.heading(f"ZERO {what.upper()}", note, width))
    for name, zero in curves.items():
        alive = 1 - np.asarray(zero)[chosen]
        (drawn,) = _shaded(alive[np.newaxis], room)
        label = name if len(name) <= width // 2 else "…" + name[1 - width // 2 :]
        terminal.write(f"{label:{min(longest, width // 2)}} │{terminal.level(0, drawn)}│ "
                       f"{f'{100 * zero[-1]:.1f}%':>{_NUMBER}}")  # fmt: skip


Section = tuple[str, str, Iterator[str]]


def _curves(path: Path, terminal: Terminal, width: int, index: int) -> Section:
    return "SPARSITY", "", _bars(path, terminal, width, index)


def _bars(path: Path, terminal: Terminal, width: int, index: int) -> Iterator[str]:
    """A line for each radius: what is zero, as bars as long as there is room for."""
    columns = [("zero entries", path.sparsity, -1)]
    for level, (name, count) in enumerate(zip(path.levels, path.groups, strict=True)):
        if count * path.radii[0].size > 1:
            columns.append((f"zero {name}", path.group_sparsity[level], level))
    columns = columns[: max(1, (width - _NUMBERS) // (_NUMBER + 2))]
    each = (width - _NUMBERS) // len(columns) - 2
    bar = min(each - _NUMBER - 1, 40)
    bar = bar if bar >= 4 else 0
    field = max(bar + 1 + _NUMBER if bar else _NUMBER, min(each, 8))
    short = any(len(label) > field for label, _, _ in columns)
    names = [label.removeprefix("zero ") if short else label for label, _, _ in columns]
    heads = "".join(f"  {name[:field]:{field}}" for name in names)
    x, label = abscissa(path)
    unit = "" if label == "radius" else "%"
    yield terminal.paint(f"{'radius':>10}{'norm':>8}{'moved':>8} {heads}", "dim")
    moved, norms = path.distance_fractions, path.norm_fractions
    for i in range(len(path.radii)):
        mark = ">" if i == index else " "
        text = f"{mark}{x[i]:>8.4g}{unit or ' '}{100 * norms[i]:>7.1f}%{100 * moved[i]:>7.1f}% "
        for _, zero, level in columns:
            drawn = _bar(zero[i], bar)
            share = f"{100 * zero[i]:.1f}%"
            cell = f"{drawn:{bar}} {share:>{_NUMBER}}" if bar else f"{share:>{_NUMBER}}"
            text += "  " + terminal.level(level, f"{cell:{field}}")
        yield text
    legend = "norm and moved: % of the norm and of the length before; >: shown below"
    yield from (terminal.paint(line, "dim") for line in textwrap.wrap(legend, width))


def _bar(fraction: float, width: int) -> str:
    halves = round(2 * width * fraction)
    return "█" * (halves // 2) + "▌" * (halves % 2)


def _survival(path: Path, terminal: Terminal, width: int, index: int) -> Section:
    grouped = path.has_groups
    units = (path.alive_groups if grouped else path.alive).reshape(-1)
    noun = f"{path.levels[-1]} group" if grouped else "entry"
    room = width - 12
    count = len(path.radii)
    rows = sorted({*np.linspace(0, count - 1, min(count, LINES)).round().astype(int).tolist()})
    if index not in rows:  # instead of its neighbour
        rows[int(np.argmin(np.abs(np.array(rows) - index)))] = index
    alive = shades([(units >= count - row)[np.newaxis] for row in rows], room)
    x, label = abscissa(path)
    unit = " " if label == "radius" else "%"

    def lines() -> Iterator[str]:
        for row, line in zip(rows, _shaded(alive, room), strict=True):
            mark = ">" if row == index else " "
            yield f"{mark}{x[row]:>8.4g}{unit}│{terminal.level(len(path.levels) - 1, line)}│"

    return "ZERO PATTERN", f"{format_count(units.size, noun)} across; blank: zero", lines()


def _pattern(path: Path, terminal: Terminal, width: int, index: int) -> Section:
    left = as_matrix(path.pattern(index))
    image = shades([left[i : i + 1] for i in range(len(left))], width - 2, LINES)
    x, label = abscissa(path)
    at = f"RADIUS {x[index]:.4g}" if label == "radius" else f"{x[index]:.3g}% OF EACH NORM"

    def lines() -> Iterator[str]:
        for line in _shaded(image, width - 2):
            yield f"│{terminal.level(len(path.levels) - 1, line)}│"

    return f"AT {at}", f"entries: {format_shape(left.shape)}; blank: zero", lines()


def _shaded(alive: Array, room: int) -> Iterator[str]:
    """Fractions as shades: blank and full are for none and all alone."""
    times = max(1, min(WIDE, room // max(1, alive.shape[1])))
    for row in alive:
        tones = np.where(row >= 1, 4, np.where(row > 0, np.clip(np.ceil(3 * row), 1, 3), 0))
        yield "".join(SHADES[int(tone)] * times for tone in tones)


def _range(value: float | Sequence[float] | Array) -> str:
    flat = np.ravel(value)
    return f"{flat[0]:.6g}" if flat.size == 1 else f"{flat.min():.6g} to {flat.max():.6g}"


__all__ = ["draw", "training"]
