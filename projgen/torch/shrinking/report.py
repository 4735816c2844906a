"""What `shrink` reports."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that has become smaller.

    ``inputs`` and ``outputs`` are the channels that are left, by their indices before, and
    ``inputs_before`` and ``outputs_before`` how many there were. A side that is as it was has None.
    """

    name: str
    kind: str
    inputs_before: int | None = None
    inputs: tuple[int, ...] | None = None
    outputs_before: int | None = None
    outputs: tuple[int, ...] | None = None

    def __str__(self) -> str:
        sides = [
            f"{side} {before} -> {len(left)}"
            for side, before, left in (
                ("inputs", self.inputs_before, self.inputs),
                ("outputs", self.outputs_before, self.outputs),
            )
            if left is not None
        ]
        return f"{self.name} ({self.kind}): {', '.join(sides)}"


@dataclass(frozen=True, slots=True)
class Kept:
    """`units` channels that the layer `name` writes, which are idle and had to stay, and why.

    Features of the input have the name "the input".
    """

    name: str
    units: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {f'{self.units} idle stay: ' * (self.units > 0)}{self.reason}"


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What `shrink` did.

    Attributes:
        layers: The layers that became smaller, in the model's order.
        kept: What is idle and is still there.
        inputs: With ``inputs=True``, a LongTensor of the input features that are left: the new
            model takes ``x[:, inputs]``. Otherwise None.
        parameters_before: How many numbers the model's parameters had.
        parameters_after: How many the small model's have.
        difference: The largest difference between the outputs of the two models that was seen, in
            units of the largest output.
    """

    layers: tuple[Layer, ...]
    kept: tuple[Kept, ...]
    inputs: Tensor | None
    parameters_before: int
    parameters_after: int
    difference: float

    def __str__(self) -> str:
        part = self.parameters_after / max(1, self.parameters_before)
        lines = [
            f"{self.parameters_before} -> {self.parameters_after} parameters ({part:.1%});"
            f" outputs differ by {self.difference:.1e} of the largest"
        ]
        if self.inputs is not None:
            lines.append(f"input features left: {len(self.inputs)}")
        if not self.layers and not self.kept and self.inputs is None:
            lines.append("nothing in it is idle: projgen.torch.report(model) shows what is zero")
        return "\n  ".join([*lines, *map(str, self.layers), *map(str, self.kept)])
