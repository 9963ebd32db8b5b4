"""The launch of `compact_tree_kv`; an engine needs one variant of the kernel for each layout of its caches."""

import triton.language as tl
from torch import Tensor
from triton import next_power_of_2

from pard_kernels.compact_tree_kv.cache_layout import CacheLayout
from pard_kernels.compact_tree_kv.checks import check_arguments
from pard_kernels.compact_tree_kv.kernel import compact_tree_kv_kernel
from pard_kernels.tree_rows import MAX_TREE_ROWS

# Eight rows of 2 KiB are on their way at once: few paths have more behind the main chain.
BLOCK_DEPTH = 8
BLOCK_WORDS = 256
WORDS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}  # by bytes; of 16 two are copied as one


def compact_tree_kv(
    *,
    cache_addresses: Tensor,  # [L] int64
    layout: CacheLayout,
    block_table: Tensor,
    block_size: int,
    request_slots: Tensor,
    num_computed: Tensor,
    accepted_rows: Tensor,
    num_sampled: Tensor,
) -> None:
    """Move accepted nodes' keys and values to their positions. Definition and argument shapes: `reference.py`."""
    check_arguments(
        cache_addresses, layout, block_table, block_size, request_slots, num_computed, accepted_rows, num_sampled
    )
    word_bytes = min(layout.alignment, max(WORDS))
    head_words = layout.head_bytes // word_bytes
    strides = (layout.stride_part, layout.stride_block, layout.stride_slot, layout.stride_head)
    # Programs of a request that keeps the main chain end after two loads, so one each is not too many.
    compact_tree_kv_kernel[(num_sampled.shape[0], cache_addresses.shape[0], layout.num_parts)](
        cache_addresses, *(stride // word_bytes for stride in strides),
        block_table, block_table.stride(0), block_table.shape[1],
        request_slots,
        num_computed,
        accepted_rows, accepted_rows.stride(0), accepted_rows.shape[1],
        num_sampled,
        WORD=WORDS[word_bytes], ALIGNMENT=layout.alignment, NUM_HEADS=layout.num_heads, HEAD_WORDS=head_words,
        BLOCK_SIZE=block_size, BLOCK_ROWS=MAX_TREE_ROWS, BLOCK_DEPTH=BLOCK_DEPTH,
        BLOCK_WORDS=min(next_power_of_2(layout.num_heads * head_words), BLOCK_WORDS),
    )  # fmt: skip
