"""What trees over several arrays refuse, word for word, in ``snapshots/tree_errors.txt``."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support import Array, rehearsals

import projgen

Refusal = Callable[[], Any]


def refusals() -> dict[str, Refusal]:
    enc, dec = np.ones((3, 4)), np.ones((4, 3))
    bias = np.ones(3)
    two = projgen.build("l1(enc=linf(axis=1), dec=linf(axis=0))")
    pair = projgen.build("l1(linf, l2)")
    model = projgen.build('l1(linf(axis=1) @ "*.weight", l2 @ "*.bias")')
    params = {"fc.weight": enc, "fc.bias": bias}
    weighted = projgen.build("l1(linf(axis=1), w=price)")
    grouped = projgen.build("l1(linf(axis=1, groups=families))")
    count = projgen.build("l0(k=2, l2(axis=1))")
    whole = np.ones((4, 4))

    def bad(where: str, value: float = np.nan) -> dict[str, Array]:
        arrays = {"enc": enc.copy(), "dec": dec.copy()}
        arrays[where][1, 2] = value
        return arrays

    return {
        "an array for a branch": lambda: two(enc, 1.0),
        "a list for names": lambda: two([enc, dec], 1.0),
        "a child that is missing": lambda: two({"enc": enc, "decoder": dec}, 1.0),
        "a child too many": lambda: two({"enc": enc, "dec": dec, "bias": bias}, 1.0),
        "a keyword too many": lambda: two(radius=1.0, enc=enc, dec=dec, bias=bias),
        "arrays and keywords": lambda: two({"enc": enc, "dec": dec}, 1.0, enc=enc),
        "no arrays": lambda: two(radius=1.0),
        "no radius": lambda: two(enc=enc, dec=dec),
        "no radius for a chain": lambda: projgen.build("l1")(bias),
        "a dict for a sequence": lambda: pair({"a": enc, "b": bias}, 1.0),
        "an array for a sequence": lambda: pair(whole, 1.0),
        "a sequence too long": lambda: pair([enc, dec, bias], 1.0),
        "a dict for a leaf": lambda: two({"enc": {"weight": enc}, "dec": dec}, 1.0),
        "a dict for one array": lambda: weighted({"a": enc}, 1.0, price=bias),
        "a list for one array": lambda: weighted([enc], 1.0, price=bias),
        "a list for a leaf": lambda: two({"enc": enc.tolist(), "dec": dec}, 1.0),
        "an array for patterns": lambda: model(enc, 1.0),
        "nothing matches": lambda: model({"fc.weights": enc, "fc.bias": bias}, 1.0),
        "something is left": lambda: model({**params, "scale": bias}, 1.0),
        "an earlier pattern took all": lambda: projgen.build('l1(l2 @ "*", linf @ "fc.*")')(
            params, 1.0
        ),
        "integers": lambda: two({"enc": enc, "dec": dec.astype(int)}, 1.0),
        "NaN": lambda: two(bad("dec"), 1.0),
        "inf": lambda: two(bad("enc", np.inf), 1.0),
        "NaN for the norm": lambda: two.norm(bad("dec")),
        "NaN for the reference": lambda: projgen.build(two.spec, backend="numpy")(bad("dec"), 1.0),
        "-inf where negative values are none": lambda: projgen.build("l1(linf, nonneg=True)")(
            bad("enc", -np.inf)["enc"], 1.0
        ),
        "an axis out of range": lambda: two({"enc": enc, "dec": np.float64(1.0)}, 1.0),
        "too few axes": lambda: pair([enc, np.array(1.0)], 1.0),
        "an axis named twice": lambda: projgen.build("l1(l2(axis=-1), linf(axis=0), axis=0)")(
            [bias, enc], 1.0
        ),
        "children that do not fit": lambda: projgen.build("l2(l1(a=linf, b=linf), axis=0)")(
            {"a": enc, "b": dec}, 1.0
        ),
        "batches that do not fit": lambda: projgen.build("l1(linf(axis=1), l2(axis=1), axis=0)")(
            [np.ones((2, 3, 4)), np.ones((2, 3, 5))], 1.0
        ),
        "blocks that nobody spans": lambda: projgen.build(
            "linf(linf(axis=0, block=2, l2), axis=1)"
        )(enc, 1.0),
        "negative radius": lambda: two({"enc": enc, "dec": dec}, -1.0),
        "a vector of radii": lambda: two({"enc": enc, "dec": dec}, [1.0, 2.0]),
        "a radius and a count": lambda: count(enc, 1.0),
        "no weights": lambda: weighted(enc, 1.0),
        "weights of a wrong shape": lambda: weighted(enc, 1.0, price=np.ones(4)),
        "negative weights": lambda: weighted(enc, 1.0, price=-bias),
        "weights that are NaN": lambda: weighted(enc, 1.0, price=bias * np.nan),
        "weights that are words": lambda: weighted(enc, 1.0, price=["a", "b", "c"]),
        "another name": lambda: weighted(enc, 1.0, price=bias, weights=bias),
        "a name for a chain": lambda: projgen.build("l1(linf)")(enc, 1.0, w=bias),
        "weights for no child": lambda: projgen.build("l1(a=linf, b=l2, w=ws)")(
            {"a": enc, "b": bias}, 1.0, ws={"a": 1.0, "b": 2.0, "c": 3.0}
        ),
        "weights too many": lambda: projgen.build("l1(linf, l2, w=ws)")(
            [enc, bias], 1.0, ws=[1.0, 2.0, 3.0]
        ),
        "an infinite simplex": lambda: projgen.build("simplex")(bias, np.inf),
        "weights that lack a child": lambda: projgen.build("l1(a=linf, b=l2, w=ws)")(
            {"a": enc, "b": dec}, 1.0, ws={"a": bias}
        ),
        "no labels": lambda: grouped(enc, 1.0),
        "labels of a wrong length": lambda: grouped(enc, 1.0, families=[0, 1, 1]),
        "labels that are no integers": lambda: grouped(enc, 1.0, families=[0.0, 1.0, 1.0, 2.0]),
        "labels that are words": lambda: grouped(enc, 1.0, families=["x", "y", "x", "y"]),
        "negative labels": lambda: grouped(enc, 1.0, families=[0, -1, 1, 2]),
        "labels far apart": lambda: grouped(enc, 1.0, families=[0, 10**9, 1, 2]),
        "out of another structure": lambda: two(
            {"enc": enc, "dec": dec}, 1.0, out={"enc": enc.copy()}
        ),
        "out of another shape": lambda: two(
            {"enc": enc, "dec": dec}, 1.0, out={"enc": enc.copy(), "dec": enc.copy()}
        ),
        "one out for two": lambda: pair([whole, whole], 1.0, out=[whole.copy()] * 2),
        "out over another array": lambda: two(
            {"enc": whole, "dec": whole + 1}, 1.0, out={"enc": whole.copy(), "dec": whole}
        ),
        "an array twice in place": lambda: pair([whole, whole.T], 1.0, out=[whole, whole.T]),
        "unmatched": lambda: projgen.build("l1(a=l2)", unmatched="skip"),  # type: ignore[arg-type]
        "a plan": lambda: two.plan((3, 4)),
    }


def test_every_message(snapshot: Callable[[str, str], None]) -> None:
    lines = []
    with rehearsals():
        for name, refused in refusals().items():
            try:
                result = refused()
            except (TypeError, ValueError) as error:
                lines.append(f"{name}: {type(error).__name__}: {error}\n")
            else:
                pytest.fail(f"{name}: nothing was refused, the result is {result!r}")
    snapshot("tree_errors", "\n".join(lines))


def test_bad_input_leaves_every_out_as_it_was() -> None:
    """The last array has the bad value, and the others come first."""
    p = projgen.build('l1(linf(axis=1) @ "*")')
    y = {name: np.ones((5, 6)) for name in "abc"}
    y["c"][4, 5] = np.nan
    out = {name: np.full((5, 6), 7.0) for name in "abc"}
    for target in (out, y):
        before = {name: array.copy() for name, array in target.items()}
        with rehearsals(), pytest.raises(ValueError, match=r"c has nan at index \(4, 5\)"):
            p(y, 1.0, out=target)
        for name, array in target.items():
            np.testing.assert_array_equal(array, before[name])
