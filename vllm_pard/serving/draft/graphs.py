"""CUDA graphs of draft steps: forward and sampling of a step are one launch, with prompts beside it where they fit.

Chunks of prompts that are not too long take several places of a graph of decodes (places.py). In pieces a forward has
launches of its own for each layer: on an H200 those of a 1B draft took some 8 ms, where its graph took one or two.

Where there is no room for that, decodes and chunks run together or apart. Up to some hundred rows (an H100 does 295
bf16 products in the time of reading one weight) a forward waits for the draft's weights, however many rows it has. So
where all rows fit a piecewise graph they share one forward: a second one would read the weights twice. Beyond, the
chunks compute for as long as several reads take, and the decodes' rows would add their share to that: about one more
read from 295 rows on. Their own graph costs that read and gives them the attention, the head and the launch of steps
without prompts.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.spec_decode.dflash.cudagraph import DFlashCudaGraphManager

from vllm_pard.serving.draft.places import count_places

logger = init_logger("vllm.vllm_pard")


def graph_mode(
    wanted: CUDAGraphMode, *, why_no_decodes: str | None, is_compiled: bool, enforce_eager: bool
) -> CUDAGraphMode:
    """Which graphs the draft gets, from the target's mode and from what the draft's attention and code allow."""
    if enforce_eager:
        return CUDAGraphMode.NONE
    has_decodes = wanted.decode_mode() == CUDAGraphMode.FULL
    if has_decodes and why_no_decodes is not None:
        logger.warning("PARD: no CUDA graphs of whole draft steps: %s", why_no_decodes)
        has_decodes = False
    has_pieces = is_compiled and wanted.has_piecewise_cudagraphs()
    if has_decodes:
        return CUDAGraphMode.FULL_AND_PIECEWISE if has_pieces else CUDAGraphMode.FULL_DECODE_ONLY
    return CUDAGraphMode.PIECEWISE if has_pieces else CUDAGraphMode.NONE


class DraftGraphs(DFlashCudaGraphManager):
    """FULL graphs for every batch size that the target has one for, and every K; piecewise ones by number of rows.

    A FULL graph has 2K rows a request. They hold any step after a step that drafted K tokens: K kept drafts at most,
    the bonus, K - 1 masks. A request that needs fewer fills up with padding.
    """

    def __init__(self, vllm_config: Any, device: torch.device, mode: CUDAGraphMode, depth: int) -> None:
        """`mode` says which kinds to capture; `depth` is the largest K."""
        self.depth = depth
        super().__init__(vllm_config, device, mode, decode_query_len=2 * depth)

    @property
    def numbers_of_drafts(self) -> list[int]:
        """How many draft tokens each FULL graph samples, B * K."""
        return [shape.num_tokens // 2 for shape in self._capture_descs.get(CUDAGraphMode.FULL, ())]

    def find(self, num_reqs: int, num_drafts: int) -> BatchExecutionDescriptor | None:
        """The smallest FULL graph for so many requests with K drafts and at most 2K rows each."""
        fitting = [s for s in self.graphs if s.uniform_token_count == 2 * num_drafts and s.num_reqs >= num_reqs]
        return min(fitting, key=lambda shape: shape.num_reqs, default=None)

    def find_room(self, spans: NDArray[np.int32], num_drafts: int) -> BatchExecutionDescriptor | None:
        """The FULL graph of fewest rows in whose places so many have room, for K drafts or, without any, of any K."""
        widths = {2 * num_drafts} if num_drafts > 0 else {shape.uniform_token_count for shape in self.graphs} - {None}
        rooms = [self.find(int(count_places(spans, width).sum()), width // 2) for width in widths]
        return min(filter(None, rooms), key=lambda shape: shape.num_tokens, default=None)

    @property
    def piecewise(self) -> list[BatchExecutionDescriptor]:
        """The piecewise graphs that were captured."""
        return list(self._capture_descs.get(CUDAGraphMode.PIECEWISE, ())) if self._graphs_captured else []

    def find_piecewise(self, num_rows: int) -> BatchExecutionDescriptor | None:
        """The smallest piecewise graph for so many rows."""
        fitting = [shape for shape in self.piecewise if shape.num_tokens >= num_rows]
        return min(fitting, key=lambda shape: shape.num_tokens, default=None)

    def capture_steps(self, speculator: Any, graph_step: Callable[..., None]) -> None:
        """Capture what is planned, in the buffers that the speculator fills."""
        self.capture(
            graph_step,
            speculator.input_buffers,
            speculator.block_tables,
            speculator.attn_groups,
            speculator.kv_cache_config,
            speculator.max_model_len,
            causal=True,
            prepare_forward=lambda *_: None,  # it is told no number of rows
            progress_bar_desc="Capturing CUDA graphs of the PARD draft",
        )

    def _init_candidates(self) -> None:
        """Fill the lists of what upstream's `capture` captures, from the largest down."""
        if self.cudagraph_mode.decode_mode() == CUDAGraphMode.FULL:
            self._plan_decodes()
        if self.cudagraph_mode.mixed_mode() == CUDAGraphMode.PIECEWISE:
            self._plan_pieces()

    def _plan_pieces(self) -> None:
        """Few of the target's sizes, each half of the next at most: where weights are waited for, padding is free."""
        largest, shapes = self.vllm_config.scheduler_config.max_num_batched_tokens, []
        for size in sorted(self.compilation_config.cudagraph_capture_sizes or (), reverse=True):
            if 2 * self.depth <= size <= largest:
                shapes.append(BatchExecutionDescriptor(cg_mode=CUDAGraphMode.PIECEWISE, num_tokens=size, num_reqs=None))
                largest = size // 2
        if shapes:
            self._capture_descs[CUDAGraphMode.PIECEWISE] = shapes

    def _plan_decodes(self) -> None:
        sizes = self._batch_sizes()
        max_num_rows = self.vllm_config.scheduler_config.max_num_batched_tokens
        shapes = set()
        for num_reqs, numbers in enumerate(self._numbers_of_drafts(max(sizes, default=0)), start=1):
            size = min(size for size in sizes if size >= num_reqs)
            for width in (2 * number for number in numbers if number > 0):
                if width > self.vllm_config.model_config.max_model_len or size * width > max_num_rows:
                    continue
                shapes.add(
                    BatchExecutionDescriptor(
                        cg_mode=CUDAGraphMode.FULL, num_tokens=size * width, num_reqs=size, uniform_token_count=width
                    )
                )
        if shapes:
            self._capture_descs[CUDAGraphMode.FULL] = sorted(shapes, key=lambda s: s.num_tokens, reverse=True)

    def _batch_sizes(self) -> list[int]:
        """Of requests: those that the target's own decode graphs are made for, and as many rows of the draft."""
        of_target = 1 + self.vllm_config.num_speculative_tokens
        widths = of_target, min(of_target, 2 * self.depth)  # trees have more
        captured = self.compilation_config.cudagraph_capture_sizes or ()
        sizes = {-(-size // width) for size in captured for width in widths}
        return sorted(size for size in sizes if size <= self.max_num_reqs)

    def _numbers_of_drafts(self, largest: int) -> list[set[int]]:
        """Each K that steps of 1 to `largest` requests may have; a tree's nodes may be more, its depth is not."""
        spec = self.vllm_config.speculative_config
        if spec.lengths:  # whatever is chosen
            numbers = [set(spec.lengths)] * largest
        elif largest > 0 and spec.uses_dynamic_speculative_decoding():
            schedule = build_dynamic_sd_schedule_lookup(
                spec.num_speculative_tokens_per_batch_size, largest, spec.num_speculative_tokens
            )
            numbers = [{number} for number in schedule[1:]]
        else:
            numbers = [{self.depth}] * largest
        return [{min(number, self.depth) for number in of_size} for of_size in numbers]
