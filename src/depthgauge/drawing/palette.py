"""The look of everything that figures tell apart: an activation has one colour and one marker in every report.

    >>> look("activation", "relu")
    Look(colour='#D55E00', marker='o')
    >>> looks("format", ["float16", "bfloat16"])["float16"].colour
    '#D55E00'

A kind with more members than colours uses a colour again with the next marker; no look stands for two members.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

# Okabe and Ito, "Color Universal Design" (2008), without the yellow, which a white page swallows
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
SEQUENTIAL = "viridis"
INK, GREY, FAINT = "#222222", "#8C8C8C", "#E3E3E3"
MARKERS = ("o", "s", "^", "D", "P", "X", "v", "*", "p")  # a hollow ">" is a censored run


@dataclass(frozen=True)
class Look:
    """A colour (hexadecimal) and a marker of matplotlib's."""

    colour: str
    marker: str = "o"


LOOKS = tuple(Look(colour, marker) for marker, colour in product(MARKERS, PALETTE))

_MEMBERS = {
    "activation": "linear relu tanh sigmoid gelu leaky_relu silu elu selu celu prelu softplus softsign mish hardtanh "
    "relu6 threshold hardshrink softshrink tanhshrink logsigmoid hardsigmoid hardswish",
    "scheme": "he default orthogonal xavier lsuv normal constant lecun fixup delta_orthogonal gaussian gpt2 "
    "depth_scaled zeros he_fan_out preserving dirac xavier_uniform",
    "format": "float32 float16 bfloat16 float8_e4m3fn float8_e5m2 tf32 float64 mxfp8_e4m3 mxfp8_e5m2 nvfp4",
    "summation": "naive pairwise blocked compensated stochastic torch.matmul",
    "formula": "two-pass one-pass welford torch.var layer_norm",
    "recipe": "float32 float16_scaled bfloat16_autocast float16_autocast bfloat16 float16 bfloat16_master "
    "bfloat16_kahan bfloat16_stochastic float16_master float16_kahan float16_stochastic tf32",
    "order": "fixed shuffled",
    "change": "rate/N unchanged undone",
    "finder": "the_repeated_test Lightning_before_2.5.3 Lightning_since_2.5.3 fastai's_valley fastai's_minimum "
    "without_a_test",
    "weights": "input hidden output",
    "parametrization": "standard mu",
    "search": "random grid",
    "optimizer": "sgd momentum adam adamw cosine nesterov averaged momentum_0.5",
    "way": "DDP FSDP2 tensor_parallel DDP_with_fp16_hook DDP_with_PowerSGD_hook DDP_with_views pipeline one_process "
    "DDP_with_bf16_hook nn.DataParallel",
    "norm": "none batch layer group instance rms",
    "variant": "plain batch_norm layer_norm skips scaled_skips",
    "block": "plain batch_norm skips skips_and_layer_norm",
    "stabilizer": "neither QK_norm z_loss",
    "loss": "squared absolute huber cross_entropy hinge",
    "form": "printed torch no_normalization,_no_skips no_normalization,_skip_connections batch_normalization,_no_skips "
    "batch_normalization,_skip_connections layer_normalization,_no_skips layer_normalization,_skip_connections",
    "link": "nvlink pcie 100gbe this_machine",
    "role": "fitted held_out",
    "noise": "examples_at_the_start batches_of_16_at_the_start examples_after_training batches_of_16_after_training",
    "network": "wide deep large_gain small_gain layer_norm tanh softmax",
    "architecture": "mlp lenet5 resnet18 transformer lstm plain_cnn rnn alexnet vgg11 resnet34 vgg13 vgg16 vgg19 nin "
    "googlenet resnet50 resnext50_32x4d perceptron linear_regression softmax_regression",
}
_ANSWERS = {
    "equivalent": Look(PALETTE[2], "o"),
    "different, inside the margin": Look(PALETTE[5], "^"),
    "inconclusive": Look(PALETTE[6], "D"),
    "different": Look(PALETTE[4], "v"),
    "beyond the margin": Look(PALETTE[1], "s"),
}
_DECLARED = {kind: dict(zip(names.split(), LOOKS, strict=False)) for kind, names in _MEMBERS.items()}
_DECLARED["answer"] = _ANSWERS
_GAP = re.compile("[ -]")  # names above have none: `batch norm` looks like `batch_norm`
_SAME = {
    ("activation", "identity"): "linear",
    ("scheme", "torch"): "default",
    ("optimizer", "GD"): "sgd",
    ("optimizer", "momentum 0.9"): "momentum",
    ("optimizer", "Adam"): "adam",
}
# What a table's column holds, where its name is not that of the kind.
_KINDS = {"init": "scheme", "model": "architecture", "dtype": "format", "parameter_format": "format"}


def kind_of(column: str) -> str:
    """The kind of thing that a table's column names: `init` holds schemes."""
    return _KINDS.get(column, column)


def looks(kind: str, names: Iterable[object]) -> Mapping[str, Look]:
    """The looks of things shown together, no two alike, in the order given.

    A name that the project does not know has a look of its own by its spelling; only where two such names would share
    a colour does the later in the alphabet take the next look of a colour that is free, as long as there is one.
    """
    wanted = list(dict.fromkeys(str(name) for name in names))
    declared = _DECLARED.get(kind, {})
    free = [one for one in LOOKS if one not in declared.values()]
    taken = {name: declared[known] for name in wanted if (known := _known(kind, name)) in declared}
    for name in sorted(set(wanted) - set(taken)):
        start, shown = zlib.crc32(name.encode()) % len(free), {one.colour for one in taken.values()}
        onwards = [*range(start, len(free)), *range(start)]
        taken[name] = free.pop(next((place for place in onwards if free[place].colour not in shown), start))
        free = free or list(LOOKS)  # more names than looks: a figure that nobody can read in any colours
    return {name: taken[name] for name in wanted}


def _known(kind: str, name: str) -> str:
    """The spelling under which a name is declared, if it is."""
    known = _SAME.get((kind, name), name)
    return known if known in _DECLARED.get(kind, {}) else _GAP.sub("_", known)


def look(kind: str, name: object) -> Look:
    """The look of one thing, the same in every figure."""
    return looks(kind, [name])[str(name)]
