"""The data: what scikit-learn makes, and gene expression that other packages bring along."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.datasets import make_classification


class Problem(NamedTuple):
    """Samples by features, their classes, and which features matter, where that is known."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    informative: NDArray[np.bool_] | None = None


class Missing(LookupError):
    """A data set is not on this machine; the message says how to get it."""


TITLES = {
    "made64": "make_classification, 64 informative of 1000",
    "made16": "make_classification, 16 informative of 1000",
    "khan": "Khan: tumours, 2308 genes",
    "pbmc": "PBMC: blood cells, 765 genes",
    "tiny": "make_classification, 5 informative of 40",
}
SHORT = {
    "made64": "64 informative",
    "made16": "16 informative",
    "khan": "Khan",
    "pbmc": "PBMC",
    "tiny": "5 informative",
}


@lru_cache(maxsize=4)
def load(name: str, seed: int, khan: Path | None = None) -> Problem:
    """The problem `name`. Of those that are made, each `seed` is another one.

    `khan` is a file with Khan's data, in place of those of islp. Missing: the data are not here.
    """
    if name == "khan":
        return _khan(khan)
    if name == "pbmc":
        return _pbmc()
    return _made(seed, **MADE[name])


# Separations of 1 and 0.8: the ends of the papers' range.
MADE: dict[str, dict[str, Any]] = {
    "made64": {"n_samples": 1000, "n_features": 1000, "n_informative": 64, "class_sep": 1.0},
    "made16": {"n_samples": 1000, "n_features": 1000, "n_informative": 16, "class_sep": 0.8},
    "tiny": {"n_samples": 120, "n_features": 40, "n_informative": 5, "class_sep": 2.0},
}


def _made(seed: int, n_informative: int, n_features: int, **options: Any) -> Problem:
    """Informative features stand first where nothing is shuffled, so it is shuffled here.

    There are no redundant features, of which scikit-learn makes two unless it is told otherwise:
    they are mixtures of informative ones, and to find them would be neither right nor wrong.
    """
    x, y = make_classification(
        n_features=n_features,
        n_informative=n_informative,
        n_redundant=0,
        shuffle=False,
        random_state=seed,
        **options,
    )
    rng = np.random.default_rng(seed)
    rows, columns = rng.permutation(len(x)), rng.permutation(n_features)
    return Problem(x[rows][:, columns].astype(np.float32), y[rows], columns < n_informative)


def _khan(file: Path | None) -> Problem:
    """Khan et al. 2001: the 63 and 20 samples as published, together; four kinds of tumour."""
    if file is not None:
        with np.load(file) as parts:
            x = np.concatenate([parts["x_train"], parts["x_test"]])
            y = np.concatenate([parts["y_train"], parts["y_test"]])
    else:
        folder = _folder("ISLP", "Khan", "pip install --no-deps islp, or --khan FILE") / "data"
        x, y = (
            np.concatenate(
                [
                    np.loadtxt(folder / f"Khan_{of}{part}.csv", delimiter=",", skiprows=1)
                    for part in ("train", "test")
                ]
            )
            for of in "xy"
        )
    return Problem(x.astype(np.float32), y.astype(np.int64))


def _pbmc() -> Problem:
    """700 blood cells of Zheng et al. 2017, in 10 types: logarithms of counts, before scaling."""
    folder = _folder("scanpy", "PBMC", "pip install --no-deps scanpy h5py")
    try:
        import h5py
    except ImportError:
        raise Missing("PBMC: pip install h5py") from None
    with h5py.File(folder / "datasets" / "10x_pbmc68k_reduced.h5ad") as file:
        raw = file["raw.X"]
        parts = raw["data"][:], raw["indices"][:], raw["indptr"][:]
        x = csr_matrix(parts, shape=raw.attrs["h5sparse_shape"]).toarray()
        return Problem(x.astype(np.float32), file["obs"]["bulk_labels"].astype(np.int64))


def _folder(package: str, name: str, remedy: str) -> Path:
    """Where an installed package is; it is not imported."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise Missing(f"{name}: {remedy}")
    return Path(found.origin).parent
