"""What ``projgen path`` does: a tensor of a file, its path, and a picture of it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any

import numpy as np

from projgen import chart, files, picture
from projgen.api import build
from projgen.check import parse_tree
from projgen.errors import SpecError
from projgen.info import numbers
from projgen.outcome import Radius
from projgen.sweep import Path, path
from projgen.terminal import Terminal, progress


@dataclass(frozen=True)
class Trace:
    """The path of tensor ``name`` of ``source``; ``at`` is the radius whose pattern is shown."""

    source: FilePath
    name: str
    path: Path
    at: int
    picture: FilePath | None

    def to_json(self) -> dict[str, Any]:
        """As JSON knows it."""
        return {
            "input": str(self.source),
            "tensor": self.name,
            **self.path.to_json(),
            "shown": self.at,
            "picture": self.picture and str(self.picture),
        }

    def draw(self, terminal: Terminal) -> None:
        """For people."""
        chart.draw(self.path, self.name, terminal, self.at)
        if self.picture:
            terminal.write(f"wrote {self.picture}")


def trace(
    spec: str,
    source: FilePath,
    tensor: str | None,
    radii: Sequence[Radius] | None,
    points: int,
    linear: bool,
    at: Radius | None,
    dtype: str | None,
    out: FilePath | None,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Trace:
    """Sweep the radius of one tensor of `source`, and draw that to `out` if it is given.

    `given` are the weights and labels that the spec names.

    Raises:
        SpecError, ValueError: the spec, the file, the tensor, the radii or `out` are wrong.
        ImportError: `out` without Matplotlib, or .safetensors without its library.
    """
    projection = build(parse_tree(spec))
    if out is not None:
        picture.check_target(out)
    file = files.open_tensors(source)
    (name,) = files.choose(file, None if tensor is None else [tensor])
    y = file.read(name)
    try:
        y = y if dtype is None else y.astype(dtype)
        files.check_numbers(y, "give --dtype float64")
        with progress(f"projecting {name}") as tell:
            found = path(y, projection, radii, points=points, log=not linear, tell=tell, **given)
    except SpecError as error:
        raise SpecError(f"{name}: {error.message}", *error.spans, hint=error.hint) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None
    index = found.middle if at is None else _nearest(found, at)
    if out is not None:
        with progress(f"drawing {name}"), files.replacing(out) as stream:
            picture.save(found, index, out.suffix, stream)
    return Trace(source, name, found, index, out)


def _nearest(found: Path, at: Radius) -> int:
    """The index of the radius that is nearest to `at`; a warning if that is not among them."""
    wanted = at.of(found.norm)
    gaps = np.abs(found.radii - wanted)
    index = int(np.argmin(gaps.reshape(len(gaps), -1).sum(axis=1)))
    ends = found.radii[[0, -1]]
    if np.all(wanted < ends[0]) or np.all(wanted > ends[1]):
        warnings.warn(
            f"--at {at} is outside of the radii, {numbers(ends[0])} to {numbers(ends[1])}: the "
            f"zero pattern is that at {numbers(found.radii[index])}",
            stacklevel=3,
        )
    return index


__all__ = ["Trace", "trace"]
