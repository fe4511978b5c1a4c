"""Kinds of operators and kernels, by their names."""

from __future__ import annotations

import re
from functools import cache

MATRIX = frozenset({"matrix product", "convolution", "attention"})  # those whose operations are counted
KINDS = (
    "matrix product",
    "convolution",
    "attention",
    "normalization",
    "elementwise",
    "reduction",
    "pooling",
    "copy",
    "indexing",
    "communication",
    "other",
)

# The first that matches an operator's name without its namespace.
_OPERATORS = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("communication", r"all_?reduce|all_?gather|reduce_scatter|broadcast_$|send|recv|barrier"),
        ("attention", r"scaled_dot_product|flash_attention|efficient_attention|multi_head_attention"),
        ("convolution", r"conv"),
        (
            "matrix product",
            (
                r"(?:addmm|baddbmm|bmm|mm|mv|addmv|matmul|linear|scaled_mm|addr|dot|packed_linear\w*|addmm_activation)_?$"
                r"|linear_backward|rnn(?:_layer)?(?:_backward)?$|transformer_encoder_layer"
            ),
        ),
        ("normalization", r"norm(?!al)\w*"),
        ("pooling", r"pool|upsample"),
        (
            "reduction",
            # not `clamp_max` and `fmax`, which take two numbers, nor their twins of minima
            (
                r"softmax|nll_loss|cross_entropy|mse_loss|^(?:cum)?prod$"
                r"|(?<!clamp_)(?<!f)(?:sum|mean|logsumexp|var|std|max|min)$"
            ),
        ),
        ("indexing", r"embedding|index|gather|scatter|select_backward|slice_backward"),
        ("copy", r"copy|clone|cat$|fill|zero|ones|arange|_unsafe_view|triu|tril|stack|repeat|pad"),
        ("elementwise", r"_foreach|_fused_|cpp_fused|triton_|dropout"),
    )
)
# Kernels that no operator is known of.
_KERNELS = tuple(
    (kind, re.compile(pattern, re.IGNORECASE))
    for kind, pattern in (
        ("communication", r"nccl"),
        ("attention", r"flash|fmha|attention"),
        ("convolution", r"conv|wgrad|dgrad|fprop|winograd"),
        ("matrix product", r"gemm|gemv|nvjet|cutlass|matmul|_mm_"),
        ("normalization", r"norm"),
        ("pooling", r"pool"),
        ("copy", r"memcpy|memset|copy|fill|CatArray"),
        ("reduction", r"reduce|softmax"),
        ("indexing", r"index|gather|scatter|embedding"),
        ("elementwise", r"elementwise|triton_poi|multi_tensor_apply|foreach"),
    )
)
_COMPUTES_UNCOUNTED = re.compile(r"cpp_fused|triton_|^c10d::|^nccl:|^gloo:|^mkl|^mkldnn::|^onednn::|^inductor::")

# NVIDIA's names of kernels that use tensor cores: those that DLProf and torch-tb-profiler (`TC_Allowlist` in
# consts.py) know, and the later ones of cuBLAS and cuDNN on Hopper (`nvjet_`, `gmma`) and of flash attention.
_TENSOR_CORES = re.compile(
    r"h884|s884|h1688|s1688|c1688|hmma|imma|i8816|16816|dgrad_1x1_stride_2x2|first_layer_wgrad_kernel|conv1x1"
    r"|conv2d_c1_k1|direct_group|xmma_implicit_gemm|xmma_sparse_conv|xmma_warp_specialized_implicit_gemm|xmma_gemm"
    r"|xmma_sparse_gemm|tensorop|gmma|nvjet_|flash_(?:fwd|bwd)|fmha",
    re.IGNORECASE,
)
_NOT_TENSOR_CORES = re.compile(r"simt|ffma", re.IGNORECASE)


@cache
def operator_kind(name: str) -> str:
    """One of `KINDS`, by an operator's name; elementwise is what torch itself tags as pointwise."""
    stem = name.rpartition("::")[2]
    for kind, pattern in _OPERATORS:
        if pattern.search(stem):
            return kind
    return "elementwise" if _pointwise(stem) else "other"


def _pointwise(stem: str) -> bool:
    import torch  # noqa: PLC0415 - a trace can be read without it

    packet = getattr(torch.ops.aten, stem, None)
    overloads = packet.overloads() if packet is not None else ()
    return any(torch.Tag.pointwise in getattr(packet, overload).tags for overload in overloads)


def computes(name: str) -> bool:
    """Tell whether an uncounted operator does work of its own: compiled code, a library's call, communication."""
    return bool(_COMPUTES_UNCOUNTED.search(name))


@cache
def kernel_kind(name: str) -> str:
    """One of `KINDS`, by a device kernel's name."""
    return next((kind for kind, pattern in _KERNELS if pattern.search(name)), "other")


def tensor_cores(kernel: str) -> bool:
    """Tell by its name whether a kernel runs on tensor cores."""
    return bool(_TENSOR_CORES.search(kernel)) and not _NOT_TENSOR_CORES.search(kernel)
