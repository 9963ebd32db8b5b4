"""Trees in the slot of vLLM's rejection sampler: each row has its token drawn, and the path follows them.

A row's draw is keyed by its position, as in plain decoding, and one row of a position is on the path. So a seeded
request gets the tokens that it gets without drafts.

B requests · N nodes of a tree · R rows of logits · V vocabulary
"""

from typing import Any

import torch
from pard_kernels import accept_tree_path
from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_pard.serving.tree.trees import Trees
from vllm_pard.serving.verification.named_logprobs import NamedLogprobsRejectionSampler


class TreeRejectionSampler(NamedLogprobsRejectionSampler):
    """Verifies each request's tree; of one that is chain-only, the main chain."""

    trees: Trees
    _slots: Tensor  # [B] of the requests that were verified last

    def __call__(self, logits: Tensor, input_batch: InputBatch, *args: Any, **kwargs: Any) -> SamplerOutput:
        """Verify a batch whose forward is over."""
        self.trees.straighten(input_batch)
        return super().__call__(logits, input_batch, *args, **kwargs)

    def _verify(
        self,
        logits: Tensor,  # [R, V]
        draft_logits: Tensor | None,
        draft_sampled: Tensor,  # [R]
        pos: Tensor,  # [R], as of a chain
        cu_num_logits: Tensor,  # [B + 1]
        idx_mapping: Tensor,  # [B]
        idx_mapping_np: Any,
        expanded_idx_mapping: Tensor,  # [R]
        expanded_local_pos: Tensor,  # [R], rows within their request
        seq_lens_upper_bound_np: Any,
        verify_draft_sampled: Tensor,  # [R]
    ) -> tuple[Tensor, Tensor, Tensor]:
        trees, sampler = self.trees, self.sampler
        trees.place_logits(pos, cu_num_logits, idx_mapping)
        processed_logits = sampler.apply_sampling_params(
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
        )
        drawn = gumbel_sample(
            processed_logits,
            expanded_idx_mapping,
            sampler.sampling_states.temperature.gpu,
            sampler.sampling_states.seeds.gpu,
            pos,
            apply_temperature=False,
            is_drafting=False,
            use_fp64=sampler.use_fp64_gumbel,
        )
        self._slots = idx_mapping
        return processed_logits, *self._follow(drawn, verify_draft_sampled, cu_num_logits, idx_mapping)

    def _follow(
        self, drawn: Tensor, draft_sampled: Tensor, cu_num_logits: Tensor, slots: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens, and how many they are; their rows are kept by slot. [B, N + 1], [B]"""
        trees, num_reqs = self.trees, len(slots)
        sampled = drawn.new_zeros(num_reqs, trees.num_nodes + 1, dtype=torch.int64)
        num_sampled = torch.empty(num_reqs, dtype=torch.int32, device=drawn.device)
        accept_tree_path(
            target_token_ids=drawn,
            draft_token_ids=draft_sampled,
            row_starts=cu_num_logits,
            parents=trees.parents,
            is_chain_only=trees.is_chain_only,
            request_slots=slots,
            token_ids=sampled,
            accepted_rows=trees.accepted_rows,
            num_sampled=num_sampled,
        )
        return sampled, num_sampled

    def _get_logprobs_tensors(
        self, sampled: Tensor, num_sampled: Tensor, logits: Tensor, cu_num_logits: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Of the rows on the path, which vLLM takes to be a request's first ones."""
        accepted = self.trees.accepted_rows[self._slots]  # [B, N + 1]
        starts, places = cu_num_logits[:-1, None], torch.arange(accepted.shape[1], device=logits.device)
        order = torch.arange(len(logits) + 1, device=logits.device)  # the last is for what is not on the path
        index = torch.where(places < num_sampled[:, None], starts + places, len(logits))  # [B, N + 1]
        order[index] = (starts + accepted).long()
        rows = order[:-1]
        return super()._get_logprobs_tensors(sampled, num_sampled, logits[rows], cu_num_logits, *args, **kwargs)
