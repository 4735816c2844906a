"""Methods compared with one another, fold by fold: a fold of a seed is one observation.

Networks of one fold, at several radii, share their data, so they are averaged before anything is
counted. Folds share training data, so that a difference varies more from data to data than from
fold to fold: intervals have the correction of Nadeau and Bengio (Machine Learning 52, 2003).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from protocol import Row
from scipy.stats import t

MINUS = "\N{MINUS SIGN}"
FEWEST = 3  # observations; of fewer, a deviation says nothing
GRID = 33  # numbers of features between 1 and all, at which curves are compared

Values = NDArray[np.float64]
Fold = tuple[int, int]  # its seed, and its number


def spread(values: Iterable[float], scale: float = 100.0) -> str:
    """Mean ± standard deviation; by default of fractions, in percent. NaNs are left out."""
    found = scale * np.array([value for value in values if not math.isnan(value)])
    if not len(found):
        return ""
    deviation = f" ± {found.std(ddof=1):.1f}" if len(found) >= FEWEST else ""
    return f"{found.mean():.1f}{deviation}"


def standard_error(values: Values, folds: int) -> float:
    """Of the mean over folds, corrected for the training data that they share; or NaN, of too few.

    `folds` is into how many parts the data are cut, of which one is the test: without the
    correction, the second term, it would be the standard error of independent observations.
    """
    if len(values) < FEWEST:
        return math.nan
    return float(values.std(ddof=1) * math.sqrt(1 / len(values) + 1 / (folds - 1)))


def versus(differences: Values, folds: int) -> str:
    """The mean with its 95% interval, and how many were better, equal and worse."""
    n = len(differences)
    if not n:
        return "nothing to compare"
    mean, error = differences.mean(), standard_error(differences, folds)
    if math.isnan(error):
        return f"{signed(mean)} (n = {n})"
    reach = t.ppf(0.975, n - 1) * error
    counts = [int(part.sum()) for part in (differences > 0, differences == 0, differences < 0)]
    return (f"{signed(mean)} [{signed(mean - reach)} to {signed(mean + reach)}] "
            f"({' / '.join(map(str, counts))} of {n})")  # fmt: skip


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", MINUS)


def by_fold(rows: Iterable[Row]) -> dict[Fold, list[Row]]:
    found: dict[Fold, list[Row]] = {}
    for row in rows:
        found.setdefault((row.seed, row.fold), []).append(row)
    return found


def paired(ours: Iterable[Row], theirs: Iterable[Row]) -> Values:
    """Differences in test accuracy, ours less theirs in points: one row of each for each fold."""
    others = {(row.seed, row.fold): row.test for row in theirs}
    return 100 * np.array([row.test - others[row.seed, row.fold] for row in ours])


def at_equal_setting(
    ours: Iterable[Row], theirs: Iterable[Row], value: Callable[[Row, Row], float]
) -> Values:
    """For each fold, the mean over settings of `value`, which is given ours and theirs; where it is
    NaN, it is left out."""
    others = by_fold(theirs)
    found = []
    for fold, rows in by_fold(ours).items():
        at = {row.setting: row for row in others[fold]}
        values = [value(row, at[row.setting]) for row in rows]
        found.append([each for each in values if not math.isnan(each)])
    return np.array([np.mean(values) for values in found if values])


def more_left(ours: Row, theirs: Row) -> float:
    """The logarithm of how many times as many features they left; NaN if either left none."""
    return math.log(theirs.left / ours.left) if ours.left and theirs.left else math.nan


def at_equal_count(ours: Iterable[Row], theirs: Iterable[Row]) -> Values:
    """For each fold, how much more accurate ours are with as many features left, in points.

    The accuracy of either is interpolated between its settings, on the logarithm of the number of
    features, and at the same numbers: a chord is below a concave curve, so networks are not
    compared with chords. The difference is the mean over the numbers that both reach; a fold with
    none is left out.
    """
    others = by_fold(theirs)
    found = []
    for fold, rows in by_fold(ours).items():
        grid = np.linspace(0, math.log(rows[0].features), GRID)
        difference = _curve(rows, grid) - _curve(others[fold], grid)
        if not np.isnan(difference).all():
            found.append(100 * float(np.nanmean(difference)))
    return np.array(found)


def _curve(rows: Sequence[Row], grid: Values) -> Values:
    """Test accuracy at logarithms of the number of features; NaN outside of what `rows` left."""
    at: Mapping[int, list[float]] = {row.left: [] for row in rows if row.left}
    if not at:
        return np.full(len(grid), math.nan)
    for row in rows:
        if row.left:
            at[row.left].append(row.test)
    left: Any = sorted(at)
    means = [np.mean(at[count]) for count in left]  # of settings that left as many
    return np.interp(grid, np.log(left), means, left=math.nan, right=math.nan)
