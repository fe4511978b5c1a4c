"""Which initialization lets a signal through, and where it decides what a network ends at.

Five parts, each a grid, a `run_*`, an `analyse_*` and its `plot_*`:

    training     every scheme at a learning rate of its own, by architecture and depth, on real digits
    signal       second moments forward and backward through a deep network, against theory
    spectrum     singular values of the input-output Jacobian, Gaussian and orthogonal weights
    stacks       growth of residual stacks by block order and factor on the branch
    symmetry     whether training tells units apart that start the same
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from depthgauge.parts import Part, analyse_parts, findings, plot_parts
from depthgauge.studies.initialization import reached, signal, spectrum, stacks, symmetry, training
from depthgauge.study import Case, Context, Grid, Rows, Study, Value
from depthgauge.verdict import Claim, Figure, Findings

CLAIMS = (
    Claim("N09", "sensible initial weights and activations keep training stable"),
    Claim("N10", "initialization generally does not affect the final result, as long as it is a normal one"),
    Claim("N11", "constraining mean and variance layer by layer stabilizes the signal"),
    Claim(
        "initialization/crossover",
        "a plain convolutional net of 22 layers trains from Xavier's and from He's weights, one of 30 layers from He's "
        "alone",
    ),
    Claim(
        "initialization/symmetry", "weights that are all the same never come apart: a hidden layer stays one unit wide"
    ),
    Claim(
        "initialization/isometry",
        "orthogonal weights keep the singular values of deep linear networks together, and of tanh networks with small "
        "signals, but no weights those of ReLU networks",
    ),
    Claim("initialization/spectrum", "theory predicts mean and variance of the Jacobian's squared singular values"),
    Claim("initialization/signal", "theory predicts the rate at which signal and gradient grow, for every scheme"),
    Claim(
        "initialization/residual", "a residual stack grows by the exact factor of its block order and branch scaling"
    ),
    Claim(
        "initialization/fixup",
        "Fixup's weights train a residual network without normalization as well as batch norm does",
    ),
)

TRAINED_CLAIMS = ("N09", "N10", "initialization/crossover", "initialization/fixup")
SIGNAL_CLAIMS = ("initialization/signal", "N11")
ASKED = {"training": TRAINED_CLAIMS, "signal": SIGNAL_CLAIMS}  # of parts that draw a model by a scheme

PARTS = {
    "training": Part(training.run_training, training.analyse_training, (training.plot_ladder, training.plot_rates)),
    "signal": Part(signal.run_signal, signal.analyse_signal, (signal.plot_signal,)),
    "spectrum": Part(spectrum.run_spectrum, spectrum.analyse_spectrum, (spectrum.plot_spectrum,)),
    "stacks": Part(stacks.run_stacks, stacks.analyse_stacks, (stacks.plot_stacks,)),
    "symmetry": Part(symmetry.run_symmetry, symmetry.analyse_symmetry),
}


def run(cases: Sequence[Case], context: Context) -> Iterable[Rows]:
    """Measure the cases of one chunk; they share their part."""
    return PARTS[cases[0].text("part")].run(cases, context)


def analyse(frame: pd.DataFrame) -> Findings:
    """The tidy frame of all parts in, verdicts and tables out."""
    answers = [reached.answer(frame, ASKED), *analyse_parts(PARTS, reached.drawn(frame))]
    return findings(CLAIMS, answers, shown=("outcomes", "equivalence", "signal_rates", "gains"))


def plot(found: Findings) -> Iterator[Figure]:
    """Draw what `analyse` returned, one message a figure."""
    yield from plot_parts(PARTS, found)


METHOD = f"""
**Schemes.** `depthgauge.initialization`. Orthogonal and delta-orthogonal weights are drawn at the exact gain of the
activation, LSUV on 64 training digits; biases are zero but for PyTorch's default. One seed
gives all normal schemes the same draws. Of a model of your own the weight layers are set that `initialization.reach`
names; where there is none, nothing is run.

**Training.** SGD with momentum 0.9, batch {training.BATCH}, on the 1,442 training digits less a fifth for validation.
Every scheme is trained at every learning rate of the grid with every seed; a seed's result is that at the rate which
does best on the validation digits for the *other* seeds, so that no run has a say in its own selection. Steps to the
target: first step after which the last 20 mini-batches have a mean accuracy of {training.TARGET:.0%}; who never gets
there is censored. Trained: test accuracy of at least {training.TRAINED:g}.

**N10.** The margin is one percentage point of test accuracy, the last digit of most tables of results. Differences from
He's weights are judged in pairs of one seed, as one Holm family a condition. "Normal" leaves out zeros, constants and
N(0, 0.01²).

**At initialization.** 64 digits in, the same random linear functional of the outputs for all schemes, float64. The
*rate* is the change of ln second moment a layer, meaned over the digits. Predicted for ReLU: mean of ln(sigma_w² chi²_m
/ n), m ~ Binomial(n, 1/2), exact at that width (`theory.relu_log_gain`); under batch norm 0 forward and
`theory.batch_norm_growth` backward (Yang et al. 2019).

**Jacobian.** J = D_L W_L ... D_1 W_1 of square networks, one input. Predicted mean and variance of the squared singular
values: `theory.jacobian_spectrum` (Pennington, Schoenholz and Ganguli 2017). tanh networks are critical at q* =
{spectrum.Q_STAR:g}.

**Residual stacks.** Predicted: `theory.residual_trajectory`, the exact factor at infinite width.
"""

PLAIN = ("default", "xavier", "he", "orthogonal", "lsuv")
ALL = ("zeros", "constant", "normal", *PLAIN)
CONVOLUTIONAL = ("xavier", "he", "delta_orthogonal", "lsuv")
RESIDUAL = ("default", "he", "depth_scaled", "fixup", "lsuv")
SEQUENTIAL = ("default", "xavier", "he", "gpt2", "lsuv", "normal")


def _sweep(*words: object) -> str:
    """A name for a grid, part of its cases: on a model that cannot be varied as it asks, two grids would be one."""
    return " ".join(str(word) for word in words)


def _training(
    model: str, schemes: tuple[str, ...], rates: tuple[float, ...], seeds: int, steps: int, **shape: Value
) -> Grid:
    return Grid(
        {"scheme": schemes, "lr": rates},
        fixed={"part": "training", "model": model, "steps": steps, "sweep": _sweep(model, *shape.values()), **shape},
        seeds=seeds,
        together=("scheme", "lr", "seed"),
        chunk=training.most_replicas,
        architecture=tuple(name for name in shape if name in training.SHAPE),
        claims=TRAINED_CLAIMS,
    )


# The deeper, the smaller the learning rates that train.
MLP_RATES = {3: (0.01, 0.03, 0.1), 10: (0.003, 0.01, 0.03), 30: (0.0005, 0.0015, 0.005)}


def _mlps(schemes: Mapping[int, tuple[str, ...]], units: int, seeds: int, steps: int) -> tuple[Grid, ...]:
    """MLPs of 3, 10 and 30 layers without normalization."""
    return tuple(
        _training("mlp", schemes[depth], rates, seeds, steps, depth=depth, units=units, norm="none")
        for depth, rates in MLP_RATES.items()
    )


def _at_initialization(seeds: int, units: int, width: int, *, tanh: bool) -> tuple[Grid, ...]:
    """Signals, spectra and residual stacks."""
    signals: dict[str, tuple[str, ...]] = {"relu": ("default", "xavier", "he", "orthogonal", "lsuv", "normal")}
    if tanh:
        signals["tanh"] = ("default", "xavier", "preserving", "lsuv")
    asked = [("none", activation, schemes) for activation, schemes in signals.items()]
    return (
        *(
            Grid(
                {"scheme": schemes},
                fixed={
                    "part": "signal", "model": "mlp", "depth": 30, "units": units, "norm": norm,
                    "activation": activation, "sweep": _sweep(activation, norm),
                },
                seeds=seeds, together=("scheme", "seed"), chunk=64, claims=SIGNAL_CLAIMS,
                architecture=("depth", "norm", "activation"),
            )
            for norm, activation, schemes in (*asked, ("layer", "relu", ("he",)), ("batch", "relu", ("he",)))
        ),
        Grid(
            {"activation": ("identity", "relu", "tanh"), "weights": ("gaussian", "orthogonal")},
            fixed={"part": "spectrum", "width": width},
            seeds=seeds, together=("activation", "weights", "seed"), chunk=30,
            claims=("initialization/spectrum", "initialization/isometry"),
        ),
        *(
            Grid(
                {"branch": tuple(stacks.EXPONENTS)},
                fixed={"part": "stacks", "order": order, "norm": norm, "blocks": 32, "width": width},
                seeds=seeds, together=("branch", "seed"), chunk=64, claims=("initialization/residual",),
            )
            for order, norm in stacks.ORDERS
        ),
        Grid(
            {"scheme": (*symmetry.SYMMETRIC, "he")},
            fixed={"part": "symmetry", "depth": 3, "width": 32, "steps": 150, "lr": 0.03},
            seeds=6, together=("scheme", "seed"), chunk=64, claims=("initialization/symmetry",),
        ),
    )  # fmt: skip


def _architectures(seeds: int, convolutional: int, residual: int, transformer: int) -> tuple[Grid, ...]:
    """Everything that is no plain MLP: steps are given, for each kind."""
    return (
        *(
            _training(
                "mlp", ("normal", *PLAIN), (0.01, 0.03, 0.1), seeds, residual, depth=depth, units=64, norm="batch"
            )
            for depth in (10, 30)
        ),
        *(
            _training(
                "plain_cnn", schemes, rates, seeds, convolutional, depth=depth, norm="none",
            )
            for depth, schemes, rates in (
                (10, ("default", *CONVOLUTIONAL), (0.003, 0.01, 0.03, 0.1)),
                (22, CONVOLUTIONAL, (0.001, 0.003, 0.01, 0.03)),
                (30, CONVOLUTIONAL, (0.001, 0.003, 0.01, 0.03)),
            )
        ),
        *(
            _training(
                "resnet18", schemes, rates, seeds, residual, norm=norm, stem="cifar"
            )
            for norm, schemes, rates in (
                ("batch", PLAIN, (0.01, 0.03, 0.1)), ("none", RESIDUAL, (0.003, 0.01, 0.03)),
            )
        ),
        *(
            _training(
                "transformer", SEQUENTIAL, (0.01, 0.03, 0.1), seeds, transformer, norm="layer", order=order,
            )
            for order in ("pre", "post")
        ),
    )  # fmt: skip


STUDY = Study(
    name="initialization",
    question="Which initialization lets a signal through a deep network, and when does it decide what the network ends "
    "at?",
    presets={
        "quick": (
            *_mlps({3: ALL, 10: PLAIN, 30: PLAIN}, units=64, seeds=8, steps=250),
            _training("mlp", PLAIN, (0.003, 0.01, 0.03), 8, 200, depth=10, units=32, norm="layer"),
            *_at_initialization(20, 128, 128, tanh=False),
        ),
        "standard": (
            *_mlps(dict.fromkeys(MLP_RATES, ALL), units=64, seeds=16, steps=600),
            *_architectures(8, convolutional=300, residual=200, transformer=200),
            *_at_initialization(40, 128, 200, tanh=True),
        ),
        "full": (
            *_mlps(dict.fromkeys(MLP_RATES, (*ALL, "xavier_uniform")), units=128, seeds=16, steps=2000),
            *_architectures(12, convolutional=1000, residual=1000, transformer=1000),
            *_at_initialization(60, 256, 400, tanh=True),
        ),
    },
    run=run,
    analyse=analyse,
    plot=plot,
    preflight=training.smallest,
    claims=CLAIMS,
    method=METHOD,
    caveats=(
        (
            "One small data set (8 x 8 digits), small widths, SGD with momentum 0.9 at a constant learning rate, no "
            "warm-up; Adam, warm-up or a longer budget move what trains."
        ),
        "The grid of learning rates ends somewhere: the table says how often the chosen rate lies at its edge.",
        "Fixup here is its weights alone, without the scalar biases and factors that the architecture would need.",
        "The test set has 355 digits: one of them is 0.28 percentage points.",
    ),
    comparisons=5,
)
