"""The draft's side of the attention contract (serving/attention/metadata.py): builds, captures, refreshes.

B requests · D draft rows
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, build_slot_mappings_by_layer

from vllm_pard.serving.attention.backends import is_ours


class DraftAttention:
    """The attention groups of the draft's layers, over the rows that `DraftRows` lays out."""

    def __init__(self, speculator: Any) -> None:
        """`speculator` has taken the layout of the K/V cache (`set_attn`)."""
        self.groups: list[list[Any]] = speculator.attn_groups
        self.cuda_graph_support: Any = speculator.attn_cg_support
        self.kv_cache_config: Any = speculator.kv_cache_config
        self.block_tables: Any = speculator.block_tables
        self.buffers: Any = speculator.input_buffers
        self.max_model_len: int = speculator.max_model_len
        # K/V cache groups that hold layers of the draft; vLLM may spread them over several because of the target.
        self.kv_groups = [index for index, groups in enumerate(self.groups) if groups]
        layers = speculator.vllm_config.compilation_config.static_forward_context
        self.is_ours = all(is_ours(layers[name]) for name in speculator.draft_attn_layer_names)
        self.refreshes = False  # whether a graph keeps its own metadata up to date; known once it is tried
        self._claims_refresh: bool = speculator.supports_decode_metadata_update

    def why_no_graph(self, width: int) -> str | None:
        """Why steps of `width` rows a request can't be captured, or None."""
        support = self.cuda_graph_support
        if support.min_cg_support.value < AttentionCGSupport.UNIFORM_BATCH.value:
            return f"{support.min_cg_attn_backend} can't be captured in full CUDA graphs"
        for group in self._each_group():
            threshold = group.get_metadata_builder(0).reorder_batch_threshold
            if threshold is not None and threshold < width:
                return (
                    f"{group.backend.get_name()} takes requests of more than {threshold} rows for prefills, "
                    f"and a draft step has {width}"
                )
        return None

    def build(
        self,
        query_start_loc: NDArray[np.int32],  # [B + 1], padding requests included
        *,
        first: int,  # of the step's requests
        num_rows: int,  # that belong to a request, or are padded to one of a FULL graph
        longest: int,  # tokens of a request, at most
        seq_lens_upper_bound: Tensor,  # [B] int32 on the host
        for_capture: bool = False,
    ) -> dict[str, Any]:
        """Metadata by layer of some requests that follow one another in the step."""
        num_reqs, widest = len(query_start_loc) - 1, int(np.diff(query_start_loc).max())
        tables = [table[first : first + num_reqs] for table in self.block_tables.input_block_tables]
        metadata: dict[str, Any] = build_attn_metadata(
            attn_groups=self.groups,
            num_reqs=num_reqs,
            num_tokens=num_rows,
            query_start_loc_gpu=self.buffers.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(query_start_loc),
            max_query_len=widest,
            seq_lens=self.buffers.seq_lens[:num_reqs],
            max_seq_len=min(max(longest, widest), self.max_model_len),
            block_tables=tables,
            slot_mappings=self.block_tables.slot_mappings[:, :num_rows],
            kv_cache_config=self.kv_cache_config,
            seq_lens_cpu_upper_bound=seq_lens_upper_bound,
            positions=self.buffers.positions[:num_rows],
            is_prefilling=torch.zeros(num_reqs, dtype=torch.bool),
            for_cudagraph_capture=for_capture,
        )
        return metadata

    def slot_mappings(self, num_rows: int) -> dict[str, Tensor]:
        """Where each layer stores keys and values of the rows, [num_rows] int64 each."""
        all_groups = self.block_tables.slot_mappings[:, :num_rows]
        by_layer: dict[str, Tensor] = build_slot_mappings_by_layer(all_groups, self.kv_cache_config)
        return by_layer

    def refresh(self, attn_metadata: dict[str, Any]) -> None:
        """Bring a captured graph's metadata up to date, on the device."""
        for group in self._each_group():
            group.update_draft_decode_metadata(attn_metadata)

    def try_refresh(self, width: int) -> None:
        """Find out whether `refresh` does what `build` would, since not every builder that claims it does.

        Captures for one request of `width` rows, lengthens it, refreshes, and compares with what is built afresh.
        """
        if not self._claims_refresh:
            return
        query_start_loc = np.array([0, width], dtype=np.int32)
        self.buffers.query_start_loc[:2] = torch.from_numpy(query_start_loc)
        self.block_tables.get_dummy_block_tables(1)
        self.block_tables.get_dummy_slot_mappings(width)

        def build(num_tokens: int, for_capture: bool) -> dict[str, Any]:
            self.buffers.seq_lens[0] = num_tokens
            return self.build(
                query_start_loc,
                first=0,
                num_rows=width,
                longest=self.max_model_len,
                seq_lens_upper_bound=torch.tensor([num_tokens], dtype=torch.int32),
                for_capture=for_capture,
            )

        captured = build(width, for_capture=True)
        self.buffers.seq_lens[0] = self.max_model_len
        self.refresh(captured)
        refreshed = [tensor.clone() for tensor in tensors_in(captured)]
        fresh = list(tensors_in(build(self.max_model_len, for_capture=False)))
        self.refreshes = len(refreshed) == len(fresh) and all(map(_same, refreshed, fresh))

    def _each_group(self) -> Iterator[Any]:
        return (group for groups in self.groups for group in groups)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of nested metadata, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    elif isinstance(value, dict):
        for key in sorted(value):
            yield from tensors_in(value[key])
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors_in(item)


def _same(left: Tensor, right: Tensor) -> bool:
    """Equal, number by number; memory that nobody has written may hold NaN."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return bool(((left == right) | ((left != left) & (right != right))).all())
