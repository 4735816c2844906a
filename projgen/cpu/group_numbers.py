"""The numbers of a group kernel: how its arrays hold values, and where its searches end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from projgen.cpu.ball import Ball
from projgen.dtypes import ITEMSIZE, arithmetic


@dataclass(frozen=True)
class GroupNumbers:
    """Of a kernel for one level of groups.

    ``stored`` is the type of its arrays: of halves it sees the bits, as int16, and works on float32
    copies of a group, or widens each value where it is read.
    """

    ball: Ball
    stored: str

    @property
    def dtype(self) -> str:
        """The type of its arithmetic."""
        return arithmetic(self.stored)

    @property
    def half(self) -> bool:
        return ITEMSIZE[self.stored] == 2

    @property
    def array_type(self) -> str:
        """What the arrays are to Numba, which knows no halves on a CPU."""
        return "int16" if self.half else self.stored

    def widen(self, element: str) -> str:
        """An element of an array, to work with."""
        return f"widen({element})" if self.half else element

    def narrow(self, value: str) -> str:
        """A value as an array holds it."""
        return f"narrow(np.float32({value}))" if self.half else value

    @property
    def bits(self) -> str:
        """The integer type that holds the bits of a value that is worked on."""
        return self.dtype.replace("float", "int")

    @property
    def ranked_bits(self) -> str:
        """The same of an element, where these are ranked as they lie."""
        return f"int{8 * ITEMSIZE[self.stored]}"

    @property
    def infinite(self) -> str:
        """The bits of infinity in an array."""
        return {"float16": "0x7C00", "bfloat16": "0x7F80", "float32": "0x7F800000"}.get(
            self.stored, "0x7FF0000000000000"
        )

    @property
    def near(self) -> str:
        """The step of l2's search, or lp's inner one, that needs no other one after it."""
        if self.ball.p is None:
            return "3e-4" if self.dtype == "float32" else "3e-8"
        # What a step of Newton's method for the sum of exponentials misses is below `bend` times
        # the step's square.
        bend = max(1.0, self.ball.p - 1) / 2
        return f"{math.sqrt(1e-14 / bend):.1e}"

    @property
    def steep(self) -> bool:
        """Whether some of lp's elements are so steep that float64 has no room for small steps."""
        assert self.ball.p is not None
        return self.ball.p < 1.00001

    @property
    def last(self) -> str:
        """The step of lp's outer search that needs no other one after it."""
        assert self.ball.p is not None
        return f"{3e-7 * min(1.0, self.ball.p - 1):.1e}"

    @property
    def products(self) -> tuple[str, ...]:
        """The lines that find the ``power`` of a by a few products, if these will do."""
        assert self.ball.p is not None
        twice = 2 * self.ball.p
        if twice != int(twice) or twice > 200:
            return ()
        whole, lines = int(twice) // 2, ["power = np.sqrt(a)"] * (int(twice) % 2)
        begun = bool(lines)
        while whole:
            if whole % 2:
                lines.append("power *= a" if begun else "power = a")
                begun = True
            whole //= 2
            if whole:
                lines.append("a *= a")
        return tuple(lines)

    @property
    def nears(self) -> Mapping[str, float]:
        """By type, the step of lp's search for log t that needs no other one after it."""
        assert self.ball.p is not None
        steep = math.sqrt(min(1.0, self.ball.p - 1))
        return {"float32": 4e-4 * steep, "float64": 2e-7 * steep}

    @property
    def _steepness(self) -> float:
        """How much faster one term of an element's equation may change than the other."""
        assert self.ball.p is not None
        return max(self.ball.p - 1, 1 / (self.ball.p - 1))

    @property
    def wrongs(self) -> Mapping[str, float]:
        """By type, how wrong an element's equation may be before a last step, which leaves about
        the third power of that, and more for a sharp bend."""
        bend = 1 + self._steepness / 10
        return {name: (e / bend) ** (1 / 3) for name, e in (("float32", 3e-8), ("float64", 1e-14))}

    @property
    def sharp(self) -> float:
        """How wrong it may be for the series of a step to be exact."""
        return 0.2 / self._steepness

    @property
    def leap(self) -> float:
        """How far log t may go for the same."""
        assert self.ball.p is not None
        return 0.1 * min(1.0, self.ball.p - 1)

    @property
    def evaluations(self) -> int:
        """How many steps make an equation less wrong than that, where ever they begin."""
        return 1 + sum(self._steepness > limit for limit in (5, 60, 150))

    @property
    def factorials(self) -> tuple[str, ...]:
        return taylor_of_exp()


def taylor_of_exp() -> tuple[str, ...]:
    """The Taylor series of exp, from the term of degree 12 down."""
    return tuple(f"1.0 / {math.factorial(i)}.0" if i > 1 else "1.0" for i in range(12, -1, -1))


__all__ = ["GroupNumbers", "taylor_of_exp"]
