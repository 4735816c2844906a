"""Tables and sentences made of the results, and the page that has them between markers."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from compare import (
    Values,
    at_equal_count,
    at_equal_setting,
    by_fold,
    more_left,
    paired,
    spread,
    versus,
)
from problems import SHORT, TITLES, load
from protocol import BY_KEY, METHODS, Row, chosen

TIMES = "\N{MULTIPLICATION SIGN}"


def write_rows(rows: Iterable[Row], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([_short(value) for value in row] for row in rows)


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def read_rows(file: Path) -> list[Row]:
    kinds = list(get_type_hints(Row).values())
    with file.open(newline="", encoding="utf-8") as stream:
        _, *lines = csv.reader(stream)
    return [Row(*(kind(cell) for kind, cell in zip(kinds, line, strict=True))) for line in lines]


def names(rows: Iterable[Row]) -> list[str]:
    """The problems, in the order of the page."""
    found = {row.problem for row in rows}
    return [name for name in TITLES if name in found]


def bare(names: Iterable[str]) -> str:
    """A page that has markers, and nothing else."""
    return "\n".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in names)


def fill(page: str, fragments: dict[str, str]) -> str:
    """`page` with each fragment between its markers. ValueError: they do not fit one another."""
    marked = re.compile(r"(?s)(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)")
    there = {found[2] for found in marked.finditer(page)}
    if there != set(fragments):
        raise ValueError(f"the page has markers for {sorted(there)}, and the results make "
                         f"{sorted(fragments)}")  # fmt: skip
    return marked.sub(lambda found: f"{found[1]}\n{fragments[found[2]]}\n\n{found[3]}", page)


def fragments(rows: Sequence[Row], measured: dict[str, Any]) -> dict[str, str]:
    """All that the page has between markers."""
    return {
        "machine": machine(rows, measured),
        "accuracy": "\n\n".join(
            accuracy(rows, name, measured["whole"]["folds"]) for name in names(rows)
        ),
        "informative": informative(rows),
        "radii": "\n\n".join(radii(rows, name) for name in names(rows)),
        "share": share(rows),
        "layers": layers(measured),
        "uniform": uniform(measured),
        "findings": findings(rows, measured),
    }


# Numbers


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def removed(row: Row) -> float:
    return 1 - row.left / row.features


def of(rows: Iterable[Row], problem: str, method: str) -> list[Row]:
    return [row for row in rows if row.problem == problem and row.method == method]


# Tables


def machine(rows: Sequence[Row], measured: dict[str, Any]) -> str:
    here, run = measured["machine"], measured["run"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    text = (
        f"{len(rows):,} networks, trained by {run['jobs']} process{'es' * (run['jobs'] > 1)}; "
        f"{run['minutes']:.1f} minutes in all, on {here['platform']} with {here['processors']} "
        f"processors; {versions}."
    )
    if run["load"] is not None:
        text += (
            f" When the run began, {run['load']:.1f} processes wanted a processor (the load "
            "average); on an idle machine it would be near 0. Times are those of the clock, with "
            "all waiting."
        )
    left_out = [*measured["missing"], *_not_run(rows, measured["whole"])]
    return "\n\n".join([text, *(f"**Left out:** {line}." for line in left_out)])


def _not_run(rows: Sequence[Row], whole: dict[str, Any]) -> list[str]:
    """That this is a part of the whole run, if it is."""
    parts = []
    for name, seeds in whole["seeds"].items():
        run, all_of_them = _folds(rows, name), seeds * whole["folds"]
        if run < all_of_them:
            parts.append(f"{run} of {all_of_them} folds on {SHORT[name]}")
    return [f"this is a part of the run, with {', '.join(parts)}"] if parts else []


def _folds(rows: Iterable[Row], problem: str) -> int:
    """How many there are, of all seeds."""
    return len(by_fold(row for row in rows if row.problem == problem))


def accuracy(rows: Sequence[Row], problem: str, folds: int) -> str:
    best = list(chosen(rows))
    ours = of(best, problem, "linf")
    lines = []
    for method in METHODS:
        theirs = of(best, problem, method.key)
        lines.append([
            method.label,
            spread(row.test for row in theirs),
            "" if method.key == "linf" else versus(paired(theirs, ours), folds),
            spread(map(removed, theirs)),
            f"{np.median([row.left for row in theirs]):.0f}",
            "" if method.key == "none" else f"{np.median([row.setting for row in theirs]):g}",
        ])  # fmt: skip
    head = ("", "test accuracy, %", "less that of bi-level, points",
            "features removed, %", "left, median", "radius or part kept, median, %")  # fmt: skip
    return f"{_title(ours)}\n\n{table(head, lines)}"


def _title(rows: Sequence[Row]) -> str:
    """The problem of `rows`, and how many folds and seeds there are of it."""
    counts = [(len({getattr(row, what) for row in rows}), what) for what in ("fold", "seed")]
    counted = f" {TIMES} ".join(f"{n} {what}{'s' * (n > 1)}" for n, what in counts)
    return f"**{TITLES[rows[0].problem]}** ({counted})"


def informative(rows: Sequence[Row]) -> str:
    """Precision and recall of the chosen features, and of labels' help to find them."""
    best = list(chosen(rows))
    known = [name for name in names(rows) if not math.isnan(of(rows, name, "none")[0].recall)]
    head = ["", *(f"{TITLES[name].partition(', ')[2]}: {what}" for name in known
                  for what in ("precision, %", "recall, %"))]  # fmt: skip
    lines = [
        [method.label, *(spread(getattr(row, what) for row in of(best, name, method.key))
                         for name in known for what in ("precision", "recall"))]
        for method in METHODS
    ]  # fmt: skip
    by_variance = ["variance before standardising, no labels"]
    for name in known:
        found = [_by_variance(name, seed) for seed in sorted({row.seed for row in rows
                                                              if row.problem == name})]  # fmt: skip
        by_variance += [spread(found), spread(found)]
    return table(head, [*lines, by_variance])


def _by_variance(problem: str, seed: int) -> float:
    """The part of the informative features among as many that vary most."""
    x, _, informative = load(problem, seed)
    assert informative is not None
    top = np.argsort(-x.var(axis=0))[: informative.sum()]
    return float(informative[top].mean())


def radii(rows: Sequence[Row], problem: str) -> str:
    """Bi-level beside exact and the others at the same percentage of the norm."""
    keys = ("linf", "exact", "l1", "l2")
    lines = []
    for setting in sorted({row.setting for row in of(rows, problem, "linf")}):
        at = [[row for row in of(rows, problem, key) if row.setting == setting] for key in keys]
        lines.append([
            f"{setting:g}",
            *(f"{np.mean([row.left for row in each]):.0f}" for each in at),
            *(spread(row.test for row in each) for each in at),
        ])  # fmt: skip
    head = ["radius, % of the norm"]
    head += [f"{what}, {BY_KEY[key].label}" for what in ("features left", "accuracy, %")
             for key in keys]  # fmt: skip
    return f"{_title(of(rows, problem, 'linf'))}\n\n{table(head, lines)}"


def share(rows: Sequence[Row]) -> str:
    lines = []
    for method in METHODS:
        if not method.spec:
            continue
        cells = [method.label]
        for name in names(rows):
            found = of(rows, name, method.key)
            each = np.median([1000 * row.projection_seconds / row.projections for row in found])
            cells.append(f"{found[0].projections} {TIMES} {each:.2f} ms, {_share(found):.2f}%")
        lines.append(cells)
    fits = [f"{np.median([row.fit_seconds for row in of(rows, name, 'linf')]):.2f} s"
            for name in names(rows)]  # fmt: skip
    head = ["", *(SHORT[name] for name in names(rows))]
    return table(head, [*lines, ["the whole training", *fits]])


def _share(rows: Iterable[Row]) -> float:
    """The projections' part of the training, in percent: the median."""
    return 100 * float(np.median([row.projection_seconds / row.fit_seconds for row in rows]))


def layers(measured: dict[str, Any]) -> str:
    head = ["", *(f" {TIMES} ".join(map(str, found["shape"])) + f", {SHORT[found['problem']]}"
                  for found in measured["layers"])]  # fmt: skip
    lines = []
    for key in ("copy", "linf", "exact", "l1", "l2"):
        cells = ["a copy" if key == "copy" else BY_KEY[key].label]
        for found in measured["layers"]:
            low, middle, high = found["times"][key]
            ratio = middle / found["times"]["copy"][1]
            cells.append(f"{middle:.3f} ({low:.3f} to {high:.3f}) ms; {ratio:.1f}")
        lines.append(cells)
    text = table(head, lines)
    for what, key, unit, factor in (
        ("The first call of all, with an empty cache, took", "compile", "s", 1),
        ("Set-up, once for each Projection, with the kernel loaded, took", "setup", "ms", 1000),
    ):
        taken = [f"{BY_KEY[name].label} {factor * seconds:.1f} {unit}"
                 for name, seconds in measured[key].items()]  # fmt: skip
        if taken:
            text += f"\n\n{what}: {', '.join(taken)}."
    return text


def uniform(measured: dict[str, Any]) -> str:
    head = ["", "a copy, ms", "bi-level, ms", "exact, ms", "NumPy bi-level, ms",
            "exact / bi-level", "bi-level / copy", "columns removed, bi-level, %",
            "columns removed, exact, %"]  # fmt: skip
    lines = []
    for found in measured["uniform"]:
        times = {key: each[1] for key, each in found["times"].items()}
        gone = [100 * (1 - found["left"][key] / found["columns"]) for key in ("linf", "exact")]
        lines.append([
            f"1000 {TIMES} {found['columns']}",
            *(f"{times[key]:.2f}" for key in ("copy", "linf", "exact", "numpy")),
            f"{times['exact'] / times['linf']:.1f}",
            f"{times['linf'] / times['copy']:.1f}",
            *(f"{each:.1f}" for each in gone),
        ])  # fmt: skip
    return table(head, lines)


# Sentences


def findings(rows: Sequence[Row], measured: dict[str, Any]) -> str:
    """What the tables say to the papers' claims, in the same words whatever comes out."""
    best, lines = list(chosen(rows)), []
    folds = measured["whole"]["folds"]

    def each(differences: Callable[[str], Values]) -> str:
        return "; ".join(f"{versus(differences(name), folds)} on {SHORT[name]}"
                         for name in names(rows))  # fmt: skip

    def linf_with(compare: Callable[..., Values], key: str, *value: Any) -> str:
        return each(lambda name: compare(of(rows, name, "linf"), of(rows, name, key), *value))

    lines.append("Accuracy of `l1(linf)` bi-level, in points, at the radii that validation chose:")
    for key, theirs in (
        ("none", "no projection"),
        ("exact", "the exact projection"),
        ("l1", "`l1(l1)`"),
        ("l2", "`l1(l2)`"),
        ("epoch", "itself, projected after each epoch"),
        ("anova", "the F-test"),
        ("random", "random features"),
    ):
        found = each(
            lambda name, key=key: paired(of(best, name, "linf"), of(best, name, key))  # type: ignore[misc]
        )
        lines.append(f"  less that of {theirs}: {found}.")

    fewer = []
    for name in names(rows):
        ratios = at_equal_setting(of(rows, name, "linf"), of(rows, name, "exact"), more_left)
        if len(ratios):
            fewer.append(f"{math.exp(ratios.mean()):.2f} on {SHORT[name]} (more in "
                         f"{(ratios > 0).sum()} of {len(ratios)} folds)")  # fmt: skip
    lines.append("Features that exact left at the same radius, in multiples of those that bi-level "
                 f"left, as the geometric mean over radii: {'; '.join(fewer)}.")  # fmt: skip
    lines.append("At the same radius the accuracy of bi-level less that of exact was "
                 + linf_with(at_equal_setting, "exact", lambda ours, theirs:
                             100 * (ours.test - theirs.test)) + ".")  # fmt: skip
    lines.append("With as many features left, whatever the radius, its accuracy was, in points:")
    for key, theirs in (("exact", "the exact projection"), ("l1", "`l1(l1)`"),
                        ("l2", "`l1(l2)`"), ("epoch", "itself, projected after each epoch"),
                        ("anova", "the F-test"), ("random", "random features")):  # fmt: skip
        lines.append(f"  less that of {theirs}: {linf_with(at_equal_count, key)}.")
    on_layers = [found["times"]["exact"][1] / found["times"]["linf"][1]
                 for found in measured["layers"]]  # fmt: skip
    on_uniform = [f"{found['times']['exact'][1] / found['times']['linf'][1]:.1f}"
                  for found in measured["uniform"]]  # fmt: skip
    lines.append(f"Exact took {min(on_layers):.1f} to {max(on_layers):.1f} times as long as "
                 f"bi-level on the trained layers, and {', '.join(on_uniform)} times on the "
                 "uniform matrices; the papers say 2.5.")  # fmt: skip
    part = [f"{_share(row for row in rows if row.method == key):.2f}% {what}"
            for key, what in (("linf", "for bi-level"), ("exact", "for exact"),
                              ("epoch", "for bi-level after each epoch"))]  # fmt: skip
    lines.append("Projections' part of the time of training, as the median over all networks: "
                 + ", ".join(part) + ".")  # fmt: skip
    return "\n".join("  - " + line[2:] if line.startswith("  ") else "- " + line for line in lines)
