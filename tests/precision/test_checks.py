"""What a user can give wrongly to `depthgauge.precision` ends in one sentence, and nothing looks like a result."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from depthgauge import precision

X = torch.ones(5, 4)
LAYER = nn.Linear(4, 2)
META, LAZY = nn.Linear(4, 2, device="meta"), nn.LazyLinear(2)
NESTED = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
EIGHT = torch.float8_e5m2


class InEightBits(nn.Module):
    """Holds weights in eight bits."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3).to(EIGHT), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x


def strided() -> Tensor:
    """A nested tensor of the older kind, of which torch warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.as_nested_tensor([X, X[1:]])


def other_each_time(*modules: nn.Module) -> Callable[[int], Any]:
    """A `make` that gives one module after the other."""
    rest = iter(modules)
    return lambda _: (next(rest), print)


def emulate(**options: Any) -> None:
    with precision.emulated(**options):
        pass


CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "bisect": (precision.bisect, {"module": LAYER, "batch": X, "dtype": "bfloat16"}),
    "compare": (precision.compare, {"a": LAYER, "b": LAYER, "batch": X}),
    "batch_invariance": (precision.batch_invariance, {"module": LAYER, "inputs": X}),
    "nudge": (precision.nudge, {"module": LAYER, "seed": 0}),
    "ulp_distance": (precision.ulp_distance, {"a": torch.ones(3), "b": torch.ones(3)}),
    "cast": (precision.cast, {"module": LAYER, "fmt": "float16"}),
    "emulated": (emulate, {"fmt": "float16"}),
    "twins": (precision.twins, {"make": lambda _: (nn.Linear(1, 1), lambda: None), "seeds": [0], "steps": 2}),
}


MODULES = {"bisect": "module", "compare": "b", "batch_invariance": "module", "nudge": "module", "cast": "module"}
BATCHES = {"bisect": "batch", "compare": "batch", "batch_invariance": "inputs"}
NO_MODULE = [
    (torch.relu, TypeError, "is a builtin_function_or_method, where a torch.nn.Module was expected"),
    (lambda x: x, TypeError, "is a function, where a torch.nn.Module"),
    (nn.Linear, TypeError, "is the class torch.Linear, where a torch.nn.Module was expected: call it first"),
    ([LAYER], TypeError, "is a list, where a torch.nn.Module"),
    (X, TypeError, "is a torch.Tensor, where a torch.nn.Module"),
    (None, TypeError, "is None, where a torch.nn.Module"),
    (META, ValueError, "'weight' of the module is on the meta device, without values"),
    (LAZY, ValueError, "'weight' of a lazy layer has no values yet: call the module once"),
]
NO_BATCH = [
    (None, TypeError, "is None, where a tensor, a tuple .by position. or a mapping .by name. was expected"),
    ("abc", TypeError, "is a str, where a tensor"),
    (3.0, TypeError, "is a float, where a tensor"),
    (iter([X]), TypeError, "is a list_iterator, where a tensor"),
    (torch.utils.data.DataLoader([X]), TypeError, "is a torch.DataLoader, where a tensor"),  # type: ignore[arg-type]  # a list is a data set
    (np.ones((5, 4)), TypeError, "is a numpy.ndarray and no tensor"),
    ({"input": np.ones((5, 4))}, TypeError, "holds a numpy.ndarray and no tensor"),
    (X.to("meta"), ValueError, "is on the meta device, without values"),
    (X[:0], ValueError, r"is empty, of the shape \(0, 4\)"),
    (strided(), TypeError, "a nested tensor, where a dense one was expected"),
    (
        (X, X.long(), X),
        TypeError,
        r"Linear.forward\(input\) does not take this batch, .*: too many",
    ),
    ((), TypeError, "missing a required argument: 'input'"),
    ({"x": X}, TypeError, "missing a required argument: 'input'"),
    ({1: X}, TypeError, "keywords must be strings"),
]
NO_FORMAT = [
    (given, ValueError, "no floating-point format is called")
    for given in ("float17", None, 16, float, torch.int8, torch.complex64, torch.float8_e4m3fnuz)
]
NO_LOSS: list[tuple[Any, type[Exception], str]] = [
    (lambda _, x: x.sum().requires_grad_(), ValueError, "the loss never calls the module that it is given"),
    (lambda _, x: nn.Linear(4, 2)(x).sum(), ValueError, "the loss never calls the module"),
    (lambda m, x: m.forward(x).sum(), ValueError, "it calls another, or module.forward"),
    (lambda m, x: m(x).sum().item(), TypeError, "the loss is a float, where a tensor of one number was expected"),
    (lambda m, x: np.float32(m(x).sum().item()), TypeError, "the loss is a numpy.float32"),
    (lambda m, x: (m(x).sum(),), TypeError, "the loss is a tuple"),
    (lambda m, x: m(x).sum().backward(), TypeError, "the loss is None"),
    (lambda m, x: m(x), ValueError, r"the loss has the shape \(5, 2\), where one number was expected"),
    (lambda m, x: m(x).sum().long(), TypeError, "the loss is of torch.int64"),
    (lambda m, x: m(x).sum() * 1j, TypeError, "the loss is of torch.complex64"),
    (lambda m, x: m(x).sum().detach(), ValueError, "the loss has no gradient"),
    (torch.no_grad()(lambda m, x: m(x).sum()), ValueError, "the loss has no gradient"),
    (3, TypeError, r"loss is an int, where a function was expected, called as loss\(module, batch\)"),
    ("mse", TypeError, "loss is a str, where a function"),
    (nn.MSELoss(), TypeError, "loss is MSELoss, which takes outputs"),
    (functional.mse_loss, TypeError, "loss is mse_loss, which takes outputs"),
    (lambda m: m, TypeError, r"loss is called as loss\(module, batch\), and takes \(m\)"),
    (lambda m, _x, _y: m, TypeError, "missing a required argument: '_y'"),
]
NO_PAIR = [
    ("labels", TypeError, "the second of a pair is a str, where class numbers .int64. were expected"),
    (np.zeros(5, int), TypeError, "the second of a pair is a numpy.ndarray"),
    (torch.ones(5), TypeError, "the second of a pair is of torch.float32"),
    (torch.ones(5, dtype=torch.bool), TypeError, "the second of a pair is of torch.bool"),
]
NO_NUMBER = [(given, ValueError, "is .*, where a whole number >= ") for given in (-1, 1.5, "1", None, True)]
NO_SEED = [(given, TypeError, "a seed is an integer, not") for given in ("a", None, 1.5, torch.Generator())]
NO_FLOATS = [
    (1.0, TypeError, "a is a float, where a tensor was expected"),
    (np.ones(3), TypeError, "a is a numpy.ndarray"),
    (torch.arange(3), TypeError, "a is of torch.int64, where a floating-point dtype was expected"),
    (torch.ones(3, dtype=torch.bool), TypeError, "a is of torch.bool"),
    (torch.ones(3, dtype=torch.cfloat), TypeError, "a is of torch.complex64"),
    (torch.ones(3).to_sparse(), TypeError, "a is a sparse_coo tensor"),
    (NESTED, TypeError, "a is a nested tensor"),
    (torch.ones(3).half(), ValueError, r"a is \(3,\) torch.float16 cpu and b \(3,\) torch.float32 cpu, not alike"),
    (torch.ones(4), ValueError, "not alike"),
    (torch.ones(3, 1), ValueError, "not alike"),
]
NO_MAKE: list[tuple[Any, type[Exception], str]] = [
    (None, TypeError, r"make is None, where a function was expected, called as make\(seed\)"),
    (LAYER, TypeError, "make is a torch.Linear, where a function was expected"),
    ((LAYER, print), TypeError, "make is a tuple"),
    (lambda: None, TypeError, r"make is called as make\(seed\), and takes \(\)"),
    (lambda _: LAYER, TypeError, "make returned a torch.Linear, where a module and a function for one step"),
    (lambda _: None, TypeError, "make returned None"),
    (lambda _: (LAYER, 3), TypeError, "make returned a torch.Linear, an int"),
    (lambda _: (LAYER, print, 3), TypeError, "a torch.Linear, a builtin_function_or_method, an int"),
    (lambda _: (print, print), TypeError, "the first that make returned is a builtin_function_or_method"),
    (lambda _: (LAYER, print), ValueError, "make returned the same weights twice"),
    (
        other_each_time(nn.Linear(1, 1), nn.Linear(1, 2)),
        ValueError,
        r"make\(0\) returned other weights",
    ),
    (other_each_time(nn.Linear(1, 1), nn.Linear(1, 1, bias=False)), ValueError, "other weights the second time"),
    (other_each_time(nn.Linear(1, 1), nn.Linear(1, 1)), ValueError, "other weights the second time"),
    (lambda _: (nn.Linear(1, 1).to(EIGHT), print), ValueError, "no floating-point parameters"),
    (lambda _: (nn.Tanh(), print), ValueError, "no floating-point parameters"),
]
NAN = nn.Linear(1, 1).requires_grad_(False)
NAN.weight.fill_(math.nan)

WRONG = [
    *((name, {place: given}, *rest) for name, place in MODULES.items() for given, *rest in NO_MODULE),
    *((name, {place: given}, *rest) for name, place in BATCHES.items() for given, *rest in NO_BATCH),
    *(("bisect", {"dtype": given}, *rest) for given, *rest in NO_FORMAT),
    *((name, {"fmt": given}, *rest) for name in ("cast", "emulated") for given, *rest in NO_FORMAT),
    *(("bisect", {"loss": given}, *rest) for given, *rest in NO_LOSS),
    *(("bisect", {"batch": (X, given)}, *rest) for given, *rest in NO_PAIR),
    *((name, {"seed": given}, *rest) for name in ("compare", "batch_invariance", "nudge") for given, *rest in NO_SEED),
    *(("twins", {"seeds": [given]}, *rest) for given, *rest in NO_SEED),
    *(("twins", {place: given}, *rest) for place in ("steps", "ulps") for given, *rest in NO_NUMBER),
    *(("nudge", {"ulps": given}, *rest) for given, *rest in (*NO_NUMBER, (0, ValueError, "ulps is 0"))),
    *(("ulp_distance", {"a": given}, *rest) for given, *rest in NO_FLOATS),
    *(("twins", {"make": given}, *rest) for given, *rest in NO_MAKE),
    ("twins", {"seeds": 3}, TypeError, "seeds is an int, where several integers were expected"),
    ("twins", {"seeds": []}, ValueError, "seeds is empty"),
    ("nudge", {"module": NAN}, ValueError, "no value of 'weight' is finite"),
    ("nudge", {"module": InEightBits()}, ValueError, "no floating-point parameters"),
    *(
        ("emulated", {"stochastic": given}, TypeError, "stochastic is .*, where a torch.Generator was expected")
        for given in (True, 3, np.random.default_rng())
    ),
    ("bisect", {"batch": NESTED}, TypeError, "an output is a nested tensor, whose gradient cannot be drawn"),
    *((name, {BATCHES[name]: NESTED}, TypeError, "a nested tensor") for name in ("compare", "batch_invariance")),
    *(
        (name, {BATCHES[name]: X.to_sparse()}, TypeError, "a sparse_coo tensor")
        for name in ("compare", "batch_invariance")
    ),
    ("bisect", {"batch": X.to("meta"), "loss": lambda m, x: m(x).sum()}, ValueError, "on the meta device"),
    ("bisect", {"module": nn.ModuleList([LAYER])}, TypeError, "a ModuleList has no forward of its own"),
    (
        "compare",
        {"a": InEightBits()},
        ValueError,
        "a is a module in torch.float8_e5m2",
    ),
    ("batch_invariance", {"inputs": torch.tensor(1.0)}, ValueError, "no first dimension in common"),
]


@pytest.mark.parametrize(("name", "options", "error", "message"), WRONG)
def test_a_wrong_argument_ends_in_a_sentence(name, options, error, message):
    function, right = CALLS[name]
    with pytest.raises(error, match=message) as raised:
        function(**{**right, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", CALLS)
def test_the_right_arguments_beside_the_wrong_ones(name):
    function, right = CALLS[name]
    function(**right)


class Around(nn.Module):
    """Calls one of its two layers by a function of its own."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.call = nn.Linear(4, 4), nn.Linear(4, 4), call

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.call(self.inner, x))


TRANSFORMS = {
    "vmap": lambda layer, x: torch.vmap(layer)(x),
    "jacrev": lambda layer, x: torch.vmap(torch.func.jacrev(lambda each: layer(each).tanh().sum()))(x),
    "jvp": lambda layer, x: torch.func.jvp(lambda each: layer(each).tanh(), (x,), (x.detach(),))[1],
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # which torch's own jvp calls
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_module_inside_a_transform_of_torch_func_belongs_to_the_layer_around_it(name):
    model = Around(TRANSFORMS[name])
    other = copy.deepcopy(model)
    assert precision.compare(model, other, X).same
    frame = precision.bisect(model, X, "float32")
    assert list(frame["layer"]) == ["", "outer", "outer", ""]
    assert (frame[["own", "inherited", "total"]] == 0).all(axis=None)
    assert (precision.bisect(model, X, "bfloat16")["own"] > 0).all()
    with torch.no_grad():
        other.inner.weight[0] *= 1.01
    assert precision.compare(model, other, X, parameters=False).first == ""


class EnergyAndForces(nn.Module):
    """Returns a function of its layer's output, and its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x.requires_grad_()
        energy = self.layer(x).tanh()
        return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_own_error_of_a_forward_that_takes_gradients_of_its_children_is_the_total(dtype):
    model = nn.Sequential(nn.Linear(4, 4), EnergyAndForces())
    frame = precision.bisect(model, X, dtype).set_index(["layer", "direction"])
    missing = frame[["own", "inherited", "total"]].isna().stack()
    assert set(missing[missing].index) == {("1", "backward", "inherited"), ("", "backward", "inherited")}
    assert (
        frame.loc[("1", "forward"), "error"] == "own is the total error, as its forward takes gradients of its children"
    )
    assert frame.loc[("1", "forward"), "own"] == frame.loc[("1", "forward"), "total"]
    assert frame[["own", "inherited", "total"]].max(axis=None) <= (0 if dtype == "float32" else 0.03)


def test_a_reentrant_checkpoint_is_named():
    model = Around(lambda layer, x: checkpoint(layer, x.tanh(), use_reentrant=True))
    with pytest.raises(TypeError, match=r"a reentrant checkpoint refuses .* give use_reentrant=False"):
        precision.compare(model, model, X)


def test_an_output_without_tensors_is_noted():
    model = nn.Linear(4, 2)
    model.register_forward_hook(lambda _, _given, out: iter((out,)))
    frame = precision.batch_invariance(model, X)
    assert not frame["equal"].any()
    assert set(frame["note"]) == {"the output holds no floating-point tensor that can be seen"}


def test_eight_bits_are_taken_where_they_can_be():
    forward = precision.bisect(InEightBits(), X.to(EIGHT), EIGHT).iloc[0]
    assert (forward[["own", "inherited", "total"]] == 0).all()
    assert precision.batch_invariance(nn.Identity(), X.to(EIGHT))["equal"].all()
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz):
        a, b = (torch.tensor([1.0, -1.0, math.nan]).to(dtype), torch.tensor([2.0, 1.0, math.nan]).to(dtype))
        binade = 2 ** (3 if "e4m3" in str(dtype) else 2)
        ones = float(precision.ulp_distance(a[:1], torch.zeros(1).to(dtype)))
        assert precision.ulp_distance(a, b).tolist() == [binade, 2 * ones, 0]


def test_a_module_of_frozen_weights_and_token_ids_needs_no_gradient():
    embedding = nn.Embedding(4, 3).requires_grad_(False)
    frame = precision.bisect(embedding, torch.arange(4), "float16", loss=lambda m, x: m(x).sum())
    assert list(frame["direction"]) == ["forward"]


def test_modules_that_change_their_arguments_before_are_not_judged_by_them():
    layer = nn.Linear(4, 2)
    layer.register_forward_pre_hook(lambda _, pair: (pair[0],))
    assert precision.compare(layer, layer, (X, X)).same
