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
    """One norm of a group of values `a`.

    ``name`` is the canonical spelling, ``aliases`` are the others that a spec may use.
    """

    name: str
    aliases: tuple[str, ...]
    formula: str
    summary: str


NORMS: Mapping[str, Norm] = MappingProxyType(
    {
        norm.name: norm
        for norm in (
            Norm("l1", ("ℓ1", "ℓ₁"), "sum |a|", "the sum of the magnitudes; its ball zeroes some"),
            Norm("l2", ("ℓ2", "ℓ₂"), "sqrt(sum a^2)", "the Euclidean length; its ball scales"),
            Norm("linf", ("ℓ∞", "l∞"), "max |a|", "the largest magnitude; its ball clips"),
        )
    }
)

LATER: Mapping[str, str] = MappingProxyType(
    {"lp": "any exponent p >= 1", "l0": "a count of nonzeros", "simplex": "a probability simplex"}
)
"""Norms that the language has room for and this version does not project on."""

_SPELLINGS = {name: norm for norm in NORMS.values() for name in (norm.name, *norm.aliases)}
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
