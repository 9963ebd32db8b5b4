"""A forward of the draft over requests of a step that follow one another: eager, in pieces, or a graph.

B requests · D draft rows · H hidden size
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from vllm_pard.serving.attention.metadata import takes
from vllm_pard.serving.draft.attention import DraftAttention
from vllm_pard.serving.draft.graphs import DraftGraphs
from vllm_pard.serving.draft.model import DraftModel
from vllm_pard.serving.draft.rows import DraftRows, DraftStep

IntArray = NDArray[np.int32]
NO_SLOT = -1


class DraftForward:
    """Lays out rows, builds the attention's metadata and runs the model. Its parts come as vLLM makes them known."""

    def __init__(self, rows: DraftRows, depth: int, max_model_len: int) -> None:
        self.rows = rows
        self.depth = depth  # the largest K
        self.max_model_len = max_model_len
        self.model: DraftModel
        self.attention: DraftAttention | None = None  # known once the K/V cache is
        self.graphs: DraftGraphs | None = None

    def run(self, step: DraftStep, spans: IntArray, first: int) -> Tensor:
        """Run `spans[b]` rows of each request from `first` on, by a piecewise graph if one fits. Returns [D, H]."""
        query_start_loc = np.concatenate(([0], np.cumsum(spans))).astype(np.int32)
        num_rows = int(query_start_loc[-1])
        starts = self.rows.starts(query_start_loc)
        self.rows.lay_out(step, starts, num_rows, first=first, caches_masks=self._caches_masks(int(spans.max())))
        if not step.has_attention:
            return self.run_rows(num_rows, None, None, CUDAGraphMode.NONE)
        assert self.attention is not None
        shape = self.graphs.find_piecewise(num_rows) if self.graphs is not None else None
        mode, num_padded = (CUDAGraphMode.NONE, num_rows) if shape is None else (shape.cg_mode, shape.num_tokens)
        self.attention.block_tables.slot_mappings[:, num_rows:num_padded].fill_(NO_SLOT)
        metadata = self._metadata(step, query_start_loc, first, num_rows)
        return self.run_rows(num_padded, metadata, self.attention.slot_mappings(num_padded), mode)

    def find_graph(
        self, spans: IntArray, num_decodes: int, num_drafts: int, *, may_split: bool
    ) -> BatchExecutionDescriptor | None:
        """The FULL graph for the first requests of a step (see graphs.py for when it pays)."""
        if self.graphs is None or num_decodes == 0:
            return None
        if num_decodes < len(spans) and (not may_split or self.graphs.find_piecewise(int(spans.sum())) is not None):
            return None
        return self.graphs.find(num_decodes, num_drafts)

    @staticmethod
    def num_decodes(spans: IntArray, num_drafts: int) -> int:
        """How many of the first requests need no more than 2K rows."""
        is_wide = spans > 2 * num_drafts
        return int(is_wide.argmax()) if is_wide.any() else len(spans)

    def replay(self, step: DraftStep, shape: BatchExecutionDescriptor) -> None:
        """Fill the rows of a graph with the first requests of the step and launch it."""
        assert self.attention is not None
        assert self.graphs is not None
        width = shape.uniform_token_count
        starts = self.rows.uniform_starts(shape.num_reqs, width)
        self.rows.lay_out(step, starts, shape.num_tokens, first=0, caches_masks=self._caches_masks(width))
        if not self.attention.refreshes:
            query_start_loc = np.arange(shape.num_reqs + 1, dtype=np.int32) * width
            self.rows.starts(query_start_loc)
            self._metadata(step, query_start_loc, 0, shape.num_tokens)  # in buffers that the graph reads
        self.graphs.run_fullgraph(shape)

    def run_captured(
        self,
        num_reqs: int,
        num_rows: int,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        mode: CUDAGraphMode,
    ) -> Tensor:
        """What graphs hold: a FULL one metadata of 2K rows a request and the model. Returns [D, H]."""
        if metadata is not None:
            assert self.attention is not None
            starts = self.rows.uniform_starts(num_reqs, num_rows // num_reqs)
            self.rows.buffers.query_start_loc[: num_reqs + 1].copy_(starts)
            if self.attention.refreshes:
                self.attention.refresh(metadata)
        return self.run_rows(num_rows, metadata, slot_mappings, mode)

    def run_rows(
        self,
        num_rows: int,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        mode: CUDAGraphMode,
    ) -> Tensor:
        """The model over the first rows of the buffers. Returns [D, H]."""
        buffers = self.rows.buffers
        return self.model.forward(
            buffers.input_ids[:num_rows], buffers.positions[:num_rows], metadata, slot_mappings, mode
        )

    def _caches_masks(self, widest: int) -> bool:
        """Our kernel reads new keys and values from the layer, so those of mask tokens need no slots."""
        return not (self.attention is not None and self.attention.is_ours and takes(widest))

    def _metadata(self, step: DraftStep, query_start_loc: IntArray, first: int, num_rows: int) -> dict[str, Any]:
        assert self.attention is not None
        num_reqs = len(query_start_loc) - 1
        upper_bound = torch.zeros(num_reqs, dtype=torch.int32)
        of_step = step.batch.seq_lens_cpu_upper_bound[first : step.batch.num_reqs][:num_reqs]
        upper_bound[: len(of_step)] = (of_step + self.depth).clamp(max=self.max_model_len)
        return self.attention.build(
            query_start_loc,
            first=first,
            num_rows=num_rows,
            longest=int(upper_bound.max()),
            seq_lens_upper_bound=upper_bound,
        )
