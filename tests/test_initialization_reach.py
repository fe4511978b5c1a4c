"""Weights that are not where nn.Linear has them: drawn with the moments that theory states, or left with a reason."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from depthgauge import architecture, initialization, models

BATCH = 4000


class Conv1D(nn.Module):
    """As transformers has it: (in, out), and its sizes called `nf` and `nx`."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.ones(nx, nf)), nn.Parameter(torch.ones(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class GraphLinear(nn.Module):
    """As torch_geometric's Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = inputs, outputs
        self.weight, self.bias = nn.Parameter(torch.ones(outputs, inputs)), nn.Parameter(torch.ones(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class Experts(nn.Module):
    """Gate, up and down of several experts, (out, in) or (in, out), with sizes told or not."""

    def __init__(self, width: int, inner: int, *, turned: bool, told: bool = True) -> None:
        super().__init__()
        if told:
            self.hidden_size, self.intermediate_size = width, inner
        gate_up, down = (2 * inner, width), (width, inner)
        self.gate_up_proj = nn.Parameter(torch.ones(3, *(gate_up[::-1] if turned else gate_up)))
        self.down_proj = nn.Parameter(torch.ones(3, *(down[::-1] if turned else down)))
        self.gate_up_proj_bias = nn.Parameter(torch.ones(3, 2 * inner))
        self.turned = turned

    def forward(self, x: Tensor) -> Tensor:
        weight = self.gate_up_proj if self.turned else self.gate_up_proj.mT
        return (torch.einsum("bi,eio->ebo", x, weight) + self.gate_up_proj_bias[:, None]).flatten(0, 1)


def old_weight_norm(module: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of what is tested here
        made: nn.Module = nn.utils.weight_norm(module)
    return made


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(60, 90)),
    "weight_norm as a whole": lambda: parametrizations.weight_norm(nn.Linear(60, 90), dim=None),
    "weight_norm by inputs": lambda: parametrizations.weight_norm(nn.Linear(60, 90), dim=1),
    "weight_norm by hook": lambda: old_weight_norm(nn.Linear(60, 90)),
    "Conv1D": lambda: Conv1D(90, 60),
    "graph": lambda: GraphLinear(60, 90),
    "square graph": lambda: GraphLinear(60, 60),
    "experts (out, in)": lambda: Experts(60, 45, turned=False),
    "experts (in, out)": lambda: Experts(60, 45, turned=True),
}


def second_moment(layer: nn.Module, *inputs: int) -> float:
    generator = torch.Generator().manual_seed(77)
    with torch.no_grad():
        return float(
            layer(*(torch.randn(BATCH, size, generator=generator) for size in inputs)).double().square().mean()
        )


class Router(nn.Module):
    """As transformers' mixtures of experts have it."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.hidden_dim, self.num_experts = width, experts
        self.weight = nn.Parameter(torch.ones(experts, width))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight)


GraphLinear.__name__ = "Linear"
LAYERS["router"] = lambda: Router(60, 90)


@pytest.mark.parametrize(("init", "expected"), [("he", 2.0), ("lecun", 1.0), ("zeros", 0.0), ("normal", 60e-4)])
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_second_moments_are_theorys(make: Callable[[], nn.Module], init: str, expected: float) -> None:
    """E[y^2] = fan-in Var(w) for standard inputs; its relative error is that of the 60 x 60 or more weights drawn."""
    layer = make()
    assert str(initialization.reach(layer)) == "reaches 1 of 1 weight layers"
    assert initialization.apply(layer, init, seed=3) == ()
    tolerance = 5 * math.sqrt(2 / (60 * 60) + 2 / BATCH)
    assert second_moment(layer, 60) == pytest.approx(expected, rel=tolerance)
    for name, parameter in layer.named_parameters():
        assert "bias" not in name or not parameter.any(), name


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_seeds_differ_and_training_sees_what_was_drawn(make: Callable[[], nn.Module]) -> None:
    one, same, other = (make() for _ in range(3))
    for layer, seed in ((one, 1), (same, 1), (other, 2)):
        initialization.apply(layer, "xavier", seed=seed)
    x = torch.randn(5, 60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one(x), same(x))
    assert not torch.allclose(one(x), other(x))
    one(x).square().mean().backward()
    first = next(parameter for name, parameter in one.named_parameters() if "bias" not in name)
    assert first.grad is not None
    assert bool(first.grad.isfinite().all())
    assert bool(first.grad.any())


def test_a_weight_normed_net_is_the_plain_one_from_the_same_seed() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 5, 3), nn.Flatten(), nn.Linear(320, 4))
    normed = copy.deepcopy(plain)
    for index in (0, 2, 4):
        parametrizations.weight_norm(normed[index])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for init, settings in (("he", {}), ("orthogonal", {}), ("lsuv", {"batch": x}), ("dirac", {}), ("constant", {})):
        for net in (plain, normed):
            initialization.apply(net, init, seed=4, **settings)
        torch.testing.assert_close(normed(x), plain(x), rtol=1e-4, atol=1e-5)
    assert architecture.layers(normed) == tuple((str(index), normed[index]) for index in (0, 2, 4))
    initialization.apply(normed, "fixup", ends=["2"])
    assert not normed[2].weight.any()
    assert not normed[4].weight.any()


def test_zeros_behind_weight_norm_are_zeros_that_can_be_trained() -> None:
    layer = parametrizations.weight_norm(nn.Linear(4, 3))
    initialization.apply(layer, "zeros")
    assert not layer.weight.any()
    layer(torch.ones(1, 4)).sum().backward()
    assert bool(layer.parametrizations.weight.original0.grad.any())


class Doubled(nn.Module):
    """Of one's own, and without `right_inverse`."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Halved(Doubled):
    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def own(parametrization: nn.Module) -> nn.Module:
    layer = nn.Linear(6, 6)
    parametrize.register_parametrization(layer, "weight", parametrization)
    return layer


def lazy_graph() -> nn.Module:
    layer = GraphLinear(6, 6)
    layer.in_channels = -1
    layer.weight = nn.UninitializedParameter()
    return layer


def quantized() -> nn.Module:
    layer = nn.Linear(6, 6)
    layer.weight = nn.Parameter(torch.zeros(6, 6, dtype=torch.int8), requires_grad=False)
    return layer


def attention_of_a_graph() -> nn.Module:
    layer = nn.Module()
    layer.att_src = nn.Parameter(torch.ones(1, 4, 6))
    layer.in_channels, layer.out_channels = 4, 6
    return layer


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "spectral_norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(6, 6)),
        "spectral_norm makes other weights of those it is given",
    ),
    "orthogonal": (
        lambda: parametrizations.orthogonal(nn.Linear(6, 6)),
        "orthogonal makes other weights of those it is given",
    ),
    "orthogonal, Cayley": (
        lambda: parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley", use_trivialization=False),
        "orthogonal takes no weights",
    ),
    "own without an inverse": (lambda: own(Doubled()), "Doubled takes no weights"),
    "frozen": (lambda: nn.Linear(6, 6).requires_grad_(requires_grad=False), "frozen"),
    "frozen Conv1D": (lambda: Conv1D(6, 6).requires_grad_(requires_grad=False), "frozen"),
    "quantized": (quantized, "quantized, held as int8"),
    "lazy": (lambda: nn.LazyLinear(6), "not initialized yet, which one forward pass does"),
    "lazy graph": (lazy_graph, "not initialized yet, which one forward pass does"),
    "meta": (lambda: nn.Linear(6, 6, device="meta"), "on the meta device, without numbers"),
    "embedding": (lambda: nn.Embedding(6, 6), "an embedding"),
    "attention of a graph": (attention_of_a_graph, "att_src of a Module, which is not a known linear map"),
    "experts without sizes": (
        lambda: Experts(6, 5, turned=False, told=False),
        "which dimension of gate_up_proj, down_proj holds the inputs is unknown",
    ),
}


@pytest.mark.parametrize(("make", "reason"), OTHERS.values(), ids=OTHERS)
def test_what_is_not_reached_has_its_reason(make: Callable[[], nn.Module], reason: str) -> None:
    layer = make()
    found = initialization.reach(nn.Sequential(layer, nn.Linear(6, 6)))
    assert (found.reached, dict(found.others)) == (("1",), {"0": reason})
    assert str(found) == f"reaches 1 of 2 weight layers: not 0 ({reason})"


@pytest.mark.parametrize("name", [name for name in OTHERS if "spectral" not in name and name != "orthogonal"])
def test_what_cannot_be_set_is_left_and_named(name: str) -> None:
    layer = OTHERS[name][0]()
    before = {key: copy.deepcopy(parameter) for key, parameter in layer.named_parameters()}
    left = initialization.apply(layer, "he")
    assert left
    for key in left:
        parameter = layer.get_parameter(key)
        if not nn.parameter.is_lazy(parameter) and not parameter.is_meta:
            assert torch.equal(parameter, before[key])


def test_parametrizations_that_constrain_get_the_draw_and_make_their_own_of_it() -> None:
    """spectral_norm: the direction of the draw, of norm 1; orthogonal: what is orthogonal already, as drawn."""
    plain = nn.Linear(30, 30)
    initialization.apply(plain, "he", seed=5)
    normed = parametrizations.spectral_norm(nn.Linear(30, 30), n_power_iterations=200)
    assert initialization.apply(normed, "he", seed=5) == ()
    normed(torch.ones(1, 30))  # power iterations
    expected = plain.weight / torch.linalg.matrix_norm(plain.weight, 2)
    torch.testing.assert_close(normed.weight, expected, rtol=1e-3, atol=1e-3)
    bound = parametrizations.orthogonal(nn.Linear(30, 30))
    for layer in (plain, bound):
        initialization.apply(layer, "orthogonal", seed=5)
    torch.testing.assert_close(bound.weight, plain.weight, rtol=1e-4, atol=1e-5)
    for layer in (normed, bound):
        initialization.apply(layer, "zeros")  # which has no norm, and no basis
        assert bool(layer(torch.ones(1, 30)).isfinite().all())


def test_a_parametrization_of_ones_own_with_an_inverse_is_reached() -> None:
    layer = own(Halved())
    initialization.apply(layer, "dirac")
    assert torch.equal(layer.weight, torch.eye(6))


def test_a_layer_that_keeps_what_it_has_computed_is_reached() -> None:
    layer = own(Halved())
    layer.last, layer.cache = layer(torch.ones(1, 6)), [layer(torch.ones(1, 6))]
    assert initialization.reach(nn.Sequential(layer)).reached == ("0",)
    initialization.apply(layer, "dirac")
    assert torch.equal(layer.weight, torch.eye(6))
    assert layer.last.grad_fn is not None


def test_a_module_with_parameters_of_its_own_making_is_reached() -> None:
    class Counted(nn.Linear):
        def parameters(self) -> list[nn.Parameter]:  # type: ignore[override]  # as users write it
            return [*super().parameters()]

        def named_parameters(self) -> dict[str, nn.Parameter]:  # type: ignore[override]  # likewise
            raise AssertionError("called")

    layer = Counted(6, 6)
    layer.again = layer.weight
    assert architecture.own_parameters(layer) == {"weight": layer.weight, "bias": layer.bias}
    assert initialization.reach(layer).reached == ("",)


def test_gates_behind_a_parametrization_are_maps_of_their_own() -> None:
    gru = nn.GRU(20, 30, batch_first=True)
    parametrizations.weight_norm(gru, "weight_hh_l0")
    assert initialization.apply(gru, "orthogonal") == ()
    for gate in gru.weight_hh_l0.detach().chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(30), rtol=0, atol=1e-5)


def test_a_bilinear_layer_sums_over_both_its_inputs() -> None:
    layer = nn.Bilinear(30, 20, 50)
    initialization.apply(layer, "he")
    assert second_moment(layer, 30, 20) == pytest.approx(2.0, rel=5 * math.sqrt(2 / (30 * 20) + 8 / BATCH))


@pytest.mark.parametrize("turned", [False, True])
def test_experts_are_drawn_one_by_one(*, turned: bool) -> None:
    experts = Experts(12, 8, turned=turned)
    initialization.apply(experts, "orthogonal")
    for weight in (experts.gate_up_proj, experts.down_proj):
        for expert in weight.detach():
            small = expert if expert.shape[0] <= expert.shape[1] else expert.T
            torch.testing.assert_close(small @ small.T, torch.eye(len(small)), rtol=0, atol=1e-5)


def test_square_experts_are_ambiguous() -> None:
    square = Experts(12, 12, turned=True)
    assert str(initialization.reach(square)) == "reaches 1 of 1 weight layers"  # gate and up side by side tell it
    assert initialization.apply(square, "he") == ("down_proj",)


def test_tied_weights_are_set_once_and_both_their_layers_are_reached() -> None:
    embedding, head = nn.Embedding(50, 60), nn.Linear(60, 50, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"embedding": embedding, "head": head})
    assert initialization.reach(model).reached == ("embedding", "head")
    alone = nn.Linear(60, 50, bias=False)
    for each in (model, alone):
        initialization.apply(each, "he", seed=1)
    assert torch.equal(embedding.weight, alone.weight)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "lstm", "transformer"])
def test_depthgauges_models_are_reached_but_for_embeddings(name: str) -> None:
    found = initialization.reach(models.build(name, preset="small"))
    assert found.reached
    assert set(found.others.values()) <= {"an embedding", "position of a Transformer, which is not a known linear map"}


def test_half_precision_comes_back_as_it_was_set() -> None:
    layer = parametrizations.weight_norm(nn.Linear(40, 40).bfloat16())
    assert str(initialization.reach(layer)) == "reaches 1 of 1 weight layers"
    initialization.apply(layer, "he")
    assert layer.weight.dtype == torch.bfloat16


def test_many_layers_are_told_shortly() -> None:
    model = nn.Sequential(*(nn.Embedding(2, 2) for _ in range(5)), nn.Linear(2, 2))
    assert str(initialization.reach(model)) == "reaches 1 of 6 weight layers: not 0, 1, 2 and 2 more (an embedding)"


def test_the_bias_beside_a_tied_weight_is_zeroed_too() -> None:
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    initialization.apply(model, "he")
    assert not model[0].bias.any()
    assert not model[2].bias.any()
    initialization.apply(model, "lsuv", batch=torch.randn(64, 5))  # the tied layer is the first one's


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)])
@pytest.mark.parametrize("scheme", ["he", "xavier_uniform", "orthogonal", "delta_orthogonal", "constant"])
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_weights_without_numbers_are_left(sizes: tuple[int, int], scheme: str) -> None:
    initialization.apply(nn.Linear(*sizes), scheme)


def test_a_gain_of_a_model_without_weights_is_none() -> None:
    initialization.apply(nn.Sequential(nn.ReLU()), initialization.at_gain(2.0))


def test_complex_weights_are_left_as_complex() -> None:
    assert "complex, held as complex64" in str(initialization.reach(nn.Linear(3, 3, dtype=torch.complex64)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lsuv_sees_outputs_before_what_works_in_place(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(inplace=True), nn.Linear(64, 4)).to(dtype)
    batch = torch.randn(512, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
    initialization.apply(model, "lsuv", batch=batch)
    assert model[0](batch).var(correction=0).item() == pytest.approx(1.0, abs=2e-3)


def test_modules_are_drawn_anew_from_the_inside_out() -> None:
    """As they are built: an outer reset has the last word."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(50, 50)
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.normal_(self.inner.weight, std=1e-3)

    model = nn.Sequential(Small(), nn.MultiheadAttention(8, 2))
    nn.init.ones_(model[1].in_proj_weight)
    initialization.draw(model, torch.Generator().manual_seed(0), "default", "relu", torch.randn(4, 50))
    assert model[0].inner.weight.std().item() == pytest.approx(1e-3, rel=0.1)
    assert model[1].in_proj_weight.abs().max().item() < 1
    assert not model[1].out_proj.bias.any()
