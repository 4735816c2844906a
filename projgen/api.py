"""What users call: `build` and `project`."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn, get_args

from projgen.check import parse_tree
from projgen.forks import wholly
from projgen.misplaced import in_build
from projgen.projection import Backend, Projection, Unmatched
from projgen.tree import NormTree


@wholly
def build(
    spec: str | NormTree,
    *,
    backend: Backend = "auto",
    threads: int | None = None,
    check_finite: bool | None = None,
    unmatched: Unmatched = "error",
    exact: bool = False,
    warm_start: bool = False,
    **misplaced: NoReturn,
) -> Projection:
    """A `Projection` for a spec such as ``"l1(linf(axis=1))"``. Cheap: kernels come later.

    Args:
        spec: a norm tree in the spec language, or one already parsed.
        backend: ``"auto"`` follows the array, ``"cpu"`` is Numba, ``"numpy"`` the reference
            interpreter in float64, ``"cuda"`` takes arrays on a GPU alone.
        threads: how many threads may share a large call; None for all processors, or
            ``PROJGEN_NUM_THREADS``. Results do not depend on it.
        check_finite: whether NaN and inf raise. If not, a batch entry that has one becomes NaN.
            By default they raise on the CPU, but not on a GPU, which each call would wait for.
        unmatched: what becomes of arrays that no child's pattern matches, or that no child
            names: ``"error"``, or ``"pass"`` to give them back as they are.
        exact: the nearest point of the ball, where an algorithm for it is known: `is_euclidean`
            trees, l1(linf) and l1(l1) of one array on the CPU.
        warm_start: whether searches for thresholds may start where the last call of the same form
            ended, which is quicker if the array has changed little. The last bits of a result
            may then depend on the calls before.

    Raises:
        SpecError: the spec is wrong; the message points at the place.
        ValueError: an unknown backend, or fewer than one thread.
        TypeError: an argument that it does not have; of one that belongs to the call of what it
            makes, such as ``radius``, the message says so.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}: choose from {', '.join(get_args(Backend))}")
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads must be a whole number of at least 1, got {threads!r}")
    tree = spec if isinstance(spec, NormTree) else parse_tree(spec)
    for name in misplaced:
        raise TypeError(in_build(tree, name, misplaced[name]))
    if unmatched not in get_args(Unmatched):
        raise ValueError(f"unmatched is 'error' or 'pass', not {unmatched!r}")
    check = None if check_finite is None else bool(check_finite)
    return Projection(tree, backend, threads, check, unmatched, bool(exact), bool(warm_start))


def project(
    y: Any,
    spec: str | NormTree,
    radius: Any = None,
    *,
    out: Any = None,
    return_info: bool = False,
    exact: bool = False,
    **arrays: Any,
) -> Any:
    """Project `y` onto the ball of the tree `spec`: ``build(spec, exact=exact)(y, radius, …)``.

    Args:
        y: an array, or for a tree with branches a structure of arrays.
        spec: a norm tree in the spec language, or one already parsed.
        radius: a number >= 0 in the units of the spec's norm, or an array that broadcasts over the
            batch axes. Left out where the spec has the count of l0.
        out: where the result goes: an array like `y`, or `y` itself for in place.
        return_info: whether to return a `projgen.Info` as well.
        exact: whether it has to be the nearest point of the ball: see `build`.
        **arrays: the weights and group labels that the spec names.

    Returns:
        The projection, of `y`'s type, dtype and memory order; with `return_info` a pair.

    Raises:
        SpecError, TypeError, ValueError, ImportError, RuntimeError: as `build` and the call of a
            `Projection`.
    """
    if not isinstance(spec, (str, NormTree)):
        raise TypeError(
            f"a spec is a str such as 'l1(linf(axis=1))', not {type(spec).__name__}: the call is "
            "project(y, spec, radius)"
        )
    p = remembered(spec, exact)
    return p(y, radius, out=out, return_info=return_info, **arrays)


@lru_cache(maxsize=128)
def remembered(spec: str | NormTree, exact: bool) -> Projection:
    """What `build` makes of these, made once: it has its kernels ready after its first call."""
    return build(spec, exact=exact)


__all__ = ["build", "project"]
