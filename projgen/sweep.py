"""The regularisation path: one array projected at many radii, and what became of it at each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from projgen.api import build
from projgen.arrays import Array, check_dtype, detached, on_gpu, view
from projgen.errors import SpecError, quote
from projgen.info import numbers
from projgen.outcome import Radius
from projgen.projection import Projection
from projgen.terminal import format_count, format_shape
from projgen.tree import NormTree

LEAST = 1e-3  # of the norm: where a sweep begins by default
MOST_RADII = 10_000
OPTIONS = ("radii", "points", "log", "tell")  # of `path`
Tell = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Path:
    """What projecting one array did at each of n radii. ``print`` or `plot` it, or `projgen path` a
    file.

    Numbers are arrays of shape (n, \\*batch): the radii ascend along the first axis, and the batch
    axes follow, if there are any.

    Attributes:
        spec: the canonical spec.
        shape: that of the array.
        dtype: the name of its dtype.
        norm: the tree's norm of the array: a float, or an array over the batch axes.
        length: its Euclidean length, which is the distance moved at radius 0; likewise.
        radii: the radii.
        norms: the norms of the projections.
        thresholds: the root's thresholds: see `Info.threshold`.
        distances: the Euclidean distances moved.
        nonzero: how many entries are not zero, of ``entries``.
        active: for each level, how many groups are not all zero, of ``groups``, in the order of
            ``levels``: their norms, each with its name in the spec if it has one.
        entries: how many entries a batch entry has.
        groups: for each level, how many groups a batch entry has.
        levels: what the levels are called.
        alive: at how many of the radii each entry is not zero, in y's shape. Entries live on as
            the radius grows, so that those are the largest.
        alive_groups: the same of each group of the leaf level, over the axes that it does not
            reduce.
    """

    spec: str
    shape: tuple[int, ...]
    dtype: str
    norm: Any
    length: Any
    radii: Array
    norms: Array
    thresholds: Array
    distances: Array
    nonzero: Array
    active: tuple[Array, ...]
    entries: int
    groups: tuple[int, ...]
    levels: tuple[str, ...]
    alive: Array
    alive_groups: Array

    @property
    def sparsity(self) -> Array:
        """The fraction of entries that are zero at each radius, all batch entries together."""
        return _zeros(self.nonzero, self.entries)

    @property
    def group_sparsity(self) -> tuple[Array, ...]:
        """For each level, the fraction of its groups that are all zero at each radius."""
        return tuple(map(_zeros, self.active, self.groups))

    @property
    def has_groups(self) -> bool:
        """Whether some of the leaf level's groups vanish, and they are more than single entries."""
        several = 1 < self.alive_groups.size < self.alive.size
        return several and bool(np.any(self.alive_groups < len(self.radii)))

    @property
    def fractions(self) -> Array:
        """The radii as fractions of the norm; of a batch, of the sum of its norms."""
        return np.asarray(_total(self.radii) / np.sum(self.norm))

    @property
    def distance_fractions(self) -> Array:
        """The distances as fractions of the array's length, all batch entries together."""
        top = np.max(self.length)  # so that no square leaves the range
        squares = _total(np.square(self.distances / top))
        return np.asarray(np.sqrt(squares / np.sum(np.square(self.length / top))))

    @property
    def norm_fractions(self) -> Array:
        """The norms as fractions of the norm before; of a batch, of the sums."""
        return np.asarray(_total(self.norms) / np.sum(self.norm))

    @property
    def middle(self) -> int:
        """The index of the radius at which nearest to half of the groups, or entries, are zero."""
        sparsity = self.group_sparsity[-1] if self.has_groups else self.sparsity
        return int(np.argmin(np.abs(sparsity - 0.5)))

    def pattern(self, index: int) -> Array:
        """Which entries are not zero at the radius with this index: bool, in y's shape."""
        return np.asarray(self.alive >= len(self.radii) - place(self, index))

    def group_pattern(self, index: int) -> Array:
        """Which groups of the leaf level are not all zero at the radius with this index."""
        return np.asarray(self.alive_groups >= len(self.radii) - place(self, index))

    def plot(self, ax: Any = None, *, at: int | None = None) -> Any:
        """Draw it with Matplotlib.

        Args:
            ax: Matplotlib's axes, to draw the curves of sparsity there; else a figure is made.
            at: the index of the radius whose zero pattern the figure shows; None for `middle`.

        Returns:
            `ax`, or the figure: sparsity, distance and norm against the radius, which groups are
            zero at which radius, and the zero pattern at one.

        Raises:
            ImportError: Matplotlib is missing.
            IndexError: there is no radius with the index `at`.
        """
        from projgen import picture

        return picture.figure(self, at) if ax is None else picture.sparsity(self, ax)

    def __repr__(self) -> str:
        return f"<projgen.Path of {self.spec}: {self._span()}>"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _span(self) -> str:
        joint = "from" if len(self.radii) > 1 else "of"
        return f"{format_count(len(self.radii), 'radius')} {joint} {numbers(self.radii)}"

    def _lines(self) -> Iterator[str]:
        batch = np.size(self.norm)
        each = f"; {format_count(batch, 'projection')} at each" if np.ndim(self.norm) else ""
        yield f"{self.spec}: {self._span()}{each}"
        yield f"  norm       {numbers(self.norm)}"
        levels = [*zip(self.levels, self.active, self.groups, strict=True)]
        for name, active, groups in levels[0 if batch > 1 else 1 :]:
            total = batch * groups
            told = self._left(active, total, f"{format_count(total, 'group')} not all zero")
            yield f"  {name:9}  {told}"
        total = batch * self.entries
        left = self._left(self.nonzero, total, f"{total:,} not zero")
        yield f"  entries    {left}; {format_shape(self.shape)}, {self.dtype}"

    def _left(self, left: Array, total: int, what: str) -> str:
        """How many are left at the smallest and the largest radius, and where the first vanish: of
        those that are left at the largest one, where some have vanished there already."""
        counts = _total(left)
        ends = " to ".join(dict.fromkeys(f"{int(count):,}" for count in counts[[0, -1]]))
        fewer = np.flatnonzero(counts < counts[-1])
        if not fewer.size:
            return f"{ends} of {what}"
        whole = counts[-1] == total or np.all(self.radii[-1] >= self.norm)
        which = "the first" if whole else "more"
        return f"{ends} of {what}, {which} vanish at radius {numbers(self.radii[fewer[-1]])}"

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it, without the arrays of y's shape; infinities are floats."""
        levels = zip(self.levels, self.groups, self.active, strict=True)
        return {
            "spec": self.spec,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "norm": _plain(self.norm),
            "length": _plain(self.length),
            "entries": self.entries,
            "radii": self.radii.tolist(),
            "norms": self.norms.tolist(),
            "thresholds": self.thresholds.tolist(),
            "distances": self.distances.tolist(),
            "nonzero": self.nonzero.tolist(),
            "levels": [
                {"level": name, "groups": groups, "active": active.tolist()}
                for name, groups, active in levels
            ],
        }


def place(path: Path, index: int) -> int:
    """The place of the radius with this index, counted from 0; a negative one counts from the last.

    IndexError: there is none.
    """
    count = len(path.radii)
    if not -count <= index < count:
        raise IndexError(
            f"there is no radius {index}: {format_count(count, 'radius')} have the indices 0 to "
            f"{count - 1}"
        )
    return range(count)[index]


def require_one_array(tree: NormTree) -> None:
    """A SpecError for a tree with branches, which has no path."""
    branch = next((node for node in tree.levels if node.is_branch), None)
    if branch is not None:
        raise SpecError(
            f"{tree} takes several arrays, and a path is that of one",
            *filter(None, [branch.span]),
            hint="sweep one of its children by itself",
        )


def path(
    y: Any,
    spec: str | NormTree | Projection,
    radii: Iterable[float | str | Radius] | None = None,
    *,
    points: int = 30,
    log: bool = True,
    tell: Tell | None = None,
    **arrays: Any,
) -> Path:
    """Project `y` at many radii, and say what became of it at each.

    Args:
        y: one array, in the CPU's memory.
        spec: a spec, or what `build` made of it.
        radii: finite numbers, or parts of the norm such as ``"10%"``; they are sorted. None for
            `points` radii from 0.1% to 100% of the norm; with the norm l0, counts from 1.
        points: how many, at least 2.
        log: whether they are evenly spaced on a logarithmic scale.
        tell: called before each projection, with how many are done and how many there are.
        **arrays: the weights and group labels that the spec names.

    Raises:
        SpecError, TypeError, ValueError: as the call of a `Projection`; and for `y` that has no
            path: all zero, empty, or with a norm beyond float64; and for wrong `radii`.

    Each projection begins with `y`: the projection of a projection is another one in general.
    """
    projection = spec if isinstance(spec, Projection) else build(spec)
    tree = projection.tree
    require_one_array(tree)
    for name in arrays:
        close = get_close_matches(name, OPTIONS, n=1)
        if name not in tree.bound_names and close:
            raise TypeError(f"path has no argument {quote(name)}: did you mean {quote(close[0])}?")
    if on_gpu(y):
        raise TypeError("a path is swept in the CPU's memory: use y.cpu(), or cupy.asnumpy(y)")
    if tree.root.k is not None:
        raise ValueError(f"{projection.spec} says how many groups are kept: no radius is left")
    source = view(detached(y))[0]
    check_dtype(source)
    norm = projection.norm(source, **arrays)
    largest = float(np.max(norm, initial=0.0))
    if not 0 < largest < math.inf:
        what = "y is all zero" if largest == 0 else f"y's norm is {largest}"
        raise ValueError(f"there is no path to sweep: {what}; its shape is {source.shape}")
    chosen = _radii(norm, radii, points, log, count=tree.root.norm == "l0")
    out = np.empty_like(source)
    _, first = projection(source, 0.0, out=out, return_info=True, **arrays)
    alive = np.zeros(source.shape, np.uint16)
    alive_groups = np.zeros(np.shape(first.levels[-1].alive), np.uint16)
    rows: list[tuple[Any, ...]] = []
    for done, radius in enumerate(chosen):
        if tell is not None:
            tell(done, len(chosen))
        one = float(radius) if radius.ndim == 0 else radius
        _, info = projection(source, one, out=out, return_info=True, **arrays)
        alive += out != 0
        alive_groups += info.levels[-1].alive
        left = info.arrays[0].nonzero
        rows.append((info.norm_after, info.threshold, info.distance, left, *info.active))
    norms, thresholds, distances, nonzero, *active = map(np.array, zip(*rows, strict=True))
    return Path(
        spec=projection.spec,
        shape=source.shape,
        dtype=source.dtype.name,
        norm=norm,
        length=first.distance,
        radii=chosen,
        norms=norms,
        thresholds=thresholds,
        distances=distances,
        nonzero=nonzero,
        active=tuple(active),
        entries=first.arrays[0].entries,
        groups=tuple(level.groups for level in first.levels),
        levels=tuple(f"{level.norm} {level.name}".rstrip() for level in first.levels),
        alive=alive,
        alive_groups=alive_groups,
    )


def _radii(
    norm: Any, radii: Iterable[float | str | Radius] | None, points: int, log: bool, count: bool
) -> Array:
    """Ascending along the first axis; the batch axes follow."""
    if radii is None:
        if not (isinstance(points, int) and 2 <= points <= MOST_RADII):
            raise ValueError(f"points must be a whole number from 2 to {MOST_RADII}, got {points}")
        space = np.geomspace(LEAST, 1.0, points) if log else np.linspace(LEAST, 1.0, points)
        space[-1] = 1.0  # not the number before it: at the norm, nothing changes
        chosen = [np.asarray(norm * fraction) for fraction in space]
        if count:
            top = float(np.max(norm))
            chosen = [np.asarray(max(1.0, round(top * fraction))) for fraction in space]
    else:
        if isinstance(radii, (int, float, str)):
            raise TypeError(f"radii are several: a list such as [{radii!r}]")
        given = [_radius(radius) for radius in radii]
        if not given:
            raise ValueError("there must be at least one radius")
        if len(given) > MOST_RADII:
            raise ValueError(f"at most {MOST_RADII} radii, got {len(given)}")
        if np.ndim(norm) and len({radius.relative for radius in given}) > 1:
            raise ValueError("radii of a batch are all numbers, or all parts of the norms")
        chosen = [np.asarray(radius.of(norm)) for radius in given]
    each = np.array([np.broadcast_to(radius, np.shape(norm)) for radius in chosen], np.float64)
    each = np.sort(each, axis=0)
    new = [not np.array_equal(radius, last) for radius, last in itertools.pairwise(each)]
    return np.asarray(each[[True, *new]])


def _radius(radius: float | str | Radius) -> Radius:
    if isinstance(radius, str):
        radius = Radius.parse(radius)
        if not radius.relative:
            raise TypeError(f"a radius in text is a part of the norm: write {radius.value:g}, or "
                            f"'{radius.value:g}%'")  # fmt: skip
    elif not isinstance(radius, Radius):
        radius = Radius(float(radius))
    if not 0 <= radius.value < math.inf:
        raise ValueError(f"radii must be at least 0, and finite, got {radius}")
    return radius


def _zeros(left: Array, each: int) -> Array:
    """The fraction that is zero along the first axis, the others together."""
    whole = each * (left.size // len(left))
    return 1 - _total(left) / whole if whole else np.zeros(len(left))


def _total(a: Array) -> Array:
    return np.asarray(a.reshape(len(a), -1).sum(axis=1))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else float(value)


__all__ = ["Path", "path"]
