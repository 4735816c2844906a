"""A projection: what `projgen.build` makes, ready to be called with arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from projgen.arrays import address, check_dtype, detached, on_gpu, view, writable_view, written
from projgen.bind import Binding, bind, bind_shape
from projgen.check import parse_tree
from projgen.dtypes import put
from projgen.exact import exact_tree, is_joint
from projgen.forks import wholly
from projgen.operands import check_out, check_radius, in_shards, require_finite
from projgen.tree import NormTree

if TYPE_CHECKING:  # the compiler itself is imported when something is compiled
    from projgen.compiler import Compiled
    from projgen.cpu.call import Call
    from projgen.cpu.pull import PullCall
    from projgen.cuda.compiler import Compiled as CudaCompiled
    from projgen.plan import Plan
    from projgen.pullback import Pullback
    from projgen.reading import Before, Ready
    from projgen.structure import Match
    from projgen.tree_plan import TreePlan

Array = NDArray[Any]
Backend = Literal["auto", "cpu", "cuda", "numpy"]
Unmatched = Literal["error", "pass"]


class Projection:
    """A compiled projection onto the balls of one norm tree. Make it with `build`.

    Immutable, hashable and picklable; equal if built from the same tree with the same options; safe
    to call from several threads at once. Kernels are compiled when first needed, one for each
    combination of dtype, rank and memory order.
    """

    __slots__ = (
        "_backend",
        "_before",
        "_calls",
        "_check_finite",
        "_exact",
        "_is_plain",
        "_matches",
        "_pulls",
        "_ready",
        "_threads",
        "_tree",
        "_unmatched",
        "_walked",
        "_warm_start",
    )
    _tree: NormTree
    _backend: Backend
    _threads: int | None
    _check_finite: bool | None
    _unmatched: Unmatched
    _exact: bool
    _warm_start: bool
    _walked: NormTree  # what is projected on: `_tree`, or for exact=True one with the same ball
    _is_plain: bool  # a chain over one array, which goes the shortest way
    _calls: dict[tuple[Any, ...], Call]
    _pulls: dict[Any, PullCall]  # the ways back
    _matches: dict[Any, Match]  # of trees: for structures of this outline,
    _ready: dict[Any, Ready]  # and for arrays of these forms in them
    _before: dict[Any, Before]  # and for these very arrays

    def __init__(
        self,
        tree: NormTree,
        backend: Backend,
        threads: int | None,
        check_finite: bool | None,
        unmatched: Unmatched = "error",
        exact: bool = False,
        warm_start: bool = False,
    ) -> None:
        set_ = object.__setattr__
        set_(self, "_tree", tree)
        set_(self, "_backend", backend)
        set_(self, "_threads", threads)
        set_(self, "_check_finite", check_finite)
        set_(self, "_unmatched", unmatched)
        set_(self, "_exact", exact)
        set_(self, "_warm_start", warm_start)
        set_(self, "_walked", exact_tree(tree) if exact else tree)
        set_(self, "_is_plain", tree.is_plain)
        for memory in ("_calls", "_pulls", "_matches", "_ready", "_before"):
            set_(self, memory, {})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Projection is immutable: cannot set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Projection is immutable: cannot delete {name!r}")

    @property
    def spec(self) -> str:
        """The canonical spec."""
        return self._tree.spec

    @property
    def tree(self) -> NormTree:
        """The norm tree."""
        return self._tree

    @property
    def is_euclidean(self) -> bool:
        """Whether the result is the nearest point of the ball, for arrays of any shape."""
        return self._exact or self._tree.is_euclidean

    @property
    def is_joint(self) -> bool:
        """Whether all groups are projected together, as the nearest point of l1(linf) asks for."""
        return self._exact and is_joint(self._walked)

    @property
    def backend(self) -> Backend:
        """What it was built for: see `build`."""
        return self._backend

    @property
    def unmatched(self) -> Unmatched:
        """What becomes of arrays that the tree does not name: see `build`."""
        return self._unmatched

    def __call__(
        self,
        /,
        y: Any = None,
        radius: Any = None,
        *,
        out: Any = None,
        return_info: bool = False,
        **arrays: Any,
    ) -> Any:
        """Project `y` onto the ball of `radius`.

        Args:
            y: an array of float32, float64, float16 or bfloat16: NumPy (with ml_dtypes for
                bfloat16), PyTorch (and its DTensors: docs/sharded.md), JAX, CuPy, or anything with
                the buffer interface, an array interface or DLPack. Any strides.
            radius: a number >= 0 in the units of `y`'s norm (inf allowed), or an array that
                broadcasts over the batch axes. Left out where the spec has the count of l0.
            out: where the result goes: an array of `y`'s shape and dtype that does not overlap
                `y`, or `y` itself for in place.
            return_info: whether to say what was done as well.
            **arrays: the weights and group labels that the spec names; and, in place of `y`,
                the arrays of a tree whose root's children have names.

        A tree with branches takes a structure of arrays as `y`, projects them as one, and gives
        a structure like it: a dict, a dataclass or a named tuple for named children, a list or a
        tuple for others, any nest of these for patterns.

        Returns:
            The projection: `out` if given, else a new array of `y`'s type, dtype and memory
            order. It is `y`'s copy, bit for bit, where `y`'s norm is at most `radius`.
            Of half types, arithmetic is in float32, and each number is rounded to the nearest
            half when it is written, of two the even one. So the result's norm may be above
            `radius` by as much as that rounding is; no number grows.
            With `return_info` a pair: the projection, the same to the bit, and a `projgen.Info`;
            that costs more sweeps over both arrays, in place a copy of `y`, and waits for a GPU.

        Raises:
            SpecError: the tree does not fit `y`'s rank.
            TypeError: a wrong dtype, or something that is no array.
            ValueError: shapes, a negative or NaN radius, NaN or inf in `y` (where `check_finite`
                applies), `out` read-only or overlapping. `out` is untouched then.
            ImportError, RuntimeError: `y` is on a GPU, and CuPy or a driver is missing.
        """
        if return_info:
            return self._with_info(y, radius, out, arrays)
        if shards := in_shards(y, arrays):
            return shards.project(self, y, radius, out, arrays)
        if arrays or not self._is_plain:
            if self._calls and not arrays:
                done = self._like_before(y, radius, out)
                if done is not None:
                    return done
            return self._project_tree(y, radius, out, arrays)
        if radius is None:
            raise TypeError("a radius is missing: the call is p(y, radius)")
        if gpu := self._gpu(y):
            return gpu.project(self, y, radius, out)
        source, wrap = view(y)
        given = None if out is None else source if out is y else writable_view(out)
        if isinstance(radius, float):
            done = self._again(source, radius, given)
            if done is not None:
                return wrap(done) if out is None else written(out)
        done = self._project_array(source, radius, given)
        return wrap(done) if out is None else written(out)

    @wholly
    def _with_info(self, y: Any, radius: Any, out: Any, arrays: dict[str, Any]) -> Any:
        from projgen.compare import with_info

        return with_info(self, y, radius, out, arrays)

    @wholly
    def _project_tree(self, y: Any, radius: Any, out: Any, arrays: dict[str, Any]) -> Any:
        from projgen import calls

        return calls.project(self, y, radius, out, arrays)

    @wholly
    def _project_array(self, y: Array, radius: Any, out: Array | None) -> Array:
        """The long way: everything is checked, and made where it does not exist yet."""
        check_dtype(y)
        binding = self._bind(y)
        radii = check_radius(radius, binding, y.shape)
        target = np.empty_like(y) if out is None else out
        if out is not None:
            check_out(y, out)
        if y.size:
            self._project(binding, y, target, radii)
        return target

    def _like_before(self, y: Any, radius: Any, out: Any) -> Any:
        """The short way of a tree that is one kernel over one array; None, and nothing done, if
        that won't do."""
        if not isinstance(radius, float) or self._gpu(y):
            return None
        try:
            source, wrap = view(y)
            given = None if out is None else source if out is y else writable_view(out)
        except (TypeError, ValueError):  # told in the tree's words
            return None
        done = self._again(source, radius, given)
        return None if done is None else wrap(done) if out is None else written(out)

    def _again(self, y: Array, radius: float, out: Array | None) -> Array | None:
        """The short way, for arrays like those of an earlier call; or None, and nothing done."""
        target: Array
        if out is y:
            target, strides = y, None
        elif out is None:
            target = np.empty_like(y)
            strides = target.strides
        elif out.shape == y.shape and out.dtype == y.dtype:
            target, strides = out, out.strides
        else:
            return None
        call = self._calls.get((y.dtype, y.shape, y.strides, strides))
        if call is None or not (radius >= 0 and target.flags.writeable):
            return None
        y_at = address(y)
        out_at = y_at if target is y else address(target)
        if (y_at | out_at) % y.itemsize or (target is not y and call.overlap(y_at, out_at)):
            return None
        verdict = call.project(y_at, out_at, radius)
        if verdict == call.OUT_OF_RANGE:
            return None
        if verdict == call.INSIDE and target is not y:
            np.copyto(target, y)
        return target

    @wholly
    def vjp(self, /, y: Any = None, radius: Any = None, **arrays: Any) -> tuple[Any, Pullback]:
        """The projection x of `y`, and the way back: a `Pullback`.

        That is a function which takes the gradient of x, and gives those of `y` and of the radius.
        The arguments and errors are those of a call; TypeError for what is on a GPU and is no chain
        of l1, l2 and linf over one array.
        """
        from projgen import pullback

        return pullback.vjp(self, y, radius, arrays)

    @wholly
    def norm(self, /, y: Any = None, **arrays: Any) -> Any:
        """The tree's norm of `y`: a float, or an array over the batch axes if there are any."""
        if shards := in_shards(y, arrays):
            return shards.norm(self, y, arrays)
        if arrays or not self._is_plain:
            from projgen import calls

            return calls.norm(self, y, arrays)
        if gpu := self._gpu(y):
            return gpu.norm(self, y)
        source, wrap = view(y)
        check_dtype(source)
        binding = self._bind(source)
        if source.size == 0:
            norms: Array = np.zeros(tuple(source.shape[axis] for axis in binding.batch))
        elif self._backend == "numpy":
            from projgen import interpret

            norms = np.asarray(interpret.norm(binding, self._finite(source)))
        else:
            from projgen.cpu import project

            norms = project.norms(self, binding, source)
        return wrap(norms) if binding.batch else float(norms)

    @wholly
    def active(self, x: Any = None, /, **arrays: Any) -> Any:
        """Which groups of the leaf level are not all zero: bool, of `x`'s shape less its axes.

        One bool where no axis is left. A structure of such arrays for a tree with branches; with
        None for what passes unmatched. `x` need not be a projection.
        """
        if shards := in_shards(x, arrays):
            return shards.active(self, x, arrays)
        if arrays or not self._is_plain:
            from projgen import calls

            return calls.active(self, x, arrays)
        if gpu := self._gpu(x):
            return gpu.active(self, detached(x))
        source, wrap = view(detached(x))  # bools have no gradients
        axes = bind(self._tree, source.ndim, source.shape).levels[-1].axes
        active = np.any(source != 0, axis=axes)
        return wrap(active) if isinstance(active, np.ndarray) else bool(active)

    @wholly
    def plan(
        self, shape: Any, dtype: DTypeLike | Any = np.float32, **arrays: Any
    ) -> Plan | TreePlan:
        """The plan for C-ordered arrays of `shape`; ``print`` it.

        A whole tree takes a structure of shapes, such as ``{"enc": (1000, 1000)}``, and one dtype
        or a structure alike; `arrays` are the labels and weights that the spec names, if they are
        at hand.
        """
        if not self._is_plain or arrays:
            return self._plan_tree(shape, dtype, arrays)
        return self._compile(shape, dtype).plan

    @wholly
    def source(self, shape_or_rank: Any, dtype: DTypeLike | Any = np.float32, **arrays: Any) -> str:
        """The source that is compiled for C-ordered arrays of this shape, or of this rank.

        For a whole tree, whose shapes are a structure as in `plan`, that of each of its kernels.
        """
        from projgen.shapes import example_shape

        is_rank = isinstance(shape_or_rank, (int, np.integer))
        shape = example_shape(int(shape_or_rank)) if is_rank else shape_or_rank
        if not self._is_plain or arrays:
            return self._plan_tree(shape, dtype, arrays).source
        return self._compile(shape, dtype).source

    def _plan_tree(self, shapes: Any, dtypes: Any, arrays: dict[str, Any]) -> TreePlan:
        from projgen.tree_plan import plan_tree
        from projgen.weights import check_names

        check_names(self._tree, arrays)
        backend = "cuda" if self._backend == "cuda" else "cpu"
        return plan_tree(self._tree, shapes, dtypes, arrays, self._unmatched, backend=backend)

    def _compile(self, shape: Any, dtype: DTypeLike) -> Compiled | CudaCompiled:
        from projgen.compiler import compile_tree
        from projgen.shapes import read_shape

        shape = read_shape(shape)
        if any(extent < 1 for extent in shape):
            raise ValueError(f"no plan for shape {shape}: every extent must be at least 1")
        cuda = self._backend == "cuda"
        return compile_tree(self._walked, shape, dtype, cuda=cuda, exact=self.is_joint)

    def _gpu(self, y: Any) -> Any:
        """The module that projects `y` where it lies on a GPU, or None."""
        if self._backend != "cuda" and not (self._backend == "auto" and on_gpu(y)):
            return None
        if self.is_joint:
            raise TypeError("the nearest point of an l1(linf) ball is found on the CPU alone")
        from projgen.cuda import project

        return project

    def _bind(self, y: Array) -> Binding:
        return bind_shape(self._walked, y.shape)

    def _project(self, binding: Binding, y: Array, out: Array, radii: float | Array) -> None:
        if self._backend == "numpy":
            from projgen import exact, interpret

            reference = exact.project if self.is_joint else interpret.project
            put(out, reference(binding, self._finite(y), radii))
            return
        from projgen.cpu import project

        project.project(self, binding, y, out, radii)

    def _finite(self, y: Array, name: str = "y") -> Array:
        """`y`; a ValueError for NaN and inf, unless the check is off."""
        if self._check_finite is not False:
            require_finite(y, name)
        return y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Projection) and self._state() == other._state()

    def __hash__(self) -> int:
        return hash(self._state())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.spec, *self._state()[1:])

    def _state(self) -> tuple[Any, ...]:
        own = self._backend, self._threads, self._check_finite, self._unmatched, self._exact
        return self._tree, *own, self._warm_start

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value!r}"
            for name, value, default in (
                ("backend", self._backend, "auto"),
                ("threads", self._threads, None),
                ("check_finite", self._check_finite, None),
                ("unmatched", self._unmatched, "error"),
                ("exact", self._exact, False),
                ("warm_start", self._warm_start, False),
            )
            if value != default
        )
        return f"projgen.build({self.spec!r}{options})"


def _rebuild(
    spec: str,
    backend: Backend,
    threads: int | None,
    check_finite: bool | None,
    unmatched: Unmatched,
    exact: bool,
    warm_start: bool,
) -> Projection:
    own = backend, threads, check_finite, unmatched, exact, warm_start
    return Projection(parse_tree(spec), *own)


__all__ = ["Backend", "Projection", "Unmatched"]
