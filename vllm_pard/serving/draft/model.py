"""The draft's weights: loaded through vLLM, run over any rows.

D draft rows · H hidden size
"""

from dataclasses import dataclass
from typing import Any

import torch
from pard_kernels import TopK
from torch import Tensor, nn
from vllm.compilation.backends import set_model_tag
from vllm.config.compilation import CUDAGraphMode
from vllm.config.utils import replace
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.model_executor.model_loader import get_model
from vllm.v1.worker.gpu.cudagraph_utils import has_compiled_submodule

from vllm_pard.config import NUM_CANDIDATES
from vllm_pard.serving.draft.head import GreedyHead, top_of_logits


def draft_vllm_config(vllm_config: Any, attention_backend: Any | None) -> Any:
    """The engine's config as the draft's layers read it: its model, K/V cache, parallelism and attention."""
    spec, changes = vllm_config.speculative_config, {}
    if spec.kv_cache_dtype is not None:
        changes["cache_config"] = replace(vllm_config.cache_config, cache_dtype=spec.kv_cache_dtype)
    if attention_backend is not None:
        changes["attention_config"] = replace(vllm_config.attention_config, backend=attention_backend)
    return replace(
        vllm_config,
        model_config=spec.draft_model_config,
        quant_config=None,
        parallel_config=replace(spec.draft_parallel_config, rank=vllm_config.parallel_config.rank),
        **changes,
    )


def load(config: Any) -> nn.Module:
    """Load the model that `config` names, apart from the target's layers and compiled code."""
    with set_model_tag("draft_model"):
        model: nn.Module = get_model(vllm_config=config, prefix="draft_model")
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A loaded draft and the engine's config, whose table of layers it is in."""

    module: nn.Module
    vllm_config: Any

    @property
    def is_compiled(self) -> bool:
        """Whether vLLM has compiled it, so that piecewise CUDA graphs of it can be captured."""
        return bool(has_compiled_submodule(self.module))

    def forward(
        self,
        input_ids: Tensor,  # [D] int32
        positions: Tensor,  # [D] int64
        inputs_embeds: Tensor | None,  # [D, H], in place of the embeddings of input_ids
        attn_metadata: dict[str, Any] | None,
        slot_mappings: dict[str, Tensor] | None,
        mode: CUDAGraphMode,
    ) -> Tensor:
        """Hidden states [D, H], also of rows that no request owns."""
        num_rows, dp_size = len(input_ids), self.vllm_config.parallel_config.data_parallel_size
        # A draft has no experts to share with other ranks; vLLM only checks that each rank knows its own number.
        across_dp = torch.full((dp_size,), num_rows, dtype=torch.int32, device="cpu") if dp_size > 1 else None
        with set_forward_context(
            attn_metadata,
            self.vllm_config,
            num_tokens=num_rows,
            num_tokens_across_dp=across_dp,
            cudagraph_runtime_mode=mode,
            batch_descriptor=BatchDescriptor(num_tokens=num_rows),
            slot_mapping=slot_mappings,
        ):
            hidden_states: Tensor = self.module(
                input_ids=input_ids if inputs_embeds is None else None, positions=positions, inputs_embeds=inputs_embeds
            )
        return hidden_states

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """[N, H] -> [N, V of the target]"""
        logits: Tensor = self.module.compute_logits(hidden_states)  # type: ignore[operator]
        return logits

    def candidates(self, hidden_states: Tensor, head: GreedyHead | None) -> TopK:
        """The likeliest tokens of each row [N, H], for trees; without a head of ours by the model's logits."""
        if head is not None:
            return head.top(hidden_states)
        return top_of_logits(self.compute_logits(hidden_states), NUM_CANDIDATES)
