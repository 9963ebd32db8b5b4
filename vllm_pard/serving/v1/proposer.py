"""Chain drafting on model runner V1, for machines without Triton: vLLM's own parallel drafting, our configuration."""

import time
from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.spec_decode.draft_model import DraftModelProposer
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID, compute_new_slot_mapping

from vllm_pard.serving.draft.vocabulary import draft_token_ids, use_target_vocabulary


class PardProposer(DraftModelProposer):
    """vLLM's draft-model proposer, for a draft in any K/V cache groups and with any vocabulary.

    vLLM hands a draft the block table of K/V cache group 0. Where a model mixes kinds of attention (Gemma, Olmo 3,
    gpt-oss) there are more groups: the draft's layers may be in others, and write into the target's blocks.
    """

    draft_attn_groups: list[Any]
    _draft_attn_layer_names: set[str]

    def __init__(self, vllm_config: Any, device: Any, runner: Any) -> None:
        super().__init__(vllm_config, device, runner)
        self._runner = runner
        self._slot_mappings: dict[int, Tensor] = {}  # by K/V cache group, [draft rows]
        self.seconds = 0.0  # of drafting so far; on a CPU nothing runs on behind it
        self._draft_vocab_size = int(self.draft_model_config.get_vocab_size())
        self._target_vocab_size = int(vllm_config.model_config.get_vocab_size())

    def _get_model(self) -> nn.Module:
        model: nn.Module = super()._get_model()
        token_ids = draft_token_ids(self.speculative_config.draft_vocab, self.device)
        use_target_vocabulary(model, self._draft_vocab_size, self._target_vocab_size, token_ids)
        return model

    def propose(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draft as vLLM does, with as many masks as drafts are wanted, and take the time.

        Where none are wanted, their requests will never draft again.
        """
        num_drafts = int(kwargs["num_speculative_tokens"])
        if num_drafts == 0:
            return torch.empty(self._runner.input_batch.num_reqs, 0, dtype=torch.int64, device=self.device)
        self.extra_slots_per_request = self.net_num_new_slots_per_request = num_drafts
        started = time.perf_counter()
        tokens: Tensor = super().propose(*args, **kwargs)
        self.seconds += time.perf_counter() - started
        return tokens

    def initialize_attn_backend(self, kv_cache_config: Any, *args: Any, **kwargs: Any) -> None:
        """Build the attention groups of each K/V cache group that has layers of the draft."""
        layer_names: set[str] = self._draft_attn_layer_names
        attention_groups: list[Any] = []
        self._slot_mappings.clear()
        for index, group in enumerate(kv_cache_config.kv_cache_groups):
            self._draft_attn_layer_names = layer_names & set(group.layer_names)
            if self._draft_attn_layer_names:
                super().initialize_attn_backend(kv_cache_config, *args, **kwargs)
                attention_groups += self.draft_attn_groups
                self._slot_mappings[index] = torch.zeros_like(self._slot_mapping_buffer)
        self._draft_attn_layer_names, self.draft_attn_groups = layer_names, attention_groups
        self.block_size = attention_groups[0].kv_cache_spec.block_size

    def set_inputs_first_pass(self, *args: Any, cad: Any, **kwargs: Any) -> tuple[int, Tensor, Any]:
        """Replace ids that the draft does not know by the mask token; they can only be accepted as a target's own."""
        cad = cad.replace(block_table_tensor=self._block_table(self.draft_attn_groups[0], cad.num_reqs))
        num_tokens, sample_indices, metadata = super().set_inputs_first_pass(*args, cad=cad, **kwargs)
        if self._draft_vocab_size < self._target_vocab_size:
            ids = self.input_ids[:num_tokens]
            ids.masked_fill_(ids >= self._draft_vocab_size, self.parallel_drafting_token_id)
        return num_tokens, sample_indices, metadata

    def build_per_group_and_layer_attn_metadata(
        self, common_attn_metadata: Any, draft_index: int = 0
    ) -> tuple[list[object], dict[str, object]]:
        """Give each attention group the blocks and slots of its own K/V cache group."""
        of_groups: list[object] = []
        of_layers: dict[str, object] = {}
        for group in self.draft_attn_groups:
            in_group = common_attn_metadata.replace(
                block_table_tensor=self._block_table(group, common_attn_metadata.num_reqs)
            )
            in_group.slot_mapping = self._compute_slots(group, in_group)
            metadata = group.build_metadata_for_drafting(common_attn_metadata=in_group, draft_index=draft_index)
            of_groups.append(metadata)
            of_layers |= dict.fromkeys(group.layer_names, metadata)
        return of_groups, of_layers

    def _get_slot_mapping(self, num_tokens: int, slot_mapping: Tensor | None = None) -> dict[str, Tensor]:
        """Slots for each layer, as the metadata has them; rows beyond `slot_mapping` are padding."""
        if slot_mapping is not None:
            for slots in self._slot_mappings.values():
                slots[len(slot_mapping) : num_tokens] = PADDING_SLOT_ID
        return {
            name: self._slot_mappings[group.kv_cache_group_id][:num_tokens]
            for group in self.draft_attn_groups
            for name in group.layer_names
        }

    def _block_table(self, group: Any, num_reqs: int) -> Tensor:
        table: Tensor = self._runner.input_batch.block_table[group.kv_cache_group_id].get_device_tensor(num_reqs)
        return table

    def _compute_slots(self, group: Any, in_group: Any) -> Tensor:
        """Where the rows' keys and values go, into the buffer of the K/V cache group."""
        num_rows = in_group.num_actual_tokens
        slots = self._slot_mappings[group.kv_cache_group_id][:num_rows]
        slots.copy_(
            compute_new_slot_mapping(
                cad=in_group,
                new_positions=self.positions[:num_rows],
                is_rejected_token_mask=self.is_rejected_token_mask[:num_rows],
                block_size=group.kv_cache_spec.block_size,
                num_new_tokens=0,  # the queries are extended already
                max_model_len=self.max_model_len,
            )
        )
        return slots
