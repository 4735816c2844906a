"""Feature selection for scikit-learn: models whose weights stay in the ball of a norm tree.

    >>> from projgen.sklearn import ProjectedAutoencoderClassifier
    >>> model = ProjectedAutoencoderClassifier(radius=1.0, random_state=0).fit(X, y)
    >>> model.get_support(indices=True)  # the features that are left

See docs/sklearn.md. It needs scikit-learn (the extra ``sklearn``); the autoencoder needs
PyTorch as well, when it fits.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from projgen.sklearn.autoencoder import ProjectedAutoencoderClassifier
    from projgen.sklearn.linear import ProjectedLinearRegression, ProjectedLogisticRegression

if find_spec("sklearn") is None:  # the top-level package: this one is projgen.sklearn
    raise ImportError(
        "projgen.sklearn needs scikit-learn: pip install scikit-learn", name="sklearn"
    )

__all__ = [
    "ProjectedAutoencoderClassifier",
    "ProjectedLinearRegression",
    "ProjectedLogisticRegression",
]

_LATER = {
    "ProjectedAutoencoderClassifier": "projgen.sklearn.autoencoder",
    "ProjectedLinearRegression": "projgen.sklearn.linear",
    "ProjectedLogisticRegression": "projgen.sklearn.linear",
}


def __getattr__(name: str) -> Any:
    """scikit-learn takes a second to import, so it comes with the first name that is used."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
