"""Verification on model runner V1: vLLM's own, where there is something to verify."""

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
from vllm.v1.sample.rejection_sampler import RejectionSampler


class PardRejectionSampler(RejectionSampler):
    """With `logprob_token_ids` of the requests that ask for them, which vLLM gives without drafts only."""

    def forward(self, metadata: Any, draft_probs: Tensor | None, logits: Tensor, sampling_metadata: Any) -> Any:
        """Verify the drafts; where a request names tokens, all of the batch get those instead of the likeliest.

        A step without drafts has one row of logits a request, and is sampled as in plain vLLM: without copies.
        """
        if metadata.max_spec_len == 0:
            return self.sampler(logits=logits, sampling_metadata=sampling_metadata)
        wanted = sampling_metadata.logprob_token_ids
        if not wanted:
            return super().forward(metadata, draft_probs, logits, sampling_metadata)
        num_rows = metadata.max_spec_len + 1  # of each request: its drafts and the bonus
        of_rows = {request * num_rows + row: ids for request, ids in wanted.items() for row in range(num_rows)}
        self.sampler.gather_logprobs = partial(_gather, self.sampler, of_rows)
        try:
            asks_for_some = replace(sampling_metadata, logprob_token_ids=None, max_num_logprobs=0)
            return super().forward(metadata, draft_probs, logits, asks_for_some)
        finally:
            del self.sampler.gather_logprobs


def _gather(sampler: Any, of_rows: dict[int, list[int]], logprobs: Tensor, num_logprobs: int, token_ids: Tensor) -> Any:
    return sampler.gather_specific_token_logprobs(logprobs, of_rows, token_ids)
