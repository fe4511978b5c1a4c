"""The linear maps of a model: which layer holds how many, in which tensor, and their fans."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthgauge.architecture import layers, own_parameters, unmade
from depthgauge.initialization.stored import holds_back, opened, refusal, stored_weights

_CONVOLUTION = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)

# What modules call the sizes of a map, (in, out); and those of the two maps of an expert, (width, inner width).
_SIZES = (("in_features", "out_features"), ("in_channels", "out_channels"), ("input_size", "output_size"))
_WIDTHS = ("hidden_size", "hidden_dim", "d_model", "embed_dim", "dim")
_INNER = ("intermediate_size", "intermediate_dim", "expert_dim", "ffn_dim", "d_ff", "inner_dim")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_INWARDS, _OUTWARDS = ("gate", "up", "w1", "w3", "wi", "fc1"), ("down", "w2", "wo", "fc2")  # to the inner width, back

Split = Callable[[Tensor], tuple[Tensor, ...]]


class Stacked(nn.Linear):
    """Several linear maps of one input, computed as one: the gates of an LSTM, the q, k and v of attention."""

    def __init__(self, inputs: int, outputs: int, maps: int, *, bias: bool = True) -> None:
        super().__init__(inputs, maps * outputs, bias=bias)
        self.maps = maps


@dataclass(frozen=True)
class Layer:
    """The linear maps of a weight layer.

    Attributes:
        name: the module's.
        module: the module.
        maps: its linear maps, (out, in, kernel...) each, as views of its weights without gradient; none where another
            layer has them.
        biases: its biases, likewise.
        bring: takes what was written to the maps to where the layer keeps its weights, behind a parametrization.
    """

    name: str
    module: nn.Module
    maps: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    bring: Callable[[], None]


@dataclass(frozen=True)
class Reach:
    """The weight layers of a model that schemes can set, and the others.

    Attributes:
        reached: names of the layers that hold what a scheme draws.
        others: name -> why not, of the rest.
    """

    reached: tuple[str, ...]
    others: Mapping[str, str]

    def __str__(self) -> str:
        """`reaches 3 of 5 weight layers: not a, b (frozen)`."""
        count = f"reaches {len(self.reached)} of {len(self.reached) + len(self.others)} weight layers"
        reasons = dict.fromkeys(self.others.values())
        clauses = [
            f"{_listed([name for name, why in self.others.items() if why == reason])} ({reason})" for reason in reasons
        ]
        return f"{count}: not {', '.join(clauses)}" if clauses else count


def _listed(names: list[str]) -> str:
    listed = [name or "the model itself" for name in names[:3]]
    return ", ".join(listed) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan-in, fan-out) of one map of shape (out, in, kernel...): the terms of a forward sum, and of a backward sum.

    For a convolution they hold at stride 1 and away from the border.
    """
    kernel = math.prod(weight.shape[2:])
    return weight.shape[1] * kernel, weight.shape[0] * kernel


def weighted(model: nn.Module, *, embeddings: bool = False) -> Iterator[Layer]:
    """Layers of linear maps that can be set, in order of registration; a shared weight is one of the first one's maps.

    Linear layers, convolutions and transposed ones, bilinear ones, torch's recurrent layers and cells, its attention,
    linear layers of transformers (Conv1D) and torch_geometric, stacked experts. Embeddings are none, as one row is
    looked up and nothing is summed, but can be asked for; a table that a linear layer has for its weight, too, is set
    as that layer's. Whoever writes to a layer's maps calls its `bring`.
    """
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        stored = list(stored_weights(module))
        if not stored:
            continue
        splits = _splits(module, embeddings=embeddings)
        settable = [
            (weight, sources) for weight, sources in stored if weight in splits and not refusal(module, weight, sources)
        ]
        if not settable:
            continue
        pairs = [(weight, opened(module, weight)) for weight, sources in settable if seen.isdisjoint(sources)]
        seen.update(source for _, sources in settable for source in sources)
        maps = tuple(part for weight, (values, _) in pairs for part in splits[weight](values) if part.numel())
        yield Layer(name, module, maps, _biases(module, splits), _all([bring for _, (_, bring) in pairs]))


def _all(steps: list[Callable[[], None]]) -> Callable[[], None]:
    def bring() -> None:
        for step in steps:
            step()

    return bring


def _biases(module: nn.Module, weights: Iterable[str]) -> tuple[Tensor, ...]:
    most = max(1, max(getattr(module, name).dim() for name in weights) - 1)  # experts have one each
    return tuple(
        parameter.detach()
        for name, parameter in own_parameters(module).items()
        if "bias" in name and parameter.requires_grad and parameter.dim() <= most
    )


def reach(model: nn.Module) -> Reach:
    """Find the weight layers of a module that schemes can set, and the reason why the others cannot be."""
    drawn: set[nn.Parameter] = set()
    for _, module in model.named_modules():
        splits = _splits(module)
        for weight, sources in stored_weights(module):
            if weight in splits and not refusal(module, weight, sources) and not holds_back(module, weight):
                drawn.update(sources)
    reached, others = [], {}
    for name, module in layers(model):
        if drawn.isdisjoint(source for _, sources in stored_weights(module) for source in sources):
            others[name] = _why(module)
        else:
            reached.append(name)
    return Reach(tuple(reached), others)


def _why(module: nn.Module) -> str:
    """Give the reason why no weight of a layer can be set."""
    splits, weights = _splits(module), dict(stored_weights(module))
    for weight, sources in weights.items():
        if weight in splits or any(map(unmade, sources)):
            return refusal(module, weight, sources) or holds_back(module, weight)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "an embedding"
    stacked = [name for name, sources in weights.items() if sources[0].dim() == 3 and len(sources[0]) > 1]
    if stacked:
        return f"which dimension of {', '.join(stacked)} holds the inputs is unknown"
    return f"{', '.join(weights)} of a {type(module).__name__}, which is not a known linear map"


# -- which maps lie in which weight ------------------------------------------------------------------------------------


def _chunks(count: int) -> Split:
    return lambda weight: weight.chunk(count)


def _turned(count: int) -> Split:
    return lambda weight: tuple(part.transpose(0, 1) for part in weight.chunk(count))


def _splits(module: nn.Module, *, embeddings: bool = False) -> dict[str, Split]:
    """The weights of a layer by name, each with what takes it apart into maps (out, in, kernel...)."""
    if isinstance(module, nn.Linear):
        return {"weight": _chunks(module.maps if isinstance(module, Stacked) else 1)}
    if isinstance(module, _CONVOLUTION):
        return {"weight": _chunks(module.groups)}
    if isinstance(module, _TRANSPOSED):
        return {"weight": _turned(module.groups)}
    if isinstance(module, nn.Bilinear) or (embeddings and isinstance(module, nn.Embedding)):
        return {"weight": _chunks(1)}
    return _of_several(module) or _elsewhere(module)


def _of_several(module: nn.Module) -> dict[str, Split]:
    """Torch's layers that hold several weights."""
    names = [name for name, _ in stored_weights(module)]
    if isinstance(module, nn.MultiheadAttention):
        return {name: _chunks(3 if name == "in_proj_weight" else 1) for name in names if name.endswith("proj_weight")}
    if not isinstance(module, _RECURRENT):
        return {}
    # Gates of `hidden_size` rows; a projection is one map.
    return {
        name: _chunks(1 if "hr" in name else getattr(module, name).shape[0] // module.hidden_size) for name in names
    }


def _elsewhere(module: nn.Module) -> dict[str, Split]:
    """Linear layers of other packages, by the name of their class and the sizes they tell; experts by the latter."""
    splits: dict[str, Split] = {}
    kind = type(module).__name__
    for name, sources in stored_weights(module):
        if any(map(unmade, sources)):
            continue
        shape = tuple(getattr(module, name).shape)
        if name == "weight" and len(shape) == 2 and kind.endswith("Conv1D") and shape[1] == getattr(module, "nf", None):
            splits[name] = _turned(1)  # transformers' Conv1D holds (in, out)
        elif (
            name == "weight" and len(shape) == 2 and kind.endswith("Linear") and shape[::-1] in _declared_sizes(module)
        ):
            splits[name] = _chunks(1)
        elif name == "weight" and (way := _one_way(shape, _routes(module))) is not None:
            splits[name] = _turned(1) if way else _chunks(1)
        elif len(shape) == 3 and shape[0] > 1 and (split := _experts(module, name, shape[1:])):
            splits[name] = split
    return splits


def _sizes(module: nn.Module, names: Sequence[str]) -> list[int]:
    sizes = (getattr(module, name, None) for name in names)
    return [size for size in sizes if isinstance(size, int)]


def _declared_sizes(module: nn.Module) -> list[tuple[int, ...]]:
    """Return the (in, out) pairs of a module's attributes."""
    pairs = (tuple(_sizes(module, names)) for names in _SIZES)
    return [pair for pair in pairs if len(pair) == 2]


def _widths(module: nn.Module) -> list[tuple[int, int]]:
    """Return the (width, inner width) pairs of an expert's two maps from a module's attributes."""
    return [(width, inner) for width in _sizes(module, _WIDTHS) for inner in _sizes(module, _INNER)]


def _routes(module: nn.Module) -> list[tuple[int, int]]:
    """Return the (width, experts) pairs of a router's weight from a module's attributes."""
    return [(width, experts) for width in _sizes(module, _WIDTHS) for experts in _sizes(module, _EXPERTS)]


def _one_way(shape: tuple[int, ...], pairs: Sequence[tuple[int, ...]]) -> bool | None:
    """Tell whether a weight of the named sizes is (in, out) and not (out, in); None where both or neither fits."""
    turned, straight = shape in pairs, shape[::-1] in pairs
    return None if turned == straight else turned


def _experts(module: nn.Module, name: str, shape: tuple[int, ...]) -> Split | None:
    """Split (experts, a, b) into the experts' maps, where the layer's sizes fit one orientation only."""
    pairs = _declared_sizes(module)
    if any(word in name.lower() for word in _OUTWARDS):
        pairs += [(inner, width) for width, inner in _widths(module)]
    elif any(word in name.lower() for word in _INWARDS):  # gate and up may lie in one, side by side
        pairs += [(width, inner * times) for width, inner in _widths(module) for times in (1, 2)]
    turned = _one_way(shape, pairs)
    if turned is None:
        return None
    return lambda weight: tuple(part.transpose(0, 1) if turned else part for part in weight.unbind())


def blank(weight: Tensor) -> Tensor:
    """Memory for the values of a map: on the CPU, where all is drawn, in a type that can be computed in."""
    half = weight.dtype in (torch.float16, torch.bfloat16)
    return torch.empty(weight.shape, dtype=torch.float32 if half else weight.dtype)
