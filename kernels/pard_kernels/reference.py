"""The torch twin of every kernel: the definition that the kernels are tested against.

B requests · R request slots (R >= B) · T target rows · D draft rows · K draft tokens · N KV blocks of a request
"""

import torch
from torch import Tensor

PAD_SLOT = -1


def prepare_draft_inputs(
    *,
    target_input_ids: Tensor,  # [T] int32
    target_positions: Tensor,  # [T] int64
    target_query_start_loc: Tensor,  # [B + 1] int32
    request_slots: Tensor,  # [B] int64, -1 for a request that must not be touched
    num_sampled: Tensor,  # [B] int32
    num_rejected: Tensor,  # [B] int32
    last_sampled: Tensor,  # [R, 1] int64
    all_token_ids: Tensor,  # [R, max_model_len] int32
    block_table: Tensor,  # [R, N] int32
    num_blocks: Tensor,  # [R] int32
    num_draft_kv: Tensor,  # [R] int32, in and out
    query_start_loc: Tensor,  # [B + 1] int32
    input_ids: Tensor,  # [>= D] int32, out
    positions: Tensor,  # [>= D] int64, out
    slot_mapping: Tensor,  # [>= D] int64, out
    seq_lens: Tensor,  # [>= B] int32, out
    sample_rows: Tensor,  # [B, K] int64, out
    block_size: int,
    mask_token_id: int,
    vocab_size: int,
    max_model_len: int,
) -> None:
    """Lay out one draft forward: for each request its pending tokens, then K - 1 mask tokens (PARD, arXiv 2504.18583).

    A request owns the rows `query_start_loc[b] : query_start_loc[b + 1]`, a span fixed on the host, at consecutive
    positions. They hold, in this order, the tokens whose draft K/V is missing (accepted drafts and the bonus token, or
    the prompt chunk), the mask tokens, and padding, which writes no K/V and whose output is never read. A span that is
    too short for the masks catches up only.

    `num_draft_kv` counts, per request slot, the leading tokens whose K/V the draft holds. It is clamped to what the
    target has and left at the last token that this forward writes, so rejected drafts, skipped steps and resumed
    requests leave no holes. Mask tokens are never counted.

    Writes in place: `input_ids`, `positions`, `slot_mapping`, `seq_lens`, `sample_rows` (row whose output predicts
    draft token k, inside the request's span in any case) and `num_draft_kv`.
    """
    num_reqs, num_drafts = sample_rows.shape
    for req in range(num_reqs):
        row, row_end = int(query_start_loc[req]), int(query_start_loc[req + 1])
        span = row_end - row
        slot = int(request_slots[req])
        if slot < 0:
            input_ids[row:row_end] = 0
            positions[row:row_end] = torch.arange(span, dtype=positions.dtype)
            slot_mapping[row:row_end] = PAD_SLOT
            seq_lens[req] = span
            sample_rows[req] = row
            continue
        target_row, target_end = int(target_query_start_loc[req]), int(target_query_start_loc[req + 1])
        num_computed = int(target_positions[target_row])
        num_kept = num_computed + target_end - target_row - int(num_rejected[req])
        has_bonus = int(num_sampled[req]) > 0
        num_tokens = num_kept + int(has_bonus)

        start = min(int(num_draft_kv[slot]), num_computed + 1, num_tokens - 1, max_model_len - span)
        start = max(start, 0)
        capacity = int(num_blocks[slot]) * block_size

        for i in range(span):
            position = start + i
            is_token = position < num_tokens
            is_mask = has_bonus and not is_token and position < num_tokens + num_drafts - 1
            if not is_token:
                token = mask_token_id if is_mask else 0
            elif position == num_kept:
                token = int(last_sampled[slot, 0])
            elif position >= num_computed:
                token = int(target_input_ids[target_row + position - num_computed])
            else:
                token = int(all_token_ids[slot, position])
            block = int(block_table[slot, position // block_size]) if position < capacity else 0
            writes_kv = (is_token or is_mask) and block != 0
            input_ids[row + i] = token if token < vocab_size else mask_token_id
            positions[row + i] = position
            slot_mapping[row + i] = block * block_size + position % block_size if writes_kv else PAD_SLOT

        seq_lens[req] = start + span
        last_token_row = row + num_tokens - 1 - start
        for k in range(num_drafts):
            sample_rows[req, k] = min(last_token_row + k, row_end - 1)
        num_draft_kv[slot] = min(start + span, num_tokens, capacity)
