"""Triton kernels of PARD's step: a folder an op, with its kernel, its launch, its checks and its torch twin.

This package depends on torch and Triton only; it knows nothing of vLLM or vllm_pard.
"""

from pard_kernels.lm_head_top_k.launch import lm_head_top_k, top_k_workspace, warm_up_lm_head_top_k
from pard_kernels.lm_head_top_k.merge_top_k import TopK, merge_top_k
from pard_kernels.prepare_draft_inputs.launch import prepare_draft_inputs
from pard_kernels.speculative_attention.launch import speculative_attention, warm_up_attention
from pard_kernels.speculative_attention.launch_shape import Workspace, choose_num_splits, workspace
from pard_kernels.speculative_attention.merge_attention_splits import merge_attention_splits
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
    "warm_up_attention",
    "warm_up_lm_head_top_k",
    "workspace",
]
