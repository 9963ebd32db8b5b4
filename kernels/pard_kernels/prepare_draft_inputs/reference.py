"""What the layout of a draft forward is: the twin that the kernel is tested against.

B requests · R request slots (R >= B) · T target rows · D draft rows · K draft tokens · G groups of the K/V cache
N_g K/V blocks of a request in group g
"""

from typing import NamedTuple

import torch
from torch import Tensor

PAD_SLOT = -1


class FeatureRows(NamedTuple):
    """Where each draft row finds the target's features, in a table of T' + R + 1 rows.

    The first T' >= T rows are those of the step, the next R the one that each slot carries on, the last is nothing.
    """

    rows: Tensor  # [>= D] int32, out
    carries: Tensor  # [>= B, 2] int32, out: from which row to which row features have to be copied after they were read
    num_carried: Tensor  # [R] int32, in and out: how many leading tokens end with the one whose feature a slot carries
    first_carried: int  # T'

    @property
    def nothing(self) -> int:
        """The last row."""
        return self.first_carried + len(self.num_carried)


def prepare_draft_inputs(
    *,
    target_input_ids: Tensor,  # [T] int32
    target_positions: Tensor,  # [T] int64
    target_query_start_loc: Tensor,  # [B + 1] int32
    kept_rows: Tensor | None,  # [T] int32
    request_slots: Tensor,  # [<= B] int64, -1 for a request that must not be touched, as those beyond the last
    num_sampled: Tensor,  # [B] int32
    num_rejected: Tensor,  # [B] int32
    last_sampled: Tensor,  # [R, 1] int64
    all_token_ids: Tensor,  # [R, max_model_len] int32
    block_tables: tuple[Tensor | None, ...],  # G of [R, N_g] int32, None for a group that must not be touched
    num_blocks: Tensor,  # [G, R] int32
    num_draft_kv: Tensor,  # [R] int32, in and out
    query_start_loc: Tensor,  # [B + 1] int32
    input_ids: Tensor,  # [D] int32, out
    positions: Tensor,  # [>= D] int64, out
    slot_mappings: Tensor,  # [G, >= D] int64, out
    seq_lens: Tensor,  # [>= B] int32, out
    sample_rows: Tensor,  # [B, K] int64, out
    block_sizes: tuple[int, ...],  # G
    mask_token_id: int,
    vocab_size: int,
    max_model_len: int,
    caches_masks: bool,
    features: FeatureRows | None,
) -> None:
    """Lay out one draft forward: for each request its pending tokens, then K - 1 mask tokens (PARD, arXiv 2504.18583).

    A request owns the rows `query_start_loc[b] : query_start_loc[b + 1]`, a span fixed on the host, at consecutive
    positions. They hold, in this order, the tokens whose draft K/V is missing (accepted drafts and the bonus token, or
    the prompt chunk), the mask tokens, and padding, which writes no K/V and whose output is never read. A span that is
    too short for the masks catches up only, and a later forward of the same step goes on where it ended.

    Of its target rows, `target_query_start_loc[b] : target_query_start_loc[b + 1]`, a request keeps all but
    num_rejected: the first ones (a chain), or those that `kept_rows` names: entry `target_query_start_loc[b] + j` is
    the target row that its j-th kept token lies in.

    `num_draft_kv` counts, per request slot, the leading tokens whose K/V the draft holds. It is clamped to what the
    target has and left at the last token that this forward writes, so rejected drafts, skipped steps and resumed
    requests leave no holes. Mask tokens are never counted; they write K/V only if `caches_masks`, for an attention that
    reads new keys and values from the cache. The draft's layers may lie in several groups of the K/V cache: a token
    counts if every group has a block for it, none does without a group.

    No row beyond those of `input_ids` is written, whatever `query_start_loc` says. A request without rows writes none,
    its `seq_lens` is 0, as of a request that attention has nothing to do for, and its `num_draft_kv` is clamped only.

    With `features` each token reads what the target has computed for the token before it, and mask tokens repeat what
    the newest token reads (PARD-2, arXiv 2605.08632): a row of this step's, or the last kept one of the step before,
    which a slot carries on. What neither has is the row of nothing: before the first token, and where the target has
    not computed the token before, since its keys and values came out of a cache.

    Writes in place: `input_ids`, `positions`, `slot_mappings`, `seq_lens`, `sample_rows` (row whose output predicts
    draft token k, inside the request's span in any case) and `num_draft_kv`. Where a batch is laid out in several
    calls, each takes slices of the requests' tensors; target rows are counted from the first of the whole batch.
    """
    (num_reqs, num_drafts), num_rows = sample_rows.shape, input_ids.shape[0]
    tables = {group: table for group, table in enumerate(block_tables) if table is not None}
    groups = list(tables)
    for req in range(num_reqs):
        row, row_end = (min(int(query_start_loc[i]), num_rows) for i in (req, req + 1))
        span, last_row = max(row_end - row, 0), min(max(row_end - 1, row), num_rows - 1)
        slot = int(request_slots[req]) if req < len(request_slots) else -1
        if slot < 0:
            input_ids[row : row + span] = 0
            positions[row : row + span] = torch.arange(span, dtype=positions.dtype)
            slot_mappings[groups, row : row + span] = PAD_SLOT
            seq_lens[req] = span
            sample_rows[req] = max(min(row, last_row), 0)
            _read_nothing(features, req, slice(row, row + span))
            continue
        target_row, target_end = int(target_query_start_loc[req]), int(target_query_start_loc[req + 1])
        num_computed = int(target_positions[target_row])
        num_kept = num_computed + target_end - target_row - int(num_rejected[req])
        has_bonus = int(num_sampled[req] > 0)
        num_tokens = num_kept + has_bonus
        last = num_tokens - 1 + has_bonus * max(num_drafts - 1, 0)  # mask token
        start = max(min(int(num_draft_kv[slot]), num_tokens - 1, max_model_len - span), 0)

        # Where the tokens lie that the target has kept in this step, by position.
        kept = range(target_row, target_row + num_kept - num_computed)
        kept_at = {num_computed + j: i if kept_rows is None else int(kept_rows[i]) for j, i in enumerate(kept)}
        tokens = {position: int(target_input_ids[i]) for position, i in kept_at.items()}
        tokens[num_kept] = int(last_sampled[slot, 0])
        capacities = {group: int(num_blocks[group, slot]) * block_sizes[group] for group in groups}
        for i in range(span):
            position = start + i
            is_token = position < num_tokens
            is_mask = not is_token and position <= last
            old = int(all_token_ids[slot, position])
            token = tokens.get(position, old) if is_token else mask_token_id * is_mask
            input_ids[row + i] = token if token < vocab_size else mask_token_id
            positions[row + i] = position
            for group, table in tables.items():
                writes_kv = (is_token or (is_mask and caches_masks)) and position < capacities[group]
                kv_slot = _kv_slot(table[slot], position, block_sizes[group]) if writes_kv else PAD_SLOT
                slot_mappings[group, row + i] = kv_slot

        seq_lens[req] = start + span if span > 0 else 0
        for k in range(num_drafts):
            sample_rows[req, k] = max(min(row + num_tokens - 1 - start + k, last_row), 0)
        held = min(start + span, num_tokens) if span > 0 else min(int(num_draft_kv[slot]), num_kept)
        num_draft_kv[slot] = min(held, min(capacities.values(), default=0))
        _read_features(features, req, slot, range(row, row + span), start, (num_tokens - 1, last), kept_at)


def _read_features(
    features: FeatureRows | None,
    req: int,
    slot: int,
    rows: range,
    start: int,  # position of the first row
    last: tuple[int, int],  # positions of the last token and of the last mask token
    kept_at: dict[int, int],
) -> None:
    if features is None:
        return
    carried, before_step = features.first_carried + slot, min(kept_at) - 1
    is_carried = before_step >= 0 and int(features.num_carried[slot]) == before_step + 1
    known = kept_at | ({before_step: carried} if is_carried else {})
    for position, row in enumerate(rows, start=start):
        read = known.get(min(position, last[0]) - 1, features.nothing)
        features.rows[row] = read if position <= last[1] else features.nothing
    features.carries[req, 0] = kept_at[max(kept_at)]
    features.carries[req, 1] = carried
    features.num_carried[slot] = max(kept_at) + 1


def _read_nothing(features: FeatureRows | None, req: int, rows: slice) -> None:
    if features is not None:
        features.rows[rows] = features.nothing
        features.carries[req] = features.nothing


def _kv_slot(blocks: Tensor, position: int, block_size: int) -> int:
    """Where a position's K/V goes; block 0 is the null block."""
    block = int(blocks[position // block_size])
    return block * block_size + position % block_size if block != 0 else PAD_SLOT
