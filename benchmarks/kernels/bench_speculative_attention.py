"""Attention of one step over a paged prefix: verification by the target, drafting, trees; beside vLLM's own kernels.

vLLM's kernels read new keys and values from the cache, so the cache here holds them too; trees they can't do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pard_kernels import choose_num_splits, reference, speculative_attention
from torch import Tensor

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
# The interpreter has no bfloat16 products.
DTYPE = torch.bfloat16 if HAS_GPU else torch.float32
# bf16 rounds weights and results to 8 bits once each; fp32 adds the same products in another order.
TOLERANCE = 2**-6 if HAS_GPU else 1e-5
BLOCK_SIZE = 16
PREFIXES, BATCH_SIZES = ((1024, 8192, 32768), (1, 8, 32)) if HAS_GPU else ((200,), (1,))


@dataclass(frozen=True)
class Shape:
    """Heads of a model and the new rows of each request."""

    num_heads: int
    num_kv_heads: int
    head_size: int
    num_rows: int
    is_tree: bool = False


SHAPES = {
    "Llama-3.1-8B verifies K=8": Shape(32, 8, 128, 9),
    "Llama-3.1-8B verifies K=15": Shape(32, 8, 128, 16),
    "Llama-3.1-8B verifies a tree of 32": Shape(32, 8, 128, 32, is_tree=True),
    "Llama-3.3-70B on 1 of 8 GPUs verifies K=15": Shape(8, 1, 128, 16),
    "Llama-3.3-70B on 1 of 8 GPUs verifies a tree of 32": Shape(8, 1, 128, 32, is_tree=True),
    "Llama-3.2-1B drafts K=15": Shape(32, 8, 64, 30),
}
if not HAS_GPU:  # what the interpreter does in a second or two
    SHAPES = {name: shape for name, shape in SHAPES.items() if shape.num_kv_heads == 1}
CHAINS = [name for name, shape in SHAPES.items() if not shape.is_tree]


def inputs(shape: Shape, prefix: int, batch_size: int) -> dict[str, Any]:
    """The cache holds each request's prefix and, for the others, its new rows. Equal each time."""
    torch.manual_seed(0)
    num_rows, length = batch_size * shape.num_rows, prefix + shape.num_rows
    blocks_per_req = -(-length // BLOCK_SIZE)
    num_blocks = batch_size * blocks_per_req
    kv_size = (shape.num_kv_heads, shape.head_size)
    cache = torch.randn(2, num_blocks, BLOCK_SIZE, *kv_size, device=DEVICE, dtype=DTYPE)
    block_table = torch.randperm(num_blocks, device=DEVICE).view(batch_size, blocks_per_req)
    positions = torch.arange(prefix, length, device=DEVICE)
    slots = block_table[:, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE  # [B, rows]
    key, value = cache.flatten(1, 2)[:, slots.flatten()].clone()
    properties = torch.cuda.get_device_properties(DEVICE) if HAS_GPU else None
    return {
        "query": torch.randn(num_rows, shape.num_heads, shape.head_size, device=DEVICE, dtype=DTYPE),
        "key": key,
        "value": value,
        "key_cache": cache[0],
        "value_cache": cache[1],
        "block_table": block_table.int(),
        "query_start_loc": torch.arange(0, num_rows + 1, shape.num_rows, device=DEVICE, dtype=torch.int32),
        "num_cached": torch.full((batch_size,), prefix, device=DEVICE, dtype=torch.int32),
        "scale": shape.head_size**-0.5,
        "max_num_rows": shape.num_rows,
        "ancestor_masks": tree_masks(shape.num_rows).repeat(batch_size) if shape.is_tree else None,
        "num_splits": choose_num_splits(
            num_requests=batch_size,
            num_rows=shape.num_rows,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_size=shape.head_size,
            dtype=DTYPE,
            max_num_cached=prefix,
            num_multiprocessors=properties.multi_processor_count if properties else 2,
        ),
    }


def tree_masks(num_rows: int) -> Tensor:
    """A chain of half the rows with a child more at each of its nodes. [rows]"""
    chain = num_rows // 2
    masks = [(2 << row) - 1 for row in range(chain)]
    masks += [masks[row] | 1 << (chain + row) for row in range(num_rows - chain)]
    return torch.tensor(masks, dtype=torch.int64, device=DEVICE)


def num_bytes(shape: Shape, prefix: int, batch_size: int) -> int:
    """Every key and value once, every query read and every result written."""
    row = shape.head_size * DTYPE.itemsize
    return (
        batch_size * row * (2 * shape.num_kv_heads * (prefix + shape.num_rows) + 2 * shape.num_heads * shape.num_rows)
    )


def vllm_triton() -> Callable[..., Tensor]:
    """vLLM's Triton attention with memory for 16 segments, which it uses for up to 8 rows."""
    module = pytest.importorskip("vllm.v1.attention.ops.triton_unified_attention")

    def attention(*, query: Tensor, key_cache: Tensor, value_cache: Tensor, **others: Any) -> Tensor:
        out, (num_rows, num_heads, head_size) = torch.empty_like(query), query.shape
        segments = torch.empty(num_rows, num_heads, 16, head_size, device=DEVICE)
        length = others["key_cache_len"]
        module.unified_attention(
            query, key_cache, value_cache, out, others["query_start_loc"], others["max_num_rows"],
            others["num_cached"] + others["max_num_rows"], length, others["scale"], True, (-1, -1),
            others["block_table"], 0.0, None, None, None,
            seq_threshold_3D=128 // key_cache.shape[2], num_par_softmax_segments=16, softmax_segm_output=segments,
            softmax_segm_max=torch.empty_like(segments[..., 0]), softmax_segm_expsum=torch.empty_like(segments[..., 0]),
        )  # fmt: skip
        return out

    return attention


def flash_attention() -> Callable[..., Tensor]:
    """The version of FlashAttention that vLLM takes on this GPU."""
    module = pytest.importorskip("vllm.vllm_flash_attn")
    version = pytest.importorskip("vllm.v1.attention.backends.fa_utils").get_flash_attn_version()
    if version is None:
        pytest.skip("no FlashAttention for this GPU")

    def attention(*, query: Tensor, key_cache: Tensor, value_cache: Tensor, **others: Any) -> Tensor:
        out: Tensor = module.flash_attn_varlen_func(
            query, key_cache, value_cache, others["max_num_rows"], others["query_start_loc"], others["key_cache_len"],
            seqused_k=others["num_cached"] + others["max_num_rows"], softmax_scale=others["scale"], causal=True,
            block_table=others["block_table"], fa_version=version,
        )  # fmt: skip
        return out

    return attention


RIVALS = {"vLLM Triton": vllm_triton, "FlashAttention": flash_attention}


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", SHAPES)
def test_speculative_attention(name: str, prefix: int, batch_size: int, measure: Callable[..., None]) -> None:
    shape = SHAPES[name]
    measure(
        speculative_attention,
        reference.speculative_attention,
        lambda: inputs(shape, prefix, batch_size),
        num_bytes=num_bytes(shape, prefix, batch_size),
        tolerance=TOLERANCE,
    )


@pytest.mark.skipif(not HAS_GPU, reason="vLLM's kernels need a GPU")
@pytest.mark.parametrize("batch_size", BATCH_SIZES)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("rival", RIVALS)
def test_rival(
    rival: str, name: str, prefix: int, batch_size: int, implementation: str, measure: Callable[..., None]
) -> None:
    if implementation != "kernel":
        pytest.skip("the twin is timed above")
    shape, attention = SHAPES[name], RIVALS[rival]()

    def twin(*, key_cache_len: int, **arguments: Any) -> Tensor:
        return reference.speculative_attention(**arguments)

    measure(
        attention,
        twin,
        lambda: inputs(shape, prefix, batch_size) | {"key_cache_len": prefix + shape.num_rows},
        num_bytes=num_bytes(shape, prefix, batch_size),
        tolerance=TOLERANCE,
    )
