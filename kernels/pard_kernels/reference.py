"""The torch twin of every kernel, by the kernel's name: the definition that it is tested against."""

from pard_kernels.lm_head_top_k.reference import lm_head_top_k, merge_top_k
from pard_kernels.prepare_draft_inputs.reference import prepare_draft_inputs
from pard_kernels.speculative_attention.reference import merge_attention_splits, speculative_attention

__all__ = [
    "lm_head_top_k",
    "merge_attention_splits",
    "merge_top_k",
    "prepare_draft_inputs",
    "speculative_attention",
]
