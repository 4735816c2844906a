"""Smaller models compute what the masked ones do."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402
from torch.nn.utils.parametrizations import spectral_norm  # noqa: E402

import projgen.torch  # noqa: E402
from projgen.torch import Shrunk, shrink  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded_and_alone():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny layers wait for threads longer than they work
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def outputs(model: nn.Module, *args: Any) -> Any:
    training = model.training
    with torch.no_grad():
        result = model.eval()(*args)
    model.train(training)
    return result


def same(model: nn.Module, *examples: Any, **options: Any) -> tuple[nn.Module, Shrunk]:
    """`model` shrunk, and compared on inputs that it has not seen."""
    kept = copy.deepcopy(model.state_dict())
    small, report = shrink(model, examples, **options)
    assert all(torch.equal(kept[name], x) for name, x in model.state_dict().items())
    fresh = [
        torch.randn(5, *x.shape[1:], dtype=x.dtype) if x.is_floating_point() else x
        for x in examples
    ]
    before = outputs(model, *fresh)
    if report.inputs is not None:
        fresh = [x[:, report.inputs] for x in fresh]
    torch.testing.assert_close(outputs(small, *fresh), before, rtol=1e-5, atol=2e-5)
    assert report.parameters_after == sum(p.numel() for p in small.parameters())
    assert report.parameters_before == sum(p.numel() for p in model.parameters())
    return small, report


def kill(layer: Any, *units: int, bias: float | None = 0.0) -> None:
    """Zero rows; the bias becomes `bias`."""
    with torch.no_grad():
        layer.weight[list(units)] = 0
        if layer.bias is not None and bias is not None:
            layer.bias[list(units)] = bias


def mlp(activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8, bias=bias),
        activation(),
        nn.Linear(8, 7, bias=bias),
        activation(),
        nn.Linear(7, 3, bias=bias),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU,
        nn.Sigmoid,
        nn.GELU,
        nn.Softshrink,
        nn.Hardsigmoid,
        nn.Softplus,
        lambda: nn.PReLU(1),
        nn.Dropout,
    ],
)
def test_neurons_go_and_their_constants_are_held_by_biases(activation, bias):
    model = mlp(activation, bias)
    kill(model[0], 1, 4, 5, bias=None)
    kill(model[2], 0, bias=0.7)
    small, report = same(model, torch.randn(4, 6))
    assert (small[0].out_features, small[2].in_features, small[2].out_features) == (5, 5, 6)
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    assert report.layers[0].outputs == (0, 2, 3, 6, 7)
    assert report.layers[1].inputs_before == 8
    assert not report.kept


def test_activations_with_a_parameter_per_channel():
    model = nn.Sequential(nn.Linear(4, 5), nn.PReLU(5), nn.Linear(5, 2))
    kill(model[0], 3, bias=-1.0)
    small, _ = same(model, torch.randn(3, 4))
    assert small[1].num_parameters == 4


def test_neurons_go_that_nothing_reads():
    model = mlp()
    with torch.no_grad():
        model[2].weight[:, [0, 2]] = 0
        model[4].weight[:, [6]] = 0
        model[2].weight[:6, [1]] = 0  # read by neuron 6 alone, which goes first
    small, report = same(model, torch.randn(4, 6))
    assert (small[0].out_features, small[2].out_features) == (5, 6)
    assert report.layers[0].outputs == (3, 4, 5, 6, 7)


def test_what_reads_constants_alone_is_constant():
    model = mlp(nn.Tanh)
    kill(model[0], 0, 1, bias=0.3)
    with torch.no_grad():
        model[2].weight[3, 2:] = 0  # neuron 3 reads 0 and 1
    small, _ = same(model, torch.randn(4, 6))
    assert (small[0].out_features, small[2].out_features) == (6, 6)


class Cnn(nn.Module):
    def __init__(
        self, padding: Any = 1, norm: bool = False, bias: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 6, 3, padding=padding, bias=bias, **options)
        self.a_norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        self.b = nn.Conv2d(6, 5, 3, padding=padding, bias=bias, **options)
        self.b_norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        size = outputs(nn.Sequential(self.a, nn.MaxPool2d(2), self.b), torch.zeros(1, 1, 8, 8))
        self.c = nn.Linear(size[0].numel(), 7)
        self.d = nn.Linear(7, 3)
        for norm in (self.a_norm, self.b_norm):
            for name, x in norm.named_buffers():
                if name != "num_batches_tracked":
                    x.uniform_(0.1, 1.0)

    def forward(self, x):
        x = F.max_pool2d(self.a_norm(self.a(x)).relu(), 2)
        x = self.b_norm(self.b(x)).relu().flatten(1)
        return self.d(self.c(x).relu())


def test_channels_and_what_flattening_made_of_them():
    model = Cnn()
    kill(model.a, 0, 3)
    kill(model.b, 1, bias=0.5)  # a linear layer reads it: its bias can hold it
    kill(model.c, 2, 3, bias=-0.5)
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert (small.a.out_channels, small.b.out_channels, small.c.in_features) == (4, 4, 64)
    assert small.c.out_features == 5
    assert not report.kept


def test_a_constant_that_padding_interrupts_stays():
    model = Cnn()
    kill(model.a, 0, bias=0.5)
    kill(model.a, 1, bias=-0.5)  # ReLU makes 0 of it
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert small.a.out_channels == 5
    (kept,) = report.kept
    assert (kept.name, kept.units) == ("a", 1)
    assert "'b' reads a constant that is not zero, and pads with zeros" in kept.reason
    assert kept.reason.endswith("(make the dead channels give zero: set their bias in 'a' to 0)")
    kill(model.a, 0, bias=0.0)
    assert not same(model, torch.randn(2, 1, 8, 8))[1].kept


@pytest.mark.parametrize("options", [{"padding": 0}, {"padding": 1, "padding_mode": "circular"}])
def test_a_constant_without_zero_padding_is_held_by_the_bias(options):
    model = Cnn(**options)
    kill(model.a, 0, 2, bias=0.5)
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert small.a.out_channels == 4
    assert not report.kept


def test_batch_norm():
    model = Cnn(norm=True, bias=False)
    kill(model.a, 0, 1)
    kill(model.b, 1)
    with torch.no_grad():
        model.a_norm.bias.fill_(5.0)
        model.a_norm.bias[0] = -5.0
        model.a_norm.weight[2], model.a_norm.bias[2] = 0, -1  # silenced by the scale alone
        model.b_norm.weight[3], model.b_norm.bias[3] = 0, 2
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert (small.a.out_channels, small.a_norm.num_features) == (4, 4)
    assert (small.b.out_channels, small.b_norm.running_var.numel()) == (3, 3)
    (kept,) = report.kept
    assert kept.name == "a"
    assert "set their scale and shift in 'a_norm' to 0" in kept.reason


def test_what_is_advised_behind_a_batch_norm():
    """A trained norm divides by the tiny deviation of what is dead, so its bias is of no use."""
    model = Cnn(norm=True).train()
    kill(model.a, 0, 1, bias=0.5)
    with torch.no_grad():
        for _ in range(100):
            model(torch.randn(8, 1, 8, 8))
        model.a_norm.bias += 0.5
    _, report = same(model.eval(), torch.randn(2, 1, 8, 8))
    assert (report.kept[0].name, report.kept[0].units) == ("a", 2)
    wrong = copy.deepcopy(model)
    kill(wrong.a, 0, 1)
    dead = ~model.a.weight.flatten(1).any(1)
    model.a_norm.weight.data[dead] = 0
    model.a_norm.bias.data[dead] = 0
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert not report.kept
    assert small.a.out_channels == 4
    assert wrong.a_norm(wrong.a(torch.zeros(1, 1, 8, 8)))[0, dead].abs().min() > 10


def test_batch_norm_of_vectors_and_without_running_statistics():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU(), nn.Linear(6, 2)
    )
    kill(model[0], 2, bias=3.0)
    small, _ = same(model, torch.randn(8, 4))
    assert small[1].num_features == 5


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 4, 3, padding=1)
        self.outer = nn.Conv2d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def test_residual_connections_couple_channels():
    model = Residual()
    kill(model.stem, 0, 1, 2)
    kill(model.outer, 1, 2, 3)
    kill(model.inner, 0)
    small, report = same(model, torch.randn(2, 1, 5, 5))
    assert (small.stem.out_channels, small.outer.out_channels, small.head.in_features) == (4, 4, 4)
    assert small.inner.out_channels == 3
    assert report.layers[0].outputs == (0, 3, 4, 5)


def test_a_residual_connection_from_the_input_holds_what_it_adds_to():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(x + self.a(x))

    model = Model()
    kill(model.a, 0, 1)
    small, _ = same(model, torch.randn(3, 4))
    assert small.a.out_features == 4


def test_concatenation():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 4, 3)
            self.norm = nn.BatchNorm2d(7)
            self.c = nn.Conv2d(7, 5, 1)
            self.d = nn.Linear(5, 2)

        def forward(self, x):
            x = self.norm(torch.cat([self.a(x), self.b(x)], 1))
            return self.d(self.c(x).relu().amax((2, 3)))

    model = Model()
    kill(model.a, 0, bias=0.3)
    kill(model.b, 1, 3, bias=0.3)
    small, report = same(model, torch.randn(2, 1, 6, 6))
    assert (small.a.out_channels, small.b.out_channels, small.norm.num_features) == (2, 2, 4)
    assert small.c.in_channels == 4
    names = {layer.name: layer for layer in report.layers}
    assert names["c"].inputs == (1, 2, 3, 5)

    kill(model.a, 0, 1, 2)
    small, report = same(model, torch.randn(2, 1, 6, 6))
    assert small.a.out_channels == 1
    assert "at least one" in str(report)


def test_chunks_of_a_layer_go_in_step():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 10), nn.Linear(5, 2)

        def forward(self, x):
            value, gate = self.a(x).chunk(2, dim=1)
            return self.b(value * gate.sigmoid())

    model = Gated()
    kill(model.a, 1, 3, 6)  # value 1 (with gate 6) and value 3 (whose gate 8 is alive)
    small, report = same(model, torch.randn(3, 4))
    assert report.layers[0].outputs == (0, 2, 3, 4, 5, 7, 8, 9)
    assert report.kept[0].reason == "they are coupled with channels in use"
    with torch.no_grad():
        model.b.weight[:, 2] = 0
    small, _ = same(model, torch.randn(3, 4))
    assert (small.a.out_features, small.b.in_features) == (6, 3)


def test_depthwise_convolutions():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
        nn.Flatten(),
        nn.Linear(27, 2),
    )
    kill(model[0], 0)
    kill(model[2], 1, bias=0.4)  # what it reads is alive, and nobody else reads that
    with torch.no_grad():
        model[2].bias[0] = 0.2
    small, _ = same(model, torch.randn(2, 2, 5, 5))
    assert small[0].out_channels == small[2].groups == small[4].in_channels == 4


def test_grouped_convolutions_stay():
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 2)
    )
    kill(model[0], 0)
    small, report = same(model, torch.randn(2, 2, 5, 5))
    assert small[0].out_channels == 6
    assert report.kept[-1].reason == "'2' is a convolution in 2 groups, which have to stay alike"


def test_transposed_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(1, 4, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 64, 2),
    )
    with torch.no_grad():
        model[0].weight[:, [0, 1]] = 0
        model[0].bias[:2] = torch.tensor([-1.0, 1.0])  # 0, and what its overlaps count differently
        model[2].weight[:, 0] = 0
        model[2].bias[0] = 2.0
    small, report = same(model, torch.randn(2, 1, 4, 4))
    assert (small[0].out_channels, small[2].out_channels) == (3, 2)
    assert [kept.name for kept in report.kept] == ["0"]


@pytest.mark.parametrize("kind", ["1d", "3d"])
def test_other_dimensions(kind):
    conv, norm, shape = {
        "1d": (nn.Conv1d, nn.BatchNorm1d, (9,)),
        "3d": (nn.Conv3d, nn.BatchNorm3d, (4, 5, 6)),
    }[kind]
    size = math.prod(n - 2 for n in shape)
    model = nn.Sequential(conv(2, 5, 3), norm(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * size, 2))
    kill(model[0], 1, 2, bias=0.3)
    small, _ = same(model, torch.randn(2, 2, *shape))
    assert (small[0].out_channels, small[4].in_features) == (3, 3 * size)


def test_sequences():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    kill(model[0], 1, bias=1.0)
    small, _ = same(model, torch.randn(2, 7, 4))
    assert small[0].out_features == 5


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.GroupNorm(2, 6)])
def test_norms_over_channels_hold_them(norm):
    model = nn.Sequential(
        nn.Linear(4, 6), norm, nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)
    )
    kill(model[0], 1, 2)
    kill(model[3], 0)
    with torch.no_grad():
        model[3].weight[:, 4] = 0
    small, report = same(model, torch.randn(3, 4))
    assert (small[0].out_features, small[3].out_features) == (6, 4)
    (kept,) = report.kept
    assert (kept.name, kept.units) == ("0", 3)
    assert kept.reason == f"'1' ({type(norm).__name__}) works on all of its channels together"


def test_a_softmax_over_channels_holds_them():
    model = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 2))
    kill(model[0], 1, 2)
    small, report = same(model, torch.randn(3, 4))
    assert small[0].out_features == 6
    with torch.no_grad():
        model[2].weight[:, 1] = 0
    small, report = same(model, torch.randn(3, 4))
    assert small[0].out_features == 6
    assert "more depends on them" in str(report)


def test_a_comparison_is_seen():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c((self.a(x) > 0).float() * self.b(x))

    model = Model()
    kill(model.b, 0)
    kill(model.a, 1)
    small, report = same(model, torch.randn(3, 4))
    assert (small.a.out_features, small.b.out_features) == (6, 6)
    assert report.kept


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens)))


def test_attention_stays_and_what_lies_beside_it_goes():
    model = Attention()
    kill(model.layer.linear1, 0, 5, bias=0.7)
    kill(model.layer.self_attn.out_proj, 2)
    tokens = torch.randint(0, 11, (2, 5))
    small, _ = same(model, tokens)
    assert small.layer.linear1.out_features == 14
    assert small.layer.self_attn.out_proj.weight.shape == (8, 8)
    assert torch.backends.mha.get_fastpath_enabled()


def test_embeddings():
    class Model(nn.Module):
        def __init__(self, tied: bool = False) -> None:
            super().__init__()
            self.embed = nn.Embedding(11, 6)
            self.a = nn.Linear(6, 6)
            self.b = nn.Linear(6, 11)
            if tied:
                self.b.weight = self.embed.weight

        def forward(self, tokens):
            return self.b(self.a(self.embed(tokens)).relu())

    tokens = torch.randint(0, 11, (2, 5))
    model = Model()
    with torch.no_grad():
        model.embed.weight[:, [1, 3]] = torch.tensor([0.0, 0.5])
    kill(model.a, 0)
    small, _ = same(model, tokens)
    assert (small.embed.embedding_dim, small.a.out_features) == (4, 5)

    model = Model(tied=True)
    with torch.no_grad():
        model.embed.weight[:, 1] = 0
    kill(model.a, 0)
    small, report = same(model, tokens)
    assert small.embed.weight is small.b.weight
    assert small.embed.embedding_dim == 6
    assert "shares a parameter with" in str(report)


def test_a_constant_at_some_positions_only_is_none():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)
            self.register_buffer("place", torch.tensor([[1.0], [2.0]]))

        def forward(self, x):
            return self.b(self.a(x) * self.place)

    model = Model()
    kill(model.a, 0, bias=1.0)
    kill(model.a, 1)
    small, _ = same(model, torch.randn(2, 2, 4))
    assert small.a.out_features == 2


class Above(nn.Module):
    def forward(self, x):
        return torch.fmax(x, torch.full_like(x, -100.0))  # NaN gets lost in it


def test_operators_that_lose_nan():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), Above(), nn.Softmax(1), Above(), nn.Linear(6, 2))
    kill(model[0], 0)
    with torch.no_grad():
        model[4].weight[:, 1] = 0
    small, report = same(model, torch.randn(3, 4))
    assert small[0].out_features == 6
    assert report.kept[0].reason == "more depends on them than the layers that read them"


CHOICES: dict[str, Callable[[Any, Any], Any]] = {
    "argmax": lambda h, table: table[h.argmax(1)],
    "max": lambda h, table: table[h.max(1).indices],
    "cummax": lambda h, table: table[h.cummax(1).indices[:, -1]],
    "sort": lambda h, table: table[h.sort(1).indices[:, -1]],
    "least": lambda h, table: table[:1] * (-h.detach()).sort(1).values[:, :1],
    "topk": lambda h, table: table[h.topk(2, 1).indices].sum(1),
    "long": lambda h, table: h.long().sum(1, keepdim=True) * table[:1],
    "float": lambda h, table: table[0] if float(h.max()) > 0 else table[1],
    "item": lambda h, table: table[int(h[0].argmax().item())],
    "tolist": lambda h, table: table[[row.index(max(row)) for row in h.tolist()]],
    "equal": lambda h, table: table[int(torch.equal(h, h.relu()))],
    "written": lambda h, table: table[torch.zeros(len(h), 2).long().copy_(h[:, -2:])[:, 1]],
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_choices_depend_on_all_that_they_choose_from(choice):
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.table = nn.Parameter(torch.randn(6, 2))

        def forward(self, x):
            h = self.a(x)
            return self.head(h) + choice(h, self.table)

    model = Router()
    kill(model.a, 5)  # it is chosen where all others are negative, which the example is not
    with torch.no_grad():
        model.a.bias[:5] += 3
    small, report = shrink(model, 0.1 * torch.rand(3, 4))
    assert small.a.out_features == 6
    assert report.kept


def test_choices_that_nobody_uses():
    class Pools(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 4, 1), nn.Conv1d(4, 2, 1)

        def forward(self, x):
            h = F.max_pool1d(self.a(x), 2)
            return self.b(F.max_pool2d(h[:, :, None], (1, 2)).squeeze(2)).max(2).values

    model = Pools()
    kill(model.a, 1)
    small, _ = same(model, torch.randn(3, 2, 8))
    assert small.a.out_channels == 3


def test_what_is_a_constant_on_the_examples_alone_is_none():
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.b(torch.fmax(self.a(x) - 1000, torch.zeros(3)))  # 0 unless x is large

    model = Clipped()
    small, _ = shrink(model, torch.randn(3, 4))
    assert small.a.out_features == 3


def test_a_program_that_takes_another_way_for_nan():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            hidden = self.a(x)
            return self.b(hidden if hidden.sum() > -1e9 else torch.zeros_like(hidden))

    small, report = same(Model(), torch.randn(3, 4))
    assert small.a.out_features == 3
    assert not report.kept


def test_parametrizations_that_learn_in_training():
    model = nn.Sequential(spectral_norm(nn.Linear(4, 5)), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].parametrizations.weight.original[0] = 0
    small, _ = shrink(model.train(), torch.randn(3, 4))
    assert small[0].out_features == 4
    x = torch.randn(3, 4)
    torch.testing.assert_close(outputs(small, x), outputs(model, x))


def test_layers_with_a_forward_of_their_own_stay():
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.sum(-1, keepdim=True)

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Shifted(5, 3), nn.ReLU(), nn.Linear(3, 2))
    kill(model[0], 0)
    kill(model[2], 0)
    small, report = same(model, torch.randn(3, 4))
    assert (small[0].out_features, small[2].out_features) == (5, 3)
    assert "'2' (Shifted) is not PyTorch's own layer" in str(report)


def test_what_comes_of_whole_numbers_is_no_constant():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(11, 6)
            self.a, self.b = nn.Linear(6, 5), nn.Linear(11, 5)
            self.c = nn.Linear(5, 2)

        def forward(self, tokens):
            hot = F.one_hot(tokens[:, :1], 11).float().mean(1)
            return self.c((self.a(self.bag(tokens)) + self.b(hot)).relu())

    model = Counts()
    kill(model.a, 0, 1)
    kill(model.b, 0)
    small, _ = shrink(model, torch.randint(0, 11, (1, 4)))
    tokens = torch.randint(0, 11, (9, 4))
    torch.testing.assert_close(outputs(small, tokens), outputs(model, tokens))
    assert small.a.out_features == 4


def test_a_layer_used_twice():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.b(self.b(self.a(x).relu()).relu()).relu())

    model = Model()
    kill(model.a, 0, 1)
    kill(model.b, 0, bias=0.2)
    kill(model.b, 1)
    same(model, torch.randn(3, 4))


def test_outputs_stay():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            hidden = self.a(x).relu()
            return {"hidden": hidden, "out": [self.b(hidden), x]}

    model = Model()
    kill(model.a, 0)
    kill(model.b, 1)
    small, report = same(model, torch.randn(3, 4))
    assert (small.a.out_features, small.b.out_features) == (6, 3)
    assert "the model returns them" in str(report)


def test_parameters_of_the_model_itself():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 2, 1)
            self.scale = nn.Parameter(torch.randn(5, 1, 1))

        def forward(self, x):
            return self.b(self.a(x) * self.scale)

    model = Scaled()
    kill(model.a, 2, bias=0.3)
    small, _ = same(model, torch.randn(2, 1, 5, 5))
    assert (small.a.out_channels, small.scale.shape) == (4, (4, 1, 1))


def test_a_layer_keeps_one_channel():
    model = mlp()
    kill(model[0], *range(8), bias=0.4)
    small, report = same(model, torch.randn(4, 6))
    assert small[0].out_features == 1
    assert small[2].in_features == 1
    assert "at least one" in str(report)


def test_nothing_is_zero():
    model = Cnn(norm=True)
    small, report = same(model, torch.randn(2, 1, 8, 8))
    assert report.parameters_after == report.parameters_before
    assert report.layers == report.kept == ()
    assert "nothing in it is idle" in str(report)
    assert report.difference == 0
    assert small is not model


def test_features_of_the_input():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].weight[:, [0, 2, 5]] = 0
    small, report = same(model, torch.randn(3, 6), inputs=True)
    assert report.inputs.tolist() == [1, 3, 4]
    assert small[0].in_features == 3
    assert "input features left: 3" in str(report)
    _, report = same(model, torch.randn(3, 6))
    assert report.inputs is None


def test_features_of_an_input_that_is_scaled_first():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    with torch.no_grad():
        model[1].weight[:, [0, 2]] = 0
        model[1].weight[0, 2] = 1  # neuron 0 goes, and then nothing reads feature 2
        model[3].weight[:, 0] = 0
    small, report = same(model, torch.randn(3, 6), inputs=True)
    assert report.inputs.tolist() == [1, 3, 4, 5]
    assert small[0].num_features == 4


def test_features_that_something_else_reads_stay():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x).relu() + x.sum(1, keepdim=True))

    model = Model()
    with torch.no_grad():
        model.a.weight[:, 0] = 0
    _, report = same(model, torch.randn(3, 4), inputs=True)
    assert report.inputs.tolist() == [0, 1, 2, 3]
    assert "the input: 1 idle stay: more depends on them" in str(report)


@pytest.mark.parametrize("seed", range(6))
def test_random_patterns(seed):
    random = torch.Generator().manual_seed(seed)

    def chance(*shape: int) -> Any:
        return torch.rand(*shape, generator=random)

    for model, shape in [
        (mlp(nn.GELU), (6,)),
        (Cnn(norm=True), (1, 8, 8)),
        (Cnn(padding=0), (1, 8, 8)),
        (Residual(), (1, 6, 6)),
    ]:
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)):
                    layer.weight[chance(len(layer.weight)) < 0.5] = 0
                    layer.weight[:, chance(layer.weight.shape[1]) < 0.2] = 0
                    layer.bias[chance(len(layer.bias)) < 0.7] *= chance(1).round()
                if isinstance(layer, nn.BatchNorm2d):
                    layer.weight[chance(len(layer.weight)) < 0.2] = 0
                    layer.bias.copy_(chance(len(layer.bias)) - 0.5)
        _, report = same(model, torch.randn(2, *shape))
        assert report.layers


def test_half_precision():
    model = Cnn(norm=True).to(torch.bfloat16)
    kill(model.a, 0, bias=0.0)
    kill(model.c, 0, bias=0.5)
    x = torch.randn(2, 1, 8, 8, dtype=torch.bfloat16)
    small, _ = shrink(model, x)
    assert small.c.out_features == 6
    assert small.c.weight.dtype == torch.bfloat16
    torch.testing.assert_close(outputs(small, x), outputs(model, x), rtol=0.02, atol=0.02)


def test_modes_gradients_and_random_numbers_are_as_before():
    model = Cnn(norm=True)
    kill(model.c, 0, bias=0.5)
    model.train()
    model.a_norm.eval()
    model.d.weight.requires_grad_(False)
    model.c.bias.requires_grad_(False)
    state = torch.get_rng_state()
    small, _ = shrink(model, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(state, torch.get_rng_state())
    assert small.training and small.c.training and not small.a_norm.training
    assert model.training and not model.a_norm.training
    frozen = [name for name, p in small.named_parameters() if not p.requires_grad]
    assert frozen == ["c.bias", "d.weight"]
    assert small.c.out_features == 6
    small(torch.randn(2, 1, 8, 8)).sum().backward()


def test_masks_and_parametrizations_become_plain():
    class Halved(nn.Module):
        def forward(self, x):
            return x / 2

    model = mlp()
    parametrize.register_parametrization(model[0], "weight", Halved())
    prune.ln_structured(model[2], "weight", amount=3, n=1, dim=0)
    prune.remove(prune.identity(model[4], "weight"), "weight")
    with torch.no_grad():
        model[0].parametrizations.weight.original[:2] = 0
        model[2].bias.fill_(0.1)
    model(torch.randn(2, 6)).sum().backward()  # leaves the masked weight in a graph
    small, _ = shrink(model, torch.randn(4, 6))
    assert (small[0].out_features, small[2].out_features) == (6, 4)
    assert sorted(small.state_dict()) == sorted(
        f"{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")
    )
    assert parametrize.is_parametrized(model[0])
    x = torch.randn(5, 6)
    torch.testing.assert_close(outputs(small, x), outputs(model, x))


def test_compiled_models_come_back_uncompiled():
    model = nn.Sequential(torch.compile(mlp(), backend="eager"), nn.Linear(3, 2))
    kill(model[0]._orig_mod[0], 1)
    small, _ = shrink(torch.compile(model, backend="eager"), torch.randn(2, 6))
    assert type(small) is nn.Sequential
    assert type(small[0]) is nn.Sequential
    assert small[0][0].out_features == 7


def test_buffers_and_hooks_are_kept():
    model = mlp()
    model.register_buffer("mean", torch.ones(6))
    calls = []
    model[2].register_forward_hook(lambda module, args, out: calls.append(module.out_features))
    kill(model[2], 0)
    small, _ = shrink(model, torch.randn(2, 6))
    calls.clear()
    small(torch.randn(2, 6))
    assert calls == [6]
    assert torch.equal(small.mean, model.mean)


def test_keep():
    model = mlp()
    kill(model[0], 1)
    kill(model[2], 1)
    small, report = same(model, torch.randn(2, 6), keep="4")
    assert (small[0].out_features, small[2].out_features) == (7, 7)
    assert [str(kept) for kept in report.kept] == ["2: 1 idle stay: '4' is to be kept"]


def test_sizes_that_a_model_has_by_heart_stay():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Linear(4 * 16, 5), nn.Linear(5, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x).relu().view(-1, 64)).relu())

    model = Model()
    kill(model.a, 1)
    kill(model.b, 1)
    small, report = same(model, torch.randn(2, 1, 6, 6))
    assert (small.a.out_channels, small.b.out_features) == (4, 4)
    assert "does not run without them" in str(report)
    assert "as in x.view(-1, 288), write x.flatten(1)" in str(report)


def test_arguments_by_name():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

        def forward(self, x, y=None):
            return self.b(input=self.a(input=x).relu()) + y

    model = Model()
    kill(model.a, 0, bias=0.4)
    named = {"x": torch.randn(2, 4), "y": torch.randn(2, 2)}
    small, _ = shrink(model, named)
    assert small.a.out_features == 4
    with torch.no_grad():
        torch.testing.assert_close(small(**named), model(**named))


def test_without_gradients_and_in_inference_mode():
    model = mlp()
    kill(model[0], 1)
    with torch.inference_mode():
        small, _ = shrink(model, torch.randn(2, 6))
    assert small[0].out_features == 7
    small(torch.randn(2, 6)).sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        small, _ = shrink(model, torch.randn(2, 6))
    assert small[0].out_features == 7


def test_errors():
    x = torch.randn(2, 6)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        shrink(lambda x: x, x)
    with pytest.raises(ValueError, match="no layer is called '00'; did you mean '0'"):
        shrink(mlp(), x, keep=["0", "00"])
    with pytest.raises(ValueError, match="tolerance is nan; it must be 0 or more"):
        shrink(mlp(), x, tolerance=math.nan)
    with pytest.raises(TypeError, match=r"shrink model\.module"):
        shrink(nn.DataParallel(mlp()), x)
    with pytest.raises(ValueError, match=r"does not run on example_inputs .*give what it takes"):
        shrink(mlp(), torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"inputs=True needs a model of one tensor"):
        shrink(nn.Bilinear(2, 2, 2), (torch.ones(1, 2), torch.ones(1, 2)), inputs=True)


def test_a_model_that_cannot_be_traced():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x).detach()

    with pytest.raises(ValueError, match="cannot be traced"):
        shrink(Detached(), torch.randn(2, 4))


def test_without_torch_pruning(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("projgen.torch.shrinking")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ImportError, match="pip install torch-pruning"):
        _ = projgen.torch.shrink


def test_an_input_that_no_layer_reads_as_it_is():
    model = nn.Sequential(nn.Tanh(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight[:, 0] = 0
    small, report = shrink(model, torch.randn(2, 4), inputs=True)
    assert report.inputs is None
    assert small[1].in_features == 4
    assert "the input: no layer reads it as it is" in str(report)
