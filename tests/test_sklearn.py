"""The estimators for scikit-learn: its own checks, and what they find."""

import contextlib
import importlib
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from support import rehearsals, run_python

pytest.importorskip("sklearn")
from scipy.sparse import csr_matrix
from sklearn.base import ClassifierMixin, clone
from sklearn.datasets import make_classification, make_regression
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LogisticRegression, MultiTaskLasso
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import projgen
from projgen.sklearn import (
    ProjectedAutoencoderClassifier,
    ProjectedLinearRegression,
    ProjectedLogisticRegression,
)
from projgen.sklearn.descent import Model, Task

TORCH = find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not TORCH, reason="needs PyTorch")


def by_numpy(spec: str, exact: bool = False) -> projgen.Projection:
    """A projection that needs no compiler."""
    return projgen.build(spec, backend="numpy", exact=exact)


LASSO = by_numpy("l1(l2(axis=0))")
PAPERS = by_numpy("l1(linf(axis=0))")


def autoencoder(**changed: Any) -> ProjectedAutoencoderClassifier:
    """One that trains quickly."""
    quick = {"spec": PAPERS, "hidden": 8, "epochs": 6, "rewound_epochs": 4, "learning_rate": 2e-2,
             "batch_size": 32, "random_state": 0}  # fmt: skip
    return ProjectedAutoencoderClassifier(**{**quick, **changed})


def logistic(**changed: Any) -> ProjectedLogisticRegression:
    return ProjectedLogisticRegression(**{"spec": LASSO, **changed})


def linear(**changed: Any) -> ProjectedLinearRegression:
    return ProjectedLinearRegression(**{"spec": LASSO, **changed})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models: more threads would wait for each other."""
    with contextlib.ExitStack() as stack:
        if TORCH:
            import torch

            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            stack.callback(torch.set_num_threads, threads)
        yield


def classes(samples: int = 200, features: int = 60, kinds: int = 2) -> tuple[Any, Any]:
    """Features of which the first 4 matter, and noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((samples, features))
    scores = X[:, :4] @ rng.choice([-1.0, 1.0], (4, kinds)) + rng.logistic(0, 0.3, (samples, kinds))
    return X, scores.argmax(axis=1) if kinds > 2 else (scores[:, 0] > 0).astype(int)


# What scikit-learn asks of every estimator

CHECKED = [
    logistic(),
    linear(n_features_to_select=0.5),
    *([autoencoder(radius="60%", epochs=4, rewound_epochs=2, batch_size=40)] if TORCH else []),
]


@parametrize_with_checks(CHECKED)
def test_scikit_learns_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


# Linear models: the same minima as those of scikit-learn


@pytest.mark.parametrize("outputs", [1, 3])
def test_regression_is_the_lasso(outputs: int) -> None:
    X, Y = make_regression(60, 20, n_informative=5, n_targets=outputs, noise=5.0, random_state=0)
    X, Y = StandardScaler().fit_transform(X), Y / 100 + 3
    lasso = (Lasso if outputs == 1 else MultiTaskLasso)(0.2, tol=1e-10).fit(X, Y)
    radius = float(np.linalg.norm(np.atleast_2d(lasso.coef_), axis=0).sum())
    model = linear(radius=radius, standardize=False, tol=1e-8, max_iter=20_000).fit(X, Y)
    assert model.coef_.shape == lasso.coef_.shape
    np.testing.assert_allclose(model.coef_, lasso.coef_, atol=1e-6)
    np.testing.assert_allclose(model.intercept_, lasso.intercept_, atol=1e-6)
    np.testing.assert_array_equal(
        model.get_support(), np.atleast_2d(lasso.coef_).any(axis=0)
    )  # fmt: skip
    assert 0 < model.support_.sum() < 20


def test_two_classes_are_the_logistic_lasso() -> None:
    X, y = classes(features=15)
    other = LogisticRegression(l1_ratio=1, C=0.1, solver="saga", tol=1e-9, max_iter=50_000)
    if "penalty" in other.get_params() and other.get_params()["penalty"] == "l2":
        other.set_params(penalty="l1", l1_ratio=None)  # as before scikit-learn 1.8
    X = StandardScaler().fit_transform(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        other.fit(X, y)
    radius = float(np.abs(other.coef_).sum())
    model = logistic(radius=radius, standardize=False, tol=1e-8, max_iter=20_000).fit(X, y)
    np.testing.assert_allclose(model.coef_, other.coef_, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), other.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize(
    ("projection", "dual"),
    [
        (LASSO, lambda slopes: np.linalg.norm(slopes, axis=0).max()),
        (by_numpy("l1(linf(axis=0))", exact=True), lambda slopes: np.abs(slopes).sum(axis=0).max()),
        (by_numpy("l1"), lambda slopes: np.abs(slopes).max()),
    ],
    ids=lambda value: getattr(value, "spec", ""),
)
@pytest.mark.parametrize("weighted", [False, True])
def test_no_point_of_the_ball_is_better(projection: Any, dual: Any, weighted: bool) -> None:
    """The gap of Frank and Wolfe bounds how far a convex loss is from its minimum in the ball."""
    X, y = classes(60, 40, 3)
    weights = np.random.default_rng(0).uniform(0, 2, len(y)) if weighted else np.ones(len(y))
    model = ProjectedLogisticRegression(projection, 3.0, standardize=False, tol=1e-7,
                                        max_iter=20_000).fit(X, y, weights)  # fmt: skip
    assert projection.norm(model.coef_) == pytest.approx(3.0)
    slopes = model.predict_proba(X) - np.eye(3)[y]
    slopes *= weights[:, None] / weights.sum()
    gap = np.vdot(slopes.T @ X, model.coef_) + 3.0 * dual(slopes.T @ X)
    assert -1e-12 < gap < 1e-5
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-6)


def test_a_working_set_finds_what_all_features_do() -> None:
    X, y = classes(40, 400)
    slopes = lambda scores: scores - y[:, None]  # noqa: E731
    task = Task(X, np.full(40, 1 / 40), slopes, 1.0, True, 1e-8, 20_000)
    start = Model(np.zeros((1, 400)), np.zeros(1))
    some = task.solve(LASSO, 0.5, start, task.curvature())
    every = task.descend(LASSO, 0.5, start, task.curvature())
    assert some.settled and every.settled
    np.testing.assert_allclose(some.weight, every.weight, atol=1e-6)
    assert task.curvature() >= np.linalg.norm(np.c_[X, np.ones(40)], 2) ** 2 / 40


def test_coefficients_are_in_the_units_of_the_data() -> None:
    X, y = classes()
    units = np.geomspace(1e-3, 1e3, X.shape[1])
    model, other = logistic().fit(X, y), logistic().fit(X * units + 5, y)
    np.testing.assert_allclose(model.coef_, other.coef_ * units, rtol=1e-6)
    np.testing.assert_allclose(model.feature_importances_, other.feature_importances_, rtol=1e-6)
    model, other = linear().fit(X, y), linear().fit(X * units, 10.0 * y - 3)
    np.testing.assert_allclose(10 * model.coef_, other.coef_ * units, rtol=1e-6)
    np.testing.assert_allclose(10 * model.predict(X) - 3, other.predict(X * units))


def test_no_intercept() -> None:
    X, y = classes()
    for model in (logistic(fit_intercept=False), linear(fit_intercept=False)):
        model.fit(X, y)
        assert np.all(np.asarray(model.intercept_) == 0)


@pytest.mark.parametrize("standardize", [True, False])
def test_no_intercept_is_the_least_of_what_is_far_from_zero(standardize: bool) -> None:
    """Features that are centred without an intercept would be fitted to another problem."""
    from sklearn.linear_model import LinearRegression, LogisticRegression

    X, y = classes()
    X = X[:, :4] + 3
    wide = {"radius": 1e4, "fit_intercept": False, "standardize": standardize, "tol": 1e-7}
    model, other = linear(**wide).fit(X, y), LinearRegression(fit_intercept=False).fit(X, y)
    np.testing.assert_allclose(model.predict(X), other.predict(X), atol=1e-4)
    chances = logistic(**wide).fit(X, y).predict_proba(X)
    other = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(chances, other.predict_proba(X), atol=1e-3)


def test_the_units_of_the_data_do_not_decide_where_it_ends() -> None:
    X, y = classes()
    X, scores = X + 1, X[:, :4].sum(axis=1)
    plain = linear(radius=2.0, standardize=False).fit(X, scores)
    small = linear(radius=2e-8, standardize=False).fit(X, 1e-8 * scores)
    np.testing.assert_allclose(1e8 * small.coef_, plain.coef_, atol=1e-6)
    with pytest.raises(ValueError, match="squares of y leave the range"):
        linear().fit(X, 1e200 * scores)
    with pytest.raises(ValueError, match="squares of the features leave the range"):
        logistic(standardize=False).fit(1e200 * X, y)
    with pytest.raises(ValueError, match="class_weight has weights of at least 0"):
        logistic(class_weight={0: -1.0, 1: 1.0}).fit(X, y)


@pytest.mark.parametrize("scale", [1e-200, 1e-155, 1e-290])
def test_data_whose_squares_vanish(scale: float) -> None:
    """Their variance is 0 in float64, and they are scaled all the same."""
    X, y = classes()
    scores = X[:, :4].sum(axis=1)
    plain, small = logistic(radius=2.0).fit(X, y), logistic(radius=2.0).fit(scale * X, y)
    np.testing.assert_allclose(scale * small.coef_, plain.coef_, atol=1e-9)
    assert np.array_equal(small.predict(scale * X), plain.predict(X))
    assert np.array_equal(small.support_, plain.support_)
    for options in ({}, {"fit_intercept": False}):
        told = linear(radius=2.0, **options).fit(X, scores)
        few = linear(radius=2.0, **options).fit(X, scale * scores)
        np.testing.assert_allclose(few.coef_ / scale, told.coef_, atol=1e-9)
    mixed = X * np.where(np.arange(60) % 2, scale, 1.0)
    mixed[:, 50] = scale  # a constant, beside others of its size
    found = logistic(radius=2.0).fit(mixed, y)
    assert found.scaler_.scale_[50] == 1.0 and found.coef_[0, 50] == 0
    assert np.array_equal(found.support_, plain.support_)
    with pytest.raises(ValueError, match="leave the range of float64: scale X up first"):
        logistic(radius=2.0).fit(1e-309 * X, y)


# So many features


@pytest.mark.parametrize("wanted", [1, 4, 17])
def test_so_many_features(wanted: int) -> None:
    X, y = classes()
    model = logistic(n_features_to_select=wanted).fit(X, y)
    assert model.support_.sum() == wanted == model.transform(X).shape[1]
    assert LASSO.norm(model.coef_ * model.scaler_.scale_) <= model.radius_ * (1 + 1e-9)
    found = set(model.get_support(indices=True))
    assert found <= {0, 1, 2, 3} if wanted <= 4 else found >= {0, 1, 2, 3}


def test_features_that_tie() -> None:
    X, y = classes()
    X = np.hstack([X[:, :4]] * 3)  # any feature's copies come and go with it
    for wanted in (1, 2, 5):
        model = logistic(n_features_to_select=wanted).fit(X, y)
        assert model.support_.sum() == wanted
        assert model.score(X, y) > 0.6


def test_a_part_of_the_features_and_one_too_many() -> None:
    X, y = classes()
    assert linear(n_features_to_select=0.1).fit(X, y).support_.sum() == 6
    X[:, 4:] = 1.0  # nothing to be learnt from
    with pytest.warns(UserWarning, match="no radius was found that leaves 5 features: .* leaves 4"):
        model = linear(n_features_to_select=5).fit(X, y)
    assert model.get_support(indices=True).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("wanted", [19, 20])
def test_all_features_of_classes_that_can_be_parted(wanted: int) -> None:
    """No ball holds their coefficients in the end, and sparse models are near enough to the best
    for features of little use to stay out; those that a plain fit has are found nevertheless."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 20))
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = logistic(n_features_to_select=wanted).fit(X, y)
    assert model.support_.sum() == wanted
    assert logistic(radius=model.radius_).fit(X, y).support_.sum() == 20


def test_each_output_for_itself() -> None:
    X, y = classes(100, 20, 3)
    model = logistic(spec=by_numpy("l1(axis=1)"), n_features_to_select=4).fit(X, y)
    assert model.support_.sum() == 4 and model.radius_ > 0
    sums = np.abs(model.coef_ * model.scaler_.scale_).sum(axis=1)
    np.testing.assert_allclose(sums, model.radius_, rtol=1e-3)


def test_a_count_in_the_spec() -> None:
    X, y = classes()
    model = linear(spec=by_numpy("l0(l2(axis=0), k=4)"), radius=None).fit(X, y)
    assert model.get_support(indices=True).tolist() == [0, 1, 2, 3]


# The autoencoder


@needs_torch
def test_features_that_matter_are_found() -> None:
    X, y = make_classification(600, 60, n_informative=4, n_redundant=0, n_classes=3, class_sep=1.5,
                               n_clusters_per_class=1, shuffle=False, random_state=0)  # fmt: skip
    train, test = slice(None, None, 2), slice(1, None, 2)
    model = autoencoder(radius=1.0, epochs=12, rewound_epochs=8).fit(X[train], y[train])
    support = model.get_support(indices=True).tolist()
    assert set(support) >= {0, 1, 2, 3} and len(support) < 15
    assert sorted(np.argsort(-model.feature_importances_)[:4].tolist()) == [0, 1, 2, 3]
    assert model.score(X[test], y[test]) > 0.85
    np.testing.assert_array_equal(model.feature_importances_ > 0, model.support_)


@needs_torch
@pytest.mark.parametrize(("every", "projections"), [("epoch", 6), ("end", 1), (1, 42), (10, 5)])
def test_two_phases(every: int | str, projections: int) -> None:
    X, y = classes()
    first = autoencoder(every=every, radius=0.7, rewound_epochs=0).fit(X, y)
    assert first.n_projections_ == projections and first.n_iter_ == len(first.losses_) == 6
    weight = first.module_.encoder[0].weight.detach().numpy()
    assert PAPERS.norm(weight) == pytest.approx(0.7)
    second = autoencoder(every=every, radius=0.7).fit(X, y)
    assert second.losses_[:6] == first.losses_ and second.n_iter_ == 10
    np.testing.assert_array_equal(first.support_, second.support_)
    rewound = second.module_.encoder[0].weight.detach().numpy()
    assert PAPERS.norm(rewound) > 0.7  # of two trainings, the second is free
    assert 0 < first.projection_seconds_ < first.fit_seconds_


@needs_torch
def test_no_projection() -> None:
    X, y = classes()
    model = autoencoder(spec=None).fit(X, y)
    assert model.support_.all() and model.n_projections_ == 0 and model.n_iter_ == 6


@needs_torch
def test_radii() -> None:
    X, y = classes()
    few, more = (autoencoder(radius=radius).fit(X, y).support_.sum() for radius in ("2%", "20%"))
    assert few < more < 60
    exact = autoencoder(spec=by_numpy("l1(linf(axis=0))", exact=True), radius=0.5).fit(X, y)
    assert exact.support_.any()
    counted = autoencoder(spec=by_numpy("l0(l2(axis=0), k=7)"), radius=None).fit(X, y)
    assert counted.support_.sum() == 7
    import projgen.torch

    ramp = projgen.torch.geometric("100%", "2%", steps=20)
    assert autoencoder(radius=ramp, every=1).fit(X, y).support_.sum() < 60


@needs_torch
def test_no_feature_is_left() -> None:
    X, y = classes()
    with pytest.warns(UserWarning, match="no feature is left: radius=0 is too small"):
        model = autoencoder(radius=0).fit(X, y)
    assert not model.support_.any()
    assert len(set(map(tuple, model.predict_proba(X)))) == 1
    assert np.isfinite(model.predict_proba(X)).all()


@needs_torch
def test_latent_units_and_back() -> None:
    import torch

    X, y = classes(kinds=3)
    model = autoencoder(reconstruction=0.1, radius="50%", hidden=(12, 6)).fit(X, y)
    with torch.no_grad():
        latent, rebuilt = model.module_(torch.tensor(model.scaler_.transform(X)).float())
    assert model.encode(X).shape == (200, 3)
    np.testing.assert_allclose(latent, model.encode(X), atol=1e-5)
    np.testing.assert_array_equal(model.classes_[model.encode(X).argmax(axis=1)], model.predict(X))
    np.testing.assert_allclose(
        model.scaler_.inverse_transform(rebuilt.double()), model.reconstruct(X), atol=1e-4
    )
    plain = autoencoder(standardize=False, radius="50%").fit(X, y)
    assert plain.scaler_ is None and plain.reconstruct(X).shape == X.shape


@needs_torch
def test_the_same_each_time_and_nothing_disturbed() -> None:
    import torch

    X, y = classes()
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    threads = torch.get_num_threads()
    one, two = (autoencoder().fit(X, y) for _ in range(2))
    assert (torch.rand(3) == expected[0]).all() and (np.random.rand(3) == expected[1]).all()
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    with torch.no_grad():
        three = autoencoder(random_state=1).fit(X, y)
    assert three.losses_ != one.losses_


@needs_torch
def test_rare_classes_weigh_more() -> None:
    X, y = classes(400)
    some = np.flatnonzero((y == 0) | (np.arange(400) % 8 == 0))
    X, y = X[some] + np.random.default_rng(1).normal(0, 1, X[some].shape), y[some]
    plain = autoencoder().fit(X, y)
    balanced = autoencoder(class_weight="balanced").fit(X, y)
    assert (balanced.predict(X) == 1).sum() > (plain.predict(X) == 1).sum()


@needs_torch
def test_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = classes()
    model = autoencoder(epochs=1, rewound_epochs=1, every="end", verbose=True).fit(X, y)
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"constrained epoch 1 of 1: loss 0\.\d+, \d+ of 60 features", first)
    assert second.startswith("rewound epoch 1 of 1: loss ")
    assert second.endswith(f", {model.support_.sum()} of 60 features")


# As scikit-learn uses them

ESTIMATORS = [logistic(), linear(), *([autoencoder()] if TORCH else [])]
BY_NAME: dict[str, Any] = {
    "argvalues": ESTIMATORS,
    "ids": [type(each).__name__ for each in ESTIMATORS],
}


@pytest.mark.parametrize("estimator", **BY_NAME)
def test_copies(estimator: Any) -> None:
    X, y = classes()
    model = clone(estimator).fit(X, y)
    copied = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copied.predict(X), model.predict(X))
    np.testing.assert_array_equal(copied.transform(X), X[:, model.support_])
    again = clone(copied)
    assert repr(again) == repr(estimator) and not hasattr(again, "support_")
    assert again.get_params() == estimator.get_params()


@pytest.mark.parametrize("estimator", **BY_NAME)
def test_names_and_frames(estimator: Any) -> None:
    pandas = pytest.importorskip("pandas")
    X, y = classes()
    X = pandas.DataFrame(X, columns=[f"gene{i}" for i in range(60)])
    model = clone(estimator).set_output(transform="pandas").fit(X, y)
    names = [f"gene{i}" for i in model.get_support(indices=True)]
    assert model.get_feature_names_out().tolist() == names
    assert model.transform(X).columns.tolist() == names
    back = model.inverse_transform(X[names].to_numpy())
    np.testing.assert_array_equal(back[:, model.support_], X[names])


@pytest.mark.parametrize("estimator", **BY_NAME)
def test_a_search_of_radii_in_a_pipeline(estimator: Any) -> None:
    X, y = classes()
    estimator = clone(estimator)
    if "epochs" in estimator.get_params():
        estimator.set_params(epochs=2, rewound_epochs=1)
    pipeline = make_pipeline(MinMaxScaler(), estimator)
    name = f"{type(estimator).__name__.lower()}__radius"
    search = GridSearchCV(pipeline, {name: [0.2, 0.5]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_[name] in (0.2, 0.5)
    before = make_pipeline(clone(estimator), LogisticRegression())
    assert cross_val_score(before, X, y, cv=2, error_score="raise").mean() > 0.7


def test_specs_are_text_too() -> None:
    X, y = classes()
    with rehearsals():
        text = ProjectedLogisticRegression("l1(l2(axis=0))").fit(X, y)
    np.testing.assert_allclose(text.coef_, logistic().fit(X, y).coef_, atol=1e-9)


def test_dtypes() -> None:
    X, y = classes()
    for dtype in (np.float32, np.float64):
        for model in (logistic(), linear()):
            assert model.fit(X.astype(dtype), y).coef_.dtype == dtype


# What is wrong

WRONG: list[tuple[type, dict[str, Any]]] = [
    (ProjectedLogisticRegression, {"spec": "l1(linf(axis=1))"}),
    (ProjectedLogisticRegression, {"spec": "l1(linf)"}),
    (ProjectedLogisticRegression, {"spec": "l1(axis=0)"}),
    (ProjectedLogisticRegression, {"spec": "l1(l1, l1)"}),
    (ProjectedLogisticRegression, {"spec": "l1(linf(axis=0), w=v)"}),
    (ProjectedLogisticRegression, {"spec": "l1(linff(axis=0))"}),
    (ProjectedLogisticRegression, {"spec": "l1(l2(axis=2))"}),
    (ProjectedLogisticRegression, {"spec": 3}),
    (ProjectedLogisticRegression, {"spec": "l0(l2(axis=0), k=4)"}),
    (ProjectedLogisticRegression, {"radius": 0}),
    (ProjectedLogisticRegression, {"radius": -1.0}),
    (ProjectedLogisticRegression, {"radius": "10%"}),
    (ProjectedLogisticRegression, {"radius": math.nan}),
    (ProjectedLogisticRegression, {"n_features_to_select": 0}),
    (ProjectedLogisticRegression, {"n_features_to_select": 1.5}),
    (ProjectedLogisticRegression, {"n_features_to_select": 61}),
    (ProjectedLogisticRegression, {"n_features_to_select": "4"}),
    (ProjectedLogisticRegression, {"max_iter": 0}),
    (ProjectedLogisticRegression, {"tol": 0}),
    (ProjectedLinearRegression, {"spec": "l1(l2(axis=1))"}),
]
WRONG_WITH_TORCH: list[tuple[type, dict[str, Any]]] = [
    (ProjectedAutoencoderClassifier, changed)
    for changed in [
        {"spec": "l1(linf(axis=1))"},
        {"spec": ("l1",)},
        {"radius": -1},
        {"radius": None},
        {"radius": "ten"},
        {"radius": "10"},
        {"hidden": 0},
        {"hidden": ()},
        {"hidden": (10, 2.5)},
        {"activation": "swish"},
        {"epochs": 0},
        {"rewound_epochs": -1},
        {"every": "batch"},
        {"every": 0},
        {"batch_size": 0},
        {"learning_rate": 0},
        {"learning_rate": 1e36},
        {"learning_rate": 1e36, "spec": None},
        {"reconstruction": -1},
    ]
]


def _told(wrong: list[tuple[type, dict[str, Any]]]) -> str:
    X, y = classes()
    said = []
    for kind, changed in wrong:
        usual = {} if "spec" in changed else {"spec": PAPERS}
        estimator = kind(**usual, **changed)
        with pytest.raises((TypeError, ValueError)) as caught:
            estimator.fit(X, y)
        assert not hasattr(estimator, "support_")
        given = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        error = f"{type(caught.value).__name__}: {caught.value}"
        said.append(f"{kind.__name__}({given})\n{error}\n")
    return "\n".join(said)


def test_errors(snapshot: Callable[[str, str], None]) -> None:
    snapshot("sklearn_errors", _told(WRONG))


@needs_torch
def test_a_device_that_is_not_there() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("it is there")
    X, y = classes()
    with pytest.raises(ValueError, match="device='cuda': PyTorch finds no GPU"):
        ProjectedAutoencoderClassifier(device="cuda").fit(X, y)


@needs_torch
def test_errors_of_the_autoencoder(snapshot: Callable[[str, str], None]) -> None:
    snapshot("sklearn_autoencoder_errors", _told(WRONG_WITH_TORCH))


@pytest.mark.parametrize("estimator", **BY_NAME)
def test_data_that_are_wrong(estimator: Any) -> None:
    X, y = classes()
    model = clone(estimator)
    with pytest.raises(ValueError, match="Input X contains NaN"):
        model.fit(np.where(X > 3, np.nan, X), y)
    with pytest.raises(TypeError, match="Sparse"):
        model.fit(csr_matrix(X), y)
    if isinstance(model, ClassifierMixin):
        with pytest.raises(ValueError, match="y has one class, 2: a classifier needs two"):
            model.fit(X, np.full(len(y), 2))


def test_steps_that_are_not_enough() -> None:
    X, y = classes()
    with pytest.warns(ConvergenceWarning, match="max_iter=2 steps did not reach tol=0.0001"):
        model = logistic(max_iter=2).fit(X, y)
    assert model.n_iter_ == 2 and np.isfinite(model.coef_).all()


def test_weights_of_samples_that_are_none() -> None:
    X, y = classes()
    with pytest.raises(ValueError, match=r"0 for all samples|non-zero"):
        logistic().fit(X, y, np.zeros(200))
    with pytest.raises(ValueError, match="y has one class"):
        logistic().fit(X, y, (y == 1).astype(float))


def test_what_it_imports() -> None:
    assert not run_python("""if True:
        import sys
        import projgen.sklearn
        assert not {"numba", "scipy", "sklearn", "torch"} & set(sys.modules)
    """)


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = classes()
    monkeypatch.setattr("projgen.sklearn.autoencoder.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs PyTorch: pip install torch"):
        autoencoder().fit(X, y)
    monkeypatch.delitem(sys.modules, "projgen.sklearn")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install scikit-learn"):
        importlib.import_module("projgen.sklearn")
