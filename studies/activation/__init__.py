"""Which activation to take: what theory knows of each, how deep it trains, and what it costs.

Nine parts, each a grid, a `run_*`, an `analyse_*` and its figures:

    training       every activation at several depths, own gain and tuned learning rate: steps, accuracy, lost units
    shape          depth against width at an equal number of parameters
    linear         deep networks without activation: rank, affinity, accuracy
    xor            a perceptron and one hidden layer on the four corners
    field          the theory table: gains, growth, critical sigma_w, depth scale, predicted and measured
    batch_norm     growth of the gradient under batch normalization, by batch size
    kinks          how often a pre-activation is exactly a point without derivative, by number format
    elementwise    time of an activation against copy bandwidth, by number format
    step           time of a training step against that with ReLU

Any callable can join: `over("relu", "my_package.my_module:snake", name="snake")` is the study for these activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import pandas as pd

from depthgauge.parts import Part, analyse_parts, findings, plot_parts
from depthgauge.studies.activation import cost, field, functions, kinks, linear, normalized, shape, trained, xor
from depthgauge.study import Case, Context, Grid, Rows, Study, Value
from depthgauge.verdict import Claim, Figure, Findings

CLAIMS = (
    Claim("N05", "with sigmoid and many layers the gradient vanishes"),
    Claim("N09", "sensible initial weights and activations keep training stable"),
    Claim("N12", "ReLU is preferred because it is simple: no exponential to compute"),
    Claim("N13", "activations exist to bring in nonlinearity: without them a deep network is still linear"),
    Claim("N14", "the chance of hitting a point where the function has no derivative is tiny"),
    Claim("N15", "a deep network is easier to train, and ends better, than a shallow wide one of the same capacity"),
    Claim("N16", "a perceptron cannot learn XOR; a hidden layer can"),
    Claim(
        "activation/same",
        "with its own gain and its own tuned learning rate every activation ends at the same accuracy",
    ),
    Claim("activation/theory", "theory knows gains, growth and depth scale of every activation before it is run"),
    Claim(
        "activation/batch_norm",
        "the growth of the gradient under batch normalization follows from activation and batch size",
    ),
    Claim("activation/dying", "ReLU units die in training"),
)

PARTS = {
    "training": Part(
        trained.run_training,
        trained.analyse_training,
        (trained.plot_answers, trained.plot_ladder, cost.plot_scatter, trained.plot_units),
    ),
    "shape": Part(shape.run_shape, shape.analyse_shape, (shape.plot_shape,)),
    "step": Part(cost.run_step, cost.analyse_step),
    "elementwise": Part(cost.run_elementwise, cost.analyse_elementwise, (cost.plot_elementwise,)),
    "field": Part(field.run_field, field.analyse_field, (field.plot_theory,)),
    "batch_norm": Part(normalized.run_normalized, normalized.analyse_normalized, (normalized.plot_normalized,)),
    "kinks": Part(kinks.run_kinks, kinks.analyse_kinks, (kinks.plot_kinks,)),
    "linear": Part(linear.run_linear, linear.analyse_linear),
    "xor": Part(xor.run_xor, xor.analyse_xor, (xor.plot_xor,)),
}


def run(cases: Sequence[Case], context: Context) -> Iterable[Rows]:
    """Measure the cases of one chunk; they share their part."""
    return PARTS[cases[0].text("part")].run(cases, context)


def analyse(frame: pd.DataFrame) -> Findings:
    """The tidy frame of all parts in, verdicts and tables out."""
    return findings(CLAIMS, analyse_parts(PARTS, frame), shown=("answers", "theory"))


def plot(found: Findings) -> Iterator[Figure]:
    """Draw what `analyse` returned, one message a figure."""
    return plot_parts(PARTS, found)


METHOD = """
**Training.** Every activation starts at its own exact forward gain, E[phi(z)²]^(-1/2) (the first layer, which sees
standardized inputs, at gain 1), and is trained with every learning rate of the grid. A seed's result is taken at the
rate that did best on the validation examples of the *other* seeds. Steps to the target: the first step at which the
mean mini-batch accuracy of 20 steps reaches it; a run that never does is censored. The best activation of a seed is
chosen by the other seeds' validation accuracy; every activation is then compared with it, seed by seed (paired t,
Holm). *As good*: shown to be within the margin; *out*: shown to be behind; *open*: neither.

**Theory.** At infinite width, with the exact first-order correction for finite width (`theory.signal_law`,
`theory.relu_log_gain`). Growth is ln of the factor by which a layer multiplies the squared gradient. Under batch
normalization: `theory.batch_norm_growth`, at any batch size.

**Kinks.** Given an example, a pre-activation is Gaussian over the draw of the weights; rounded to a format it is
exactly a given point with the mass between that point's midpoints to its neighbours (`theory.landing_probability`).

**Time.** In turns, A B B A; medians of paired log-ratios at 99 %; a difference counts only beyond the resolution, which
is measured by timing one thing against itself. Nothing runs beside. A clock was read here: these rows, unlike all
others, are not the same when they are measured again.
"""

FEW = ("identity", "relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "selu")
SHAPES = {"digits": (64, 10), "mnist5k": (784, 10)}  # inputs and classes
FORMATS = ("float32", "bfloat16", "float16")


def grids(
    activations: tuple[str, ...],
    *,
    dataset: str,
    depths: tuple[int, ...],
    width: int,
    steps: int,
    seeds: int,
    rates: tuple[float, ...],
    shape_depths: tuple[int, ...],
    shape_width: int,
    field_width: int,
    networks: int,
    batches: tuple[int, ...],
    examples: int,
    xor_seeds: int,
    with_norm: tuple[str, ...],
    kinked: tuple[str, ...],
    timed: tuple[str, ...],
    log2_elements: int,
    blocks: int,
    step_batch: int,
) -> tuple[Grid, ...]:
    """All parts at one size; what a preset does not name is the same in all of them."""
    sgd: dict[str, Value] = {"data": dataset, "batch": 32, "momentum": 0.9, "steps": steps, "target": 0.9}
    together = ("lr", "seed")
    return (
        *(
            Grid(
                {"activation": names, "lr": rates},
                fixed={**sgd, "part": "training", "model": "mlp", "init": init, "depth": depth, "width": width},
                seeds=seeds, together=together, chunk=trained.most_replicas,
                architecture=("activation", "depth", "width"),
                claims=("N09", "activation/same", "activation/dying"),
            )
            for init, names, depth in (
                *(("gain", activations, depth) for depth in depths),
                ("default", tuple(name for name in ("relu", "tanh", "sigmoid") if name in activations), depths[-1]),
            )
            if names
        ),
        *(
            Grid(
                {"activation": ("relu", "tanh"), "lr": rates},
                fixed={
                    **sgd, "part": "shape", "depth": depth,
                    "width": shape.width_for(_parameters(shape_width, dataset), depth, *SHAPES[dataset]),
                },
                seeds=seeds, together=together, chunk=trained.most_replicas, claims=("N15",),
            )
            for depth in shape_depths
        ),
        *(
            Grid(
                {"activation": names, "depth": deep, "lr": (0.003, 0.01, 0.03, 0.1)},
                fixed={**sgd, "part": "linear", "width": 128, "data": "digits"},
                seeds=seeds, together=together, claims=("N13",),
            )
            for names, deep in ((("identity",), (0, 3)), (("relu",), (3,)))
        ),
        *(
            Grid(
                {"activation": names, "width": widths, "lr": (0.03, 0.1, 0.3)},
                fixed={"part": "xor", "steps": 500, "momentum": 0.9},
                seeds=xor_seeds, together=together, chunk=1000, claims=("N16",),
            )
            for names, widths in (
                (("identity",), (0,)), (("identity", "relu", "tanh", "sigmoid", "gelu"), (2, 4, 8))
            )
        ),
        Grid(
            {"activation": activations, "init": tuple(field.WHERE)},
            fixed={"part": "field", "width": field_width, "depth": 10},
            seeds=networks, chunk=64, claims=("N05", "activation/theory"),
        ),
        Grid(
            {"activation": with_norm, "batch": batches},
            fixed={"part": "batch_norm", "width": 2 * field_width, "depth": 8},
            seeds=networks // 2, chunk=64, claims=("activation/batch_norm",),
        ),
        *(
            Grid(
                {"activation": kinked, "format": FORMATS, "layer_kind": tuple(kinks.TITLES)},
                fixed={"part": "kinks", "width": 256, "examples": examples},
                seeds=6, together=("activation", "seed"), chunk=64, claims=("N14",),
            )
            for kinked in (tuple(name for name in kinked if functions.kinks(name)),)
            if kinked
        ),
        Grid(
            {"activation": ("copy", *(name for name in timed if name != "identity")), "format": FORMATS},
            fixed={"part": "elementwise", "log2_elements": log2_elements, "blocks": blocks},
            together=("activation", "format"), chunk=1000, exclusive=True, claims=("N12",),
        ),
        Grid(
            {"model": ("mlp", "plain_cnn"), "activation": ("relu", *(name for name in timed if name != "relu"))},
            fixed={"part": "step", "batch": step_batch, "blocks": blocks},
            together=("activation", "model"), chunk=1000, exclusive=True, architecture=("activation",),
            claims=("N12",),
        ),
    )  # fmt: skip


def _parameters(width: int, dataset: str) -> int:
    """Those of one hidden layer of that width."""
    inputs, classes = SHAPES[dataset]
    return (inputs + 1) * width + (width + 1) * classes


def quick(*activations: str) -> tuple[Grid, ...]:
    """Half a minute on two cores; a few activations where none is named."""
    few = activations or FEW
    return grids(
        few, with_norm=few, dataset="digits", depths=(3, 10), width=32, steps=150, seeds=8,
        rates=(0.003, 0.01, 0.03, 0.1),
        shape_depths=(1, 3, 8), shape_width=64, field_width=128, networks=26, batches=(8, 32), examples=200,
        xor_seeds=20, kinked=activations or ("relu", "hardtanh", "hardswish"), timed=few, log2_elements=18,
        blocks=13, step_batch=16,
    )  # fmt: skip


def standard(*activations: str) -> tuple[Grid, ...]:
    """Some ten minutes on two cores; all of torch.nn where none is named."""
    every = activations or functions.names()
    return grids(
        every, with_norm=activations or FEW, dataset="mnist5k", depths=(3, 10, 30), width=64, steps=250, seeds=8,
        rates=(0.001, 0.003, 0.01, 0.03, 0.1), shape_depths=(1, 2, 4, 8, 16), shape_width=128, field_width=256,
        networks=30, batches=(6, 8, 16, 32, 128), examples=500, xor_seeds=50, kinked=every, timed=every,
        log2_elements=21, blocks=15, step_batch=64,
    )  # fmt: skip


def full(*activations: str) -> tuple[Grid, ...]:
    """Hours; all of torch.nn where none is named."""
    every = activations or functions.names()
    return grids(
        every, with_norm=activations or FEW, dataset="mnist5k", depths=(3, 10, 30, 60), width=128, steps=1500, seeds=12,
        rates=(0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3), shape_depths=(1, 2, 4, 8, 16, 32), shape_width=256,
        field_width=512, networks=40, batches=(6, 8, 16, 32, 128, 512), examples=2000, xor_seeds=200,
        kinked=every, timed=every, log2_elements=24, blocks=31, step_batch=128,
    )  # fmt: skip


STUDY = Study(
    name="activation",
    question="Which activation lets a network train, how deep, at what price, and does theory say so in advance?",
    presets={"quick": quick(), "standard": standard(), "full": full()},
    run=run,
    analyse=analyse,
    plot=plot,
    preflight=trained.smallest,
    claims=CLAIMS,
    method=METHOD,
    caveats=(
        "Plain multilayer perceptrons of constant width, without normalization and without skip connections.",
        (
            "Training: SGD with momentum 0.9, batch 32, a fixed number of steps; another optimizer or budget moves the "
            "order. The learning rate is the best of a grid; where it lies at an end, the answers say so."
        ),
        (
            "Of torch.nn, RReLU is left out, which draws its slope at random in training. Threshold has the arguments "
            "of the example in its documentation; every other activation its defaults, at which CELU and ELU are one "
            "function, and logsigmoid is softplus with both signs turned."
        ),
        "Times are those of one machine, one thread and eager mode; a compiler would fuse what is timed apart here.",
    ),
)


def over(*activations: str, name: str = "activation") -> Study:
    """The study for activations of your own choice, at every preset.

    In a file of yours: `STUDY = over("relu", "my_package.my_module:snake", name="snakes")`, `name` being the file's.

    Args:
        *activations: names as torch spells them, or `package.module:attribute`, a module class or a function of one
            tensor.
        name: the study's.

    Raises:
        ValueError: one of them is no activation.
    """
    for spec in activations:
        functions.phi(spec)
    sizes = {"quick": quick(*activations), "standard": standard(*activations), "full": full(*activations)}
    return replace(STUDY, name=name, presets=sizes)
