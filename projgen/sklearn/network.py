"""The supervised autoencoder, and its training in two phases. In it `import torch` is PyTorch."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from projgen.projection import Projection
from projgen.torch.constraint import Constraint, constrain

FIRST = "encoder.0.weight"  # of shape (hidden, features)
ACTIVATIONS = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


class SupervisedAutoencoder(nn.Module):
    """Features to one latent unit for each class (``encoder``), and back (``decoder``)."""

    def __init__(self, sizes: Sequence[int], activation: str, rng: np.random.RandomState) -> None:
        """`sizes` are those of the encoder's layers: features, hidden layers, classes."""
        super().__init__()
        self.encoder = _layers(sizes, activation)
        self.decoder = _layers(sizes[::-1], activation)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                layer = self.get_submodule(name.rpartition(".")[0])
                bound = 1 / np.sqrt(layer.in_features)  # PyTorch's own; with a generator of ours
                drawn = rng.uniform(-bound, bound, tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(drawn))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The latent units (samples, classes), and the features rebuilt from them."""
        latent = self.encoder(x)
        return latent, self.decoder(latent)


def _layers(sizes: Sequence[int], activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        # nn.Linear would draw from PyTorch's own random numbers, which are the user's.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, device="cpu", dtype=torch.float32)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@dataclass(slots=True)
class Training:
    """How to train, and what became of it.

    ``every`` counts steps, or is ``"epoch"`` or ``"end"``. ``losses`` has the mean of each epoch.
    """

    projection: Projection | None
    radius: Any
    every: int | str
    epochs: int
    rewound_epochs: int
    learning_rate: float
    batch_size: int
    reconstruction: float
    verbose: bool
    rng: np.random.RandomState
    losses: list[float] = field(default_factory=list)
    projections: int = 0
    projection_seconds: float = 0.0

    def run(self, module: SupervisedAutoencoder, x: Tensor, y: Tensor, weights: Tensor) -> None:
        """Train `module` on samples x with class numbers y: constrained, then rewound."""
        optimizer = _adam(module, self.learning_rate)
        if self.projection is None:
            for _ in self._steps(module, optimizer, (x, y, weights), self.epochs, ""):
                pass
            return
        initial = copy.deepcopy(module.state_dict())
        batches = -(-len(x) // self.batch_size)
        total = self.epochs * batches
        every = {"epoch": batches, "end": total}.get(str(self.every), self.every)
        # It never is due by itself: what a projection takes is measured here.
        constraint = constrain(
            optimizer, module, {FIRST: self.projection}, radius=self.radius, every=total + 1
        )
        with constraint:
            data = x, y, weights
            for step in self._steps(module, optimizer, data, self.epochs, "constrained "):
                if step % int(every) == 0 or step == total:
                    self._project(constraint, x.device)
            if self.rewound_epochs:
                constraint.freeze()
                constraint.rewind(initial)
                for _ in self._steps(module, optimizer, data, self.rewound_epochs, "rewound "):
                    pass

    def _project(self, constraint: Constraint, device: torch.device) -> None:
        begun = _now(device)
        constraint.project()
        self.projection_seconds += _now(device) - begun
        self.projections += 1

    def _steps(
        self,
        module: SupervisedAutoencoder,
        optimizer: torch.optim.Optimizer,
        data: tuple[Tensor, Tensor, Tensor],
        epochs: int,
        phase: str,
    ) -> Iterator[int]:
        """Take the steps of `epochs` epochs; how many were taken, after each."""
        x = data[0]
        step = 0
        for epoch in range(1, epochs + 1):
            order = torch.from_numpy(self.rng.permutation(len(x))).to(x.device)
            mean = torch.zeros((), device=x.device)
            for batch in order.split(self.batch_size):
                optimizer.zero_grad()
                loss = self._loss(module, *(each[batch] for each in data))
                loss.backward()
                optimizer.step()
                mean += loss.detach() * (len(batch) / len(x))
                step += 1
                yield step
            self.losses.append(float(mean))
            if not np.isfinite(self.losses[-1]):
                raise ValueError(f"the training has diverged: the loss is {self.losses[-1]} in "
                                 f"{phase}epoch {epoch}. Take a lower learning_rate")  # fmt: skip
            if self.verbose:
                left = int(module.encoder[0].weight.any(dim=0).sum())
                print(f"{phase}epoch {epoch} of {epochs}: loss {self.losses[-1]:.4g}, "
                      f"{left} of {x.shape[1]} features")  # fmt: skip

    def _loss(self, module: SupervisedAutoencoder, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        latent = module.encoder(x)
        loss: Tensor = (nn.functional.cross_entropy(latent, y, reduction="none") * weights).mean()
        if self.reconstruction:
            rebuilt = module.decoder(latent)
            apart = nn.functional.smooth_l1_loss(rebuilt, x, reduction="sum") / len(x)
            loss = loss + self.reconstruction * apart
        return loss


def _adam(module: nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam, fused where PyTorch has that for the device: on the CPU half as quick again."""
    try:
        return torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
    except RuntimeError:
        return torch.optim.Adam(module.parameters(), lr=learning_rate)


def _now(device: torch.device) -> float:
    """The time, once the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def fit_network(
    training: Training,
    sizes: Sequence[int],
    activation: str,
    device: str,
    x: NDArray[Any],
    y: NDArray[np.int64],
    weights: NDArray[Any],
) -> SupervisedAutoencoder:
    """A trained network, on the CPU. `training` has its history."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: PyTorch finds no GPU here; device='cpu' works")
    with torch.inference_mode(False), torch.enable_grad():
        module = SupervisedAutoencoder(sizes, activation, training.rng)
        module.to(device)
        data = [
            torch.tensor(each, dtype=dtype, device=device)
            for each, dtype in ((x, torch.float32), (y, torch.int64), (weights, torch.float32))
        ]
        training.run(module, *data)
    module.cpu().eval()
    return module


def evaluate(layers: nn.Sequential, x: NDArray[Any]) -> NDArray[np.float64]:
    """What `layers` make of `x`, in float64, so that it does not depend on the other samples."""
    wide = copy.deepcopy(layers).double()
    with torch.inference_mode():
        found: NDArray[np.float64] = wide(torch.tensor(x, dtype=torch.float64)).numpy()
    return found


def first_weight(module: SupervisedAutoencoder) -> NDArray[np.float32]:
    """The weight of the first layer: (hidden, features)."""
    weight: NDArray[np.float32] = module.encoder[0].weight.detach().numpy()
    return weight
