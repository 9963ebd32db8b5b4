"""What the cache holds once a tree's accepted nodes are compacted: the twin that the kernel is tested against.

B requests · S request slots · L layers of the group · W most tokens that a request can be given
"""

from torch import Tensor


def compact_tree_kv(
    *,
    caches: list[Tensor],  # each [num_parts, num_blocks, block_size, num_heads, head_size], in and out
    block_table: Tensor,  # [S, max_blocks] int32
    block_size: int,
    request_slots: Tensor,  # [>= B] int32 or int64, -1 for a request that must not be touched
    num_computed: Tensor,  # [S] int32, tokens that a slot's request has in the cache, with those of this step
    accepted_rows: Tensor,  # [S, W] int32
    num_sampled: Tensor,  # [B] int32
) -> None:
    """Move keys and values of accepted nodes behind those of the root, in all layers of one group of the K/V cache.

    Row r of request b, the root being row 0, was written at place `f + r`, where f is `num_computed[slot] -
    num_sampled[b]` and slot is `request_slots[b]`; place p is slot `p % block_size` of block
    `block_table[slot, p // block_size]`. Row `accepted_rows[slot, d]`, for d from 1 to `num_sampled[b] - 1`, is the
    token at position `f + d` and goes to this place. A row that is
    there already is not touched. Bytes are copied, of any dtype; keys keep the rotary positions that their nodes'
    depths have given them.

    No copy destroys what another one of the request has yet to read, if copies are done in the order of d, or several
    are read before they are written: rows rise, so `accepted_rows[slot, d] >= d`, and copy d writes place d, while the
    copies behind it read from places beyond d. Other requests' copies do not meet it: no two requests share a block
    that is written. For the same reason, from the first row that moves on, all move.

    Nothing is copied from or to a place that the block table does not reach or that is in block 0, vLLM's null block.
    W bounds `num_sampled`; at most the first 64 entries count.

    The kernel takes, in place of `caches`, `cache_addresses` ([L] int64 on the device: each layer's `data_ptr()`) and
    `layout` (a `CacheLayout`).
    """
    for req, count in enumerate(num_sampled.tolist()):
        slot = int(request_slots[req])
        rows = accepted_rows[slot, :count].tolist()
        moves = [(row, depth) for depth, row in enumerate(rows) if row > depth > 0] if slot >= 0 else []
        first = int(num_computed[slot]) - count
        places = [[_place(block_table[slot], first + i, block_size) for i in move] for move in moves]
        reached = [(source, place) for source, place in places if source[0] != 0 and place[0] != 0]
        for cache in caches if reached else []:
            # All is read before anything is written.
            moved = [cache[:, block, i].clone() for (block, i), _ in reached]
            for values, (_, (block, i)) in zip(moved, reached, strict=True):
                cache[:, block, i] = values


def _place(blocks: Tensor, position: int, block_size: int) -> tuple[int, int]:
    """Block and slot in it; block 0 where there is none."""
    i = position // block_size
    return int(blocks[i]) if i < len(blocks) else 0, position % block_size
