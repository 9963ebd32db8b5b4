"""Settings of the processor that training runs on."""

from __future__ import annotations

import os

import torch

from vllm_pard.conditions import cpu_name

__all__ = ["prepare_processor"]


def prepare_processor(num_threads: int) -> None:
    """Limit the threads and choose MKL's code path; call it before the first matrix product."""
    if "AMD" in cpu_name():
        # MKL 2024 takes a slower path on AMD unless told; fp32 products ran 1.4 times faster on EPYC (Zen 3).
        os.environ.setdefault("MKL_CBWR", "AVX2")
    torch.set_num_threads(num_threads)
