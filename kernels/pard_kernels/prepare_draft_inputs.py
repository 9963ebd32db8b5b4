"""One launch that lays out a draft forward. Definition and argument shapes: `reference.prepare_draft_inputs`."""

import triton
import triton.language as tl
from torch import Tensor

MAX_BLOCK_ROWS = 1024


@triton.jit
def _prepare_draft_inputs_kernel(
    target_input_ids_ptr,
    target_positions_ptr,
    target_query_start_loc_ptr,
    request_slots_ptr,
    num_sampled_ptr,
    num_rejected_ptr,
    last_sampled_ptr,
    all_token_ids_ptr,
    stride_all_token_ids_slot,
    block_table_ptr,
    stride_block_table_slot,
    num_blocks_ptr,
    num_draft_kv_ptr,
    query_start_loc_ptr,
    input_ids_ptr,
    positions_ptr,
    slot_mapping_ptr,
    seq_lens_ptr,
    sample_rows_ptr,
    num_drafts,
    block_size,
    mask_token_id,
    vocab_size,
    max_model_len,
    CACHES_MASKS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    req = tl.program_id(0).to(tl.int64)
    row = tl.load(query_start_loc_ptr + req).to(tl.int64)
    row_end = tl.load(query_start_loc_ptr + req + 1).to(tl.int64)
    span = row_end - row
    slot = tl.load(request_slots_ptr + req).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K)
    mask_k = offs_k < num_drafts

    if slot < 0:
        for i in range(0, span, BLOCK_ROWS):
            offs_row = i + tl.arange(0, BLOCK_ROWS)
            mask_row = offs_row < span
            tl.store(input_ids_ptr + row + offs_row, 0, mask=mask_row)
            tl.store(positions_ptr + row + offs_row, offs_row, mask=mask_row)
            tl.store(slot_mapping_ptr + row + offs_row, -1, mask=mask_row)
        tl.store(seq_lens_ptr + req, span)
        tl.store(sample_rows_ptr + req * num_drafts + offs_k, row + tl.zeros_like(offs_k), mask=mask_k)
        return

    target_row = tl.load(target_query_start_loc_ptr + req).to(tl.int64)
    target_end = tl.load(target_query_start_loc_ptr + req + 1).to(tl.int64)
    num_computed = tl.load(target_positions_ptr + target_row).to(tl.int64)
    num_kept = num_computed + target_end - target_row - tl.load(num_rejected_ptr + req)
    has_bonus = tl.load(num_sampled_ptr + req) > 0
    num_tokens = num_kept + has_bonus.to(tl.int64)
    num_masks = tl.where(has_bonus, num_drafts - 1, 0)
    bonus_token = tl.load(last_sampled_ptr + slot).to(tl.int32)

    start = tl.load(num_draft_kv_ptr + slot).to(tl.int64)
    start = tl.maximum(tl.minimum(start, tl.minimum(num_tokens - 1, max_model_len - span)), 0)
    capacity = tl.load(num_blocks_ptr + slot).to(tl.int64) * block_size

    for i in range(0, span, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask_row = offs_row < span
        position = start + offs_row
        is_token = position < num_tokens
        is_mask = (position >= num_tokens) & (position < num_tokens + num_masks)

        is_new = (position >= num_computed) & (position < num_kept)
        new_token = tl.load(
            target_input_ids_ptr + target_row + position - num_computed, mask=mask_row & is_new, other=0
        )
        is_old = position < num_computed
        old_token = tl.load(
            all_token_ids_ptr + slot * stride_all_token_ids_slot + position, mask=mask_row & is_old, other=0
        )
        token = tl.where(is_old, old_token, tl.where(is_new, new_token, bonus_token))
        token = tl.where(is_token, token, tl.where(is_mask, mask_token_id, 0))
        token = tl.where(token < vocab_size, token, mask_token_id)

        writes_kv = is_token | is_mask if CACHES_MASKS else is_token
        has_block = writes_kv & (position < capacity)
        block = tl.load(
            block_table_ptr + slot * stride_block_table_slot + position // block_size,
            mask=mask_row & has_block,
            other=0,
        ).to(tl.int64)
        # Block 0 is vLLM's null block: what a sliding window has let go of is never written again.
        kv_slot = tl.where(block != 0, block * block_size + position % block_size, -1)

        tl.store(input_ids_ptr + row + offs_row, token, mask=mask_row)
        tl.store(positions_ptr + row + offs_row, position, mask=mask_row)
        tl.store(slot_mapping_ptr + row + offs_row, kv_slot, mask=mask_row)

    tl.store(seq_lens_ptr + req, start + span)
    sample_row = tl.minimum(row + num_tokens - 1 - start + offs_k, row_end - 1)
    tl.store(sample_rows_ptr + req * num_drafts + offs_k, sample_row, mask=mask_k)
    tl.store(num_draft_kv_ptr + slot, tl.minimum(tl.minimum(start + span, num_tokens), capacity))


def prepare_draft_inputs(
    *,
    target_input_ids: Tensor,
    target_positions: Tensor,
    target_query_start_loc: Tensor,
    request_slots: Tensor,
    num_sampled: Tensor,
    num_rejected: Tensor,
    last_sampled: Tensor,
    all_token_ids: Tensor,
    block_table: Tensor,
    num_blocks: Tensor,
    num_draft_kv: Tensor,
    query_start_loc: Tensor,
    input_ids: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
    seq_lens: Tensor,
    sample_rows: Tensor,
    block_size: int,
    mask_token_id: int,
    vocab_size: int,
    max_model_len: int,
    caches_masks: bool,
) -> None:
    """Lay out one draft forward; one program a request. Definition: `reference.prepare_draft_inputs`."""
    num_reqs, num_drafts = sample_rows.shape
    if request_slots.shape != (num_reqs,) or query_start_loc.shape != (num_reqs + 1,):
        raise ValueError(
            f"sample_rows {tuple(sample_rows.shape)} asks for {num_reqs} requests; got request_slots "
            f"{tuple(request_slots.shape)} and query_start_loc {tuple(query_start_loc.shape)}"
        )
    for name, tensor in (("all_token_ids", all_token_ids), ("block_table", block_table), ("sample_rows", sample_rows)):
        if tensor.stride(-1) != 1:
            raise ValueError(f"{name} must be contiguous in its last dimension; got strides {tensor.stride()}")
    if not sample_rows.is_contiguous():
        raise ValueError(f"sample_rows must be contiguous; got strides {sample_rows.stride()}")
    rows_per_req = triton.cdiv(input_ids.numel(), max(num_reqs, 1))
    _prepare_draft_inputs_kernel[(num_reqs,)](
        target_input_ids,
        target_positions,
        target_query_start_loc,
        request_slots,
        num_sampled,
        num_rejected,
        last_sampled,
        all_token_ids,
        all_token_ids.stride(0),
        block_table,
        block_table.stride(0),
        num_blocks,
        num_draft_kv,
        query_start_loc,
        input_ids,
        positions,
        slot_mapping,
        seq_lens,
        sample_rows,
        num_drafts,
        block_size,
        mask_token_id,
        vocab_size,
        max_model_len,
        CACHES_MASKS=caches_masks,
        BLOCK_ROWS=min(MAX_BLOCK_ROWS, max(16, triton.next_power_of_2(rows_per_req))),
        BLOCK_K=triton.next_power_of_2(max(num_drafts, 1)),
    )
