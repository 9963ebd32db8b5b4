"""A forward of the draft over requests of a step that follow one another: eager, in pieces, or a graph.

B requests · D draft rows · H hidden size
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from vllm_pard.serving.attention.metadata import takes
from vllm_pard.serving.draft.attention import DraftAttention
from vllm_pard.serving.draft.graphs import DraftGraphs, graph_mode
from vllm_pard.serving.draft.model import DraftModel
from vllm_pard.serving.draft.places import Places, count_places
from vllm_pard.serving.draft.rows import DraftRows, DraftStep
from vllm_pard.serving.draft.target_features import TargetFeatures

IntArray = NDArray[np.int32]
NO_SLOT = -1


class Read(NamedTuple):
    """Whose rows a forward has, for a draft that reads the target."""

    starts: Tensor  # [B + 1] int32, of the requests' draft rows
    target_rows: slice


def target_rows(step: DraftStep, first: int, num_reqs: int) -> slice:
    """The rows of the target's step that belong to so many requests from `first` on."""
    num_rows = step.batch.num_scheduled_tokens
    start = int(num_rows[:first].sum())
    return slice(start, start + int(num_rows[first : first + num_reqs].sum()))


class DraftForward:
    """Lays out rows, builds the attention's metadata and runs the model. Its parts come as vLLM makes them known."""

    def __init__(self, speculator: Any) -> None:
        """`speculator` has its `rows`, and its `target_features` if it reads any."""
        self.rows: DraftRows = speculator.rows
        self.target_features: TargetFeatures | None = speculator.target_features
        self.depth: int = speculator.depth  # the largest K
        self.max_model_len: int = speculator.max_model_len
        self._num_nodes: int | None = None if speculator.trees is None else speculator.trees.num_nodes
        self.model: DraftModel
        self.attention: DraftAttention | None = None  # known once the K/V cache is
        self.graphs: DraftGraphs | None = None

    def plan_graphs(self, vllm_config: Any, device: torch.device, wanted: CUDAGraphMode) -> None:
        """Plan as many kinds of graphs as the target has, where the draft's attention can be captured."""
        assert self.attention is not None
        mode = graph_mode(
            wanted,
            why_no_decodes=self.attention.why_no_graph(2 * self.depth),
            is_compiled=self.model.is_compiled,
            enforce_eager=bool(vllm_config.speculative_config.enforce_eager),
        )
        self.graphs = DraftGraphs(vllm_config, device, mode, self.depth)

    def run(self, step: DraftStep, spans: IntArray, first: int) -> Tensor:
        """Run `spans[b]` rows of each request from `first` on, by a piecewise graph if one fits. Returns [D, H]."""
        query_start_loc = np.concatenate(([0], np.cumsum(spans))).astype(np.int32)
        num_rows = int(query_start_loc[-1])
        starts = self.rows.starts(query_start_loc)
        self.rows.lay_out(step, starts, num_rows, first=first, caches_masks=self._caches_masks(int(spans.max())))
        read = None if self.target_features is None else Read(starts, target_rows(step, first, len(spans)))
        if not step.has_attention:
            return self.run_rows(num_rows, None, None, CUDAGraphMode.NONE, read)
        assert self.attention is not None
        shape = self.graphs.find_piecewise(num_rows) if self.graphs is not None else None
        mode, num_padded = (CUDAGraphMode.NONE, num_rows) if shape is None else (shape.cg_mode, shape.num_tokens)
        self.attention.block_tables.slot_mappings[:, num_rows:num_padded].fill_(NO_SLOT)
        metadata = self._metadata(step, query_start_loc, num_rows, first=first)
        if self.target_features is not None:
            self.target_features.clear(slice(num_rows, num_padded))
        return self.run_rows(num_padded, metadata, self.attention.slot_mappings(num_padded), mode, read)

    def find_graph(
        self, step: DraftStep, spans: IntArray, num_decodes: int, *, may_split: bool
    ) -> BatchExecutionDescriptor | None:
        """The FULL graph for the first requests of a step (see graphs.py for when it pays)."""
        if self.graphs is None or num_decodes == 0:
            return None
        if num_decodes < len(spans) and (not may_split or self.graphs.find_piecewise(int(spans.sum())) is not None):
            return None
        shape = self.graphs.find(num_decodes, step.num_drafts)
        if shape is None or self.target_features is None:
            return shape
        # Chunks of prompts that draft nothing may have more.
        is_read = target_rows(step, 0, num_decodes).stop <= self._most_target_rows(shape.num_reqs, shape.num_tokens)
        return shape if is_read else None

    @staticmethod
    def num_decodes(spans: IntArray, num_drafts: int) -> int:
        """How many of the first requests need no more than 2K rows."""
        is_wide = spans > 2 * num_drafts
        return int(is_wide.argmax()) if is_wide.any() else len(spans)

    def replay(self, step: DraftStep, shape: BatchExecutionDescriptor, num_decodes: int) -> None:
        """Fill the rows of a graph with the first requests of the step and launch it."""
        assert self.attention is not None
        assert self.graphs is not None
        width = shape.uniform_token_count
        starts = self.rows.uniform_starts(shape.num_reqs, width)
        caches_masks = self._caches_masks(width)
        self.rows.lay_out(step, starts, shape.num_tokens, first=0, stop=num_decodes, caches_masks=caches_masks)
        self._rebuild_metadata(step, shape)
        self.graphs.run_fullgraph(shape)

    def find_places(self, spans: IntArray, num_drafts: int) -> tuple[BatchExecutionDescriptor, Places] | None:
        """The smallest FULL graph with room for requests of which some need more than 2K rows.

        Without drafts that of any K, whose samples are nobody's.
        """
        if self.graphs is None or (num_drafts > 0 and int(spans.max()) <= 2 * num_drafts):
            return None
        shape = self.graphs.find_room(spans, num_drafts)
        if shape is None:
            return None
        counts = count_places(spans, shape.uniform_token_count)
        if int(counts.max()) * shape.uniform_token_count > self.max_model_len:
            return None
        return shape, Places.of(counts, shape.num_reqs, shape.uniform_token_count, self.rows.num_draft_kv.device)

    def replay_places(self, step: DraftStep, shape: BatchExecutionDescriptor, places: Places, first: int) -> None:
        """The same for all requests of the step from `first` on, in as many places as they need.

        Mask tokens may lie in another place than those that see them, so they are cached whatever the attention.
        """
        assert self.attention is not None
        assert self.graphs is not None
        step = dataclasses.replace(step, num_drafts=shape.uniform_token_count // 2)
        self.rows.lay_out(step, places.starts, shape.num_tokens, first=first, caches_masks=True)
        self.rows.spread(places, step.num_drafts)
        for group in self.attention.kv_groups:
            places.hand_out_blocks(self.attention.block_tables.input_block_tables[group], first)
        self._rebuild_metadata(step, shape, first=first, owners=places.host_owners)
        if self.target_features is None:
            self.graphs.run_fullgraph(shape)
            return
        known = self._most_target_rows(shape.num_reqs, shape.num_tokens)
        self.target_features.project(slice(known, int(step.batch.num_scheduled_tokens.sum())))
        with self.target_features.carried_later(len(places.starts) - 1):
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
        if metadata is None:
            nobody = self.rows.uniform_starts(1, 0)
            return self.run_rows(num_rows, None, slot_mappings, mode, Read(nobody, slice(0)))
        assert self.attention is not None
        starts = self.rows.uniform_starts(num_reqs, num_rows // num_reqs)
        self.rows.buffers.query_start_loc[: num_reqs + 1].copy_(starts)
        if self.attention.refreshes:
            self.attention.refresh(metadata)
        read = Read(starts, slice(self._most_target_rows(num_reqs, num_rows)))
        return self.run_rows(num_rows, metadata, slot_mappings, mode, read)

    def run_rows(
        self,
        num_rows: int,
        metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        mode: CUDAGraphMode,
        read: Read | None,
    ) -> Tensor:
        """The model over the first rows of the buffers. Returns [D, H]."""
        input_ids, positions = self.rows.buffers.input_ids[:num_rows], self.rows.buffers.positions[:num_rows]
        embeddings = None
        if self.target_features is not None and read is not None:
            embeddings = self.target_features.embed(self.model.module, input_ids, read.starts, read.target_rows)
        return self.model.forward(input_ids, positions, embeddings, metadata, slot_mappings, mode)

    def _most_target_rows(self, num_reqs: int, num_rows: int) -> int:
        """Of the 2K rows that a FULL graph has for a request; the target has verified 1 + K of it, or a tree."""
        num_drafts = num_rows // (2 * num_reqs) if self._num_nodes is None else self._num_nodes
        return num_reqs * (1 + num_drafts)

    def _caches_masks(self, widest: int) -> bool:
        """Our kernel reads new keys and values from the layer, so those of mask tokens need no slots."""
        return not (self.attention is not None and self.attention.is_ours and takes(widest))

    def _rebuild_metadata(self, step: DraftStep, shape: BatchExecutionDescriptor, **requests: Any) -> None:
        """Of a graph that does not refresh its own, in the buffers that it reads. `requests`: as for `_metadata`."""
        assert self.attention is not None
        if not self.attention.refreshes:
            query_start_loc = np.arange(shape.num_reqs + 1, dtype=np.int32) * shape.uniform_token_count
            self.rows.starts(query_start_loc)
            self._metadata(step, query_start_loc, shape.num_tokens, **requests)

    def _metadata(
        self,
        step: DraftStep,
        query_start_loc: IntArray,
        num_rows: int,
        *,
        first: int = 0,
        owners: IntArray | None = None,  # of a graph's places, if they are not one request each
    ) -> dict[str, Any]:
        assert self.attention is not None
        num_reqs = len(query_start_loc) - 1
        upper_bound = torch.zeros(num_reqs, dtype=torch.int32)
        of_step = step.batch.seq_lens_cpu_upper_bound[first : step.batch.num_reqs][:num_reqs]
        upper_bound[: len(of_step)] = (of_step + self.depth).clamp(max=self.max_model_len)
        if owners is not None:
            first, upper_bound = 0, upper_bound[owners]
        return self.attention.build(
            query_start_loc,
            first=first,
            num_rows=num_rows,
            longest=int(upper_bound.max()),
            seq_lens_upper_bound=upper_bound,
        )
