"""PARD-2's dependent mode on model runner V1: what the target says of a step, added to the draft's embeddings.

B requests · T target rows · D draft rows · F width of the states · H hidden size of the draft
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_pard.serving.target_layers import column_order, scaled_target_proj
from vllm_pard.serving.v1.proposer import PardProposer


class DependentProposer(PardProposer):
    """A draft that reads its target (PARD-2, arXiv 2605.08632).

    vLLM lays out every token that the target has verified anew, and marks the rejected ones. So the first row of a
    request reads the feature of the token before the step: the last one that the step before has kept.
    """

    supports_mm_inputs: bool  # for vLLM: the model is called with embeddings

    def __init__(self, vllm_config: Any, device: Any, runner: Any) -> None:
        super().__init__(vllm_config, device, runner)
        features = self.speculative_config.features
        num_layers = vllm_config.model_config.get_total_num_hidden_layers()
        self._order = column_order(features.target_layers, num_layers)
        self._states: list[Tensor] = []  # of the step: the target's output, then its layers'
        self._carried: dict[str, tuple[int, Tensor]] = {}  # by request: so many tokens end with the one of this feature
        self._added: Tensor  # [D, H]
        propose = runner.propose_draft_token_ids

        def noting_states(*args: Any) -> Any:
            hidden_states, aux_hidden_states = args[3], args[5]
            self._states = [hidden_states, *(aux_hidden_states or ())]
            return propose(*args)

        runner.propose_draft_token_ids = noting_states

    def load_model(self, target_model: Any) -> None:
        """Load the draft and its target_proj."""
        super().load_model(target_model)
        self.supports_mm_inputs = True
        self._weight, self._bias = scaled_target_proj(self.speculative_config, self.device)

    def set_inputs_first_pass(self, *args: Any, cad: Any, **kwargs: Any) -> tuple[int, Tensor, Any]:
        """Lay out the rows, and find what each of them reads."""
        num_rows, sample_indices, metadata = super().set_inputs_first_pass(*args, cad=cad, **kwargs)
        starts, positions = cad.query_start_loc.long(), kwargs["target_positions"].long()
        num_computed = positions[starts[:-1]]  # [B]
        num_kept = num_computed + starts.diff()
        if (num_rejected := kwargs["num_rejected_tokens_gpu"]) is not None:
            num_kept = num_kept - num_rejected
        states = torch.cat([self._states[place][: len(positions)] for place in self._order], dim=1)  # [T, F]
        projected = F.linear(states, self._weight, self._bias)  # [T, H]
        counts = metadata.query_start_loc.diff()
        owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)  # [D]
        # Mask tokens repeat what the newest token reads.
        before = torch.minimum(self.positions[:num_rows].long(), num_kept[owners]) - 1
        carried = self._take_up(num_computed.tolist())  # [B, H]
        rows = (starts[owners] + before - num_computed[owners]).clamp(min=0, max=len(projected) - 1)
        is_of_step = before >= num_computed[owners]
        self._added = torch.where(is_of_step[:, None], projected[rows], carried[owners])
        self._carry_on(num_kept.tolist(), projected[starts[:-1] + num_kept - num_computed - 1])
        return num_rows, sample_indices, metadata

    def build_model_inputs_first_pass(
        self, num_tokens: int, num_input_tokens: int, mm_embed_inputs: Any
    ) -> tuple[dict[str, Any], int]:
        """Embeddings with features in them, in place of token ids."""
        embeddings = self.inputs_embeds[:num_tokens]
        torch.add(self.model.embed_input_ids(self.input_ids[:num_tokens]), self._added, out=embeddings)
        return {
            "input_ids": None,
            "positions": self._get_positions(num_input_tokens),
            "inputs_embeds": self.inputs_embeds[:num_input_tokens],
        }, num_input_tokens

    def _take_up(self, num_computed: list[int]) -> Tensor:
        """What the first row of each request reads: nothing where the step before was not its own. [B, H]"""
        nothing = self._weight.new_zeros(len(self._weight)) if self._bias is None else self._bias
        found = []
        for request, count in zip(self._runner.input_batch.req_ids, num_computed, strict=False):
            num_tokens, feature = self._carried.get(request, (0, nothing))
            found.append(feature if num_tokens == count else nothing)
        return torch.stack(found)

    def _carry_on(self, num_kept: list[int], features: Tensor) -> None:
        """Keep the last feature of each request of the step, and of those that wait."""
        self._carried = {name: kept for name, kept in self._carried.items() if name in self._runner.requests}
        self._carried |= zip(self._runner.input_batch.req_ids, zip(num_kept, features, strict=True), strict=False)
