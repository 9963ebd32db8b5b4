"""How many rows a draft forward needs, known on the host without asking the device.

B requests of a step · R request slots
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.signedinteger[Any]]
BoolArray = NDArray[np.bool_]


class DraftBacklog:
    """An upper bound, per request slot, on the target's tokens whose K/V the draft lacks.

    The device knows the exact number (`num_draft_kv`); the host needs a bound to size the forward, since under
    asynchronous scheduling it does not yet know how many drafts were rejected. The bound counts from the target's
    computed tokens at the start of a step: 0 when the draft has them all, -1 when it has the bonus token as well,
    more after steps that did not draft.
    """

    def __init__(self, num_slots: int) -> None:
        self._backlog = np.zeros(num_slots, dtype=np.int32)
        self._owner = np.empty(num_slots, dtype=object)  # names of requests
        self._reached = np.zeros(num_slots, dtype=np.int32)

    def enter(
        self,
        slots: IntArray,  # [B]
        request_ids: Sequence[str],  # [B]
        num_computed: IntArray,  # [B], exact for a request in its prefill, else at least what the target has
        query_lens: IntArray,  # [B]
        is_prefill: BoolArray,  # [B]
        will_sample: BoolArray,  # [B]
    ) -> BoolArray:
        """Enter a step's requests; tell which start or resume, where the device's count must start anew. [B]

        A resumed request prefills again from a point before the one that it had reached.
        """
        names = np.array(request_ids, dtype=object)
        is_new: BoolArray = (self._owner[slots] != names) | (is_prefill & (num_computed < self._reached[slots]))
        self._owner[slots] = names
        self._backlog[slots[is_new]] = 0
        self._reached[slots] = num_computed + query_lens + will_sample
        return is_new

    def skip(self, slots: IntArray, query_lens: IntArray) -> None:
        """Record a step without a draft forward."""
        self._backlog[slots] += query_lens

    def plan(
        self,
        slots: IntArray,  # [B]
        query_lens: IntArray,  # [B]
        will_sample: BoolArray,  # [B]
        num_drafts: int,
        max_rows: int,
        max_model_len: int,
    ) -> Iterator[IntArray]:
        """Yield the spans [B] of each forward of a step: catch-up forwards as needed, then the one that drafts.

        A span holds the pending tokens (bonus included) and, for a request that samples, K - 1 mask tokens. Each
        forward has at most `max_rows` rows; only a backlog left by skipped steps needs more than one.

        Raises ValueError if even the smallest drafting forward does not fit.
        """
        pending = self._backlog[slots] + query_lens
        tail = np.where(will_sample, num_drafts, 0)

        def spans(pending: IntArray) -> IntArray:  # [B] -> [B]
            fitted: IntArray = np.clip(pending + tail, 1, max_model_len).astype(np.int32)
            return fitted

        caught_up = np.minimum(pending, 1)
        if (smallest := int(spans(caught_up).sum())) > max_rows:
            raise ValueError(
                f"a draft forward for {len(slots)} requests with {num_drafts} draft tokens each needs {smallest} rows; "
                f"max_num_batched_tokens={max_rows} allows fewer: raise it, or lower num_speculative_tokens"
            )
        while int(spans(pending).sum()) > max_rows:
            rows = self._share(pending, max_rows)
            yield rows
            pending = np.maximum(pending - rows, caught_up)
        yield spans(pending)
        self._backlog[slots] = np.where(will_sample, -1, 0)

    @staticmethod
    def _share(pending: IntArray, max_rows: int) -> IntArray:
        """Give every request one row and the rest of the rows to the first that can use them. [B] -> [B]"""
        wanted = np.maximum(pending - 1, 1)
        before = np.concatenate(([0], np.cumsum(wanted - 1)[:-1]))
        spare = max_rows - len(pending)
        rows: IntArray = (1 + np.clip(spare - before, 0, wanted - 1)).astype(np.int32)
        return rows
