"""Triton kernels of PARD's step: a folder an op, with its kernel, its launch, its checks and its torch twin.

This package depends on torch and Triton only; it knows nothing of vLLM or vllm_pard.
"""

from pard_kernels.accept_tree_path.launch import accept_tree_path
from pard_kernels.add_target_features.launch import add_target_features
from pard_kernels.build_draft_tree.launch import build_draft_tree
from pard_kernels.build_draft_tree.reference import DraftTree, History
from pard_kernels.compact_tree_kv.cache_layout import CacheLayout
from pard_kernels.compact_tree_kv.launch import compact_tree_kv
from pard_kernels.keep_tree_rows.launch import keep_tree_rows
from pard_kernels.lm_head_top_k.launch import lm_head_top_k, top_k_workspace, warm_up_lm_head_top_k
from pard_kernels.lm_head_top_k.merge_top_k import TopK, merge_top_k
from pard_kernels.place_tree_rows.launch import place_tree_rows
from pard_kernels.prepare_draft_inputs.launch import prepare_draft_inputs
from pard_kernels.prepare_draft_inputs.reference import FeatureRows
from pard_kernels.speculative_attention.launch import speculative_attention, warm_up_attention
from pard_kernels.speculative_attention.launch_shape import Workspace, choose_num_splits, workspace
from pard_kernels.speculative_attention.merge_attention_splits import merge_attention_splits
from pard_kernels.timing import median_milliseconds

__all__ = [
    "CacheLayout",
    "DraftTree",
    "FeatureRows",
    "History",
    "TopK",
    "Workspace",
    "accept_tree_path",
    "add_target_features",
    "build_draft_tree",
    "choose_num_splits",
    "compact_tree_kv",
    "keep_tree_rows",
    "lm_head_top_k",
    "median_milliseconds",
    "merge_attention_splits",
    "merge_top_k",
    "place_tree_rows",
    "prepare_draft_inputs",
    "speculative_attention",
    "top_k_workspace",
    "warm_up_attention",
    "warm_up_lm_head_top_k",
    "workspace",
]
