"""One pass whose modules and operations are watched: outputs that say nothing, attention that chooses one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from depthgauge import nested
from depthgauge.architecture import own_parameters
from depthgauge.checking.graphs import nodes
from depthgauge.precision.passage import compiled
from depthgauge.workload import Training

LEAST = 8  # examples from which it is told that all have the same
CHANGES = 1e-4  # of its size: what goes in differs between examples by this at least
SAME = 1e-5  # of its size: what comes out differs by this at most; a norm of one value brings float32's rounding to it
CHOSEN = 0.99  # the largest weight of a row from which its softmax passes a hundredth of a gradient
EVEN = 1e-6  # difference of a row's weights, that are all the same
MOST = 64  # of a thing that is noted
LARGEST = 4_000_000  # numbers of a tensor that is looked at
WIDE = 3  # places from which a row of attention can be even or chosen by more than chance


@dataclass(eq=False)
class Watched:
    """Observations of a pass over a batch.

    Attributes:
        constant: modules of torch's whose input differs between examples, and whose output does not; by name the
            number of values an example.
        varies: modules whose output differed in one of their calls.
        chosen: rows of attention by module, and how many of them give one place nearly all weight.
        added: places where something that all examples share was added to what differs between them.
        alike: by module and in order, share of a sequence's second moment that differs between its places.
        growth: by recurrent module, size of its last states over that of its first.
        sizes: by module, size of its output in each of its calls.
        looked: by embedding, its rows and the indices that it was asked for, (examples, columns), or (all, 1).
        made: modules that are no part of the model and have parameters: class, size, module at work, and that before.
        across: modules whose attention adds up to one along another axis than that of the sum over values.
        strangers: parameters in the loss's graph that neither the model nor the known others have, by pass.
        twice: places where what goes into a softmax are rows of weights that add up to one already.
        zeroed: places where a softmax gets scores that a mask has set to 0, and the module called last before.
        states: by recurrent cell, calls that got the state of the call before with its gradient, and without it.
    """

    constant: dict[str, int] = field(default_factory=dict)
    varies: set[str] = field(default_factory=set)
    chosen: dict[str, tuple[int, int]] = field(default_factory=dict)
    added: list[Added] = field(default_factory=list)
    alike: dict[str, tuple[float, float]] = field(default_factory=dict)
    growth: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, list[float]] = field(default_factory=dict)
    looked: dict[str, tuple[int, list[Tensor]]] = field(default_factory=dict)
    made: list[tuple[str, int, str, str]] = field(default_factory=list)
    across: set[str] = field(default_factory=set)
    strangers: list[list[Tensor]] = field(default_factory=list)
    twice: dict[str, str] = field(default_factory=dict)
    zeroed: dict[str, str] = field(default_factory=dict)
    states: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def mute(self) -> dict[str, int]:
        """Modules that were constant in all their calls."""
        return {name: size for name, size in self.constant.items() if name not in self.varies}

    def grown(self) -> None:
        """Bring the sizes of a module that was called eight times or more in a pass to its growth, and forget them."""
        for name, sizes in self.sizes.items():
            part = len(sizes) // 4
            if part >= 2 and (early := sum(sizes[:part])) > 0:
                self.growth[name] = max(self.growth.get(name, 0.0), sum(sizes[-part:]) / early)
        self.sizes.clear()

    def choosing(self, least: float, rows: int = 32) -> list[str]:
        """Modules that share of whose rows of attention give one place nearly all weight."""
        return [name for name, (all_, one) in self.chosen.items() if all_ >= rows and one >= least * all_]


@dataclass(frozen=True, eq=False)
class Added:
    """A sum of what all examples share, and what differs between them.

    Attributes:
        ratio: root mean square of the first over that of the second.
        shared: name of the parameter or buffer that the first comes from; empty where it is computed.
        inside: the module within which they are added.
        last: the module that was called last before.
    """

    ratio: float
    shared: str
    inside: str
    last: str


def watch(training: Training, batches: Sequence[Any], known: Iterable[Tensor] = ()) -> Watched:
    """Make a forward pass over each batch and note what it shows; within `untouched()`. Nothing of a compiled model.

    Args:
        training: the user's.
        batches: of it.
        known: tensors that train, beside the parameters of its modules.
    """
    seen = Watched()
    if any(map(compiled, training.model.modules())):
        return seen
    own = {id(each) for module in training.modules for each in module.parameters()} | set(map(id, known))
    for batch in batches:
        work = _Work(training.model, seen, own)
        with work.hooks(), _Operations(work):
            value = training.value(batch)
        leaves = (getattr(node, "variable", None) for node in nodes(value))
        seen.strangers.append([each for each in leaves if isinstance(each, nn.Parameter) and id(each) not in own])
        if seen.sizes:
            seen.grown()
    return seen


class _Work:
    """The modules that are at work in a pass, and hooks that look at what goes in and comes out."""

    def __init__(self, model: nn.Module, seen: Watched, own: set[int]) -> None:
        self.seen = seen
        self.last = ""
        self.attended = False
        self.before_next = False
        self.named = {each.data_ptr(): name for name, each in (*model.named_buffers(), *model.named_parameters())}
        self._stack: list[str] = []
        self._states: dict[str, list[Tensor]] = {}
        self._model = model
        self._own = own

    @property
    def place(self) -> str:
        """The innermost module that is at work."""
        return self._stack[-1] if self._stack else "model"

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Keep hooks for the block."""
        handles = [register_module_forward_pre_hook(self._stranger)]
        for name, module in self._model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):
                handles += [module.register_forward_pre_hook(self._enter(name))]
                handles += [module.register_forward_hook(self._leave(name))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _stranger(self, module: nn.Module, _inputs: Any) -> None:
        sizes = [each.numel() for each in own_parameters(module).values() if id(each) not in self._own]
        if sizes and len(self.seen.made) < MOST:
            self.seen.made.append((type(module).__name__, sum(sizes), self.place, self.last))

    def _enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.before_next:  # a function's output that says nothing is named by the layer that gets it
                self.seen.constant[name], self.before_next = 1, False
            self._stack.append(name)
            if _is_cell(module):
                self._handed_on(name, inputs)

        return hook

    def _handed_on(self, name: str, inputs: Any) -> None:
        """Note whether a cell gets the state that it gave, and whether with its gradient."""
        before = [each for each in self._states.get(name, ()) if each.requires_grad]
        with _disable_current_modes(), torch.no_grad():
            same = [
                each.requires_grad
                for _, each in nested.tensors(inputs)
                if any(each.shape == other.shape and torch.equal(each, other) for other in before)
            ]
        if same:
            kept, cut = self.seen.states.get(name, (0, 0))
            self.seen.states[name] = (kept + any(same), cut + (not any(same)))

    def _leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            while self._stack and self._stack.pop() != name:
                pass
            if next(module.children(), None) is None:
                self.last = name
            if _is_cell(module):
                self._states[name] = [each for _, each in nested.tensors(output)]
            with _disable_current_modes(), torch.no_grad():
                _look(name, module, inputs, output, self.seen)

        return hook


def _is_cell(module: nn.Module) -> bool:
    """Whether it makes a step of a recurrence a call."""
    return isinstance(module, nn.RNNCellBase) or type(module).__name__.lower().endswith("cell")


def _look(name: str, module: nn.Module, inputs: Any, output: Any, seen: Watched) -> None:
    first = next((each for each in inputs if isinstance(each, Tensor)), None) if isinstance(inputs, tuple) else None
    result = output[0] if isinstance(output, tuple) and output else output
    if first is None or not isinstance(result, Tensor) or not torch.is_floating_point(result):
        return
    if first.is_nested or result.is_nested or result.numel() > LARGEST:
        return
    if isinstance(module, nn.Embedding):
        _, indices = seen.looked.setdefault(name, (module.num_embeddings, []))
        if sum(each.numel() for each in indices) < LARGEST:
            indices.append(first.detach().flatten(1) if first.dim() > 1 else first.detach()[:, None])
    if not torch.is_floating_point(first):
        return
    given, made = first.detach(), result.detach()
    if isinstance(module, nn.RNNBase):
        seen.growth[name] = max(seen.growth.get(name, 0.0), _growth(module, made))
    if made.dim() == 2 and len(seen.sizes.get(name, ())) < MOST:
        seen.sizes.setdefault(name, []).append(nested.real(made).double().square().mean().sqrt().item())
    if given.dim() == made.dim() == 3 and given.shape[:2] == made.shape[:2] and made.shape[1] >= WIDE:
        seen.alike[name] = (_between_places(given), _between_places(made))
    if not _is_torchs(module) or given.dim() < 1 or made.dim() < 1 or len(given) != len(made) or len(given) < LEAST:
        return
    (spread_in, size_in), (spread_out, size_out) = _spread(given), _spread(made)
    if not (math.isfinite(size_out) and math.isfinite(size_in)) or spread_in <= CHANGES * size_in:
        return
    if spread_out > SAME * max(size_out, spread_in):
        seen.varies.add(name)
    else:
        seen.constant[name] = made[0].numel()


def _are_weights(rows: Tensor) -> bool:
    """Whether rows, not all alike, are what a softmax gives: above 0, with a sum of one."""
    if len(rows) < LEAST or not torch.is_floating_point(rows) or not bool((rows > 0).all()):
        return False
    near = 8 * torch.finfo(rows.dtype).eps
    ones = bool(((rows.double().sum(1) - 1).abs() <= max(near, 1e-5)).all())
    return ones and bool((rows - rows[:1]).abs().max() > CHANGES * rows.max())


def _are_cut_by_zero(scores: Tensor) -> bool:
    """Whether rows end with zeros as a mask leaves them: after the row's own place, or ends of unequal lengths."""
    zero = scores == 0
    if not zero.any() or zero.all() or not torch.is_floating_point(scores):
        return False
    run = zero.flip(-1).long().cumprod(-1).sum(-1)  # zeros at each row's end
    if not bool((run == zero.sum(-1)).all()):
        return False
    places = scores.shape[-1]
    later = torch.arange(places - 1, -1, -1, device=scores.device)
    if scores.dim() > 2 and scores.shape[-2] == places and bool((run == later).all()):
        return True
    rows = run.reshape(len(run), -1)
    return len(rows) >= LEAST and bool((rows == rows[:, :1]).all()) and len(set(rows[:, 0].tolist())) >= WIDE


def _is_torchs(module: nn.Module) -> bool:
    """Whether it is a layer of torch's or a normalization, whose output depends on what it gets."""
    known = type(module).__module__.startswith("torch.nn.modules") or "norm" in type(module).__name__.lower()
    return known and not any(True for _ in module.children())


def _spread(values: Tensor) -> tuple[float, float]:
    """Root mean square of what differs between examples, and of all."""
    flat = values.reshape(len(values), -1).double()
    if not flat.numel():
        return math.nan, math.nan
    return (flat - flat.mean(0)).square().mean().sqrt().item(), flat.square().mean().sqrt().item()


def _between_places(values: Tensor) -> float:
    """Share of the second moment of (examples, places, width) that differs between an example's places."""
    values = values.double()
    whole = values.square().mean().item()
    return (values - values.mean(1, keepdim=True)).square().mean().item() / whole if whole > 0 else math.nan


def _growth(module: nn.RNNBase, states: Tensor) -> float:
    """Size of the last quarter of states over that of the first, from 8 on; 0 for fewer."""
    if states.dim() != 3:
        return 0.0
    states = states if not module.batch_first else states.transpose(0, 1)
    part = len(states) // 4
    if part < 2:
        return 0.0
    early, late = (each.double().square().mean().sqrt().item() for each in (states[:part], states[-part:]))
    return late / early if early > 0 else 0.0


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Looks at softmax, attention and sums on their way through the dispatcher."""

    def __init__(self, work: _Work) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._work = work
        self._seen = work.seen
        self._weights: dict[int, tuple[Tensor, int]] = {}  # of attention, by where they lie, and the axis of their sum

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        try:
            if name == "aten::_softmax":
                self._softmax(args[0], result, args[1])
            elif name == "aten::bmm":
                self._product(args[0], args[1])
            elif name.startswith("aten::_scaled_dot_product"):
                self._attention(args, kwargs or {})
            elif name in {"aten::add", "aten::add_"}:
                self._sum(args)
            elif name == "aten::native_layer_norm" and math.prod(args[1]) == 1 and args[0].numel() > 1:
                self._seen.constant[self._work.place] = 1
                self._work.before_next = self._work.place == "model"
        except (RuntimeError, IndexError, TypeError):  # of a tensor that cannot be read here
            pass
        return result

    def _softmax(self, scores: Tensor, result: Tensor, dim: int) -> None:
        if scores.dim() > 1 and scores.shape[dim] >= WIDE and scores.numel() <= LARGEST:
            rows = scores.detach().movedim(dim, -1).reshape(-1, scores.shape[dim])[:4096]
            if _are_weights(rows):
                self._seen.twice[self._work.place] = self._work.last
            if _are_cut_by_zero(scores.detach().movedim(dim, -1)):
                self._seen.zeroed[self._work.place] = self._work.last
        if result.dim() < 3 or result.shape[dim] < WIDE or not torch.is_floating_point(result):
            return
        self._weights[result.data_ptr()] = (result.detach(), dim % result.dim())  # kept: its place is not used again
        rows = result.detach().movedim(dim, -1).reshape(-1, result.shape[dim])[:4096]
        self._rows(rows, scores.detach().movedim(dim, -1).reshape(-1, result.shape[dim])[:4096])

    def _product(self, left: Tensor, right: Tensor) -> None:
        """Hold the axis of a product's sum against that along which a softmax in it adds up to one."""
        for side, inner in ((left, 2), (right, 1)):
            weights, axis = self._weights.get(side.data_ptr(), (None, 0))
            if weights is None or weights.numel() != side.numel() or min(side.shape[1:]) < WIDE:
                continue
            if side.stride(inner) != weights.stride(axis):
                self._seen.across.add(self._work.place)

    def _attention(self, args: Any, kwargs: Any) -> None:
        query, key = (each.detach()[:8].float() for each in args[:2])
        scale = kwargs.get("scale") or 1 / math.sqrt(query.shape[-1])
        if key.shape[-2] < WIDE:
            return
        scores = (query[..., :256, :] @ key.transpose(-2, -1)) * scale
        self._rows(scores.softmax(-1).flatten(0, -2)[:4096], scores.flatten(0, -2)[:4096])

    def _rows(self, rows: Tensor, scores: Tensor) -> None:
        open_ = (scores > -1e4).sum(1) >= WIDE  # of a causal mask's first rows one place is left
        rows = rows[open_]
        if not len(rows):
            return
        most = rows.max(1).values
        self._work.attended = True
        all_, one = self._seen.chosen.get(self._work.place, (0, 0))
        self._seen.chosen[self._work.place] = (all_ + len(rows), one + int((most > CHOSEN).sum()))

    def _sum(self, args: Any) -> None:
        if (
            self._work.attended
            or len(self._seen.added) >= MOST
            or len(args) < 2
            or not all(isinstance(each, Tensor) for each in args[:2])
        ):
            return
        first, second = (each.detach() for each in args[:2])
        if not (first.is_floating_point() and second.is_floating_point()) or first.dim() < 3:
            return
        shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]  # as above
        if len(shape) != 3 or shape[0] < LEAST or first.numel() > LARGEST:
            return
        names = [self._work.named.get(each.data_ptr(), "") for each in (first, second)]
        parts = [_spread(each.expand(shape)) for each in (first, second)]
        for shared, other, name in ((0, 1, names[0]), (1, 0, names[1])):
            (spread, size), (varied, of_other) = parts[shared], parts[other]
            if spread <= SAME * size and varied > CHANGES * of_other:
                self._seen.added.append(Added(size / varied, name, self._work.place, self._work.last))
