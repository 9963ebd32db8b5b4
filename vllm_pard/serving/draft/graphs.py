"""CUDA graphs of draft steps: the forward and the sampling of a step are one launch."""

from typing import Any

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.dflash.cudagraph import DFlashCudaGraphManager

logger = init_logger("vllm.vllm_pard")


def graph_mode(wanted: CUDAGraphMode, attention: Any, *, enforce_eager: bool) -> CUDAGraphMode:
    """The mode of the draft's graphs, from the target's mode and from what the draft's attention supports."""
    if enforce_eager or wanted.decode_mode() != CUDAGraphMode.FULL:
        return CUDAGraphMode.NONE
    if attention.min_cg_support.value < AttentionCGSupport.UNIFORM_BATCH.value:
        logger.warning(
            "PARD: the draft's attention (%s) can't be captured in full CUDA graphs; the draft runs eagerly",
            attention.min_cg_attn_backend,
        )
        return CUDAGraphMode.NONE
    return CUDAGraphMode.FULL_DECODE_ONLY


class DraftGraphs(DFlashCudaGraphManager):
    """A FULL graph for every batch size that the target has one for, and every K: 2K rows a request.

    2K rows hold any step after a step that drafted K tokens: K kept drafts at most, the bonus, K - 1 masks. A request
    that needs fewer fills up with padding. What does not fit, such as a prefill, is left to an eager forward.
    """

    def __init__(self, vllm_config: Any, device: torch.device, mode: CUDAGraphMode) -> None:
        self._by_step: dict[tuple[int, int], BatchExecutionDescriptor] = {}  # (requests, K)
        super().__init__(vllm_config, device, mode, decode_query_len=2 * vllm_config.num_speculative_tokens)

    def find(self, num_reqs: int, num_drafts: int, widest: int) -> BatchExecutionDescriptor | None:
        """The smallest graph for so many requests with K drafts, of which none needs more than `widest` rows."""
        shape = self._by_step.get((num_reqs, num_drafts))
        return shape if shape in self.graphs and widest <= 2 * num_drafts else None

    def _init_candidates(self) -> None:
        """Fill the list of what upstream's `capture` captures, from the largest down."""
        if not self.cudagraph_mode:
            return
        sizes = self._batch_sizes()
        for num_reqs, num_drafts in enumerate(self._schedule(max(sizes, default=0)), start=1):
            size = min(size for size in sizes if size >= num_reqs)
            width = 2 * num_drafts
            max_num_rows = self.vllm_config.scheduler_config.max_num_batched_tokens
            if num_drafts == 0 or width > self.vllm_config.model_config.max_model_len or size * width > max_num_rows:
                continue
            self._by_step[num_reqs, num_drafts] = BatchExecutionDescriptor(
                cg_mode=CUDAGraphMode.FULL, num_tokens=size * width, num_reqs=size, uniform_token_count=width
            )
        shapes = sorted(set(self._by_step.values()), key=lambda shape: shape.num_tokens, reverse=True)
        if shapes:
            self._capture_descs[CUDAGraphMode.FULL] = shapes

    def _batch_sizes(self) -> list[int]:
        """Numbers of requests that the target's own decode graphs are made for."""
        rows = 1 + self.vllm_config.num_speculative_tokens
        sizes = {-(-size // rows) for size in self.compilation_config.cudagraph_capture_sizes or ()}
        return sorted(size for size in sizes if size <= self.max_num_reqs)

    def _schedule(self, largest: int) -> list[int]:
        """K for each number of requests from 1 to `largest`."""
        spec = self.vllm_config.speculative_config
        if largest == 0 or not spec.uses_dynamic_speculative_decoding():
            return [spec.num_speculative_tokens] * largest
        schedule = build_dynamic_sd_schedule_lookup(
            spec.num_speculative_tokens_per_batch_size, largest, spec.num_speculative_tokens
        )
        return list(schedule[1:])
