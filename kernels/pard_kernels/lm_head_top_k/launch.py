"""The launch of `lm_head_top_k`, and everything that can be compiled for it ahead.

N rows · S splits · P parts
"""

from typing import Any

import torch
import triton
from torch import Tensor

from pard_kernels.lm_head_top_k.checks import check_head, check_sizes
from pard_kernels.lm_head_top_k.kernel import lm_head_top_k_kernel
from pard_kernels.lm_head_top_k.merge_top_k import TopK, merge_top_k

PROGRAMS_PER_MULTIPROCESSOR = 2  # as many as fit beside each other: one wave


def launch_shape(num_rows: int, k: int, dtype: torch.dtype) -> dict[str, int]:
    """Tiles of one program by rows, k and dtype: rows against rows of weight, so many of the hidden size a time.

    All rows in one tile if they fit, so that each weight is read once. Buffers fit the 64 KiB of gfx942, where the
    compiler keeps num_stages - 1 of them. NVIDIA has no matrix instruction for full fp32, so its tiles are small.
    """
    is_wide = dtype.itemsize > 2
    max_rows = 16 if is_wide else 128 if k == 1 else 64
    block_rows = min(max(16, triton.next_power_of_2(num_rows)), max_rows)
    shape = {
        "BLOCK_ROWS": block_rows,
        "BLOCK_VOCAB": 64 if is_wide else 128,
        "BLOCK_HIDDEN": 32 if is_wide else 64,
        "num_warps": 4 if block_rows == 32 or is_wide else 8,
    }
    if torch.version.hip is not None:
        return shape | {"num_stages": 2}
    # Left to itself, ptxas spills to fit one more program beside the others.
    return shape | {"num_stages": 3 if block_rows > 64 or is_wide else 4, "maxnreg": 128 if block_rows == 16 else 255}


def launch_variants(max_num_rows: int, k: int, dtype: torch.dtype) -> list[int]:
    """Numbers of rows that differ in their tiles, the least of each: all that is compiled for up to max_num_rows."""
    least = {tuple(launch_shape(num_rows, k, dtype).values()): num_rows for num_rows in range(max_num_rows, 0, -1)}
    return sorted(least.values())


def top_k_workspace(*, num_rows: int, k: int, device: torch.device | str, num_splits: int | None = None) -> TopK:
    """Memory for the partial results of up to num_rows rows, and with it the number of splits at most.

    Left out, they are as many as give every multiprocessor its programs in one wave. A CUDA graph needs a workspace
    that lives as long as the graph; launches that run one after another can share it.
    """
    if num_splits is None:
        is_gpu = torch.device(device).type == "cuda"
        num_multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count if is_gpu else 1
        num_splits = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors
    shape = (num_rows, num_splits, triton.next_power_of_2(k))  # rows first: what is merged lies together
    return TopK(
        ids=torch.empty(shape, dtype=torch.int32, device=device).transpose(0, 1),
        logits=torch.empty(shape, dtype=torch.float32, device=device).transpose(0, 1),
        log_sum_exps=torch.empty(shape[:2], dtype=torch.float32, device=device).transpose(0, 1),
    )


def lm_head_top_k(
    hidden: Tensor,
    weight: Tensor,
    *,
    k: int,
    weight_scale: Tensor | None = None,
    bias: Tensor | None = None,
    scale: float = 1.0,
    soft_cap: float = 0.0,
    vocab_start: int = 0,
    num_valid: int | None = None,
    workspace: TopK | None = None,
) -> TopK:
    """Two launches. Definition and argument shapes: `reference.py`."""
    num_rows, hidden_size = hidden.shape
    num_valid = weight.shape[0] if num_valid is None else num_valid
    workspace = workspace or top_k_workspace(num_rows=num_rows, k=k, device=hidden.device)
    check_head(hidden, weight, weight_scale, bias)
    check_sizes(hidden, weight.shape[0], k, soft_cap, num_valid, workspace)
    shape = launch_shape(num_rows, k, hidden.dtype)
    num_row_tiles = triton.cdiv(num_rows, shape["BLOCK_ROWS"])
    num_tiles = triton.cdiv(num_valid, shape["BLOCK_VOCAB"])
    tiles_per_split = triton.cdiv(num_tiles, workspace.ids.shape[0])
    num_splits = triton.cdiv(num_tiles, tiles_per_split)  # none is empty
    ids, logits, log_sum_exps = (part[:num_splits, :num_rows] for part in workspace)
    lm_head_top_k_kernel[(num_row_tiles * num_splits,)](
        hidden, *hidden.stride(),
        weight, *weight.stride(),
        weight_scale, 0 if weight_scale is None else weight_scale.stride(0),
        bias, 0 if bias is None else bias.stride(0),
        ids, *ids.stride()[:2],
        logits, *logits.stride()[:2],
        log_sum_exps, *log_sum_exps.stride(),
        num_rows, hidden_size, num_valid, k, scale, soft_cap, num_row_tiles, tiles_per_split,
        BLOCK_K=ids.shape[2], PAD_HIDDEN=hidden_size % shape["BLOCK_HIDDEN"] > 0,
        IS_INT8=weight_scale is not None, HAS_BIAS=bias is not None, HAS_SOFT_CAP=soft_cap > 0, **shape,
    )  # fmt: skip
    return merge_top_k(ids, logits, log_sum_exps, k=k, vocab_start=vocab_start)


def warm_up_lm_head_top_k(weight: Tensor, *, dtype: torch.dtype, k: int, max_num_rows: int, **options: Any) -> None:
    """Compile all that `lm_head_top_k` can need for 1 to max_num_rows hidden states of this dtype.

    Other arguments are those of the engine's calls; it is called once for each size of tiles.
    """
    for num_rows in launch_variants(max_num_rows, k, dtype):
        hidden = torch.zeros(num_rows, weight.shape[1], dtype=dtype, device=weight.device)
        lm_head_top_k(hidden, weight, k=k, **options)
