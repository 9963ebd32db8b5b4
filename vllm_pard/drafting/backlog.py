"""How many rows a draft forward needs, known on the host without asking the device.

B requests of a step · R request slots
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Int32Array = NDArray[np.int32]


class DraftBacklog:
    """An upper bound, per request slot, on the target's tokens whose K/V the draft lacks.

    The device knows the exact number (`num_draft_kv`); the host needs a bound to size the forward, since under
    asynchronous scheduling it does not yet know how many drafts were rejected. The bound counts from the target's
    computed tokens at the start of a step: 0 when the draft has them all, -1 when it has the bonus token as well,
    more after steps that did not draft.
    """

    def __init__(self, num_slots: int) -> None:
        self._backlog = np.zeros(num_slots, dtype=np.int32)
        self._owner: list[str | None] = [None] * num_slots

    def claim(self, slots: NDArray[np.integer], request_ids: Sequence[str]) -> list[int]:
        """Enter the step's requests; return the slots whose owner is new, where the device's count starts anew."""
        new_slots = []
        for slot, request_id in zip(slots.tolist(), request_ids, strict=True):
            if self._owner[slot] != request_id:
                self._owner[slot] = request_id
                self._backlog[slot] = 0
                new_slots.append(slot)
        return new_slots

    def skip(self, slots: NDArray[np.integer], query_lens: Int32Array, is_prefill: NDArray[np.bool_]) -> None:
        """Record a step without a draft forward."""
        self._backlog[slots] = self._pending(slots, query_lens, is_prefill)

    def plan(
        self,
        slots: NDArray[np.integer],
        query_lens: Int32Array,  # [B]
        is_prefill: NDArray[np.bool_],  # [B]
        will_sample: NDArray[np.bool_],  # [B]
        num_drafts: int,
        max_rows: int,
        max_model_len: int,
    ) -> Iterator[Int32Array]:
        """Yield the spans [B] of each forward of a step: catch-up forwards as needed, then the one that drafts.

        A span holds the pending tokens (bonus included) and, for a request that samples, K - 1 mask tokens. Each
        forward has at most `max_rows` rows; only a backlog left by skipped steps needs more than one.

        Raises ValueError if even the smallest drafting forward does not fit.
        """
        pending = self._pending(slots, query_lens, is_prefill)
        tail = np.where(will_sample, num_drafts, 0).astype(np.int32)

        def spans(pending: Int32Array) -> Int32Array:
            return np.clip(pending + tail, 1, max_model_len).astype(np.int32)

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

    def _pending(self, slots: NDArray[np.integer], query_lens: Int32Array, is_prefill: NDArray[np.bool_]) -> Int32Array:
        # A request that starts or resumes its prefill has no bonus token from before.
        backlog = np.maximum(self._backlog[slots], np.where(is_prefill, 0, -1))
        return (backlog + query_lens).astype(np.int32)

    @staticmethod
    def _share(pending: Int32Array, max_rows: int) -> Int32Array:
        """Give every request one row and the rest of the rows to the first that can use them. [B] -> [B]"""
        wanted = np.maximum(pending - 1, 1)
        before = np.concatenate(([0], np.cumsum(wanted - 1)[:-1]))
        spare = max_rows - len(pending)
        return (1 + np.clip(spare - before, 0, wanted - 1)).astype(np.int32)
