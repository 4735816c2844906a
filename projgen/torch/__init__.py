"""Training with projections, in PyTorch: constraints, reports, and smaller models.

    >>> import projgen.torch
    >>> constraint = projgen.torch.constrain(
    ...     optimizer, model, {"encoder.0.weight": "l1(linf(axis=0))"}, radius=1.0
    ... )

See docs/training.md and docs/shrinking.md. It needs PyTorch (the extra ``torch``).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projgen.torch.constraint import Constraint, constrain
    from projgen.torch.gradients import Projected, parametrize, project
    from projgen.torch.history import Watch, watch
    from projgen.torch.reports import Report, report
    from projgen.torch.schedule import Ramp, cosine, geometric, linear
    from projgen.torch.shrinking import Shrunk, shrink

if find_spec("torch") is None:  # the top-level package: this one is projgen.torch
    raise ImportError("projgen.torch needs PyTorch: pip install torch", name="torch")

__all__ = [
    "Constraint",
    "Projected",
    "Ramp",
    "Report",
    "Shrunk",
    "Watch",
    "constrain",
    "cosine",
    "geometric",
    "linear",
    "parametrize",
    "project",
    "report",
    "shrink",
    "watch",
]

# No module has the name of what is taken from it: importing it would put it in that one's place.
_LATER = {
    "Constraint": "projgen.torch.constraint",
    "Projected": "projgen.torch.gradients",
    "Ramp": "projgen.torch.schedule",
    "Report": "projgen.torch.reports",
    "Shrunk": "projgen.torch.shrinking",
    "Watch": "projgen.torch.history",
    "constrain": "projgen.torch.constraint",
    "cosine": "projgen.torch.schedule",
    "geometric": "projgen.torch.schedule",
    "linear": "projgen.torch.schedule",
    "parametrize": "projgen.torch.gradients",
    "project": "projgen.torch.gradients",
    "report": "projgen.torch.reports",
    "shrink": "projgen.torch.shrinking",
    "watch": "projgen.torch.history",
}


def __getattr__(name: str) -> Any:
    """PyTorch takes seconds to import, so it comes with the first name that is used."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
