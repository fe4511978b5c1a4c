"""One run of a module, forward and backward, with a boundary around every call of its submodules.

A boundary sees what passes it, sparse and complex tensors as dense real ones, and may put something else in its place:
values on the way forward, gradients on the way back. The module's parameters and buffers are copies for the time of the
run; its gradients, random states and hooks are left as they were.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from depthgauge import nested, operations
from depthgauge.precision.arguments import Arguments, replaced
from depthgauge.precision.band import Work
from depthgauge.precision.copying import copied
from depthgauge.precision.randomness import seeded
from depthgauge.precision.state import States, cloned
from depthgauge.probe.tensors import in_transform
from depthgauge.seeding import Purpose, generator

ARITHMETIC = frozenset({"add", "addcmul", "addcdiv", "sub", "rsub", "mul", "div", "_to_copy", "copy_"})
"""Operators that round once."""

EXACT = frozenset(
    {
        "_to_dense", "_to_sparse", "abs", "amax", "amin", "arange", "bernoulli", "cat", "ceil", "clamp", "clone",
        "complex", "constant_pad_nd", "copy", "embedding", "fill", "flip", "floor", "full", "full_like", "gather",
        "index", "index_select", "masked_fill", "max", "max_pool2d_with_indices", "maximum", "min", "minimum", "neg",
        "new_zeros", "ones", "ones_like", "relu", "repeat", "roll", "round", "scalar_tensor", "scatter",
        "select_backward", "sgn", "sign", "slice_backward", "sort", "squeeze", "stack", "t", "threshold",
        "threshold_backward", "topk", "transpose", "tril", "triu", "trunc", "unsqueeze", "where", "zero", "zeros",
        "zeros_like",
    }
)  # fmt: skip
"""Operators that round nothing."""

# torch has few operators for the complex numbers of float16, and bfloat16 has none.
_COMPLEX: Mapping[torch.dtype | None, torch.dtype] = {
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}

Direction = Literal["forward", "backward"]


class Call(NamedTuple):
    """One call of a module: its name as in `named_modules`, and how many calls of it came before."""

    layer: str
    number: int


class Edge(NamedTuple):
    """A tensor that enters or leaves a call of a module, or is a parameter of it."""

    layer: str
    number: int
    kind: Literal["in", "out", "parameter"]
    place: str


Key = tuple[Edge, Direction]
Passing = Callable[[Edge, Call, Direction, Tensor], Tensor]
"""What a boundary does: edge, the call that made the tensor, direction and its `numbers` -> those that go on."""


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, passing: Passing, edge: Edge, outside: Call) -> Tensor:
        inside = Call(edge.layer, edge.number)
        ctx.passing, ctx.edge = passing, edge
        ctx.maker = outside if edge.kind == "out" else inside  # of the gradient
        with torch.no_grad():
            maker = inside if edge.kind == "out" else outside
            return _passed(tensor, lambda x: passing(edge, maker, "forward", x)).clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        passed = _passed(gradient, lambda x: ctx.passing(ctx.edge, ctx.maker, "backward", x))
        return passed, None, None, None


def numbers(tensor: Tensor) -> Tensor:
    """A dense real tensor of the same numbers: of a complex one, the parts are a last dimension."""
    if tensor.layout not in {torch.strided, torch.jagged}:
        tensor = tensor.to_dense()
    return nested.real(tensor)


def with_numbers(like: Tensor, new: Tensor) -> Tensor:
    """A tensor of the same kind with other numbers; those that a sparse one does not store are left out."""
    if like.is_complex():
        new = torch.view_as_complex(new.contiguous())
    if like.layout in {torch.strided, torch.jagged}:
        return new
    return new.sparse_mask(like.coalesce() if like.layout is torch.sparse_coo else like)


def _passed(tensor: Tensor, passing: Callable[[Tensor], Tensor]) -> Tensor:
    given = numbers(tensor)
    found = passing(given)
    return tensor if found is given else with_numbers(tensor, found)


def stripped(name: str) -> str:
    """A module's or parameter's name without what `torch.compile` and data parallelism put into it."""
    return ".".join(part for part in name.split(".") if part not in {"_orig_mod", "_checkpoint_wrapped_module"})


def compiled(module: nn.Module) -> bool:
    """Say whether calls of the module run compiled code."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def visible(module: nn.Module, *, eager: bool = False) -> dict[str, nn.Module]:
    """The submodules whose calls hooks can see, by name; those inside compiled code only where that runs eagerly."""
    found: dict[str, nn.Module] = {}

    def walk(parent: nn.Module, above: tuple[str, ...]) -> None:
        if isinstance(parent, torch.jit.ScriptModule) or (compiled(parent) and not eager):
            return
        for name, child in parent.named_children():
            path = (*above, name)
            if child not in found.values() and (eager or getattr(child, "_compiled_call_impl", None) is None):
                found.setdefault(stripped(".".join(path)), child)
            walk(child, path)

    walk(module, ())
    found.pop("", None)
    return found


@dataclasses.dataclass(frozen=True)
class Survey:
    """Findings of a forward pass of a side.

    Attributes:
        work: of each call.
        outputs: shape of each call's first output.
        ends: tensors of the whole module's output by place.
        epsilon: spacing at 1 of its coarsest format.
        tiny: largest spacing of subnormal values among its formats.
    """

    work: dict[Call, Work]
    outputs: dict[Call, tuple[int, ...]]
    ends: dict[str, Tensor]
    epsilon: float
    tiny: float

    def calls(self, layer: str) -> list[tuple[int, ...]]:
        """Output shapes of a layer's calls."""
        return [shape for call, shape in self.outputs.items() if call.layer == layer]

    def whole(self) -> Work:
        """Work of a module that is seen from outside alone, its layers being surveyed.

        Sensitivities to changes of all parameters hold a rounding for each layer; a layer has that many at most.
        """
        terms = [
            work.products / max(math.prod(self.outputs[c]), 1) for c, work in self.work.items() if c in self.outputs
        ]
        roundings, steps = (
            max((getattr(work, name) for work in self.work.values()), default=1) for name in ("roundings", "steps")
        )
        return Work(roundings, steps, 0, max([1.0, *terms]))


@dataclasses.dataclass(frozen=True)
class Side:
    """One of two versions of a computation.

    Attributes:
        module: as the user has it.
        arguments: on its device, floating-point ones in its own dtype.
        seed: of what it draws while it runs, and of the cotangent.
    """

    module: nn.Module
    arguments: Arguments
    seed: int

    @staticmethod
    def of(module: nn.Module, batch: Any, seed: int) -> Side:
        """The side of a module; where it has no floating-point parameter or buffer, the batch's own dtype."""
        state = [*module.parameters(), *module.buffers()]
        first = next((tensor for tensor in state if tensor.is_floating_point()), None)
        device = first.device if first is not None else state[0].device if state else None

        def move(_: str, tensor: Tensor) -> Tensor:
            dtype = None if first is None else first.dtype
            return tensor.to(device, _COMPLEX.get(dtype) if tensor.is_complex() else dtype)

        arguments = Arguments(*replaced(tuple(Arguments.of(batch)), move))

        def usable(tensor: Tensor) -> Tensor:
            return (tensor.clone() if tensor.is_inference() else tensor).to(device)  # which autograd could not save

        return Side(module, Arguments(*nested.mapped(tuple(arguments), usable)), seed)

    def run(
        self,
        passing: Passing,
        pinned: Mapping[str, nn.Module],
        *,
        change: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter,
        cotangents: Mapping[str, Tensor] | None = None,
        gradients: bool = True,
    ) -> dict[str, Tensor]:
        """Run once; return the `numbers` of the output's tensors by place.

        Args:
            passing: what the boundaries do.
            pinned: modules that have boundaries, by name.
            change: name and parameter -> the parameter that it runs with.
            cotangents: place in the output -> its gradient; without them there is no way back.
            gradients: whether it runs as where gradients are wanted.
        """
        with ExitStack() as undo:
            undo.enter_context(seeded(self.seed))
            states = States(self.module, apart=self.module.parameters())
            undo.enter_context(states.kept())
            states.begin(cloned)
            undo.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor")  # torch.compile looks at it
            undo.enter_context(torch.set_grad_enabled(gradients))
            parameters = {
                name: change(stripped(name), each.detach().clone()).requires_grad_(each.requires_grad and gradients)
                for name, each in self.module.named_parameters()
            }
            buffers = {name: each.detach().clone() for name, each in self.module.named_buffers()}
            stack = [Call("", 0)]
            counts: Counter[str] = Counter()
            for name, module in pinned.items():
                _attach(name, module, passing, stack, counts, undo)
            args, kwargs = copied(tuple(self.arguments), cloned, {id(each): each for each in self.module.modules()})[0]
            args, kwargs = replaced((args, kwargs), lambda _, x: x.requires_grad_(gradients))
            leaves = [x for _, x in nested.tensors((args, kwargs)) if x.requires_grad]
            args, kwargs = _crossing((args, kwargs), passing, ("", 0, "in"), Call("", 0))
            output = torch.func.functional_call(self.module, {**parameters, **buffers}, args, kwargs)
            output = _crossing(output, passing, ("", 0, "out"), Call("", 0))
            ends = {place or "": numbers(x) for place, x in nested.tensors(output) if nested.inexact(x)}
            if cotangents:
                given = {n: p for n, p in parameters.items() if p.requires_grad}
                _go_back(ends, cotangents, given, leaves, passing)
        return {place: x.detach() for place, x in ends.items()}

    def eager(self) -> AbstractContextManager[object]:
        """Run compiled code eagerly within the block."""
        any_compiled = any(map(compiled, self.module.modules()))  # torch.compiler is slow to load
        return torch.compiler.set_stance("force_eager") if any_compiled else nullcontext()

    def survey(self, pinned: Mapping[str, nn.Module]) -> Survey:
        """Run forward once, compiled code eagerly, and see what each call of the pinned modules computes itself."""
        work: dict[Call, Work] = {}
        outputs: dict[Call, tuple[int, ...]] = {}
        dtypes: set[torch.dtype] = set()

        def passing(edge: Edge, maker: Call, _: Direction, tensor: Tensor) -> Tensor:
            work[maker] = work.get(maker, Work()) + _summed(counted)
            counted.clear()
            if edge.kind == "out":
                outputs.setdefault(Call(edge.layer, edge.number), tuple(tensor.shape))
            dtypes.add(tensor.dtype)
            return tensor

        with self.eager(), operations.counting() as counted:
            ends = self.run(passing, pinned)
        infos = [torch.finfo(dtype) for dtype in dtypes] or [torch.finfo(torch.float32)]
        tiny = max(info.smallest_normal * info.eps for info in infos)
        return Survey(work, outputs, ends, max(info.eps for info in infos), tiny)


@dataclasses.dataclass(frozen=True)
class Pinned:
    """A side, the modules that have boundaries, and what a forward pass of it showed."""

    side: Side
    modules: Mapping[str, nn.Module]
    survey: Survey

    def layer(self, name: str) -> str:
        """The layer that answers for a module: itself, or the next one around it that has boundaries."""
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return name


def _summed(counted: list[operations.Operation]) -> Work:
    done = Work()
    for each in counted:
        name = each.name.removeprefix("aten::")
        if name.rstrip("_") in EXACT:
            continue
        if name in ARITHMETIC or name.rstrip("_") in ARITHMETIC:
            done += Work(1)
        elif each.flops and each.name not in operations.WHOLE_LAYERS:
            done += Work(1, 0, each.flops // 2)
        else:
            done += Work(0, 1, max((math.prod(shape) for shape in each.shapes), default=0))
    return done


def _attach(  # noqa: PLR0917 # one caller
    name: str, module: nn.Module, passing: Passing, stack: list[Call], counts: Counter[str], undo: ExitStack
) -> None:
    keep_inputs = bool(getattr(module, "inplace", False))  # it writes into them, and the caller may read them

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if in_transform():  # its tensors pass no `_Boundary`
            return None
        outside = stack[-1]
        call = Call(name, counts[name])
        counts[name] += 1
        if not keep_inputs:
            args, kwargs = _crossing((args, kwargs), passing, (*call, "in"), outside)
        stack.append(call)
        return args, kwargs

    def after(_: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if in_transform():
            return None
        call = stack.pop()
        return _crossing(output, passing, (*call, "out"), stack[-1])

    undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    undo.callback(module.register_forward_hook(after, with_kwargs=True).remove)


def _crossing(value: Any, passing: Passing, edge: tuple[str, int, Any], outside: Call) -> Any:
    return replaced(value, lambda place, x: _Boundary.apply(x, passing, Edge(*edge, place), outside))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _go_back(
    ends: Mapping[str, Tensor], cotangents: Mapping[str, Tensor], parameters: Mapping[str, Tensor],
    leaves: list[Tensor], passing: Passing,
) -> None:  # fmt: skip
    """The backward pass, whose last boundaries are the parameters."""
    ends = {place: x for place, x in ends.items() if x.requires_grad and place in cotangents}
    wanted = [*parameters.values(), *leaves]
    if not ends or not wanted:
        return
    given = [cotangents[place].to(x) for place, x in ends.items()]
    try:
        gradients = torch.autograd.grad(list(ends.values()), wanted, given, allow_unused=True)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise TypeError("a reentrant checkpoint refuses this backward pass: give use_reentrant=False") from error
    for name, gradient in reversed(list(zip(parameters, gradients, strict=False))):
        if gradient is not None:
            layer, _, place = stripped(name).rpartition(".")
            passing(Edge(layer, 0, "parameter", place), Call(layer, 0), "backward", numbers(gradient))


def cotangents(outputs: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Standard normal gradients of outputs, by place, that the outputs' own dtype holds."""
    draws = generator(seed, Purpose.COTANGENT)
    return {
        place: torch.randn(tuple(x.shape), generator=draws, dtype=torch.float64).to(x.device, x.dtype)
        for place, x in outputs.items()
    }
