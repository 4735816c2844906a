"""Functions inside a kernel, compiled for the kernel alone.

Numba makes machine code of each function that it compiles, so that others can call it by itself.
Those of a kernel are called by nothing but the kernel, into which Numba links and inlines their
LLVM code: what else it would make of them is some 15 percent of the time that a kernel takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_INNER = re.compile(r"^@register_jitable.*\ndef (\w+)\(", re.MULTILINE)


@contextmanager
def linked_only(source: str) -> Iterator[None]:
    """Inside, functions that `source` defines for its kernel are made ready to link, no further.

    Other threads compile nothing meanwhile. Without effect on a Numba that works otherwise.
    """
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
    codegen = context.codegen()
    if not _is_known(context, codegen):
        yield
        return
    inner = frozenset(_INNER.findall(source))
    with global_compiler_lock:
        own, library = vars(context).get("get_executable"), codegen._library_class
        ordinary = context.get_executable

        def get_executable(library: Any, fndesc: Any, env: Any) -> Any:
            # Never called, but what Numba knows the function by: each needs one of its own.
            return object().__sizeof__ if library.name in inner else ordinary(library, fndesc, env)

        context.get_executable = get_executable
        codegen._library_class = _that_links(library, inner)
        try:
            yield
        finally:
            codegen._library_class = library
            del context.get_executable
            if own is not None:  # a finaliser's load is nested
                context.get_executable = own


def _is_known(context: Any, codegen: Any) -> bool:
    library = getattr(codegen, "_library_class", None)
    steps = "_finalize_dynamic_globals", "_verify_declare_only_symbols", "_finalize_final_module"
    return hasattr(context, "get_executable") and all(hasattr(library, step) for step in steps)


def _that_links(library_class: Any, inner: frozenset[str]) -> Any:
    class Library(library_class):  # type: ignore[misc]
        def _finalize_final_module(self) -> None:
            if self.name not in inner:
                super()._finalize_final_module()
                return
            self._finalize_dynamic_globals()
            self._verify_declare_only_symbols()
            self._finalized = True

    return Library
