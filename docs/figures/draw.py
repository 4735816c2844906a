"""The guide's figures: ``python docs/figures/draw.py`` writes them beside it (the extra `plot`)."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

import projgen

HERE = Path(__file__).parent
INK, BLUE, ORANGE = "#303030", "#5b9bd5", "#e08a3c"
plt.rcParams |= {
    "svg.fonttype": "none",  # text stays text: small files, the reader's font
    "svg.hashsalt": "projgen",  # the same bytes each time
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
}


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(HERE / name, facecolor="white", metadata={"Date": None}, bbox_inches="tight")


def table(ax: plt.Axes, values: np.ndarray, title: str) -> None:
    """A matrix with its numbers; rows of zeros are left empty."""
    top = 4.0
    for (row, column), value in np.ndenumerate(values):
        left = np.any(values[row])
        colour = (BLUE if value >= 0 else ORANGE) if left else "none"
        ax.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor=INK, lw=0.7,
                                   alpha=0.15 + 0.6 * abs(value) / top if left else 1))  # fmt: skip
        ax.text(column + 0.5, row + 0.5, f"{value:g}" if left else "0", ha="center", va="center")
    ax.set(xlim=(0, values.shape[1]), ylim=(values.shape[0], 0), title=title)
    ax.axis("off")


def bars(ax: plt.Axes, values: np.ndarray, title: str, threshold: float | None = None) -> None:
    """A bar for each row; what lies below the threshold is pale."""
    rows = np.arange(len(values)) + 0.5
    if threshold is None:
        ax.barh(rows, values, 0.6, color=BLUE)
    else:
        ax.barh(rows, values, 0.6, color=BLUE, alpha=0.25)
        ax.barh(rows, np.maximum(values - threshold, 0), 0.6, threshold, color=BLUE)
        ax.axvline(threshold, color=ORANGE, ls="--", lw=1.5)
        ax.text(threshold, 4.35, f"threshold {threshold:g}", color=ORANGE, ha="center", va="center")
    for row, value in zip(rows, values, strict=True):
        ax.text(value + 0.12, row, f"{value:g}", va="center")
    ax.set(xlim=(0, 4.6), ylim=(4, 0), title=title)
    ax.axis("off")


def levels() -> None:
    """The example that docs/what.md works out by hand."""
    y = np.array([[3, -1, 2], [0.5, 1, -0.5], [-4, 2, 0], [1, -2, 2]])
    x, info = projgen.build("l1(linf(axis=1))")(y, 3.0, return_info=True)
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.1), width_ratios=(3, 3.6, 3.6, 3))
    table(axes[0], y, "y")
    bars(axes[1], np.abs(y).max(axis=1), "1. largest of each row", info.threshold)
    bars(axes[2], np.abs(x).max(axis=1), "2. what is left of it")
    table(axes[3], x, "3. rows clipped to it")
    save(figure, "levels.svg")


def path() -> None:
    """The sweep that docs/radius.md makes."""
    rng = np.random.default_rng(0)
    y = rng.standard_normal((30, 60)) * np.where(np.arange(60) < 12, 1.0, 0.15)
    swept = projgen.path(y, "l1(linf(axis=0))", points=60)
    figure, ax = plt.subplots(figsize=(6.6, 2.6))
    flat = 100 * swept.fractions[swept.active[-1] == 12]
    ax.axvspan(flat[0], flat[-1], color=ORANGE, alpha=0.2, lw=0)
    ax.text(flat[0] * 0.95, 40, "the same 12 columns", color=INK, ha="right")
    ax.plot(100 * swept.fractions, swept.active[-1], color=BLUE, lw=2)
    ax.set(xscale="log", xlabel="radius, % of the norm", ylabel="columns left, of 60")
    ax.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    save(figure, "path.svg")


if __name__ == "__main__":
    levels()
    path()
