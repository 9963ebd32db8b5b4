"""Which rows of the target's step its requests keep: the twin that the kernel is tested against.

B requests · S request slots · W most rows of a path · T rows of all requests
"""

from itertools import pairwise

import torch
from torch import Tensor


def keep_tree_rows(
    *,
    kept_rows: Tensor,  # [T] int32, out
    row_starts: Tensor,  # [B + 1] int32
    logit_starts: Tensor,  # [B + 1] int32
    request_slots: Tensor,  # [>= B] int32 or int64
    accepted_rows: Tensor,  # [S, W] int32
    num_sampled: Tensor,  # [>= B] int32
) -> None:
    """For each row of the step the row whose token stands there once the step is over.

    Request b has the rows `row_starts[b] : row_starts[b + 1]`. If it had drafts verified, more than one row of logits
    (`logit_starts`), the i-th of its `num_sampled[b]` kept rows is row `accepted_rows[slot, i]` of the request: the
    root, then the accepted nodes. Rows of other requests, and what lies behind a path, stay themselves. What belongs
    to no request is not written.
    """
    for req, ((start, stop), (first, end)) in enumerate(
        zip(pairwise(row_starts.tolist()), pairwise(logit_starts.tolist()), strict=True)
    ):
        kept_rows[start:stop] = torch.arange(start, stop, dtype=torch.int32, device=kept_rows.device)
        slot = int(request_slots[req])
        if end - first > 1 and slot >= 0:
            num_kept = min(int(num_sampled[req]), accepted_rows.shape[1], stop - start)
            kept_rows[start : start + num_kept] = start + accepted_rows[slot, :num_kept]
