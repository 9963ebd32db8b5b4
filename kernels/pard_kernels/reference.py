"""The torch twin of every kernel: the definition that the kernels are tested against.

B requests · R request slots (R >= B) · T target rows · D draft rows · K draft tokens · N KV blocks of a request
In attention: T new rows of all requests · H query heads · G KV heads · D head size · S splits · P cached tokens
"""

import torch
from torch import Tensor

from pard_kernels.attention_launch import Workspace

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
    caches_masks: bool,
) -> None:
    """Lay out one draft forward: for each request its pending tokens, then K - 1 mask tokens (PARD, arXiv 2504.18583).

    A request owns the rows `query_start_loc[b] : query_start_loc[b + 1]`, a span fixed on the host, at consecutive
    positions. They hold, in this order, the tokens whose draft K/V is missing (accepted drafts and the bonus token, or
    the prompt chunk), the mask tokens, and padding, which writes no K/V and whose output is never read. A span that is
    too short for the masks catches up only, and a later forward of the same step goes on where it ended.

    `num_draft_kv` counts, per request slot, the leading tokens whose K/V the draft holds. It is clamped to what the
    target has and left at the last token that this forward writes, so rejected drafts, skipped steps and resumed
    requests leave no holes. Mask tokens are never counted; they write K/V only if `caches_masks`, for an attention that
    reads new keys and values from the cache.

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

        start = max(min(int(num_draft_kv[slot]), num_tokens - 1, max_model_len - span), 0)
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
            writes_kv = (is_token or (is_mask and caches_masks)) and block != 0
            input_ids[row + i] = token if token < vocab_size else mask_token_id
            positions[row + i] = position
            slot_mapping[row + i] = block * block_size + position % block_size if writes_kv else PAD_SLOT

        seq_lens[req] = start + span
        last_token_row = row + num_tokens - 1 - start
        for k in range(num_drafts):
            sample_rows[req, k] = min(last_token_row + k, row_end - 1)
        num_draft_kv[slot] = min(start + span, num_tokens, capacity)


def speculative_attention(
    query: Tensor,  # [T, H, D] float16, bfloat16 or float32
    key: Tensor,  # [T, G, D] as query; query head h reads KV head h // (H // G)
    value: Tensor,  # [T, G, D] as query
    key_cache: Tensor,  # [num_blocks, block_size, G, D] as query or FP8 e4m3, any strides
    value_cache: Tensor,  # [num_blocks, block_size, G, D] as key_cache
    block_table: Tensor,  # [B, N] int32, read as far as num_cached goes
    query_start_loc: Tensor,  # [B + 1] int32
    num_cached: Tensor,  # [B] int32
    *,
    scale: float,
    max_num_rows: int,  # new rows of a request at most, up to 64
    num_splits: int,
    ancestor_masks: Tensor | None = None,  # [T] int64
    soft_cap: float = 0.0,
    window: int | None = None,
    alibi_slopes: Tensor | None = None,
    key_scale: Tensor | None = None,  # one float32, for an FP8 cache
    value_scale: Tensor | None = None,  # one float32, for an FP8 cache
    out: Tensor | None = None,  # [T, H, D] as query
    partial: Workspace | None = None,
) -> Tensor:
    """Attention of a few new rows per request over what is cached of it and over each other. [T, H, D]

    Request b owns the rows `query_start_loc[b] : query_start_loc[b + 1]`, none or up to max_num_rows. Each of them sees
    the first `num_cached[b]` tokens of the paged cache and those new rows of its request that bit j of its ancestor
    mask names; without masks, itself and the rows before it. New keys and values come from `key` and `value` only,
    whether or not the cache holds them too, so mask tokens of a draft need no slots. A row that sees nothing gives 0;
    rows that no request owns are not written.

    `window`: a row sees only the last `window` positions, its own included. Its position is num_cached plus the new
    rows that it sees besides itself, which is right for a chain and for a tree; new rows always see each other.
    `soft_cap`: scores become soft_cap * tanh(score / soft_cap).
    FP8 cache: stored numbers times the scale. New keys and values are rounded as the cache would round them, so that a
    row sees in this step what plain decoding would read from the cache.

    `num_splits`, `partial`: how the kernel divides the prefix (`choose_num_splits`) and where its parts meet
    (`workspace`; allocated if None); they change no result beyond rounding.
    """
    if alibi_slopes is not None:
        raise ValueError("alibi_slopes: ALiBi is not supported, pass None")
    out = torch.empty_like(query) if out is None else out
    group_size = query.shape[1] // key.shape[1]
    for req, prefix_len in enumerate(num_cached.tolist()):
        rows = slice(int(query_start_loc[req]), int(query_start_loc[req + 1]))
        num_rows = rows.stop - rows.start
        if num_rows > max_num_rows:
            raise ValueError(f"request {req} has {num_rows} new rows; max_num_rows is {max_num_rows}")
        keys = _cached_and_new(key_cache, key[rows], block_table[req], prefix_len, key_scale)  # [P + rows, G, D]
        values = _cached_and_new(value_cache, value[rows], block_table[req], prefix_len, value_scale)
        grouped = query[rows].float().view(num_rows, key.shape[1], group_size, query.shape[2])  # [rows, G, H / G, D]
        scores = torch.einsum("rghd,pgd->rghp", grouped, keys) * scale
        if soft_cap > 0:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        masks = None if ancestor_masks is None else ancestor_masks[rows]
        visible = _visible(masks, num_rows, prefix_len, window, query.device)[:, None, None]  # [rows, 1, 1, P + rows]
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1).masked_fill(~visible, 0)
        # Slots before the window may be another request's, or nobody's.
        values[:prefix_len].masked_fill_(~visible[:, 0, 0, :prefix_len].any(0)[:, None, None], 0)
        out[rows] = torch.einsum("rghp,pgd->rghd", weights, values).flatten(1, 2).to(out.dtype)
    return out


def _cached_and_new(cache: Tensor, new: Tensor, blocks: Tensor, prefix_len: int, scale: Tensor | None) -> Tensor:
    """Keys or values of a request in float32."""
    num_blocks = -(-prefix_len // cache.shape[1])
    cached = cache[blocks[:num_blocks].long()].flatten(0, 1)[:prefix_len].float()
    if scale is None:
        return torch.cat([cached, new.float()])
    largest = torch.finfo(cache.dtype).max
    rounded = (new.float() / scale).clamp(-largest, largest).to(cache.dtype).float()
    return torch.cat([cached, rounded]) * scale


def _visible(masks: Tensor | None, num_rows: int, prefix_len: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the cached tokens and new rows a row sees. [rows, P + rows]"""
    rows = torch.arange(num_rows, device=device)
    sees_new = rows[None, :] <= rows[:, None] if masks is None else (masks[:, None] >> rows & 1).bool()
    positions = prefix_len + sees_new.sum(1).clamp(min=1) - 1  # [rows]
    cached = torch.arange(prefix_len, device=device)
    sees_cached = cached[None, :] > positions[:, None] - (window or prefix_len + num_rows)
    return torch.cat([sees_cached, sees_new], 1)


def merge_attention_splits(
    partial_output: Tensor,  # [>= S, >= T, H, D] float32, contiguous
    log_sum_exp: Tensor,  # [>= S, >= T, H] float32, contiguous; base 2, -inf where a split saw nothing
    num_splits: int,  # S
    query_start_loc: Tensor,  # [B + 1] int32
    out: Tensor,  # [T, H, D], out
) -> None:
    """Weigh the output of each split by the sum of its exponentials; a split that saw nothing need hold no output.

    Rows from `query_start_loc[-1]` on belong to no request and are left as they are.
    """
    rows = slice(0, int(query_start_loc[-1]))
    log_sums = log_sum_exp[:num_splits, rows, :, None]
    weights = torch.exp2(log_sums - log_sums.amax(0).clamp(min=torch.finfo(torch.float32).min))
    outputs = partial_output[:num_splits, rows].masked_fill(log_sums == -torch.inf, 0)
    out[rows] = ((outputs * weights).sum(0) / weights.sum(0).clamp(min=torch.finfo(torch.float32).tiny)).to(out.dtype)
