"""How sparse parameters were while they were trained: a record, and its picture."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, Literal, TextIO

import torch

from projgen.terminal import format_count
from projgen.torch.names import Names, listed, require_both
from projgen.torch.reports import Row, rows

Of = Literal["entries", "outputs", "inputs"]


class Watch:
    """What of a model's parameters was zero, after which steps. Made by `watch`.

    Attributes:
        names: the parameters'.
        steps: after which of the optimiser's steps, counted from here, there are records.
        rows: the records: for each parameter a `Row` for each of `steps`.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: torch.nn.Module, names: list[str], every: int
    ) -> None:
        self.names = names
        self.steps: list[int] = []
        self.rows: dict[str, list[Row]] = {name: [] for name in names}
        self._model = model
        self._every = every
        self._step = 0
        apart: Any = torch.compiler.disable  # the hook is no part of a step that is compiled
        self._hook = optimizer.register_step_post_hook(apart(self._after_step))
        self.record()

    def record(self) -> None:
        """Make a record now, if there is none of this step."""
        if self.steps and self.steps[-1] == self._step:
            return
        self.steps.append(self._step)
        for row in rows(self._model, self.names):
            self.rows[row.name].append(row)

    def sparsity(self, name: str, of: Of = "entries") -> list[float]:
        """The fractions of a parameter's entries, outputs or inputs that were zero."""
        if of == "entries":
            return [row.sparsity for row in self.rows[name]]
        if of not in ("outputs", "inputs"):
            raise ValueError(f"of is 'entries', 'outputs' or 'inputs', not {of!r}")
        sides = [getattr(row, of) for row in self.rows[name]]
        return [0.0 if side is None else side.share for side in sides]

    def plot(self, ax: Any = None, *, of: Of = "entries") -> Any:
        """Draw the fractions that were zero against the steps, with Matplotlib.

        Args:
            ax: Matplotlib's axes to draw on; else a figure is made.
            of: what is counted.

        Returns:
            `ax`, or the figure.

        Raises:
            ImportError: Matplotlib is missing.
        """
        from projgen import picture

        return picture.training(self.steps, self._curves(of), of, ax)

    def show(self, stream: TextIO | None = None, *, of: Of = "entries") -> None:
        """Draw the same for a terminal: on `stream`, or standard output."""
        from projgen import chart
        from projgen.terminal import Terminal

        chart.training(self.steps, self._curves(of), of, Terminal(stream or sys.stdout))

    def remove(self) -> None:
        """Make no more records."""
        self._hook.remove()

    def __repr__(self) -> str:
        records = format_count(len(self.steps), "record")
        return (f"<projgen.torch.Watch of {listed(self.names)}: {records}, after steps "
                f"{self.steps[0]} to {self.steps[-1]}>")  # fmt: skip

    def _curves(self, of: Of) -> dict[str, list[float]]:
        return {name: self.sparsity(name, of) for name in self.names}

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._step += 1
        if self._step % self._every == 0:
            self.record()


def watch(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    names: str | Iterable[str] | None = None,
    *,
    every: int = 100,
) -> Watch:
    """Record how sparse parameters of `model` are after each `every`-th step of `optimizer`.

    `names` are names or patterns as `constrain` takes them; None for all that have two axes or
    more. Call it after `constrain`: what is attached later looks later. A record reads the
    parameters, and waits for a GPU that has them.

    TypeError: what is no optimiser, or no module. ValueError: a name that matches nothing; `every`
    less than 1.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every is a whole number of at least 1, got {every!r}")
    require_both(optimizer, model, "watch")
    known = Names(model, effective=True)
    if names is None:
        found = [row.name for row in rows(model) if len(row.shape) > 1]
    else:
        keys = [names] if isinstance(names, str) else names
        found = known.unique(name for key in keys for name in known.find(key))
    return Watch(optimizer, model, found, every)


__all__ = ["Watch", "watch"]
