"""What PyTorch itself wraps models in, traces them with or calls them through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zoo.core_modules import perceptron
from zoo.entry import STEPS, Case, Entry, case, plain, squares

PARAMETERS = ("weight", "weight_gradient", "update")


def group() -> None:
    """A process group that stays until the worker ends."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


def data_parallel() -> Case:
    return case(nn.DataParallel(perceptron()), squares(4, 8))


def distributed_parallel() -> Case:
    group()
    return case(nn.parallel.DistributedDataParallel(perceptron()), squares(4, 8))


def unsynchronized() -> Case:
    """Gradients are accumulated without synchronization in all but the last micro-batch."""
    group()

    def train(case: Case) -> list[float]:
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            with case.model.no_sync():
                case.loss(case.model).backward()
            loss = case.loss(case.model)
            loss.backward()
            case.optimizer.step()
            losses.append(loss.item())
        return losses

    return case(nn.parallel.DistributedDataParallel(perceptron()), squares(4, 8), train)


def wrapped_within() -> Case:
    """The inner module is watched; the loop calls the wrapper."""
    group()
    model = perceptron()
    outer = nn.parallel.DistributedDataParallel(model)
    return case(model, lambda m: (outer if m is model else m)(torch.randn(4, 8)).square().mean())


def sharded() -> Case:
    from torch.distributed.fsdp import fully_shard

    group()
    mesh = distributed.init_device_mesh("cpu", (1,))
    model = perceptron()
    for part in (model[0], model[2]):
        fully_shard(part, mesh=mesh)
    return case(fully_shard(model, mesh=mesh), squares(4, 8))


def tensor_parallel() -> Case:
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    group()
    mesh = distributed.init_device_mesh("cpu", (1,))
    model = parallelize_module(perceptron(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return case(model, squares(4, 8))


def zero_redundancy() -> Case:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    group()
    model = nn.parallel.DistributedDataParallel(perceptron())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.05)
    return case(model, squares(4, 8), optimizer=optimizer)


def compiled_inside(backend: str) -> Callable[[], Case]:
    """The loop compiles the model that is watched."""

    def train(case: Case) -> list[float]:
        torch._dynamo.reset()
        compiled = torch.compile(case.model, backend=backend)
        losses = []
        for _ in range(STEPS):
            case.optimizer.zero_grad()
            loss = compiled(torch.randn(4, 8)).square().mean()
            loss.backward()
            case.optimizer.step()
            losses.append(loss.item())
        return losses

    return lambda: case(perceptron(), squares(4, 8), train)


def compiled(backend: str) -> Callable[[], Case]:
    """What torch.compile returned is watched, by its parameters."""

    def build() -> Case:
        torch._dynamo.reset()
        model = torch.compile(perceptron(), backend=backend)
        return case(model, squares(4, 8), directions=PARAMETERS)

    return build


def compiled_block() -> Case:
    """One block of the model is compiled in place."""
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 2))
    model[1].compile(backend="aot_eager")
    return case(model, squares(4, 8))


def functional() -> Case:
    def loss(model: nn.Module) -> Tensor:
        weights = {name: parameter * 1.0 for name, parameter in model.named_parameters()}
        return torch.func.functional_call(model, weights, (torch.randn(4, 8),)).square().mean()

    return case(perceptron(), loss)


def per_sample() -> Case:
    """Per-sample gradients by vmap, clipped and summed into `.grad`."""

    def train(case: Case) -> list[float]:
        model, numbers = case.model, []

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(model, weights, (x[None],)).square().mean()

        for _ in range(STEPS):
            weights = {name: p.detach() for name, p in model.named_parameters()}
            each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, torch.randn(4, 8))
            for name, parameter in model.named_parameters():
                parameter.grad = each[name].clamp(-1, 1).mean(0)
                numbers.append(parameter.grad.sum().item())
            case.optimizer.step()
        return numbers

    return case(perceptron(), squares(4, 8), train)


def jacobians() -> Case:
    """A physics-informed loss: derivatives of the network by vmap, jacrev, jvp and hessian beside a plain step."""

    def loss(model: nn.Module) -> Tensor:
        x = torch.randn(4, 8)
        slopes = torch.func.vmap(torch.func.jacrev(model))(x)
        _, along = torch.func.jvp(model, (x,), (torch.ones_like(x),))
        bend = torch.func.hessian(lambda row: model(row).sum())(x[0])
        return slopes.square().mean() + along.square().mean() + bend.square().mean() + model(x).square().mean()

    return case(perceptron(), loss)


def ensemble() -> Case:
    """Several models as one, by stacked weights and vmap; the first is watched."""

    def loss(model: nn.Module) -> Tensor:
        stacked = {name: torch.stack([p, 2 * p]) for name, p in model.named_parameters()}
        call = lambda weights, x: torch.func.functional_call(model, weights, (x,))  # noqa: E731 # what vmap takes
        return torch.func.vmap(call, (0, None))(stacked, torch.randn(4, 8)).square().mean()

    return case(perceptron(), loss)


def forward_mode() -> Case:
    from torch.autograd import forward_ad

    def loss(model: nn.Module) -> Tensor:
        x = torch.randn(4, 8)
        with forward_ad.dual_level():
            out = model(forward_ad.make_dual(x, torch.ones_like(x)))
            value, slope = forward_ad.unpack_dual(out)
            return value.square().mean() + slope.square().mean()

    return case(perceptron(), loss)


def beside(use: Callable[[nn.Module, Tensor], Any]) -> Callable[[], Case]:
    """A plain training, during which something else is done with the model."""

    def train(case: Case) -> list[float]:
        losses = plain(case)
        use(case.model, torch.randn(4, 8))
        return losses + plain(case)

    return lambda: case(perceptron(), squares(4, 8), train)


def fake(model: nn.Module, _x: Tensor) -> None:
    """Shapes by fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.randn(4, 8))


def meta(model: nn.Module, x: Tensor) -> None:
    """Shapes by tensors without data."""
    weights = {name: p.to("meta") for name, p in model.named_parameters()}
    torch.func.functional_call(model, weights, (x.to("meta"),))


def symbolic(model: nn.Module, _x: Tensor) -> None:
    """A graph by torch.fx."""
    torch.fx.symbolic_trace(model)


def quantized(model: nn.Module, x: Tensor) -> None:
    """A dynamically quantized copy."""
    from torch.ao.quantization import quantize_dynamic

    quantize_dynamic(model, {nn.Linear})(x)


def exported(model: nn.Module, x: Tensor) -> None:
    """torch.export, and a run of what it made."""
    torch.export.export(model, (x,)).module()(x)


def made_graph(model: nn.Module, x: Tensor) -> None:
    """A graph of operators by make_fx, on real tensors."""
    from torch.fx.experimental.proxy_tensor import make_fx

    make_fx(model)(x)


def scripted() -> Case:
    return case(_optimized(torch.jit.script(perceptron())), squares(4, 8))


def traced() -> Case:
    return case(_optimized(torch.jit.trace(perceptron(), torch.randn(4, 8))), squares(4, 8))


def _optimized(model: nn.Module) -> nn.Module:
    """After the runs from which TorchScript makes its kernels, which round otherwise than what it ran before."""
    for _ in range(4):
        model(torch.randn(4, 8)).square().mean().backward()
    model.zero_grad()
    return model


def counted(model: nn.Module, x: Tensor) -> None:
    """Operations counted by a dispatch mode."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False):
        model(x).sum().backward()


def summarized(model: nn.Module, x: Tensor) -> None:
    """TensorBoard's graph of the model."""
    import tempfile

    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        writer.add_graph(model, x)


def profiled(model: nn.Module, x: Tensor) -> None:
    """The profiler with its module names."""
    with torch.profiler.profile(with_modules=True, record_shapes=True):
        model(x).sum().backward()


def device_context() -> Case:
    def train(case: Case) -> list[float]:
        with torch.device("cpu"):
            return plain(case)

    return case(perceptron(), squares(4, 8), train)


class Tagged(torch.Tensor):
    """A subclass that hands every operation on."""


def subclassed() -> Case:
    def loss(model: nn.Module) -> Tensor:
        return model(torch.randn(4, 8).as_subclass(Tagged)).square().mean().as_subclass(Tensor)

    return case(perceptron(), loss)


def shared_memory() -> Case:
    return case(perceptron().share_memory(), squares(4, 8))


def memory_mapped() -> Case:
    import tempfile

    model = perceptron()
    with tempfile.NamedTemporaryFile() as file:
        torch.save(model.state_dict(), file.name)
        model.load_state_dict(torch.load(file.name, mmap=True), assign=True)
    return case(model, squares(4, 8))


def pipeline() -> Case:
    """A wrapper class of one's own that hands attributes on to what it wraps."""

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, *args: Any) -> Any:
            return self.inner(*args)

    return case(Wrapper(perceptron()), squares(4, 8))


class Looks:
    """An optimizer in a wrapper that is no `torch.optim.Optimizer`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        self.optimizer.step()


def wrapped_optimizer() -> Case:
    model = perceptron()
    return case(model, squares(4, 8), optimizer=Looks(torch.optim.SGD(model.parameters(), 0.05)))


WRAPPERS = (
    Entry("`DataParallel`", data_parallel, "wrapper"),
    Entry("`DistributedDataParallel`", distributed_parallel, "wrapper"),
    Entry("`DistributedDataParallel`, `no_sync`", unsynchronized, "wrapper"),
    Entry("`DistributedDataParallel`, its inner module watched", wrapped_within, "wrapper"),
    Entry("`fully_shard` (FSDP2)", sharded, "wrapper"),
    Entry(
        "tensor parallel layers",
        tensor_parallel,
        "wrapper",
        expected="partly",
        why="partial sums, which no process holds whole, are left out",
    ),
    Entry("`ZeroRedundancyOptimizer`", zero_redundancy, "wrapper"),
    Entry("an optimizer in a wrapper of one's own", wrapped_optimizer, "wrapper"),
    Entry(
        "`torch.compile` inside of the block, eager",
        compiled_inside("eager"),
        "wrapper",
        expected="partly",
        why="activations are fused away: parameters alone",
    ),
    Entry(
        "`torch.compile` inside of the block, AOT",
        compiled_inside("aot_eager"),
        "wrapper",
        expected="partly",
        why="activations are fused away: parameters alone",
    ),
    Entry(
        "compiled module, parameters only",
        compiled("aot_eager"),
        "wrapper",
        expected="partly",
        why="activations are fused away: parameters alone",
    ),
    Entry(
        "a model with a compiled block",
        compiled_block,
        "wrapper",
        expected="partly",
        why="activations of that block are fused away",
    ),
    Entry("`functional_call`", functional, "wrapper"),
    Entry(
        "per-sample gradients by `vmap`",
        per_sample,
        "wrapper",
        expected="partly",
        why="inside of `vmap` no tensor has numbers of its own: parameters alone",
    ),
    Entry("`jacrev`, `jvp`, `hessian`", jacobians, "wrapper"),
    Entry(
        "an ensemble by `vmap`",
        ensemble,
        "wrapper",
        expected="partly",
        why="inside of `vmap` no tensor has numbers of its own: parameters alone",
    ),
    Entry("forward-mode differentiation", forward_mode, "wrapper"),
    Entry("fake tensors", beside(fake), "wrapper"),
    Entry("meta tensors", beside(meta), "wrapper"),
    Entry("`torch.export`", beside(exported), "wrapper"),
    Entry("`make_fx`", beside(made_graph), "wrapper"),
    Entry("`torch.fx.symbolic_trace`", beside(symbolic), "wrapper"),
    Entry("`torch.jit.trace`", beside(lambda m, x: torch.jit.trace(m, x)(x)), "wrapper"),
    Entry("`torch.jit.script`", beside(lambda m, x: torch.jit.script(m)(x)), "wrapper"),
    Entry(
        "a scripted module",
        scripted,
        "wrapper",
        expected="partly",
        why="scripted layers run without Python: parameters alone",
    ),
    Entry(
        "a traced module",
        traced,
        "wrapper",
        expected="partly",
        why="traced layers run without Python: parameters alone",
    ),
    Entry("dynamic quantization of the model", beside(quantized), "wrapper"),
    Entry("`FlopCounterMode`", beside(counted), "wrapper"),
    Entry("TensorBoard's `add_graph`", beside(summarized), "wrapper"),
    Entry("`torch.profiler`", beside(profiled), "wrapper"),
    Entry("a default device", device_context, "wrapper"),
    Entry("a tensor subclass", subclassed, "wrapper"),
    Entry("weights in shared memory", shared_memory, "wrapper"),
    Entry("weights mapped from a file", memory_mapped, "wrapper"),
    Entry("a wrapper that hands attributes on", pipeline, "wrapper"),
)
