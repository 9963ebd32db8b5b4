"""Adapters (LoRA) of the target on model runner V2, where a request has a row of logits for each draft it verifies."""

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm.v1.worker.gpu.lora_utils import LoraState


class VerifiedRowsLoraState(LoraState):
    """vLLM's counts one row of logits a request, so that its lm_head would adapt drafted tokens by the wrong adapter.

    https://github.com/vllm-project/vllm/pull/21068 mended the same on model runner V1.
    """

    def __init__(self, max_num_reqs: int) -> None:
        super().__init__(max_num_reqs)
        self.num_drafts: dict[str, int] = {}

    def schedule(self, drafts: Mapping[str, Sized]) -> None:
        """Note what the next step verifies, by request."""
        self.num_drafts = {request_id: len(tokens) for request_id, tokens in drafts.items()}

    def make_lora_inputs(
        self,
        req_ids: list[str],
        idx_mapping: NDArray[np.signedinteger[Any]],
        num_scheduled_tokens: NDArray[np.signedinteger[Any]],
    ) -> Any:
        """Adapter of each row of logits, adapter of each token, and the adapters themselves."""
        _, of_tokens, active = super().make_lora_inputs(req_ids, idx_mapping, num_scheduled_tokens)
        num_rows = [1 + self.num_drafts.get(request_id, 0) for request_id in req_ids]
        return tuple(self.lora_ids[idx_mapping].repeat(num_rows)), of_tokens, active
