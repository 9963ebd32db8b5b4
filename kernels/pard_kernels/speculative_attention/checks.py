"""What `speculative_attention` can be asked for: shapes, dtypes and options, read without a look at the device."""

import torch
from torch import Tensor

from pard_kernels.speculative_attention.launch_shape import MAX_NUM_ROWS, MAX_NUM_SPLITS, Workspace

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e4m3fnuz)
MAX_HEAD_SIZE = 256


def check_tensors(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    num_cached: Tensor,
    out: Tensor | None,
) -> None:
    """Shapes and dtypes that belong together."""
    num_rows, num_heads, head_size = query.shape
    num_kv_heads = key.shape[1]
    if query.dtype not in DTYPES or key.dtype != query.dtype or value.dtype != query.dtype:
        raise ValueError(
            "query, key and value must have one dtype, float16, bfloat16 or float32; "
            f"got {query.dtype}, {key.dtype}, {value.dtype}"
        )
    if key.shape != (num_rows, num_kv_heads, head_size) or value.shape != key.shape or num_heads % num_kv_heads:
        raise ValueError(
            f"query {tuple(query.shape)} wants key and value [{num_rows}, a divisor of {num_heads}, {head_size}]; "
            f"got {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if head_size > MAX_HEAD_SIZE:
        raise ValueError(f"head sizes up to {MAX_HEAD_SIZE} fit a program; got {head_size}")
    if key_cache.ndim != 4 or key_cache.shape[2:] != key.shape[1:] or value_cache.shape != key_cache.shape:
        raise ValueError(
            f"key {tuple(key.shape)} wants key_cache and value_cache [num_blocks, block_size, {num_kv_heads}, "
            f"{head_size}]; got {tuple(key_cache.shape)} and {tuple(value_cache.shape)}. "
            "Another order of dimensions is a permuted view."
        )
    if value_cache.stride() != key_cache.stride():
        raise ValueError(
            "key_cache and value_cache must have one layout, as halves of one tensor have; "
            f"got strides {key_cache.stride()} and {value_cache.stride()}"
        )
    if key_cache.dtype not in (query.dtype, *FP8_DTYPES) or value_cache.dtype != key_cache.dtype:
        raise ValueError(
            f"key_cache and value_cache must both be {query.dtype}, as the query, or both FP8 e4m3; "
            f"got {key_cache.dtype} and {value_cache.dtype}"
        )
    if out is not None and (out.shape != query.shape or out.dtype != query.dtype):
        raise ValueError(f"out must be {tuple(query.shape)} of {query.dtype}; got {tuple(out.shape)} of {out.dtype}")
    for name, tensor in (("query", query), ("key", key), ("value", value), ("out", query if out is None else out)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension; got strides {tensor.stride()}")
    check_requests(block_table, query_start_loc, num_cached)


def check_requests(block_table: Tensor, query_start_loc: Tensor, num_cached: Tensor) -> None:
    num_reqs = num_cached.shape[0]
    if query_start_loc.shape != (num_reqs + 1,) or block_table.shape[:-1] != (num_reqs,):
        raise ValueError(
            f"num_cached counts {num_reqs} requests, so query_start_loc must be [{num_reqs + 1}] and block_table "
            f"[{num_reqs}, max_blocks]; got {tuple(query_start_loc.shape)} and {tuple(block_table.shape)}"
        )
    for name, tensor in (
        ("block_table", block_table), ("query_start_loc", query_start_loc), ("num_cached", num_cached)
    ):  # fmt: skip
        if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
            raise ValueError(
                f"{name} must be int32 and contiguous in its last dimension; "
                f"got {tensor.dtype} with strides {tensor.stride()}"
            )


def check_fp8(dtype: torch.dtype, capability: tuple[int, int] | None) -> None:
    """NVIDIA converts e4m3fn from compute capability 8.9 on; the AMD compiler converts both kinds on every chip."""
    if capability is not None and (capability < (8, 9) or dtype != torch.float8_e4m3fn):
        raise ValueError(
            f"an FP8 cache on NVIDIA must be torch.float8_e4m3fn on compute capability 8.9 or newer; got {dtype} on "
            f"{'.'.join(map(str, capability))}. Use a cache in the query's dtype."
        )


def check_options(
    query: Tensor,
    key_cache: Tensor,
    max_num_rows: int,
    num_splits: int,
    scale: float,
    ancestor_masks: Tensor | None,
    window: int | None,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> None:
    """What is asked for beside the tensors."""
    if not 1 <= max_num_rows <= MAX_NUM_ROWS:
        raise ValueError(
            f"max_num_rows must be 1 to {MAX_NUM_ROWS}, one bit of an ancestor mask each; got {max_num_rows}"
        )
    if not 1 <= num_splits <= MAX_NUM_SPLITS:
        raise ValueError(f"num_splits must be 1 to {MAX_NUM_SPLITS}; got {num_splits}. See choose_num_splits.")
    if scale <= 0:
        raise ValueError(f"scale must be above 0, such as head_size ** -0.5; got {scale}")
    if window is not None and window < max_num_rows:
        raise ValueError(
            f"window must be max_num_rows = {max_num_rows} or more, so that new rows see each other; got {window}"
        )
    if ancestor_masks is not None and (
        ancestor_masks.dtype != torch.int64 or ancestor_masks.shape != query.shape[:1] or ancestor_masks.stride(0) != 1
    ):
        raise ValueError(
            f"ancestor_masks must be int64 [{query.shape[0]}], one for each row of query, and contiguous; "
            f"got {ancestor_masks.dtype} {tuple(ancestor_masks.shape)}"
        )
    if key_cache.dtype in FP8_DTYPES:
        on_nvidia = query.is_cuda and torch.version.hip is None
        check_fp8(key_cache.dtype, torch.cuda.get_device_capability(query.device) if on_nvidia else None)
    for name, given in (("key_scale", key_scale), ("value_scale", value_scale)):
        is_scale = given is not None and given.numel() == 1 and given.dtype == torch.float32
        if is_scale != (key_cache.dtype in FP8_DTYPES) or (given is not None and not is_scale):
            raise ValueError(
                f"{name} must be one float32 on the device for an FP8 cache, and None for others; "
                f"got {given} for {key_cache.dtype}"
            )


def check_workspace(partial: Workspace, num_splits: int, num_rows: int, num_heads: int, head_size: int) -> None:
    """It may be larger than this call needs."""
    got = partial.output.shape
    too_small = got[0] < num_splits or got[1] < num_rows or got[2:] != (num_heads, head_size)
    if too_small or partial.log_sum_exp.shape != got[:3] or not all(tensor.is_contiguous() for tensor in partial):
        raise ValueError(
            f"partial must hold {(num_splits, num_rows, num_heads, head_size)} or more splits and rows, contiguous, as "
            f"workspace makes it; got {tuple(got)} and {tuple(partial.log_sum_exp.shape)}"
        )
