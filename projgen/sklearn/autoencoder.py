"""`ProjectedAutoencoderClassifier`: the papers' supervised autoencoder, which selects features."""

from __future__ import annotations

import time
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.base import ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from projgen.sklearn.selection import (
    FeatureSelection,
    fitted_scaler,
    read_projection,
    require_count,
    require_number,
    weights_of_classes,
)

if TYPE_CHECKING:
    from projgen.sklearn.network import SupervisedAutoencoder, Training

Array = NDArray[Any]


class ProjectedAutoencoderClassifier(ClassifierMixin, FeatureSelection):
    """A classifier that finds the features which matter: a supervised autoencoder whose first layer
    is projected (Perez and Barlaud, arXiv 2405.02086).

    An encoder takes the features to hidden units, and these to one latent unit for each class; a
    decoder goes back. The loss of a sample is the cross-entropy of its latent units, and
    `reconstruction` times the smooth l1 distance of its features, summed, from those rebuilt. The
    weight of the first layer, (hidden, features), is projected while it trains, so that columns,
    which are features, become zero. Then comes the *double descent*: the network is rewound to its
    initial weights, but for the features that are zero, and trained again with those left.

    Args:
        spec: the norm tree of the first layer's weight, or what `projgen.build` made of one, such
            as ``projgen.build("l1(linf(axis=0))", exact=True)``; or None for no projection, with
            which all features are kept and there is no second phase.
        radius: of the ball: a number, a part of the norm that the weight has in the beginning, such
            as ``"10%"``, or a schedule of `projgen.torch`, which counts steps. The smaller, the
            fewer features. None where the spec has the count of l0.
        hidden: the number of hidden units; or a tuple, with one for each hidden layer.
        activation: ``"silu"``, ``"relu"``, ``"gelu"``, ``"elu"``, ``"leaky_relu"`` or ``"tanh"``.
        reconstruction: the weight of the reconstruction in the loss.
        epochs: of the first phase, which is constrained.
        rewound_epochs: of the second; 0 for none.
        learning_rate: Adam's.
        batch_size: samples in a step.
        every: when to project: ``"epoch"``; ``"end"``, once after the first phase; or a number of
            steps. Any of them projects at the end of the phase.
        standardize: whether features are brought to mean 0 and variance 1 first, as the ball treats
            them all alike. `transform` gives features as they came.
        class_weight: weights of classes in the cross-entropy: a dict, ``"balanced"`` or None.
        random_state: an int makes the results the same each time. PyTorch's own random numbers are
            not touched.
        device: where PyTorch trains: ``"cpu"``, or ``"cuda"``, where projections need CuPy. A
            fitted model is on the CPU.
        verbose: whether to print loss and number of features after each epoch.

    Attributes:
        classes_: the classes, in the order of the latent units.
        support_: bool, which features are left.
        feature_importances_: the Euclidean length of each feature's column in the first layer.
        module_: the network, a `torch.nn.Module` in float32 with ``encoder`` and ``decoder``. It
            takes features as ``scaler_`` gives them.
        scaler_: the fitted StandardScaler, or None.
        losses_: the mean loss of each epoch, of both phases.
        n_iter_: how many epochs there were, in both phases.
        n_features_in_: how many features it was fitted with.
        feature_names_in_: their names, if the data had any.
        n_projections_: how many projections there were.
        projection_seconds_: their time in all.
        fit_seconds_: the time of `fit`.
    """

    classes_: Array
    module_: SupervisedAutoencoder
    scaler_: StandardScaler | None

    def __init__(
        self,
        spec: Any = "l1(linf(axis=0))",
        radius: Any = 1.0,
        *,
        hidden: int | tuple[int, ...] = 100,
        activation: str = "silu",
        reconstruction: float = 5e-5,
        epochs: int = 30,
        rewound_epochs: int = 30,
        learning_rate: float = 5e-4,
        batch_size: int = 8,
        every: int | str = "epoch",
        standardize: bool = True,
        class_weight: Any = None,
        random_state: Any = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        self.spec = spec
        self.radius = radius
        self.hidden = hidden
        self.activation = activation
        self.reconstruction = reconstruction
        self.epochs = epochs
        self.rewound_epochs = rewound_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.every = every
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any) -> ProjectedAutoencoderClassifier:
        """Train on `X`, of shape (samples, features), and the classes `y`.

        Raises:
            SpecError: the spec does not fit a weight (hidden, features), or makes no feature zero.
            TypeError, ValueError: a parameter, `X` or `y` is wrong; the training diverged.
            ImportError: PyTorch is missing.

        A UserWarning if no feature is left.
        """
        begun = time.perf_counter()
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        training, hidden = self._training(X.shape[1])
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y has one class, {classes.tolist()[0]!r}: a classifier needs two")
        self.classes_ = classes
        self.scaler_ = fitted_scaler(X) if self.standardize else None

        from projgen.sklearn.network import first_weight, fit_network

        weights = weights_of_classes(self.class_weight, self.classes_, y)[codes]
        sizes = [X.shape[1], *hidden, len(self.classes_)]
        self.module_ = fit_network(
            training, sizes, self.activation, self.device, self._scaled(X), codes,
            weights / weights.mean(),
        )  # fmt: skip
        weight = first_weight(self.module_)
        self.support_ = (weight != 0).any(axis=0)
        self.feature_importances_ = np.linalg.norm(weight, axis=0)
        self.losses_ = training.losses
        self.n_iter_ = len(training.losses)
        self.n_projections_ = training.projections
        self.projection_seconds_ = training.projection_seconds
        if not self.support_.any():
            warnings.warn(
                f"no feature is left: radius={self.radius!r} is too small, and the same is "
                "predicted for all samples",
                stacklevel=2,
            )
        self.fit_seconds_ = time.perf_counter() - begun
        return self

    def _training(self, features: int) -> tuple[Training, tuple[int, ...]]:
        """The parameters, checked; and the sizes of hidden layers."""
        hidden = self.hidden if isinstance(self.hidden, (tuple, list)) else (self.hidden,)
        sizes = tuple(require_count("hidden", size, 1) for size in hidden)
        if not sizes:
            raise ValueError("hidden is () for no hidden layer: there has to be one")
        projection = None
        if self.spec is not None:
            projection = read_projection(self.spec, (sizes[0], features))
        if isinstance(self.radius, (int, float)):
            require_number("radius", self.radius, above=False)
        if self.every not in ("epoch", "end"):
            try:
                require_count("every", self.every, 1)
            except TypeError:
                raise TypeError(f"every is 'epoch', 'end' or a number of steps, not {self.every!r}"
                                ) from None  # fmt: skip
        if find_spec("torch") is None:
            raise ImportError(
                "ProjectedAutoencoderClassifier needs PyTorch: pip install torch", name="torch"
            )
        from projgen.sklearn.network import ACTIVATIONS, Training

        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(ACTIVATIONS)}; got "
                             f"{self.activation!r}")  # fmt: skip
        return Training(
            projection,
            self.radius,
            self.every,
            epochs=require_count("epochs", self.epochs, 1),
            rewound_epochs=require_count("rewound_epochs", self.rewound_epochs, 0),
            learning_rate=require_number("learning_rate", self.learning_rate, above=True),
            batch_size=require_count("batch_size", self.batch_size, 1),
            reconstruction=require_number("reconstruction", self.reconstruction, above=False),
            verbose=bool(self.verbose),
            rng=check_random_state(self.random_state),
        ), sizes

    def _scaled(self, X: Array) -> Array:
        return X if self.scaler_ is None else np.asarray(self.scaler_.transform(X))

    def encode(self, X: Any) -> Array:
        """The latent units: float64 of shape (samples, classes)."""
        from projgen.sklearn.network import evaluate

        check_is_fitted(self)
        X = validate_data(self, X, dtype=(np.float64, np.float32), reset=False)
        return evaluate(self.module_.encoder, self._scaled(X))

    def reconstruct(self, X: Any) -> Array:
        """The features that the decoder makes of the latent units: `X`'s shape and units."""
        from projgen.sklearn.network import evaluate

        rebuilt = evaluate(self.module_.decoder, self.encode(X))
        return rebuilt if self.scaler_ is None else np.asarray(
            self.scaler_.inverse_transform(rebuilt)
        )  # fmt: skip

    def decision_function(self, X: Any) -> Array:
        """The latent units; of two classes the second less the first, one number for a sample."""
        latent = self.encode(X)
        return latent[:, 1] - latent[:, 0] if len(self.classes_) == 2 else latent

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class: (samples, classes)."""
        found: Array = softmax(self.encode(X), axis=1)
        return found

    def predict(self, X: Any) -> Array:
        """The class of each sample."""
        best = self.encode(X).argmax(axis=1)
        found: Array = self.classes_[best]
        return found


__all__ = ["ProjectedAutoencoderClassifier"]
