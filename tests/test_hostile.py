"""A spec is data from anywhere: whatever it holds, the answer is a tree or a SpecError, soon."""

import gc
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projgen.bind import bind
from projgen.check import parse_tree
from projgen.errors import SpecError, quote
from projgen.parse import MAX_LENGTH

SECONDS = (
    0.8  # of this thread's work: far above what is needed, far below what a user would call hanging
)


@contextmanager
def soon() -> Iterator[None]:
    start = time.thread_time()
    yield
    assert time.thread_time() - start < SECONDS


@pytest.fixture(autouse=True, scope="module")
def _the_parser_is_built() -> Iterator[None]:
    parse_tree("l1")
    gc.collect()
    gc.freeze()  # what other tests have left is not what a spec costs
    yield
    gc.unfreeze()


HOSTILE: dict[str, Callable[[], str]] = {
    "a million letters": lambda: "l" * 10**6,
    "a million spaces": lambda: " " * 10**6,
    "a million commas": lambda: "l1(" + "," * 10**6 + ")",
    "ten million wide characters": lambda: "漢" * 10**7,
    "100,000 open parentheses": lambda: "(" * 10**5,
    "100,000 nested norms": lambda: "l1(" * 10**5 + ")" * 10**5,
    "100,000 closing parentheses": lambda: ")" * 10**5,
    "as many nested norms as fit": lambda: "l1(" * 2500 + ")" * 2500,
    "as many nested tuples as fit": lambda: "l1(axis=" + "(" * 4900 + ")" * 4900 + ")",
    "as many children as fit, and one more": lambda: "l1(" + "l1," * 3300 + "l3)",
    "as many names as fit, one repeated": lambda: (
        f"l1({', '.join(f'a{i}=l2' for i in range(900))}, a7=l2)"
    ),
    "a pattern with everything in it": lambda: "l1(l2 @ '" + "*?[!a-z]" * 1000 + "', l1)",
    "as many arguments as fit": lambda: "l1(" + "axis=1," * 1400 + ")",
    "as many axes as fit, one repeated": lambda: (
        f"l1(axis=({', '.join(map(str, range(1800)))}, 7))"
    ),
    "the longest name": lambda: "l" * MAX_LENGTH,
    "the longest child": lambda: f"l1({'x' * (MAX_LENGTH - 4)})",
    "the longest argument name": lambda: f"l1({'axis' * 2400}=1)",
    "the longest string": lambda: f"l1('{'x' * (MAX_LENGTH - 6)}')",
    "the longest paper notation": lambda: "l1,2," * 1999 + "1",
    "nearly a paper notation": lambda: "l1," * 3300 + "x",
    "separators that lead nowhere": lambda: "l" + "_," * 4900,
    "an unclosed quote after many quotes": lambda: "l1(" + "'" * 9001 + ")",
    "quotes that take turns": lambda: "l1(" + "'\"" * 4900 + ")",
    "an integer of 5,000 digits": lambda: "l1(axis=" + "9" * 5000 + ")",
    "a negative one": lambda: "l1(axis=-" + "9" * 5000 + ")",
    "a float of 5,000 digits": lambda: "l1(axis=0." + "9" * 5000 + ")",
    "an exponent of 5,000 digits": lambda: "l1(axis=1e" + "9" * 5000 + ")",
    "a huge float": lambda: "l1(axis=1e39)",
    "an infinite float": lambda: "l1(axis=1e999)",
    "digits that are not ASCII": lambda: "l1(axis=١)",
    "Python code": lambda: "__import__('os').system('echo')",
    "a Python call": lambda: "__import__('os')",
    "Python as an argument": lambda: "l1(axis=__import__('os'))",
    "Python as a key": lambda: "l1(__class__=1)",
    "a format string": lambda: "l1({0.__class__})",
    "a percent format": lambda: "l1(%s)",
    "a template": lambda: "l1({{ 7 * 7 }})",
    "a comment": lambda: "l1 # (linf)",
    "a line that ends": lambda: "l1\\\n(linf)",
    "a file": lambda: "../../etc/passwd",
    "bytes of a pickle": lambda: "\x80\x04K\x01.",
    "NUL at the front": lambda: "\x00l1",
    "NUL in a name": lambda: "l1\x00",
    "all control characters": lambda: "".join(map(chr, range(32))),
    "a terminal's escape sequence": lambda: "l1(\x1b[2J\x1b[31mlinf)",
    "a bell": lambda: "l1(\x07)",
    "a vertical tab": lambda: "l1(\x0blinf)",
    "right-to-left override": lambda: "l1(\u202efni1l)",
    "zero-width joiner": lambda: "l1(li\u200dnf)",
    "byte order mark": lambda: "\ufeffl1",
    "no-break space": lambda: "l1(\u00a0linf)",
    "line separator": lambda: "l1(\u2028linf)",
    "a lone surrogate": lambda: "l1(\ud800)",
    "a surrogate in a string": lambda: "l1('\udfff')",
    "surrogates only": lambda: "\udcff" * 1000,
    "combining marks": lambda: "l1" + "\u0301" * 5000,
    "a Cyrillic look-alike": lambda: "l1(\u04cfinf)",
    "full-width letters": lambda: "ｌ１（ｌｉｎｆ）",
    "a character that NFKC makes 18 of": lambda: "\ufdfa" * 3000,
    "emoji": lambda: "l1(👩‍👩‍👧‍👦)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_soon(name: str) -> None:
    text = HOSTILE[name]()
    with soon():
        with pytest.raises(SpecError) as caught:
            parse_tree(text)
        message = str(caught.value)
        repr(caught.value.message)
    assert len(message) < 600
    assert all(line.isprintable() for line in message.split("\n"))
    message.encode()


def test_the_longest_spec_that_is_allowed_still_works_soon() -> None:
    spec = f"l1(axis=({', '.join(map(str, range(1800)))}))"
    assert 9_000 < len(spec) <= MAX_LENGTH
    with soon():
        tree = parse_tree(spec + " " * (MAX_LENGTH - len(spec)))
        assert tree.root.axis == tuple(range(1800))
        with pytest.raises(SpecError, match="out of range"):
            bind(tree, 2)
    with pytest.raises(SpecError, match="too long"):
        parse_tree(spec + " " * (MAX_LENGTH + 1 - len(spec)))


def test_length_is_looked_at_before_anything_else() -> None:
    """A text that fails in every way is too long first."""
    with pytest.raises(SpecError, match="too long"):
        parse_tree("\x00(" * MAX_LENGTH)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    _parse_or_refuse(text)


@given(
    st.lists(
        st.sampled_from(
            [*'(()),,=*[1x \n"\x00漢\ud800', "l1", "linf", "ℓ∞", "lp", "axis", "-2", "2.5", "'s'"]
        ),
        max_size=30,
    ).map("".join)
)
def test_any_sequence_of_tokens(text: str) -> None:
    _parse_or_refuse(text)


def test_specs_with_a_few_characters_changed() -> None:
    rng = random.Random(20240902)
    seeds = ["l1(linf(axis=(1, 2)), axis=0)", "l1(2.0*enc=linf(axis=1), dec=l2)", "ℓ1(ℓ∞)"]
    alphabet = "l12infax=()*,.- '\"\t\x00∞ℓ漢\u0301\ud800"
    for _ in range(2000):
        chars = list(rng.choice(seeds))
        for _ in range(rng.randint(1, 4)):
            chars[rng.randrange(len(chars))] = rng.choice(alphabet)
        _parse_or_refuse("".join(chars))


def _parse_or_refuse(text: str) -> None:
    try:
        tree = parse_tree(text)
    except SpecError as error:
        message = str(error)
        assert all(line.isprintable() for line in message.split("\n"))
        message.encode()
    else:
        assert parse_tree(tree.spec) == tree
        assert tree.spec.isprintable()


@given(st.text(max_size=100))
def test_quoting_shows_every_character_on_one_line(text: str) -> None:
    shown = quote(text)
    assert shown.isprintable()
    assert shown[0] == shown[-1]
    if text.isascii() and text.isprintable() and len(text) <= 40:
        assert shown[1:-1] == text
