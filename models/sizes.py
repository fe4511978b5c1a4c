"""The size of each model as a table, so that listing models neither imports torch nor computes.

The tests recompute every entry, and say what a wrong one should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """The cost of one example for a preset of a model.

    Attributes:
        parameters: trainable numbers, shared ones once.
        forward_flops: two for each term of a matrix product, convolution or attention.
        backward_flops: the same for the backward pass.
    """

    parameters: int
    forward_flops: int
    backward_flops: int


SIZES: Mapping[str, Mapping[str, Size]] = {
    "linear_regression": {
        "published": Size(3, 4, 4),
        "small": Size(785, 1_568, 1_568),
    },
    "softmax_regression": {
        "published": Size(7_850, 15_680, 15_680),
        "small": Size(7_850, 15_680, 15_680),
    },
    "perceptron": {
        "published": Size(3, 4, 4),
        "small": Size(7_850, 15_680, 15_680),
    },
    "mlp": {
        "published": Size(203_530, 406_528, 411_648),
        "small": Size(151_306, 301_568, 402_432),
    },
    "lenet5": {
        "published": Size(61_706, 833_040, 1_430_880),
        "small": Size(61_706, 833_040, 1_430_880),
    },
    "alexnet": {
        "published": Size(61_100_840, 1_428_376_960, 2_716_200_320),
        "small": Size(72_866, 4_409_472, 8_505_344),
        "course": Size(46_764_746, 1_876_292_352, 3_684_840_192),
    },
    "vgg11": {
        "published": Size(132_863_336, 15_218_180_096, 30_262_951_936),
        "small": Size(89_258, 2_443_456, 4_802_240),
        "course": Size(128_806_154, 15_094_464_512, 30_131_126_272),
    },
    "vgg13": {
        "published": Size(133_047_848, 22_616_932_352, 45_060_456_448),
        "small": Size(90_896, 3_459_520, 6_834_368),
    },
    "vgg16": {
        "published": Size(138_357_544, 30_940_528_640, 61_707_649_024),
        "small": Size(137_672, 4_796_992, 9_509_312),
    },
    "vgg19": {
        "published": Size(143_667_240, 39_264_124_928, 78_354_841_600),
        "small": Size(184_448, 6_134_464, 12_184_256),
    },
    "nin": {
        "published": Size(7_595_176, 1_938_921_728, 3_674_609_920),
        "small": Size(84_458, 2_427_936, 4_675_872),
        "course": Size(1_992_166, 1_524_594_704, 2_981_444_896),
    },
    "googlenet": {
        "published": Size(6_998_552, 3_165_343_744, 6_094_659_584),
        "small": Size(95_668, 1_035_904, 1_918_144),
        "course": Size(5_977_530, 3_005_964_288, 5_933_252_608),
    },
    "plain_cnn": {
        "published": Size(269_034, 81_102_080, 161_319_424),
        "small": Size(30_522, 6_435_712, 12_758_528),
    },
    "resnet18": {
        "published": Size(11_689_512, 3_628_146_688, 7_020_265_472),
        "small": Size(176_578, 1_167_168, 2_180_672),
    },
    "resnet34": {
        "published": Size(21_797_672, 7_327_522_816, 14_419_017_728),
        "small": Size(189_220, 1_329_696, 2_544_144),
    },
    "resnet50": {
        "published": Size(25_557_032, 8_178_368_512, 16_120_709_120),
        "small": Size(96_390, 683_424, 1_290_016),
    },
    "resnext50_32x4d": {
        "published": Size(25_028_904, 8_460_959_744, 16_685_891_584),
        "small": Size(178_102, 1_232_032, 2_387_232),
    },
    "rnn": {
        "published": Size(11_210, 15_838_800, 31_500_800),
        "small": Size(6_602, 331_008, 553_472),
    },
    "lstm": {
        "published": Size(41_810, 63_349_200, 125_991_200),
        "small": Size(24_458, 1_320_192, 2_206_208),
    },
    "transformer": {
        "published": Size(124_439_808, 291_648_307_200, 583_296_614_400),
        "small": Size(53_034, 3_204_736, 6_359_296),
    },
}
