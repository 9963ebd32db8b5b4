"""Log-probabilities of the tokens that a request names (`logprob_token_ids`), for drafted tokens as well.

N verified rows
"""

from typing import Any

from torch import Tensor
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler


class NamedLogprobsRejectionSampler(RejectionSampler):
    """vLLM's, which leaves those tokens out of every step that verifies drafts.

    Under batch-sharded sampling vLLM still drops them when it gathers what its ranks sampled.
    https://github.com/vllm-project/vllm/pull/44727 adds them on model runner V1.
    """

    num_logprobs: int
    max_num_named: int  # tokens that a request of the batch names
    row_slots: Tensor  # [N] of the rows not yet scored

    def __call__(self, logits: Tensor, input_batch: InputBatch, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Verify a batch of drafts."""
        self.num_logprobs, self.max_num_named = self.sampler.get_logprobs_dims(input_batch.idx_mapping_np) or (0, 0)
        self.row_slots = input_batch.expanded_idx_mapping
        return super().__call__(logits, input_batch, *args, **kwargs)

    def _get_logprobs_tensors(
        self,
        sampled: Tensor,
        num_sampled: Tensor,
        logits: Tensor,
        cu_num_logits: Tensor,
        cu_num_logits_np: Any,
        max_num_logprobs: int,
    ) -> LogprobsTensors | None:
        """Score the rows of some requests of the batch, which come in its order."""
        if self.max_num_named == 0:
            return super()._get_logprobs_tensors(
                sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs
            )
        row_slots, self.row_slots = self.row_slots[: len(logits)], self.row_slots[len(logits) :]
        of_sampled = super()._get_logprobs_tensors(
            sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs=0
        )
        assert of_sampled is not None
        scores = compute_topk_scores(
            logits,
            self.num_logprobs,
            of_sampled.logprob_token_ids[:, 0],
            logprob_token_ids_state=self.sampler.logprob_token_ids_state,
            expanded_idx_mapping=row_slots,
            max_per_req_token_ids=self.max_num_named,
            logits_mode=self.sampler.logprobs_mode in ("raw_logits", "processed_logits"),
        )
        return of_sampled._replace(logprob_token_ids=scores.logprob_token_ids, logprobs=scores.logprobs)
