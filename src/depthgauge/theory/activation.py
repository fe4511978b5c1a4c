"""Any activation, resolved once: its name, its value and slope in double precision, and where it bends.

    >>> activation("leaky_relu").name
    'leaky_relu'
    >>> activation("tanh").slope(np.zeros(1))
    array([1.])

An `Activation` finds its own *mesh*: intervals on each of which a polynomial of degree 19 reproduces both value and
slope. Kinks and jumps end up as edges of the mesh, to the last bit, so that a Gauss rule on the intervals is right for
ReLU as for tanh. The Gaussian expectations of this package all rest on that.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Array = NDArray[np.float64]
Phi: TypeAlias = "str | Callable[[Any], Any] | Activation"

NODES, WEIGHTS = np.polynomial.legendre.leggauss(20)

# Where a panel's interpolant is compared with the function: near the ends, where interpolation is worst and where a
# kink would hide from the Gauss nodes, and at a few places between nodes.
_CHECKS = np.array([-1 + 1e-9, -1 + 1e-3, -0.9, -0.61, -0.2, 0.03, 0.45, 0.77, 1 - 1e-3, 1 - 1e-9])
_INTERPOLATE = np.polynomial.legendre.legvander(_CHECKS, 19) @ np.linalg.inv(
    np.polynomial.legendre.legvander(NODES, 19)
)
_RESOLVED = 1e-10
_MOST_PANELS = 20_000


@cache
def _table() -> dict[str, tuple[str, type[torch.nn.Module]]]:
    """Normalized name -> (name, class): the elementwise, deterministic classes of torch.nn that need no arguments."""
    from torch import nn  # noqa: PLC0415 - importing depthgauge.theory must not import torch

    spelled = {_normalize(name): name for name in dir(nn.functional) if name.strip("_") == name}
    table: dict[str, tuple[str, type[torch.nn.Module]]] = {}
    for name, kind in sorted(vars(nn).items()):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            continue
        if kind.__module__ != "torch.nn.modules.activation" and kind is not nn.Identity:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Softmax without a dimension warns before it is turned away
                _double(kind())
        except (TypeError, ValueError):
            continue  # needs arguments (Threshold), mixes elements (Softmax, GLU) or draws at random (RReLU)
        key = _normalize(name)
        table[key] = (spelled.get(key, key), kind)
    return table


def _normalize(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "").replace(" ", "")


def activation_names() -> tuple[str, ...]:
    """Names of every elementwise activation of `torch.nn` that needs no arguments.

    Found in the installed torch, not listed here. Left out: classes that need arguments (`Threshold`), that mix
    elements (`Softmax`, `GLU`), and `RReLU`, whose slope is drawn at random while training. All of these but the
    second kind can still be given as modules (`nn.Threshold(0.1, 0.0)`, `nn.RReLU().eval()`).
    """
    return tuple(sorted(name for name, _ in _table().values()))


@dataclass(frozen=True, eq=False)
class Activation:
    """An elementwise function.

    Attributes:
        name: torch's name in lower case (`leaky_relu`), or the callable's own.
        function: maps tensors to tensors (or arrays to arrays, where it was given such).
    """

    name: str
    function: Callable[[Any], Any]
    _evaluate: Callable[[Array], tuple[Array, Array]] = field(repr=False)
    _value: Callable[[Array], Array] = field(repr=False)
    _meshes: dict[int, tuple[Array, Array]] = field(default_factory=dict, repr=False)
    _jumps: dict[bytes, bool] = field(default_factory=dict, repr=False)

    def __call__(self, x: Any) -> Any:
        """`function(x)`."""
        return self.function(x)

    def module(self) -> torch.nn.Module:
        """A new `nn.Module` that computes the activation; its parameters (PReLU) are its own.

        Raises:
            TypeError: the activation was given as a callable, not by name or as a module.
        """
        import copy  # noqa: PLC0415 - next to the torch import that this method needs

        from torch import nn  # noqa: PLC0415 - importing depthgauge.theory must not import torch

        if not isinstance(self.function, nn.Module):
            raise TypeError(
                f"activation {self.name!r} is a plain function; pass an nn.Module or a name to get a module"
            )
        return copy.deepcopy(self.function)

    def both(self, u: Array) -> tuple[Array, Array]:
        """(value, slope) at `u`, any shape, float64. The slope at a kink is autograd's; it carries no weight."""
        value, slope = self._evaluate(np.ascontiguousarray(u, dtype=np.float64).reshape(-1))
        return value.reshape(u.shape), slope.reshape(u.shape)

    def value(self, u: Array) -> Array:
        """phi(u), to the bit that of `both`, in a third of its time."""
        return self._value(np.ascontiguousarray(u, dtype=np.float64).reshape(-1)).reshape(u.shape)

    def slope(self, u: Array) -> Array:
        """phi'(u), almost everywhere; what a backward pass multiplies by."""
        return self.both(u)[1]

    def jumps(self, kinks: Array) -> bool:
        """Tell whether phi itself, not only its slope, is discontinuous at one of `kinks`."""
        key = kinks.tobytes()
        if key not in self._jumps:
            step = 1e-9 * np.maximum(1.0, np.abs(kinks))
            value, slope = self.both(np.stack([kinks - step, kinks + step]))
            steep = 1e-7 + 4 * step * np.abs(slope).max(initial=0.0)
            self._jumps[key] = bool(np.any(np.abs(np.diff(value, axis=0)) > steep))
        return self._jumps[key]

    def mesh(self, radius: float) -> tuple[Array, Array]:
        """(edges, kinks) that cover |u| <= `radius`: sorted; `kinks` are the edges where phi is not smooth.

        Raises:
            ValueError: phi varies too fast to be resolved on so wide a range.
        """
        level = max(3, math.ceil(math.log2(radius))) if radius > 0 else 3
        if level not in self._meshes:
            self._meshes[level] = _mesh(self, level)
        return self._meshes[level]


def activation(phi: Phi) -> Activation:
    """Resolves a name, a module or a callable.

    Args:
        phi: a name of a torch activation (`"relu"`, `"LeakyReLU"`, `"leaky_relu"`; `"linear"` is `"identity"`), an
            `nn.Module`, or a callable that maps tensors (or numpy arrays) elementwise. The slope comes from autograd;
            for a numpy callable from a complex step where it supports one, else from central differences (good to
            about 1e-9). A plain callable is taken to be pure: it is resolved once.

    Raises:
        ValueError: an unknown name (the message has the nearest right one), or a function that is random or mixes
            elements.
        TypeError: something that cannot be called.
    """
    if isinstance(phi, Activation):
        return phi
    if isinstance(phi, str):
        return _named(_normalize(phi), phi)
    if not callable(phi):
        raise TypeError(f"an activation is a name, an nn.Module or a callable, not {type(phi).__name__}")
    if hasattr(phi, "parameters"):  # a module may change between calls; it is resolved anew each time
        return _resolve(phi)
    try:
        return _cached(phi)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _resolve(phi)


@cache
def _named(key: str, given: str) -> Activation:
    key = {"linear": "identity"}.get(key, key)
    table = _table()
    if key not in table:
        spelled = {name_key: name for name_key, (name, _) in table.items()}
        near = difflib.get_close_matches(key, spelled, n=1, cutoff=0.5)
        hint = f"did you mean {spelled[near[0]]!r}?" if near else f"known are {', '.join(sorted(spelled.values()))}"
        raise ValueError(f"no activation is named {given!r}; {hint}")
    return _canonical(key)


@cache
def _canonical(key: str) -> Activation:
    name, kind = _table()[key]
    module = kind()
    return Activation(name, module, *_double(module))


@lru_cache(maxsize=64)
def _cached(phi: Callable[[Any], Any]) -> Activation:
    return _resolve(phi)


def _resolve(phi: Callable[[Any], Any]) -> Activation:
    name = getattr(phi, "__name__", type(phi).__name__).lower()
    return Activation(name, phi, *_double(phi))


def _double(
    phi: Callable[[Any], Any],
) -> tuple[Callable[[Array], tuple[Array, Array]], Callable[[Array], Array]]:
    """`both` and `value` of `phi` in float64, after checking that it is one deterministic function of each element."""
    import copy  # noqa: PLC0415 - next to the torch import that this function needs

    import torch  # noqa: PLC0415 - importing depthgauge.theory must not import torch

    function = copy.deepcopy(phi).double() if isinstance(phi, torch.nn.Module) else phi

    def on_cpu() -> AbstractContextManager[object]:
        # A device context costs as much as the activation, and is needed only by callers who have set another device.
        return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")

    def by_autograd(u: Array) -> tuple[Array, Array]:
        # The copy keeps autograd off the caller's memory; grad is switched on because callers may have it off.
        with torch.inference_mode(mode=False), torch.enable_grad(), on_cpu():
            x = torch.tensor(u, dtype=torch.float64, requires_grad=True)
            y = function(x)
            if not isinstance(y, torch.Tensor) or y.shape != x.shape:
                raise ValueError("it does not map a tensor to a tensor of the same shape")
            if not y.requires_grad:
                return np.broadcast_to(y.detach().numpy(), u.shape).astype(np.float64), np.zeros_like(u)
            gradients: tuple[torch.Tensor | None, ...] = torch.autograd.grad(y.sum(), x, allow_unused=True)
            slope = gradients[0]
        return y.detach().numpy().astype(np.float64, copy=False), np.zeros_like(u) if slope is None else slope.numpy()

    def of_tensor(u: Array) -> Array:
        with torch.inference_mode(mode=False), torch.no_grad(), on_cpu():
            y = function(torch.tensor(u, dtype=torch.float64))
        return np.broadcast_to(y.numpy(), u.shape).astype(np.float64, copy=False)

    u = np.concatenate([np.linspace(-5.03, 5.11, 61), [-40.0, 1e-3, 33.0]])
    with torch.random.fork_rng(devices=[]):
        try:
            evaluate: Callable[[Array], tuple[Array, Array]] = by_autograd
            value, slope = evaluate(u)
            value_at: Callable[[Array], Array] = of_tensor
            if not _gives(of_tensor, u, value):  # it asks autograd for its own value
                value_at = lambda v: by_autograd(v)[0]  # noqa: E731 - beside the other
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:
            if isinstance(phi, torch.nn.Module):
                raise ValueError(f"{type(phi).__name__} is no elementwise activation: {error}") from error
            evaluate, value_at = _numpy_evaluator(function, u)
            value, slope = evaluate(u)
        again, slope_again = evaluate(u[1:61:2].copy())  # a part of the elements, at other places
    if not np.allclose(value[1:61:2], again, 1e-12, 0, equal_nan=True) or not np.allclose(
        slope[1:61:2], slope_again, 1e-9, 0, equal_nan=True
    ):
        raise ValueError(
            f"{getattr(phi, '__name__', type(phi).__name__)} is not an elementwise activation: it draws at "
            "random (call .eval() on the module first) or mixes the elements of its input"
        )
    return evaluate, value_at


def _gives(function: Callable[[Array], Array], u: Array, value: Array) -> bool:
    """Tell whether a function gives these values, to the bit, and does not raise."""
    try:
        return np.array_equal(function(u), value, equal_nan=True)
    except (TypeError, RuntimeError, ValueError, AttributeError):
        return False


def _numpy_evaluator(
    function: Callable[[Any], Any], probe: Array
) -> tuple[Callable[[Array], tuple[Array, Array]], Callable[[Array], Array]]:
    def value_at(u: Array) -> Array:
        return np.asarray(function(u), dtype=np.float64)

    def central(u: Array) -> tuple[Array, Array]:
        step = 6e-6 * np.maximum(1.0, np.abs(u))
        return value_at(u), (value_at(u + step) - value_at(u - step)) / (2 * step)

    def complex_step(u: Array) -> tuple[Array, Array]:
        return value_at(u), np.asarray(function(u + 1e-30j)).imag / 1e-30

    try:
        with np.errstate(all="ignore"):
            value, slope = central(probe)
    except Exception as error:
        raise ValueError(f"the activation fails on tensors and on numpy arrays alike: {error}") from error
    if value.shape != probe.shape:
        raise ValueError("the activation does not map an array to an array of the same shape")
    try:
        with np.errstate(all="ignore"):
            exact = complex_step(probe)[1]
    except Exception:  # noqa: BLE001 - whatever a stranger's function raises on complex numbers, it does not take them
        return central, value_at
    # Functions like abs() accept a complex number and answer something else than the analytic continuation.
    both = complex_step if np.mean(np.isclose(exact, slope, 1e-5, 1e-7)) > 0.9 else central
    return both, value_at


def _unresolved(phi: Activation, low: Array, high: Array, scales: tuple[float, float]) -> NDArray[np.bool_]:
    half = ((high - low) / 2)[:, None]
    middle = ((high + low) / 2)[:, None]
    u = middle + half * np.concatenate([NODES, _CHECKS])
    bad = np.zeros(len(low), dtype=bool)
    for y, scale in zip(phi.both(u), scales, strict=True):
        samples, checks = y[:, : len(NODES)], y[:, len(NODES) :]
        with np.errstate(all="ignore"):
            error = np.abs(samples @ _INTERPOLATE.T - checks).max(axis=1)
            # A floor on the scale keeps rounding noise (the tail of GELU) from looking like structure.
            size = np.maximum(np.abs(samples).max(axis=1), 1e-3 * scale)
            bad |= (error > _RESOLVED * size) & np.isfinite(size)
    return bad


def _bisect(phi: Activation, edges: Array, scales: tuple[float, float]) -> tuple[Array, Array]:
    """Bisects panels until each is resolved. Returns (edges, midpoints of the panels that never were)."""
    points = [edges]
    lost: list[Array] = []
    low, high = edges[:-1], edges[1:]
    total = len(edges)
    while len(low):
        bad = _unresolved(phi, low, high, scales)
        low, high = low[bad], high[bad]
        middle = (low + high) / 2
        tiny = (high - low) <= 4e-16 * np.maximum(np.abs(low), np.abs(high)) + 1e-290
        tiny |= (high - low) < 1e-14  # narrower than any Gaussian weight can see
        lost.append(middle[tiny])
        low, high, middle = low[~tiny], high[~tiny], middle[~tiny]
        points.append(middle)
        total += len(middle)
        if total > _MOST_PANELS:
            raise ValueError(
                f"activation {phi.name!r} varies too fast to be integrated at this variance; give a smaller variance"
            )
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return np.unique(np.concatenate(points)), np.concatenate(lost) if lost else np.empty(0)


def _mesh(phi: Activation, level: int) -> tuple[Array, Array]:
    positive = 2.0 ** np.arange(0, level + 1)
    start = np.concatenate([-positive[::-1], [0.0], positive])
    near = np.linspace(-1, 1, 41)
    value, slope = phi.both(near)
    scales = (float(np.nanmax(np.abs(value))), float(np.nanmax(np.abs(slope))))
    edges, lost = _bisect(phi, start, scales)
    if len(lost):
        # Snap: with the kinks themselves as edges, the cascade of shrinking panels around each is not needed.
        clusters = np.split(np.sort(lost), np.flatnonzero(np.diff(np.sort(lost)) > 1e-12) + 1)
        snapped = np.array([_edge_of_jump(phi, cluster[0], cluster[-1]) for cluster in clusters])
        edges, still = _bisect(phi, np.unique(np.concatenate([start, snapped])), scales)
        del still  # what even this leaves (a pole, |u|^(1/3)) is graded as finely as double precision can
    inner = edges[1:-1]
    reach = np.minimum(np.diff(edges)[:-1], np.diff(edges)[1:]) / 2
    kinks = inner[_unresolved(phi, inner - reach, inner + reach, scales)]
    return edges, kinks


def _edge_of_jump(phi: Activation, low: float, high: float) -> float:
    """The double in [low, high] across which value and slope change most: a kink, to the last bit."""
    points = np.unique(np.linspace(low - 4e-15, high + 4e-15, 65))
    value, slope = phi.both(points)
    change = np.abs(np.diff(value)) + np.abs(np.diff(slope))
    if not np.any(change > 0):
        return (low + high) / 2
    at = int(np.argmax(change))
    return float((points[at] + points[at + 1]) / 2)
