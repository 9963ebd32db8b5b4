"""Triton kernels of PARD's step, each with a torch twin of the same name and signature in `reference`.

This package depends on torch and Triton only; it knows nothing of vLLM or vllm_pard.
"""

from pard_kernels.attention_launch import Workspace, choose_num_splits, workspace
from pard_kernels.lm_head_top_k import lm_head_top_k, top_k_workspace
from pard_kernels.merge_attention_splits import merge_attention_splits
from pard_kernels.merge_top_k import TopK, merge_top_k
from pard_kernels.prepare_draft_inputs import prepare_draft_inputs
from pard_kernels.speculative_attention import speculative_attention
from pard_kernels.timing import median_milliseconds

__all__ = [
    "TopK",
    "Workspace",
    "choose_num_splits",
    "lm_head_top_k",
    "median_milliseconds",
    "merge_attention_splits",
    "merge_top_k",
    "prepare_draft_inputs",
    "speculative_attention",
    "top_k_workspace",
    "workspace",
]
