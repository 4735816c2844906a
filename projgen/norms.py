"""The norms of the language, and what people write when they mean one of them."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from projgen.errors import quote


@dataclass(frozen=True, slots=True)
class Norm:
    """One norm of a group of values `a`: what the stages have to know, whatever the backend.

    ``name`` is the canonical spelling, ``aliases`` are the others that a spec may use. ``ball``
    says in words what the projection on its ball does to the values of a group, ``operations``
    how much aggregating and projecting cost for each of them.

    ``accumulates``: "sum" in float64, or "max" of the magnitudes' bits. ``squares``: of values,
    which may leave the range of float64. ``sized``: the value depends on how many there are.
    ``searches``: a group's limit is a threshold that has to be searched for; otherwise a formula
    of its value and radius. ``rounds``: "down" or "up", where a limit in float32 goes so that the
    group stays in its ball. ``merges``: equal neighbours are one level (see `projgen.simplify`).
    ``chained``: a kernel of many levels may have it among them; otherwise a level is a kernel of
    its own. ``alone``: a level of it may be such a kernel, of ``templates/cpu/balls``: groups of
    given sizes ask for one; ``weighs``: its values may have weights, which ask for one as well.
    ``pulls``: a kernel of many levels that takes gradients back may have it among them (see
    `projgen.cpu.pull`).
    """

    name: str
    aliases: tuple[str, ...]
    formula: str
    summary: str
    ball: str
    operations: int
    accumulates: str = "sum"
    squares: bool = False
    sized: bool = False
    searches: bool = False
    rounds: str = "down"
    merges: bool = False
    chained: bool = True
    alone: bool = False
    weighs: bool = False
    pulls: bool = False


_TABLE = (
    Norm(
        "l1",
        ("ℓ1", "ℓ₁"),
        "sum |a|",
        "the sum of the magnitudes; its ball zeroes some",
        ball="subtracts a threshold; values below it become zero",
        operations=5,
        searches=True,
        rounds="up",
        alone=True,
        weighs=True,
        pulls=True,
    ),
    Norm(
        "l2",
        ("ℓ2", "ℓ₂"),
        "sqrt(sum a^2)",
        "the Euclidean length; its ball scales",
        ball="scales; the values of a group vanish together or not at all",
        operations=3,
        squares=True,
        merges=True,
        alone=True,
        weighs=True,
        pulls=True,
    ),
    Norm(
        "linf",
        ("ℓ∞", "l∞"),
        "max |a|",
        "the largest magnitude; its ball clips",
        ball="clips; the values of a group vanish together or not at all",
        operations=4,
        accumulates="max",
        merges=True,
        alone=True,
        weighs=True,
        pulls=True,
    ),
    Norm(
        "lp",
        (),
        "(sum |a|^p)^(1/p)",
        "between l1 and l2, or l2 and linf, for any exponent p > 1; its ball shrinks large values",
        ball="shrinks large values more, or less, than small ones; none becomes zero",
        operations=60,
        searches=True,
        chained=False,
        alone=True,
        weighs=True,
    ),
    Norm(
        "l0",
        (),
        "count of a != 0",
        "how many are not zero, which is no norm; its ball keeps the largest",
        ball="keeps the largest, as many as the radius says",
        operations=8,
        searches=True,
        chained=False,
        alone=True,
    ),
    Norm(
        "simplex",
        (),
        "sum a, a >= 0",
        "values of 0 and above that add up to the radius, neither more nor less",
        ball="subtracts a threshold; values below it become zero",
        operations=5,
        searches=True,
        chained=False,
        alone=True,
    ),
)

NORMS: Mapping[str, Norm] = MappingProxyType({norm.name: norm for norm in _TABLE})
CHAINED: Mapping[str, Norm] = MappingProxyType({norm.name: norm for norm in _TABLE if norm.chained})

_SPELLINGS = {name: norm for norm in _TABLE for name in (norm.name, *norm.aliases)}
_SYNONYMS = {
    "manhattan": "l1",
    "sum": "l1",
    "taxicab": "l1",
    "euclidean": "l2",
    "fro": "l2",
    "frobenius": "l2",
    "chebyshev": "linf",
    "max": "linf",
    "sup": "linf",
}


def find(spelling: str) -> Norm | None:
    """The norm that a spec calls `spelling`, or None."""
    return _SPELLINGS.get(spelling)


def suggest(text: str) -> tuple[str, ...]:
    """Specs that someone who wrote `text` may have meant, best first; often none.

    >>> suggest("linff"), suggest("L_1"), suggest("l1,inf"), suggest("l21")
    (('linf',), ('l1',), ('l1(linf)',), ('l1(l2)',))
    """
    if len(text) > 40:
        return ()
    word = unicodedata.normalize("NFKC", text).casefold()
    word = re.sub(r"[\s,_/|:{}^-]+|(norm|ball)$", "", word)
    if word in _SYNONYMS:
        return (_SYNONYMS[word],)
    if re.fullmatch(r"(l?(1|2|∞|inf(ty|inity)?))+", word):
        return _nest(["linf" if order in "∞inf" else f"l{order}" for order in _orders(word)])
    return tuple(get_close_matches(word, NORMS, n=1))


def did_you_mean(text: str) -> str | None:
    """A hint to someone who wrote `text`, or None."""
    readings = " or ".join(map(quote, suggest(text)))
    return f"did you mean {readings}?" if readings else None


def _orders(word: str) -> list[str]:
    return re.findall(r"1|2|∞|inf", word)


def _nest(names: list[str]) -> tuple[str, ...]:
    """Subscripts to a tree. Both l2,1 and l1,2 are in use for the l1 norm of the groups' l2."""
    outward = sorted(names) if len(names) == 2 else names
    readings = [outward, outward[::-1]] if outward == ["l2", "linf"] else [outward]
    return tuple("(".join(names) + ")" * (len(names) - 1) for names in readings)
