"""One launch, one program for a request, a layer and a part of its cache. Definition: `reference.py`."""

import triton
import triton.language as tl


@triton.jit
def _offset(block_table_ptr, position, max_blocks, stride_block, stride_slot, BLOCK_SIZE: tl.constexpr):
    """Where in a cache positions lie, and which do; block 0 is vLLM's null block."""
    # Bounds rather than a mask: AMD's chips would branch around each load and wait for it.
    i = tl.maximum(tl.minimum(position // BLOCK_SIZE, max_blocks - 1), 0)
    block = tl.load(block_table_ptr + i).to(tl.int64)
    is_there = (block != 0) & (position < max_blocks * BLOCK_SIZE)
    return block * stride_block + position % BLOCK_SIZE * stride_slot, is_there


# Nothing is specialised: ALIGNMENT says what matters of addresses and strides. Strides count words.
@triton.jit(
    do_not_specialize=[
        "cache_addresses_ptr", "stride_cache_part", "stride_cache_block", "stride_cache_slot", "stride_cache_head",
        "block_table_ptr", "stride_block_table_slot", "max_blocks", "request_slots_ptr", "num_computed_ptr",
        "accepted_rows_ptr", "stride_accepted_rows_slot", "num_sampled_ptr", "width",
    ]
)  # fmt: skip
def compact_tree_kv_kernel(
    cache_addresses_ptr, stride_cache_part, stride_cache_block, stride_cache_slot, stride_cache_head,
    block_table_ptr, stride_block_table_slot, max_blocks,
    request_slots_ptr,
    num_computed_ptr,
    accepted_rows_ptr, stride_accepted_rows_slot, width,
    num_sampled_ptr,
    WORD: tl.constexpr, ALIGNMENT: tl.constexpr, NUM_HEADS: tl.constexpr, HEAD_WORDS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_DEPTH: tl.constexpr, BLOCK_WORDS: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    slot = tl.load(request_slots_ptr + req).to(tl.int64)
    num_sampled = tl.load(num_sampled_ptr + req)
    num_rows = tl.where(slot >= 0, tl.minimum(num_sampled, tl.minimum(width, BLOCK_ROWS)), 0)
    accepted_rows_ptr += slot * stride_accepted_rows_slot
    offs_row = tl.arange(0, BLOCK_ROWS)
    accepted = tl.load(accepted_rows_ptr + offs_row, mask=offs_row < num_rows, other=0)
    first_move = tl.min(tl.where((offs_row > 0) & (accepted > offs_row), offs_row, BLOCK_ROWS))
    if first_move >= num_rows:
        return

    VECTOR: tl.constexpr = ALIGNMENT // (WORD.primitive_bitwidth // 8)
    address = tl.load(cache_addresses_ptr + tl.program_id(1).to(tl.int64))
    cache_ptr = tl.multiple_of(address.to(tl.pointer_type(WORD)), ALIGNMENT)
    cache_ptr += tl.multiple_of(tl.program_id(2).to(tl.int64) * stride_cache_part, VECTOR)
    block_table_ptr += slot * stride_block_table_slot
    first_position = (tl.load(num_computed_ptr + slot) - num_sampled).to(tl.int64)

    for i in range(first_move, num_rows, BLOCK_DEPTH):
        depth = i + tl.arange(0, BLOCK_DEPTH)
        row = tl.load(accepted_rows_ptr + tl.minimum(depth, num_rows - 1))
        source, has_source = _offset(
            block_table_ptr, first_position + row, max_blocks, stride_cache_block, stride_cache_slot, BLOCK_SIZE
        )
        place, has_place = _offset(
            block_table_ptr, first_position + depth, max_blocks, stride_cache_block, stride_cache_slot, BLOCK_SIZE
        )
        mask_depth = (depth < num_rows) & (row > depth) & has_source & has_place
        source, place = tl.multiple_of(source, VECTOR), tl.multiple_of(place, VECTOR)
        for j in range(0, NUM_HEADS * HEAD_WORDS, BLOCK_WORDS):
            offs_word = j + tl.arange(0, BLOCK_WORDS)
            mask = mask_depth[:, None] & (offs_word < NUM_HEADS * HEAD_WORDS)[None, :]
            offs_slot = (offs_word // HEAD_WORDS).to(tl.int64) * stride_cache_head + offs_word % HEAD_WORDS
            offs_slot = tl.max_contiguous(tl.multiple_of(offs_slot, VECTOR), VECTOR)
            moved = tl.load(cache_ptr + source[:, None] + offs_slot[None, :], mask=mask, other=0)
            # A place can be a source of this tile too, in another thread.
            tl.debug_barrier()
            tl.store(cache_ptr + place[:, None] + offs_slot[None, :], moved, mask=mask)
