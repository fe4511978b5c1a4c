"""What a probe costs: a training step with it over one without it, on one thread, for three small networks.

    pytest --benchmark --benchmark-full benchmarks/test_probe_overhead.py

Two equal networks are trained side by side, one of them watched, in turns (A B, B A, ...), so that whatever else the
machine does meets both alike; a row is the median of the paired ratios, with the middle half of them. The first row
of each network watches nothing: it tells what the machine can resolve. Two floors follow: PyTorch's calls of hooks that
do nothing, and the probe with a kernel that reads nothing.

What is compared is the time that passes, until the rows of the step are there and cleared; the median of the ratios of
the process's own processor time, in which a second thread counts, is printed beside it.
"""

import copy
import dataclasses
import importlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge import probe, seeding
from depthgauge.probe import compiled
from depthgauge.seeding import Purpose


@dataclass(frozen=True)
class Net:
    """A network, its batch of 64, and how many pairs of steps are timed."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    pairs: int


def stack(depth: int, width: int) -> nn.Module:
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 14 * 14, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


NETS = {
    "20 layers of width 256": Net(lambda: stack(20, 256), (64, 256), 120),
    "50 layers of width 64": Net(lambda: stack(50, 64), (64, 64), 240),
    "convolutions at 28 x 28": Net(convolutional, (64, 1, 28, 28), 24),
}
# What the probe should cost at most: activations and their gradients, then everything; and both beside the step.
LIMITS = dict(zip(NETS, [(1.18, 1.40, 1.10, 1.20), (1.55, 1.8, 1.40, 1.6), (1.12, 1.15, 1.08, 1.10)], strict=True))
FORWARD_AND_BACKWARD = ("activation", "activation_gradient")


class Training:
    """One network with its data."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        generator = seeding.generator(0, Purpose.INPUTS)
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        self.x = torch.randn(shape, generator=generator)
        self.y = torch.randint(0, 10, (shape[0],), generator=generator)

    def step(self) -> None:
        """Forward, backward, SGD."""
        self.optimizer.zero_grad()
        self.backward(self.model(self.x))
        self.optimizer.step()

    def backward(self, output: torch.Tensor) -> None:
        """From the network's output to gradients."""
        functional.cross_entropy(output, self.y).backward()


@contextmanager
def nothing(_training: Training) -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextmanager
def empty_hooks(_training: Training) -> Iterator[Callable[[], None]]:
    """The calls of hooks on every module and every gradient of its output, which the probe cannot do without."""

    def after(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        output.grad_fn.register_prehook(lambda _gradients: None)

    with ExitStack() as undo:
        undo.callback(nn.modules.module.register_module_forward_hook(after).remove)
        yield lambda: None


class Blind(compiled.CompiledKernel):
    """A kernel that reads nothing."""

    def __init__(self) -> None:
        nothing = {"observe": lambda *_: 0, "observe_all": lambda _state, _jobs, n, *_: n}
        super().__init__(dataclasses.replace(compiled.METHOD, **nothing))


def ours(*, blind: bool = False, **options: object) -> Callable:
    """The probe with these options of `track`; if `blind`, with a kernel that reads nothing."""

    @contextmanager
    def watch(training: Training) -> Iterator[Callable[[], None]]:
        with pytest.MonkeyPatch.context() as patch:
            if blind:
                patch.setattr(compiled, "CompiledKernel", Blind)
            block = probe.track(training.model, optimizer=training.optimizer, **options)
            record = block.__enter__()
        with ExitStack() as undo:
            undo.push(block)
            yield record.clear

    return watch


@contextmanager
def our_ring(training: Training) -> Iterator[Callable[[], None]]:
    with probe.track(training.model, optimizer=training.optimizer, last=21):
        yield lambda: None


@contextmanager
def plain_hooks(training: Training) -> Iterator[Callable[[], None]]:
    """Eight statistics of each activation and its gradient, as one writes them in a notebook."""
    rows: list[list[float]] = []

    def statistics_of(t: torch.Tensor) -> None:
        t = t.detach()
        magnitude = t.abs()
        figures = (t.mean(), t.std(), t.min(), t.max(), magnitude.mean(), magnitude.max(), (t == 0).sum())
        rows.append([*(figure.item() for figure in figures), t.isfinite().all().item()])

    def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        statistics_of(output)
        output.register_hook(statistics_of)

    with ExitStack() as undo:
        for part in training.model:
            undo.callback(part.register_forward_hook(hook).remove)
        yield rows.clear


@contextmanager
def tensor_tracker(training: Training) -> Iterator[Callable[[], None]]:
    """Tensor-tracker with a standard deviation for each tensor."""
    import tensor_tracker as peer  # noqa: PLC0415 # where it is installed

    with peer.track(training.model, stash_value=lambda t: t.detach().std().item()) as tracker:
        yield tracker.clear


@contextmanager
def tensorboard(training: Training) -> Iterator[Callable[[], None]]:
    """TensorBoard histograms of parameters and their gradients."""
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 # where it is installed

    with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:

        def write(optimizer: torch.optim.Optimizer, _arguments: object, _keywords: object) -> None:
            for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
                writer.add_histogram(f"weight/{number}", parameter)
                writer.add_histogram(f"gradient/{number}", parameter.grad)

        handle = training.optimizer.register_step_post_hook(write)
        yield lambda: None
        handle.remove()


@contextmanager
def cockpit_economy(training: Training) -> Iterator[Callable[[], None]]:
    """Cockpit with the quantities of its economy configuration, in each step."""
    import backpack  # noqa: PLC0415 # where it is installed
    import cockpit  # noqa: PLC0415
    from cockpit.utils.configuration import configuration  # noqa: PLC0415

    backpack.extend(training.model)
    mean, each = (backpack.extend(nn.CrossEntropyLoss(reduction=kind)) for kind in ("mean", "none"))
    instruments = cockpit.Cockpit(training.model.parameters(), quantities=configuration("economy"))
    step = itertools.count()

    def backward(output: torch.Tensor) -> None:
        loss, now = mean(output, training.y), next(step)
        info = {
            "batch_size": len(training.y),
            "individual_losses": each(output, training.y),
            "loss": loss,
            "optimizer": training.optimizer,
        }
        with instruments(now, info=info):
            loss.backward(create_graph=instruments.create_graph(now))

    training.backward = backward
    yield lambda: None


WATCHES = {
    "nothing (A/A)": (nothing, None, None),
    "empty hooks": (empty_hooks, None, None),
    "probe, reads nothing: activations": (ours(blind=True, directions=FORWARD_AND_BACKWARD), None, None),
    "probe, reads nothing: everything": (ours(blind=True), None, None),
    "probe: activations and gradients": (ours(directions=FORWARD_AND_BACKWARD), 0, None),
    "probe: everything": (ours(), 1, None),
    "probe, overlap: activations": (ours(overlap=True, directions=FORWARD_AND_BACKWARD), 2, None),
    "probe, overlap: everything": (ours(overlap=True), 3, None),
    "probe: everything, the last 21 rows": (our_ring, 1, None),
    "plain hooks, 8 torch statistics": (plain_hooks, None, None),
    "tensor-tracker, standard deviation": (tensor_tracker, None, "tensor_tracker"),
    "TensorBoard histograms of parameters": (tensorboard, None, "tensorboard"),
    "cockpit, economy": (cockpit_economy, None, "cockpit"),
}


@contextmanager
def without_hooks() -> Iterator[None]:
    """Take the hooks of all modules away, which the bare network would run, too."""
    hooks = nn.modules.module._global_forward_hooks
    kept = dict(hooks)
    hooks.clear()
    yield
    hooks.update(kept)


def paired_ratios(net: Net, watch: Callable) -> list[tuple[float, float]]:
    """Ratios of passed time and of processor time, pair by pair."""
    seeding.seed_torch(0, Purpose.MODULES)
    model = net.build()
    bare, watched = Training(model, net.shape), Training(copy.deepcopy(model), net.shape)
    ratios: list[tuple[float, float]] = []
    end = time.monotonic() + 30  # for those that are a hundred times slower, after ten pairs
    with watch(watched) as forget:
        for pair in range(net.pairs + net.pairs // 8):
            if len(ratios) >= 10 and time.monotonic() > end:
                break
            processor, passed = {}, {}
            for training in (bare, watched) if pair % 2 else (watched, bare):
                with nullcontext() if training is watched else without_hooks():
                    start, start_processor = time.perf_counter(), time.process_time()
                    training.step()
                    if training is watched:
                        forget()
                    processor[training] = time.process_time() - start_processor
                    passed[training] = time.perf_counter() - start
            if pair >= net.pairs // 8:  # the first ones warm up
                ratios.append((passed[watched] / passed[bare], processor[watched] / processor[bare]))
    return ratios


def quick(names: Iterable[str], *chosen: str) -> list[object]:
    return [name if name in chosen else pytest.param(name, marks=pytest.mark.full) for name in names]


@pytest.mark.filterwarnings("ignore")  # what other tools warn of is theirs
@pytest.mark.parametrize("watch", quick(WATCHES, *(name for name, told in WATCHES.items() if told[2] is None)))
@pytest.mark.parametrize("name", quick(NETS, "50 layers of width 64"))
def test_overhead(name: str, watch: str, benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    watcher, column, needs = WATCHES[watch]
    if needs is not None:
        try:
            importlib.import_module(needs)
        except ImportError as missing:
            with capsys.disabled():
                print(f"\n{name:24} | {watch:36} | cannot be imported: {missing}", end="")  # noqa: T201 # a result
            pytest.skip(str(missing))
    ratios, processor = zip(*benchmark.pedantic(paired_ratios, (NETS[name], watcher), rounds=1), strict=True)
    low, middle, high = statistics.quantiles(ratios, n=4)
    cpu = statistics.median(processor)
    limit = "" if column is None else f", limit {LIMITS[name][column]:.2f}"
    benchmark.extra_info.update(
        net=name, watch=watch, ratio=middle, low=low, high=high, processor=cpu, pairs=len(ratios)
    )
    with capsys.disabled():
        told = f"{middle:6.2f} x ({low:.2f} to {high:.2f}; processor {cpu:.2f}){limit}"
        print(f"\n{name:24} | {watch:36} | {told}", end="")  # noqa: T201 # a result
