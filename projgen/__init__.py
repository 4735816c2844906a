"""Projections onto the balls of norm trees, compiled from a one-line spec.

    >>> import numpy as np, projgen
    >>> p = projgen.build("l1(linf(axis=1))")
    >>> x = p(np.random.default_rng(0).standard_normal((100, 50)), radius=10.0)
    >>> round(p.norm(x), 9)
    10.0

`build` compiles a spec to a `Projection`; `project` does it in one go. The guide begins
at docs/index.md.
"""

from typing import TYPE_CHECKING, Any

from projgen.api import build, project
from projgen.errors import CacheWarning, SpecError
from projgen.projection import Projection

if TYPE_CHECKING:
    from projgen.info import Info
    from projgen.pullback import Pullback
    from projgen.sweep import Path, path

__version__ = "0.1.0"
__all__ = [
    "CacheWarning",
    "Info",
    "Path",
    "Projection",
    "Pullback",
    "SpecError",
    "__version__",
    "build",
    "path",
    "project",
]

_LATER = {
    "Info": "projgen.info",
    "Path": "projgen.sweep",
    "Pullback": "projgen.pullback",
    "path": "projgen.sweep",
}


_PACKAGES = ("sklearn", "torch")  # which need what few have


def __getattr__(name: str) -> Any:
    """What few programs need is imported by those."""
    if name not in _LATER:
        hint = f": import projgen.{name} first" * (name in _PACKAGES)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    from importlib import import_module

    return getattr(import_module(_LATER[name]), name)
