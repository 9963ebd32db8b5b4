"""The torch twin of every kernel, by the kernel's name: the definition that it is tested against."""

from pard_kernels.accept_tree_path.reference import accept_tree_path
from pard_kernels.add_target_features.reference import add_target_features
from pard_kernels.build_draft_tree.reference import build_draft_tree
from pard_kernels.compact_tree_kv.reference import compact_tree_kv
from pard_kernels.keep_tree_rows.reference import keep_tree_rows
from pard_kernels.lm_head_top_k.reference import lm_head_top_k, merge_top_k
from pard_kernels.place_tree_rows.reference import place_tree_rows
from pard_kernels.prepare_draft_inputs.reference import prepare_draft_inputs
from pard_kernels.speculative_attention.reference import merge_attention_splits, speculative_attention

__all__ = [
    "accept_tree_path",
    "add_target_features",
    "build_draft_tree",
    "compact_tree_kv",
    "keep_tree_rows",
    "lm_head_top_k",
    "merge_attention_splits",
    "merge_top_k",
    "place_tree_rows",
    "prepare_draft_inputs",
    "speculative_attention",
]
