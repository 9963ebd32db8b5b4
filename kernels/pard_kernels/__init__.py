"""Triton kernels of PARD's step, each with a torch twin of the same name and signature in `reference`.

This package depends on torch and Triton only; it knows nothing of vLLM or vllm_pard.
"""

from pard_kernels.prepare_draft_inputs import prepare_draft_inputs

__all__ = ["prepare_draft_inputs"]
