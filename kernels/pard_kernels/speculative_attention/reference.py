"""What attention of a few new rows over a paged prefix means: the twins that the kernels are tested against.

B requests · T new rows of all requests · H query heads · G KV heads · D head size · N KV blocks of a request · S splits
P cached tokens
"""

import torch
from torch import Tensor

from pard_kernels.speculative_attention.launch_shape import Workspace


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
