"""Drafting on model runner V1, for machines without Triton: vLLM's own parallel drafting, made right for PARD."""
