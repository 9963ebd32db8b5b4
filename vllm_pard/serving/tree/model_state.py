"""What a target does otherwise in a step that verifies trees, in the hooks that vLLM has for a model's own state."""

import dataclasses
from typing import Any

import torch
from pard_kernels import CacheLayout, compact_tree_kv
from torch import Tensor, nn
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls

from vllm_pard.config import ConfigError
from vllm_pard.serving.attention.metadata import PardMetadata
from vllm_pard.serving.tree.trees import Trees


def use_trees(target: nn.Module, vllm_config: Any, trees: Trees, layer_names: set[str]) -> None:
    """Have the runner make the target's model state one that knows `trees`, when it comes to it."""
    base: Any = resolve_model_state_cls(vllm_config, target)
    trees.target_layers = layer_names
    has_processors = bool(vllm_config.model_config.logits_processors)  # of the user; they may look at any tokens

    class TreeModelState(base):
        """Places rows, tells attention who sees whom, and moves what is kept to where it belongs."""

        def initialize_kv_cache(self, kv_cache_config: Any, block_tables: Any) -> None:
            super().initialize_kv_cache(kv_cache_config, block_tables)
            trees.caches = TreeCaches(vllm_config, kv_cache_config, block_tables, layer_names)

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            super().add_request(req_index, new_req_data)
            trees.is_chain_only[req_index] = has_processors or looks_at_tokens(new_req_data.sampling_params)

        def preprocess_state(self, input_batch: Any, *args: Any, **kwargs: Any) -> None:
            super().preprocess_state(input_batch, *args, **kwargs)
            trees.place(input_batch)

        def prepare_attn(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {
                name: with_masks(metadata, trees.row_masks) if name in layer_names else metadata
                for name, metadata in super().prepare_attn(*args, **kwargs).items()
            }

        def postprocess_state(
            self, idx_mapping: Tensor, num_sampled: Any, num_computed_tokens: Tensor | None = None
        ) -> None:
            super().postprocess_state(idx_mapping, num_sampled, num_computed_tokens)
            if num_computed_tokens is not None:
                trees.caches.compact(trees, idx_mapping, num_sampled, num_computed_tokens)

    target.get_model_state_cls = lambda: TreeModelState  # type: ignore[assignment]


class TreeCaches:
    """The target's K/V caches, by group; the draft writes its kept tokens anew."""

    def __init__(self, vllm_config: Any, kv_cache_config: Any, block_tables: Any, layer_names: set[str]) -> None:
        layers = vllm_config.compilation_config.static_forward_context
        self._groups: list[tuple[int, Tensor, CacheLayout]] = []
        for index, group in enumerate(kv_cache_config.kv_cache_groups):
            caches = [parts_of(layers[name].kv_cache) for name in group.layer_names if name in layer_names]
            if caches:
                addresses = torch.tensor([cache.data_ptr() for cache in caches], device=caches[0].device)
                self._groups.append((index, addresses, CacheLayout.of(caches[0])))
        self._block_tables = block_tables

    def compact(self, trees: Trees, slots: Tensor, num_sampled: Tensor, num_computed: Tensor) -> None:
        """Move keys and values of accepted nodes [B] to consecutive slots."""
        for index, addresses, layout in self._groups:
            compact_tree_kv(
                cache_addresses=addresses,
                layout=layout,
                block_table=self._block_tables.block_tables[index].gpu,
                block_size=self._block_tables.block_sizes[index],
                request_slots=slots,
                num_computed=num_computed,
                accepted_rows=trees.accepted_rows,
                num_sampled=num_sampled,
            )


def parts_of(kv_cache: Tensor) -> Tensor:
    """Keys and values apart. [blocks, heads, N, 2 * size] -> [2, blocks, N, heads, size]"""
    blocks, heads, num_slots, width = kv_cache.shape
    return kv_cache.view(blocks, heads, num_slots, 2, width // 2).permute(3, 0, 2, 1, 4)


def with_masks(metadata: Any, row_masks: Tensor) -> Any:
    """The metadata of a layer of the target, with what its rows see of each other."""
    if not isinstance(metadata, PardMetadata):
        raise ConfigError(
            f"trees need attention backend CUSTOM in every layer of the target; one has {type(metadata).__name__}: "
            'leave "tree" out'
        )
    if metadata.narrow is None:
        return metadata
    masks = row_masks[: metadata.narrow.num_rows]
    return dataclasses.replace(metadata, narrow=dataclasses.replace(metadata.narrow, ancestor_masks=masks))


def looks_at_tokens(params: Any) -> bool:
    """Whether a request's sampling looks at the tokens of the step before it: vLLM takes them to be a chain."""
    if params is None:
        return False
    return bool(
        params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.bad_words
        or params.structured_outputs
        or getattr(params, "thinking_token_budget", None) is not None
    )
