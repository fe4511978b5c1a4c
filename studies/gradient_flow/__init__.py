"""How signal and gradient grow or shrink with depth, when training survives it, and whether theory says so in advance.

Eight parts, each a grid, a `run_*`, an `analyse_*` and a `plot_*`:

    training     depth x sigma_w: which networks learn real digits in a small fixed budget
    signal       deep MLPs at initialization, layer by layer, forward and backward, against mean-field theory
    walk         the same for ReLU nets of several widths: the random walk that finite width makes of the log-norm
    overflow     a mini-batch of real digits: where activations and gradients leave a number format
    rescaling    one layer multiplied by alpha, the next by 1/alpha: what stays the same and what does not
    architectures  every model that has depth: what reaches each weight layer, with and without batch norm and skips
    products     products of random Gaussian matrices against their Lyapunov exponent
    scalars      1.5^100 and 0.8^100, multiplied out in every number format
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from depthgauge import parts
from depthgauge.parts import Part
from depthgauge.studies.gradient_flow import architectures, limits, products, rescaling, signal, training, walk
from depthgauge.study import Case, Context, Grid, Rows, Study, Value
from depthgauge.verdict import Claim, Figure, Findings

CLAIMS = (
    Claim("N01", "a factor of 1.5 a layer over 100 layers gives about 4e14"),
    Claim("N02", "a factor of 0.8 a layer over 100 layers gives about 2e-10"),
    Claim("N03", "shallow networks hardly have stability trouble; with depth, exploding and vanishing appear"),
    Claim(
        "N04",
        "with ReLU the gradient passes unchanged, so the product of the weights explodes after several layers",
    ),
    Claim("N05", "with sigmoid and many layers the gradient vanishes"),
    Claim(
        "N08",
        "the range of the numbers does not affect what a network can express (rescaling the layers leaves the "
        "function)",
    ),
    Claim(
        "gradient_flow/default",
        "with PyTorch's default initialization of nn.Linear the gradient vanishes with depth, whatever the activation",
    ),
    Claim(
        "gradient_flow/rate",
        "mean-field theory predicts the rate at which the gradient grows or shrinks a layer, for every activation",
    ),
    Claim(
        "gradient_flow/walk",
        "at finite width the log-norm of a critical ReLU net is a random walk whose drift and variance are known "
        "exactly",
    ),
    Claim("gradient_flow/critical", "the networks that train deepest are those of the critical sigma_w of theory"),
    Claim(
        "gradient_flow/depth_scale",
        "the depth down to which a network trains is proportional to the depth scale that theory predicts",
    ),
    Claim("gradient_flow/loss_scale", "some loss scale keeps the gradients of every layer inside float16"),
    Claim(
        "gradient_flow/architectures",
        "in the usual architectures, as they are built by default, the gradient reaches every layer neither vanished "
        "nor exploded",
    ),
    Claim(
        "gradient_flow/skips",
        "skip connections narrow the range of the gradient over the layers of a network, at the same depth",
    ),
    Claim(
        "gradient_flow/batch_norm",
        "batch normalization makes the gradient grow toward the input at initialization, where without it PyTorch's "
        "default lets it shrink (networks without skip connections)",
    ),
    Claim(
        "gradient_flow/products",
        "products of random Gaussian matrices grow at their largest Lyapunov exponent, with the exact spread",
    ),
)

PARTS = {
    "training": Part(training.run_training, training.analyse_training, (training.plot_training,)),
    "architectures": Part(
        architectures.run_architectures,
        architectures.analyse_architectures,
        (architectures.plot_architectures, architectures.plot_architecture_rates),
    ),
    "signal": Part(
        signal.run_signal,
        signal.analyse_signal,
        (signal.plot_rates, signal.plot_profiles, signal.plot_default, signal.plot_correlation),
    ),
    "overflow": Part(limits.run_overflow, limits.analyse_overflow, (limits.plot_overflow,)),
    "rescaling": Part(rescaling.run_rescaling, rescaling.analyse_rescaling),
    "walk": Part(signal.run_signal, walk.analyse_walk, (walk.plot_walk,)),
    "products": Part(products.run_products, products.analyse_products, (products.plot_products,)),
    "scalars": Part(products.run_scalars, products.analyse_scalars),
}


def run(cases: Sequence[Case], context: Context) -> Iterable[Rows]:
    """Measure the cases of one chunk; they share their part."""
    return PARTS[cases[0].text("part")].run(cases, context)


def analyse(frame: pd.DataFrame) -> Findings:
    """The tidy frame of all parts in, verdicts and tables out."""
    return parts.findings(CLAIMS, parts.analyse_parts(PARTS, frame), shown=("loss_scales", "walk_coverage", "scalars"))


def plot(findings: Findings) -> Iterator[Figure]:
    """Draw what `analyse` returned, one message a figure."""
    return parts.plot_parts(PARTS, findings)


METHOD = """
**At initialization.** Weights are drawn from N(0, sigma_w² / fan-in), biases from N(0, sigma_b²), in float64. The
*rate* is ln of the factor by which a layer multiplies the second moment of the gradient (or of the signal), from the
last layer to the first. Prediction: the mean-field recursion of the variance (Poole et al. 2016; Schoenholz et al.
2017) and chi(q) = sigma_w² E[phi'²] at each layer's variance; for finite width the exact law of ReLU and linear
layers, for the others the first order in depth/width (`theory.signal_law`).

**Random walk.** One ReLU layer multiplies a squared norm by sigma_w² chi²_m / n with m ~ Binomial(n, 1/2), forward and
backward (Hanin and Nica 2020): mean and variance of its logarithm are computed from that mixture.

**Products.** ln(|W_k ... W_1 x| / |x|) has independent increments (1/2) ln(sigma² chi²_n), whose mean is the largest
Lyapunov exponent (Newman 1986). sigma_c is the sigma at which it is zero.

**Training.** Networks that differ in sigma_w and seed train side by side on the same mini-batches. The predicted depth
scale is 1 / |ln chi_1|: the layers over which the squared gradient changes by a factor e.

**Architectures.** Models at their small preset and PyTorch's default initialization, in training mode, on a batch of
real digits; a module of your own as its factory makes it, on what it says it takes (the figure names it). The backward
pass starts from a random linear functional of the outputs; for a Training of your own, from its loss. The probe gives
the second moment of the output of every weight layer and of the gradient with respect to it. Gradients are compared by
the squared norm of one example's, the quantity that a layer of fan-in scaled weights multiplies by a factor whatever
its shape. Without linear_regression, softmax_regression and perceptron, which have one weight layer.

**Number formats.** One mini-batch of real digits; exponent histograms of every hidden layer's activations and of the
cross-entropy's gradients with respect to them give the exact shares that a format loses at any power-of-two loss scale.
"""

DEPTH = 100  # layers of the networks whose signals are followed

# From deep in the ordered phase to deep in the chaotic one; each activation has its own critical value.
SIGMAS: Mapping[str, tuple[float, ...]] = {
    "linear": (0.5, 0.8, 1.0, 1.25, 2.0),
    "relu": (0.7, 1.0, 2**0.5, 1.8, 2.5),
    "tanh": (0.5, 0.8, 1.0, 1.5, 2.5),
    "sigmoid": (1.0, 2.0, 4.0, 8.0, 16.0),
    "gelu": (0.7, 1.0, 1.25, 1.4, 2.0),
}


def grids(
    *,
    product_seeds: int,
    ratios: tuple[float, ...],
    signal_seeds: int,
    width: int,
    sigma_b: tuple[float, ...],
    walk_seeds: int,
    walk_widths: tuple[int, ...],
    depths: tuple[int, ...],
    training_seeds: int,
    steps: int,
    training_width: int,
    sigmas: Mapping[str, tuple[float, ...]],
    architecture_seeds: int,
    architecture_batch: int,
) -> tuple[Grid, ...]:
    """The eight parts at one size; what a preset does not name is the same in all of them."""
    shape: dict[str, Value] = {"part": "signal", "width": width, "depth": DEPTH}
    block = signal.most_seeds(width, DEPTH)
    weights = ("activation", "sigma_w", "sigma_b", "seed")
    return (
        *(
            Grid(
                {"depth": depths, "sigma_w": values},
                fixed={
                    "part": "training", "activation": activation, "width": training_width, "steps": steps,
                    "batch": 32, "lr": 0.01, "momentum": 0.9,
                },
                seeds=training_seeds, together=("sigma_w", "seed"), chunk=training.most_replicas,
            )
            for activation, values in sigmas.items()
        ),
        *(
            Grid(
                {"sigma_w": values, "sigma_b": sigma_b},
                fixed={**shape, "init": "gaussian", "activation": activation},
                seeds=signal_seeds, together=weights, chunk=block * len(values) * len(sigma_b),
            )
            for activation, values in SIGMAS.items()
        ),
        Grid(
            {"activation": tuple(SIGMAS)}, fixed={**shape, "init": "torch"},
            seeds=signal_seeds, together=weights, chunk=block * len(SIGMAS),
        ),
        Grid(
            {"width": walk_widths},
            fixed={
                "part": "walk", "depth": 60, "activation": "relu", "init": "gaussian", "sigma_w": 2**0.5, "sigma_b": 0.0
            },
            seeds=walk_seeds, chunk=100,
        ),
        *(
            Grid(
                {"activation": activations},
                fixed={"part": "overflow", "init": init, "depth": 50, "width": 128, "batch": 64},
                seeds=5, together=("activation", "seed"), chunk=10,
            )
            for init, activations in (
                ("default", ("relu", "tanh", "sigmoid", "gelu")), ("critical", ("relu", "tanh", "sigmoid"))
            )
        ),
        Grid(
            {
                "activation": ("relu", "linear", "tanh", "sigmoid", "gelu"), "format": ("float16", "float32"),
                "log10_alpha": (1, 3, 6),
            },
            fixed={"part": "rescaling", "width": 128},
            seeds=5, together=("activation", "format", "log10_alpha", "seed"), chunk=200,
        ),
        *architectures.grids(seeds=architecture_seeds, batch=architecture_batch),
        Grid(
            {"n": (2, 4, 16, 64), "sigma_ratio": ratios}, fixed={"part": "products", "factors": 100},
            seeds=product_seeds, together=("sigma_ratio", "seed"), chunk=250,
        ),
        Grid(
            {"factor": (1.5, 0.8), "format": products.FORMATS}, fixed={"part": "scalars", "factors": 100},
            together=("factor", "format"), chunk=64,
        ),
    )  # fmt: skip


QUICK_SIGMAS = {
    "tanh": (0.5, 0.75, 0.9, 1.0, 1.15, 1.5, 2.0, 2.8),
    "relu": (0.7, 0.95, 1.2, 2**0.5, 1.65, 1.9, 2.3, 2.8),
}
FINE_SIGMAS = {
    "tanh": (0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 2.15, 2.4, 2.7, 3.0),
    "relu": (0.6, 0.75, 0.9, 1.05, 1.2, 1.3, 2**0.5, 1.55, 1.7, 1.85, 2.0, 2.2, 2.4, 2.7, 3.0),
}

STUDY = Study(
    name="gradient_flow",
    question="How do signal and gradient grow or shrink with depth, when does training survive it, and does theory say "
    "so in advance?",
    presets={
        "quick": grids(
            product_seeds=60,
            ratios=(1 / 3, 0.7, 1.0, 1.5, 3.0),
            signal_seeds=30,
            width=128,
            sigma_b=(0.0, 0.3),
            walk_seeds=300,
            walk_widths=(16, 64),
            depths=(2, 4, 8, 12, 20, 32),
            training_seeds=5,
            steps=100,
            training_width=32,
            sigmas=QUICK_SIGMAS,
            architecture_seeds=6,
            architecture_batch=32,
        ),
        "standard": grids(
            product_seeds=200,
            ratios=(1 / 3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0),
            signal_seeds=40,
            width=256,
            sigma_b=(0.0, 0.1, 0.3),
            walk_seeds=400,
            walk_widths=(8, 16, 64, 256),
            depths=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48),
            training_seeds=6,
            steps=200,
            training_width=64,
            sigmas=FINE_SIGMAS,
            architecture_seeds=20,
            architecture_batch=64,
        ),
        "full": grids(
            product_seeds=1000,
            ratios=(1 / 3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.5, 2.0, 3.0),
            signal_seeds=60,
            width=512,
            sigma_b=(0.0, 0.1, 0.3),
            walk_seeds=1000,
            walk_widths=(8, 16, 64, 256),
            depths=(2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
            training_seeds=10,
            steps=1000,
            training_width=128,
            sigmas=FINE_SIGMAS,
            architecture_seeds=40,
            architecture_batch=128,
        ),
    },
    run=run,
    analyse=analyse,
    plot=plot,
    preflight=architectures.smallest,
    claims=CLAIMS,
    method=METHOD,
    caveats=(
        (
            "All parts but that on architectures: plain multilayer perceptrons of constant width, without "
            "normalization and without skip connections. The models of the part on architectures are small, for "
            "28 x 28 images and with few channels."
        ),
        (
            "Training: SGD with momentum 0.9, learning rate 0.01, batch 32, the same for every cell of the map; "
            "another optimizer, rate or budget moves its borders. Accuracy is that on the first 1,000 training digits."
        ),
        "At initialization inputs have second moment 1 and the loss is a random linear functional of the last layer.",
        (
            "A tensor counts as lost to a number format when more than 1 % of its nonzero values round to zero, or any "
            "overflows; what a format does to sums on the way is not simulated."
        ),
    ),
)
