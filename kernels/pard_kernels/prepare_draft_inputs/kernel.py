"""One launch that lays out a draft forward, one program a request. Definition: `reference.py`."""

import triton
import triton.language as tl

PAD_SLOT = tl.constexpr(-1)


# A launch is specialised by nothing that changes from step to step: sizes of the batch, and where in a tensor of the
# whole batch the requests begin.
@triton.jit(
    do_not_specialize=[
        "target_input_ids_ptr", "target_positions_ptr", "target_query_start_loc_ptr", "kept_rows_ptr",
        "request_slots_ptr", "num_sampled_ptr", "num_rejected_ptr", "num_blocks_ptr", "num_draft_kv_ptr",
        "query_start_loc_ptr", "input_ids_ptr", "positions_ptr", "slot_mappings_ptr", "stride_slot_mappings_group",
        "seq_lens_ptr", "sample_rows_ptr", "num_slots", "num_rows", "num_drafts", "mask_token_id", "vocab_size",
        "max_model_len", "max_draft_kv", "caches_masks", "feature_rows_ptr", "feature_carries_ptr", "num_carried_ptr",
        "first_carried_row", "nothing_row",
    ]
)  # fmt: skip
def prepare_draft_inputs_kernel(
    target_input_ids_ptr,
    target_positions_ptr,
    target_query_start_loc_ptr,
    kept_rows_ptr,
    request_slots_ptr,
    num_sampled_ptr,
    num_rejected_ptr,
    last_sampled_ptr,
    all_token_ids_ptr, stride_all_token_ids_slot,
    block_table_ptrs, strides_block_table_slot,
    num_blocks_ptr, stride_num_blocks_group,
    num_draft_kv_ptr,
    query_start_loc_ptr,
    input_ids_ptr,
    positions_ptr,
    slot_mappings_ptr, stride_slot_mappings_group,
    seq_lens_ptr,
    sample_rows_ptr,
    num_slots, num_rows, num_drafts, mask_token_id, vocab_size, max_model_len, max_draft_kv, caches_masks,
    feature_rows_ptr, feature_carries_ptr, num_carried_ptr, first_carried_row, nothing_row,
    BLOCK_SIZES: tl.constexpr, NUM_GROUPS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    req = tl.program_id(0).to(tl.int64)
    row = tl.minimum(tl.load(query_start_loc_ptr + req), num_rows).to(tl.int64)
    row_end = tl.minimum(tl.load(query_start_loc_ptr + req + 1), num_rows).to(tl.int64)
    span = tl.maximum(row_end - row, 0)
    slot = tl.load(request_slots_ptr + req, mask=req < num_slots, other=-1).to(tl.int64)
    sample_rows_ptr += req * num_drafts
    most_sample_row = tl.maximum(tl.minimum(tl.maximum(row_end - 1, row), num_rows - 1), 0)

    if slot < 0:
        for i in range(0, span, BLOCK_ROWS):
            offs_row = i + tl.arange(0, BLOCK_ROWS)
            mask_row = offs_row < span
            tl.store(input_ids_ptr + row + offs_row, 0, mask=mask_row)
            tl.store(positions_ptr + row + offs_row, offs_row, mask=mask_row)
            for group in tl.static_range(NUM_GROUPS):
                if block_table_ptrs[group] is not None:
                    slot_mapping_ptr = slot_mappings_ptr + group * stride_slot_mappings_group.to(tl.int64)
                    tl.store(slot_mapping_ptr + row + offs_row, PAD_SLOT, mask=mask_row)
            if feature_rows_ptr is not None:
                tl.store(feature_rows_ptr + row + offs_row, nothing_row, mask=mask_row)
        if feature_rows_ptr is not None:
            tl.store(feature_carries_ptr + 2 * req, nothing_row)
            tl.store(feature_carries_ptr + 2 * req + 1, nothing_row)
        tl.store(seq_lens_ptr + req, span)
        for i in range(0, num_drafts, BLOCK_K):
            offs_k = i + tl.arange(0, BLOCK_K)
            sample_row = tl.minimum(row + tl.zeros_like(offs_k), most_sample_row)
            tl.store(sample_rows_ptr + offs_k, sample_row, mask=offs_k < num_drafts)
        return

    target_row = tl.load(target_query_start_loc_ptr + req).to(tl.int64)
    target_end = tl.load(target_query_start_loc_ptr + req + 1).to(tl.int64)
    num_computed = tl.load(target_positions_ptr + target_row).to(tl.int64)
    num_kept = num_computed + target_end - target_row - tl.load(num_rejected_ptr + req)
    has_bonus = tl.load(num_sampled_ptr + req) > 0
    num_tokens = num_kept + has_bonus.to(tl.int64)
    num_masks = tl.where(has_bonus, tl.maximum(num_drafts - 1, 0), 0)
    bonus_token = tl.load(last_sampled_ptr + slot).to(tl.int32)

    num_draft_kv = tl.load(num_draft_kv_ptr + slot).to(tl.int64)
    start = tl.maximum(tl.minimum(num_draft_kv, tl.minimum(num_tokens - 1, max_model_len - span)), 0)
    if feature_rows_ptr is not None:
        carried_row = (first_carried_row + slot).to(tl.int32)
        is_carried = (num_computed > 0) & (tl.load(num_carried_ptr + slot) == num_computed)

    for i in range(0, span, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask_row = offs_row < span
        position = start + offs_row
        is_token = position < num_tokens
        is_mask = (position >= num_tokens) & (position < num_tokens + num_masks)

        is_new = (position >= num_computed) & (position < num_kept)
        kept_row = target_row + position - num_computed
        if kept_rows_ptr is not None:
            kept_row = tl.load(kept_rows_ptr + kept_row, mask=mask_row & is_new, other=0)
        new_token = tl.load(target_input_ids_ptr + kept_row, mask=mask_row & is_new, other=0)
        is_old = position < num_computed
        old_token = tl.load(
            all_token_ids_ptr + slot * stride_all_token_ids_slot + position, mask=mask_row & is_old, other=0
        )
        token = tl.where(is_old, old_token, tl.where(is_new, new_token, bonus_token))
        token = tl.where(is_token, token, tl.where(is_mask, mask_token_id, 0))
        token = tl.where(token < vocab_size, token, mask_token_id)
        tl.store(input_ids_ptr + row + offs_row, token, mask=mask_row)
        tl.store(positions_ptr + row + offs_row, position, mask=mask_row)

        if feature_rows_ptr is not None:
            before = tl.minimum(position, num_tokens - 1) - 1
            is_computed = (before >= num_computed) & (before < num_kept)
            feature_row = target_row + before - num_computed
            if kept_rows_ptr is not None:
                feature_row = tl.load(kept_rows_ptr + feature_row, mask=mask_row & is_computed, other=0)
            kept_before = tl.where(is_carried & (before == num_computed - 1), carried_row, nothing_row)
            feature_row = tl.where(is_computed, feature_row.to(tl.int32), kept_before)
            feature_row = tl.where(is_token | is_mask, feature_row, nothing_row)
            tl.store(feature_rows_ptr + row + offs_row, feature_row, mask=mask_row)

        writes_kv = position < num_tokens + num_masks * caches_masks
        for group in tl.static_range(NUM_GROUPS):
            if block_table_ptrs[group] is not None:
                num_blocks = tl.load(num_blocks_ptr + group * stride_num_blocks_group + slot).to(tl.int64)
                table_ptr = block_table_ptrs[group] + slot * strides_block_table_slot[group]
                has_block = writes_kv & (position < num_blocks * BLOCK_SIZES[group])
                block = tl.load(table_ptr + position // BLOCK_SIZES[group], mask=mask_row & has_block, other=0)
                kv_slot = block.to(tl.int64) * BLOCK_SIZES[group] + position % BLOCK_SIZES[group]
                # Block 0 is vLLM's null block: what a sliding window has let go of is never written again.
                kv_slot = tl.where(block != 0, kv_slot, PAD_SLOT)
                slot_mapping_ptr = slot_mappings_ptr + group * stride_slot_mappings_group.to(tl.int64)
                tl.store(slot_mapping_ptr + row + offs_row, kv_slot, mask=mask_row)

    tl.store(seq_lens_ptr + req, tl.where(span > 0, start + span, 0))
    for i in range(0, num_drafts, BLOCK_K):
        offs_k = i + tl.arange(0, BLOCK_K)
        sample_row = tl.maximum(tl.minimum(row + num_tokens - 1 - start + offs_k, most_sample_row), 0)
        tl.store(sample_rows_ptr + offs_k, sample_row, mask=offs_k < num_drafts)

    num_draft_kv = tl.minimum(tl.where(span > 0, start + span, num_draft_kv), tl.where(span > 0, num_tokens, num_kept))
    num_draft_kv = tl.minimum(num_draft_kv, max_draft_kv)
    for group in tl.static_range(NUM_GROUPS):
        if block_table_ptrs[group] is not None:
            num_blocks = tl.load(num_blocks_ptr + group * stride_num_blocks_group + slot).to(tl.int64)
            num_draft_kv = tl.minimum(num_draft_kv, num_blocks * BLOCK_SIZES[group])
    tl.store(num_draft_kv_ptr + slot, num_draft_kv)
    if feature_rows_ptr is not None:
        last_row = target_row + num_kept - 1 - num_computed
        if kept_rows_ptr is not None:
            last_row = tl.load(kept_rows_ptr + last_row)
        tl.store(feature_carries_ptr + 2 * req, last_row.to(tl.int32))
        tl.store(feature_carries_ptr + 2 * req + 1, carried_row)
        tl.store(num_carried_ptr + slot, num_kept.to(tl.int32))
