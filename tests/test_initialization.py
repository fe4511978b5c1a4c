"""Initialization against the moments that it states; tolerances are five standard errors of those moments."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from depthgauge import architecture, initialization, models, theory
from depthgauge.seeding import Purpose, seed_torch

SETTINGS = {
    "gaussian": {"sigma_w": 1.0},
    "lsuv": {"batch": torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_std(weight: torch.Tensor, std: float, *, uniform: bool = False) -> None:
    """Of n draws, the variance's standard error is std^2 sqrt((kurtosis - 1) / n) and the mean's std / sqrt(n)."""
    n = weight.numel()
    spread = math.sqrt((1.8 if uniform else 3.0) - 1)
    assert weight.double().var().item() == pytest.approx(std**2, abs=5 * spread * std**2 / math.sqrt(n))
    assert weight.double().mean().item() == pytest.approx(0.0, abs=5 * std / math.sqrt(n))


def assert_orthogonal(matrix: torch.Tensor, gain: float = 1.0) -> None:
    """Rows or columns, whichever are fewer, orthonormal up to the gain; rounding grows as the root of a length."""
    matrix = matrix.double() / gain
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    off = (gram - torch.eye(len(gram))).abs().max().item()
    assert off < 4 * math.sqrt(max(matrix.shape)) * torch.finfo(torch.float32).eps


GELU = theory.gain("gelu")


@pytest.mark.parametrize(
    ("init", "settings", "variance"),
    [
        ("lecun", {}, lambda fan_in, _: 1 / fan_in),
        ("he", {}, lambda fan_in, _: 2 / fan_in),
        ("he_fan_out", {}, lambda _, fan_out: 2 / fan_out),
        ("xavier", {}, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("xavier", {"gain": 3.0}, lambda fan_in, fan_out: 18 / (fan_in + fan_out)),
        ("xavier_uniform", {}, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
        ("normal", {}, lambda _in, _out: 1e-4),
        ("normal", {"std": 0.3}, lambda _in, _out: 0.09),
        ("gaussian", {"sigma_w": 1.5}, lambda fan_in, _: 1.5**2 / fan_in),
        ("preserving", {"activation": "gelu"}, lambda fan_in, _: GELU.forward**2 / fan_in),
        (
            "preserving",
            {"activation": "gelu", "direction": "backward"},
            lambda _, fan_out: GELU.backward**2 / fan_out,
        ),
    ],
)
def test_variance(init: str, settings: dict[str, object], variance: object) -> None:
    assert callable(variance)
    drawn, uniform = initialization.scheme(init, **settings), init.endswith("uniform")
    mlp = models.build("mlp", input_shape=(300,), width=200, depth=2, init=drawn)
    assert_std(mlp.hidden[0].linear.weight, math.sqrt(variance(300, 200)), uniform=uniform)
    assert_std(mlp.hidden[1].linear.weight, math.sqrt(variance(200, 200)), uniform=uniform)
    assert not mlp.hidden[0].linear.bias.any()
    vgg = models.build("vgg11", preset="small", width=16, init=drawn)
    assert_std(vgg.features.block2.conv1.conv.weight, math.sqrt(variance(16 * 9, 32 * 9)), uniform=uniform)


def test_groups_and_gates_are_maps_of_their_own() -> None:
    grouped = nn.Conv2d(64, 128, 3, groups=4)
    initialization.apply(grouped, "xavier")
    assert_std(grouped.weight, math.sqrt(2 / (16 * 9 + 32 * 9)))
    lstm = models.build("lstm", input_shape=(5, 30), width=40, init="xavier")
    assert_std(lstm.layers[0].input.weight, math.sqrt(2 / (30 + 40)))


def test_torchs_own_layers_are_known() -> None:
    """Gates of nn.LSTM, q, k and v of nn.MultiheadAttention, and a transposed convolution, whose weight lies turned."""
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(30, 40, num_layers=2, proj_size=20),
            "cell": nn.GRUCell(30, 40),
            "attention": nn.MultiheadAttention(48, 4),
            "cross": nn.MultiheadAttention(48, 4, kdim=30, vdim=20),
            "up": nn.ConvTranspose2d(60, 30, 3),
            "embedding": nn.Embedding(10, 5),
        }
    )
    assert initialization.apply(model, "orthogonal") == ("embedding.weight",)
    lstm, cell, attention, cross = model["lstm"], model["cell"], model["attention"], model["cross"]
    for weight, maps in (
        (lstm.weight_ih_l0, 4),
        (lstm.weight_hh_l1, 4),
        (lstm.weight_hr_l0, 1),
        (cell.weight_hh, 3),
        (attention.in_proj_weight, 3),
        (cross.k_proj_weight, 1),
        (attention.out_proj.weight, 1),
    ):
        for part in weight.detach().chunk(maps):
            assert_orthogonal(part)
    assert_orthogonal(model["up"].weight.detach().transpose(0, 1).flatten(1))
    assert not any(bias.any() for name, bias in model.named_parameters() if "bias" in name)
    initialization.apply(model, "lecun")
    assert_std(model["up"].weight, 1 / math.sqrt(60 * 9))


def test_gaussian_draws_biases() -> None:
    model = models.build("mlp", width=1000, init=initialization.gaussian(1.0, sigma_b=0.3))
    assert_std(model.hidden[0].linear.bias, 0.3)


@pytest.mark.parametrize("name", ["mlp", "lstm", "transformer", "resnext50_32x4d"])
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_orthogonal_maps_are_orthogonal(name: str, gain: float) -> None:
    model = models.build(name, preset="small", init=initialization.scheme("orthogonal", gain=gain))
    for _, module in models.layers(model):
        if isinstance(module, nn.Embedding):
            continue
        maps = getattr(module, "maps", getattr(module, "groups", 1))
        for weight in module.weight.detach().chunk(maps):
            assert_orthogonal(weight.flatten(1), gain)


def test_a_delta_orthogonal_convolution_preserves_the_norm_of_any_image() -> None:
    """Also at the border, where other kernels lose what lies beyond it."""
    conv = nn.Conv2d(5, 12, 3, padding=1)
    initialization.apply(conv, "delta_orthogonal", gain=2.0)
    images = torch.randn(4, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = conv(images)
    torch.testing.assert_close(out.square().sum((1, 2, 3)), 4 * images.square().sum((1, 2, 3)), rtol=1e-5, atol=0)
    assert_orthogonal(conv.weight.detach()[:, :, 1, 1], 2.0)
    assert int(conv.weight.count_nonzero()) == 5 * 12


def test_dirac_is_the_identity() -> None:
    """That of torch.nn.init, for linear layers too."""
    conv, linear, grouped = nn.Conv2d(3, 7, 5, padding=2), nn.Linear(4, 6), nn.Conv1d(4, 8, 3, groups=2)
    for module in (conv, linear, grouped):
        initialization.apply(module, "dirac")
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = conv(images)
    assert torch.equal(out[:, :3], images)
    assert not out[:, 3:].any()
    assert torch.equal(linear.weight.detach(), torch.eye(6, 4))
    assert torch.equal(grouped.weight.detach(), nn.init.dirac_(torch.empty(8, 2, 3), groups=2))


def test_default_is_pytorchs_own() -> None:
    model = models.build("mlp", input_shape=(9,), width=5, depth=1, classes=2, seed=11)
    with torch.random.fork_rng(devices=[]):
        seed_torch(11, Purpose.MODULES)
        hidden, output = nn.Linear(9, 5), nn.Linear(5, 2)
    assert torch.equal(model.hidden[0].linear.weight, hidden.weight)
    assert torch.equal(model.output.bias, output.bias)


def test_zeros_and_constants() -> None:
    layer = nn.Conv2d(4, 3, 5)
    initialization.apply(layer, "zeros")
    assert not layer.weight.any()
    initialization.apply(layer, "constant", value=0.25)
    assert bool((layer.weight == 0.25).all())
    initialization.apply(layer, "constant")
    torch.testing.assert_close(layer.weight.detach(), torch.full((3, 4, 5, 5), 1 / 100))


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "leaky_relu"])
def test_preserving_takes_the_gain_of_the_models_own_activation(name: str) -> None:
    found, told = (
        models.build("mlp", width=64, depth=3, activation=name, init=initialization.scheme("preserving", **settings))
        for settings in ({}, {"activation": name})
    )
    for mine, theirs in zip(found.parameters(), told.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_preserving_asks_where_it_cannot_know() -> None:
    with pytest.raises(ValueError, match="holds no activation as a module; say which"):
        initialization.apply(nn.Linear(3, 3), "preserving")
    several = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Tanh())
    with pytest.raises(ValueError, match=r"several activations, ReLU\(\), Tanh\(\)"):
        initialization.apply(several, "preserving")
    with pytest.raises(ValueError, match="'forward' or 'backward'"):
        initialization.scheme("preserving", direction="sideways")
    assert initialization.apply(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Dropout()), "preserving") == ()


def test_gpt2_scales_the_ends_of_branches_by_depth() -> None:
    model = models.build("transformer", preset="small", depth=8, width=64, init="gpt2")
    ends = set(models.branch_ends(model))
    for layer, module in models.layers(model):
        assert_std(module.weight, 0.02 / math.sqrt(16) if layer in ends else 0.02)
        assert getattr(module, "bias", None) is None or not module.bias.any()


def test_depth_scaled_is_its_base_but_for_the_ends_of_branches() -> None:
    drawn, scaled = (
        models.build("resnet18", preset="small", norm="none", init=init) for init in ("he", "depth_scaled")
    )
    ends = models.branch_ends(drawn)
    assert len(ends) == 8
    for (name, mine), (_, theirs) in zip(models.layers(drawn), models.layers(scaled), strict=True):
        factor = 8**-0.5 if name in ends else 1.0
        torch.testing.assert_close(theirs.weight, factor * mine.weight)
    other = models.build("mlp", depth=4, residual=True, init=initialization.scheme("depth_scaled", base="orthogonal"))
    assert_orthogonal(other.hidden[1].linear.weight.detach(), 3**-0.5)


def test_fixup_follows_its_two_rules() -> None:
    """ResNet-50: L = 16 branches of m = 3 layers, so that the first two are He's times 16^(-1/4) = 1/2."""
    drawn, fixed = (models.build("resnet50", preset="small", norm="none", init=init) for init in ("he", "fixup"))
    ends = models.branch_ends(drawn)
    for (name, mine), (_, theirs) in zip(models.layers(drawn), models.layers(fixed), strict=True):
        if name in ends or name == "output":
            assert not theirs.weight.any(), name
        else:
            factor = 0.5 if ".branch." in name else 1.0
            torch.testing.assert_close(theirs.weight, factor * mine.weight)


def test_a_fixup_block_is_the_identity() -> None:
    model = models.build("resnet18", preset="small", norm="none", order="pre", init="fixup")
    images = torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.stages.stage1.block2(images), images)


class Block(nn.Module):
    """As torchvision has it: the shortcut is registered after the branch, in the same module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.shortcut = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1)


def test_branches_of_a_users_own_blocks() -> None:
    model = nn.ModuleDict({"a": Block(), "b": Block()})
    ends = ["a.conv2", "b.conv2"]
    assert architecture.branches(model, ends) == (("a.conv1", "a.conv2"), ("b.conv1", "b.conv2"))
    initialization.apply(model, "fixup", ends=ends, head="b.shortcut")
    assert not model["a"].conv2.weight.any()
    assert not model["b"].shortcut.weight.any()
    assert model["a"].shortcut.weight.all()
    with pytest.raises(ValueError, match=r"no weight layer 'a\.conv3' in this model; did you mean 'a\.conv"):
        initialization.apply(model, "fixup", ends=["a.conv3"])
    with pytest.raises(ValueError, match="no block of this model names its `branch_ends`"):
        initialization.apply(model, "depth_scaled")


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mlp", {"depth": 6, "activation": "tanh", "width": 40}),
        ("vgg11", {"norm": "batch"}),
        ("resnet18", {"norm": "none"}),
        ("lstm", {"depth": 2}),
        ("transformer", {"vocabulary": None}),
    ],
)
def test_lsuv_gives_every_layer_unit_variance(name: str, parameters: dict[str, object]) -> None:
    """On the very batch: up to rounding where a layer is called once, up to the tolerance where it is called often."""
    batch = SETTINGS["lsuv"]["batch"]
    lsuv = initialization.scheme("lsuv", batch=batch)
    model = models.build(name, preset="small", init=lsuv, **parameters)
    fresh = models.build(name, preset="small", **parameters)
    for (key, buffer), (_, untouched) in zip(model.named_buffers(), fresh.named_buffers(), strict=True):
        assert torch.equal(buffer, untouched), key
    outputs: dict[str, list[torch.Tensor]] = {}
    for layer, module in models.layers(model):
        if not isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _m, _i, y, layer=layer: outputs.setdefault(layer, []).append(y))
    with torch.no_grad():
        model(batch)
    for layer, values in outputs.items():
        variance = torch.cat([value.flatten() for value in values]).double().var(correction=0).item()
        assert variance == pytest.approx(1.0, abs=1e-3), layer


def test_lsuv_starts_from_orthogonal_draws_and_says_what_it_cannot_scale() -> None:
    batch = torch.randn(32, 10, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    initialization.apply(model, "lsuv", batch=batch)
    for linear in (model[0], model[2]):
        weight = linear.weight.detach()
        assert_orthogonal(weight, float(torch.linalg.matrix_norm(weight, 2)))
    with pytest.raises(ValueError, match=r"layer '0' has variance 0\.0 on this batch"):
        initialization.apply(model, "lsuv", batch=torch.zeros(4, 10))


def test_a_shared_weight_is_drawn_once() -> None:
    model = models.build(
        "transformer", input_shape=(8,), classes=500, vocabulary=500, depth=1, width=64, heads=4, init="he"
    )
    assert_std(model.reader.embedding.weight, math.sqrt(2 / 64))


def test_schemes_share_their_draws() -> None:
    """The same seed draws the same normal numbers: what differs between two schemes is their scale alone."""
    he, lecun = (models.build("mlp", init=init, seed=5).hidden[0].linear.weight for init in ("he", "lecun"))
    torch.testing.assert_close(he, math.sqrt(2) * lecun)


@pytest.mark.parametrize("name", initialization.SCHEMES)
def test_every_scheme_draws_from_its_seed_alone(name: str) -> None:
    """And leaves the global generator as it was; half precision is drawn in single."""
    build = {"preset": "small", "norm": "none", "init": initialization.scheme(name, **SETTINGS.get(name, {}))}
    before = torch.get_rng_state()
    one, same = (models.build("resnet18", seed=4, **build) for _ in range(2))
    for mine, theirs in zip(one.parameters(), same.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert bool(mine.isfinite().all())
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_are_drawn_anew_at_the_gain_of_their_activation() -> None:
    """Schemes of one seed share their draws, PyTorch's defaults come from the seed too."""
    model = models.build("mlp", depth=2, width=64)

    def drawn(seed: int, scheme: str) -> torch.Tensor:
        seed_torch(seed, Purpose.MODULES)
        generator = torch.Generator().manual_seed(seed)
        initialization.draw(model, generator, scheme, "relu", torch.empty(0))
        return model.hidden[1].linear.weight.detach().clone()

    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(drawn(0, "default"), drawn(1, "default"))
        torch.testing.assert_close(drawn(0, "he"), math.sqrt(2) * drawn(0, "xavier"))
        assert_orthogonal(drawn(0, "orthogonal"), math.sqrt(2))
        for scheme in ("default", "xavier", "xavier_uniform", "lecun", "he", "he_fan_out", "normal"):
            sigmas = initialization.sigmas(scheme, "relu", 64)
            assert sigmas is not None
            assert_std(drawn(0, scheme), sigmas[0] / 8)  # std = sigma_w / sqrt(width)
    assert initialization.sigmas("preserving", "tanh", 64) == (theory.gain("tanh").forward, 0.0)
    assert initialization.sigmas("lsuv", "relu", 64) is None


def test_defaults_behind_a_parametrization_are_drawn_with_their_second_moment() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(200, 300))
    before = layer.weight.detach().clone()
    initialization.draw(layer, torch.Generator().manual_seed(1), "default", "relu", torch.zeros(1))
    assert not torch.allclose(layer.weight, before)
    assert_std(layer.weight.detach(), math.sqrt(1 / (3 * 200)))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["old", "new"])
def test_draws_behind_a_parametrization_differ_by_seed_and_scheme(norm: Callable[[nn.Module], nn.Module]) -> None:
    outputs = []
    for seed, scheme in itertools.product((0, 1), ("default", "he")):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # one layer to begin with
            layer = norm(nn.Linear(8, 4))
            initialization.draw(layer, torch.Generator().manual_seed(seed), scheme, "relu", torch.zeros(1))
        outputs.append(layer(torch.ones(1, 8)).detach().square().sum().item())
    assert len(set(outputs)) == 4


def test_torchs_gains_beside_those_that_keep_the_second_moment() -> None:
    gains = initialization.gains().set_index("activation")
    assert gains.loc["relu", "kept_a_layer_with_torchs"] == pytest.approx(1.0)
    assert gains.loc["tanh", "kept_a_layer_with_torchs"] == pytest.approx((5 / 3 / theory.gain("tanh").forward) ** 2)
    assert math.isnan(gains.loc["gelu", "calculate_gain"])


def test_half_precision_is_drawn_in_single() -> None:
    half = nn.Linear(30, 30).bfloat16()
    single = nn.Linear(30, 30)
    for module in (half, single):
        initialization.apply(module, "orthogonal", seed=2)
    assert torch.equal(half.weight, single.weight.bfloat16())


def test_any_callable_is_a_scheme() -> None:
    def ones(model: nn.Module, generator: torch.Generator) -> None:
        assert generator.device.type == "cpu"
        for parameter in model.parameters():
            nn.init.ones_(parameter)

    model = models.build("mlp", init=ones)
    assert all(bool((p == 1).all()) for p in model.parameters())
    with pytest.raises(TypeError, match="is one already, and takes no 'gain'"):
        initialization.apply(model, ones, gain=2.0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("kaiming_normal_", "he"),
        ("glorot", "xavier"),
        ("ortogonal", "orthogonal"),
        ("LSUV", "lsuv"),
        ("fix_up", "fixup"),
    ],
)
def test_an_unknown_name_ends_in_a_sentence_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"no initialization '{name}'; did you mean '{nearest}'\? There is default, "):
        initialization.apply(nn.Linear(2, 2), name)


def test_settings_are_checked_before_anything_is_drawn() -> None:
    with pytest.raises(TypeError, match=r"'lsuv' needs batch: scheme\('lsuv', batch=\.\.\.\)"):
        models.build("mlp", init="lsuv")
    with pytest.raises(TypeError, match="'orthogonal' has no setting 'std'; it has gain"):
        initialization.scheme("orthogonal", std=1.0)
    with pytest.raises(TypeError, match="'he' has no setting 'gain'; it has none"):
        initialization.scheme("he", gain=1.0)


PAGE = (Path(__file__).parents[1] / "docs" / "initialization.md").read_text(encoding="utf-8")


def test_the_page_lists_every_scheme_with_its_settings() -> None:
    rows = {row[0].strip(" `"): row[2] for row in re.findall(r"^\| (`\w+`) \|(.*?)\|(.*?)\|", PAGE, flags=re.MULTILINE)}
    assert list(rows) == list(initialization.SCHEMES)
    for name, make in initialization.SCHEMES.items():
        assert re.findall(r"\w+", rows[name]) == list(inspect.signature(make).parameters), name


def test_the_page_has_the_exact_gains() -> None:
    rows = re.findall(r"^\| ([a-z_]+) \| ([\d.]+|none) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) == 7
    for name, torchs, forward, backward in rows:
        gain = theory.gain(name)
        assert (float(forward), float(backward)) == (round(gain.forward, 4), round(gain.backward, 4))
        known = {"identity": "linear"}.get(name, name)
        if torchs != "none":
            assert float(torchs) == round(nn.init.calculate_gain(known), 4)


def test_the_pages_examples_run() -> None:
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block, namespace)
