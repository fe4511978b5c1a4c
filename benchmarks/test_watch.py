"""What `probe.watch` costs, and how often its alarm is false.

    pytest --benchmark --benchmark-full benchmarks/test_watch.py

The cost is that of a training step, watched over not watched, two equal networks in turns as in test_probe_overhead.py.
The alarm is asked at the rate that it states (100,000 recorded steps) and at a hundred times more: of drawn figures, by
the law that they follow, and of small trainings, every step recorded: where the training ends sound, an alarm is false.
Then one layer changes, and the steps until it is named are counted.
"""

import copy
import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from depthgauge import data, probe, seeding
from depthgauge.probe.alarm import MEAN_STEPS, Ranges, figures
from depthgauge.probe.watching import with_log2_rms
from depthgauge.seeding import Purpose

LAYERS = 50


# -- drawn figures -----------------------------------------------------------------------------------------------------

Draw = Callable[[np.random.Generator, int], np.ndarray]


def autoregressive(correlation: float, size: float) -> Draw:
    def draw(rng: np.random.Generator, steps: int) -> np.ndarray:
        x = size * rng.standard_normal((steps, LAYERS))
        for before, after in itertools.pairwise(range(steps)):
            x[after] = correlation * x[before] + np.sqrt(1 - correlation**2) * x[after]
        return x

    return draw


LAWS: dict[str, Draw] = {
    "normal, 0.3 binades": lambda rng, steps: 0.3 * rng.standard_normal((steps, LAYERS)),
    "normal, 1 binade": lambda rng, steps: rng.standard_normal((steps, LAYERS)),
    "normal, the same in all layers": lambda rng, steps: rng.standard_normal((steps, 1)).repeat(LAYERS, 1),
    "Student, 3 degrees of freedom": lambda rng, steps: rng.standard_t(3, (steps, LAYERS)),
    "autoregressive, 0.9, 0.5 binades": autoregressive(0.9, 0.5),
    "autoregressive, 0.9, 1 binade": autoregressive(0.9, 1.0),
    "random walk, 0.1 binades a step": lambda rng, steps: 0.1 * rng.standard_normal((steps, LAYERS)).cumsum(0),
    "random walk, 0.3 binades a step": lambda rng, steps: 0.3 * rng.standard_normal((steps, LAYERS)).cumsum(0),
    "one batch in 100, 64 times as large": lambda rng, steps: (
        0.3 * rng.standard_normal((steps, LAYERS)) + 6 * (rng.random((steps, 1)) < 0.01)
    ),
}
NAMES = [("activation", str(layer), "", "") for layer in range(LAYERS)]


def alarms(figures_of_steps: np.ndarray, mean_steps: float) -> list[probe.Alarm]:
    ranges = Ranges(mean_steps)
    told = (ranges.observe(step, NAMES, row) for step, row in enumerate(figures_of_steps))
    return [alarm for alarm in told if alarm is not None]


@pytest.mark.parametrize(
    "law", [name if name.startswith("normal") else pytest.param(name, marks=pytest.mark.full) for name in LAWS]
)
def test_false_alarms_of_drawn_figures(
    law: str, benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 10_000
    drawn = LAWS[law](seeding.numpy_generator(0, Purpose.INPUTS), steps)
    counts = {mean: len(alarms(drawn, mean)) for mean in (MEAN_STEPS / 100, MEAN_STEPS)}
    benchmark.pedantic(alarms, (drawn[:500], MEAN_STEPS), rounds=1)
    benchmark.extra_info.update(law=law, steps=steps, **{f"alarms_{mean:g}": count for mean, count in counts.items()})
    told = ", ".join(f"{count} at one in {mean:,.0f}" for mean, count in counts.items())
    with capsys.disabled():
        print(f"\n{law:36} | {steps:,} steps of {LAYERS} layers: {told}", end="")  # noqa: T201 # a result


@pytest.mark.parametrize(("noise", "jump", "changed"), [(0.1, 2, 1), (0.3, 3, 1), (0.3, 3, 25), (0.5, 5, 1)])
def test_steps_until_a_change_is_named(
    noise: float, jump: float, changed: int, benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    delays = []
    for seed in range(20):
        drawn = noise * seeding.numpy_generator(seed, Purpose.INPUTS).standard_normal((120, LAYERS))
        drawn[100:, :changed] += jump
        told = alarms(drawn, MEAN_STEPS)
        named = [alarm for alarm in told if alarm.step >= 100 and int(alarm.layer) < changed]
        delays.append(named[0].step - 99 if named else 99)
    benchmark.pedantic(alarms, (drawn, MEAN_STEPS), rounds=1)
    never = delays.count(99)
    benchmark.extra_info.update(noise=noise, jump=jump, changed=changed, delay=statistics.median(delays), never=never)
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{changed} of {LAYERS} layers by {2**jump:g} times, noise {noise} binades: named after"
            f" {statistics.median(delays):g} recorded steps, never in {never} of 20",
            end="",
        )


# -- sound trainings ---------------------------------------------------------------------------------------------------


def perceptron(activation: type[nn.Module], depth: int, norm: bool = False) -> nn.Module:
    parts: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        parts += [nn.Linear(64, 64), *([nn.LayerNorm(64)] if norm else []), activation()]
        if activation is nn.ReLU:
            nn.init.kaiming_normal_(parts[-2 - norm].weight, nonlinearity="relu")
    return nn.Sequential(*parts, nn.Linear(64, 10))


def convolutional() -> nn.Module:
    def block(n: int, m: int) -> list[nn.Module]:
        return [nn.Conv2d(n, m, 3, padding=1), nn.BatchNorm2d(m), nn.ReLU()]

    return nn.Sequential(nn.Unflatten(1, (1, 8)), *block(1, 8), *block(8, 16), nn.Flatten(), nn.Linear(1024, 10))


class Recurrent(nn.Module):
    """Rows of an image as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        return self.head(self.cells(x)[0][:, -1])


class Attentive(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh, 4 layers": lambda: perceptron(nn.Tanh, 4),
    "ReLU, 8 layers": lambda: perceptron(nn.ReLU, 8),
    "GELU with LayerNorm, 6 layers": lambda: perceptron(nn.GELU, 6, norm=True),
    "convolutions with batch norm": convolutional,
    "GRU": Recurrent,
    "transformer with dropout": Attentive,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
}
SCHEDULES: dict[str, Callable[[float], float]] = {  # the rate by the share of the steps that are done
    "constant": lambda _: 1.0,
    "cosine": lambda done: (1 + np.cos(np.pi * done)) / 2,
    "two steps": lambda done: 0.1 ** int(3 * done),
}


def trained(  # noqa: PLR0917 # a case
    model: str, optimizer: str, schedule: str, batch: int, steps: int, seed: int = 0
) -> tuple[int, int, float]:
    """Alarms at the stated rate, those at a hundred times more, and the accuracy that the training reached."""
    digits = data.load("digits").train
    x, y = digits.x.reshape(-1, 8, 8), digits.y
    seeding.seed_torch(seed, Purpose.MODULES)
    net = MODELS[model]()
    update = OPTIMIZERS[optimizer](net)
    rate = torch.optim.lr_scheduler.LambdaLR(update, lambda step: SCHEDULES[schedule](step / steps))
    generator = seeding.generator(seed, Purpose.INPUTS)
    ranges = Ranges(MEAN_STEPS), Ranges(MEAN_STEPS / 100)
    told = [0, 0]

    def look(record: probe.Record) -> None:
        rows = with_log2_rms(record.to_frame())
        for index, each in enumerate(ranges):
            told[index] += each.observe(int(rows["step"].iloc[0]), *figures(rows)) is not None
        record.clear()

    with probe.track(net, optimizer=update, on_step=look):
        for _ in range(steps):
            chosen = torch.randint(len(x), (batch,), generator=generator)
            update.zero_grad()
            functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
            update.step()
            rate.step()
    net.eval()
    with torch.no_grad():
        return told[0], told[1], float((net(x).argmax(1) == y).float().mean())


COLLAPSED = 0.3  # accuracy; chance is 0.1, and such a training is not sound: its alarms are true
WAYS = (("constant", 8), ("cosine", 32), ("two steps", 32))
QUICK = ("tanh, 4 layers", "SGD", "cosine", 32)


@pytest.mark.filterwarnings("ignore")  # of layers that PyTorch fuses when it evaluates
@pytest.mark.parametrize(
    "case",
    [
        case if case == QUICK else pytest.param(case, marks=pytest.mark.full)
        for case in [(*each, *way) for each in itertools.product(MODELS, OPTIMIZERS) for way in WAYS]
    ],
    ids=lambda case: ", ".join(map(str, case)),
)
def test_alarms_of_small_trainings(
    case: tuple[str, str, str, int], benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 500
    stated, hundred, accuracy = benchmark.pedantic(trained, (*case, steps), rounds=1)
    benchmark.extra_info.update(case=case, steps=steps, stated=stated, hundred=hundred, accuracy=accuracy)
    state = "sound" if accuracy > COLLAPSED else "collapsed"
    with capsys.disabled():
        print(  # noqa: T201 # a result
            f"\n{', '.join(map(str, case)):60} | {steps} steps, {state} (accuracy {accuracy:.2f}): {stated} alarms"
            f" at the stated rate, {hundred} at a hundred times more",
            end="",
        )


# -- cost --------------------------------------------------------------------------------------------------------------


def stack(depth: int, width: int) -> nn.Module:
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())))


class Step:
    """A training step of a stack of layers."""

    def __init__(self, model: nn.Module, width: int) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        generator = seeding.generator(0, Purpose.INPUTS)
        self.x = torch.randn(64, width, generator=generator)
        self.y = torch.randint(0, 10, (64,), generator=generator)

    def __call__(self) -> float:
        """Processor time of one step, in seconds."""
        start = time.process_time()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.x), self.y).backward()
        self.optimizer.step()
        return time.process_time() - start


@pytest.mark.parametrize("every", [0, 1, 10, 100])
@pytest.mark.parametrize(("depth", "width"), [(20, 256), pytest.param(50, 64, marks=pytest.mark.full)])
def test_overhead(
    depth: int, width: int, every: int, benchmark: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    seeding.seed_torch(0, Purpose.MODULES)
    model = stack(depth, width)
    bare, watched = Step(model, width), Step(copy.deepcopy(model), width)
    rows: list[int] = []

    def ratio(pairs: int) -> float:
        """Processor time of as many steps, watched over not watched."""
        times = {bare: 0.0, watched: 0.0}
        for pair in range(pairs):
            for step in (bare, watched) if pair % 2 else (watched, bare):
                times[step] += step()
        return times[watched] / times[bare]

    if every:
        with probe.watch(watched.model, watched.optimizer, every=every, to=lambda frame: rows.append(len(frame))):
            ratio(20)
            ratios = benchmark.pedantic(lambda: [ratio(max(every, 20)) for _ in range(5)], rounds=1)
        assert rows
    else:  # what the machine resolves
        ratios = benchmark.pedantic(lambda: [ratio(20) for _ in range(5)], rounds=1)
    middle = statistics.median(ratios)
    benchmark.extra_info.update(depth=depth, width=width, every=every, ratio=middle, low=min(ratios), high=max(ratios))
    name = f"every={every}" if every else "nothing watched (A/A)"
    spread = f"{middle:.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
    with capsys.disabled():
        print(f"\n{depth} layers of width {width} | {name:22} | {spread}", end="")  # noqa: T201 # a result
