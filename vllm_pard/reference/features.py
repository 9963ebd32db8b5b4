"""What a PARD-2 draft takes from its target (arXiv 2605.08632), kept as the cache keeps keys and values: by position.

The input of the draft at the position p of a real token is Emb(x_p) + scale * target_proj(h_{p-1}), where h are hidden
states of the target and h_{-1} is 0. Token ids stay where they are: it is features that move by one. Mask tokens stand
after the newest token, whose h the target has not computed yet, and repeat what that token gets: h of the one before.

B requests · T rows of one forward · S positions · H hidden size of the draft · D hidden size of the target x layers
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from vllm_pard.pard2 import features_misfit
from vllm_pard.reference.requests import GenerationError
from vllm_pard.target_proj import TargetProj


class Features:
    """What is added to the embeddings of a batch. As in cache.py, what rejected tokens leave is written over."""

    @torch.no_grad()
    def __init__(self, target_proj: TargetProj, *, draft: PreTrainedModel, batch_size: int, max_length: int) -> None:
        self._layers, self._scale = target_proj.features.target_layers, target_proj.features.scale
        self._weight = target_proj.weight.to(draft.device, draft.dtype)  # [H, D]
        self._bias = None if target_proj.bias is None else target_proj.bias.to(draft.device, draft.dtype)  # [H]
        # For a token at a position of S; the last takes what comes from nowhere.
        self.added = self._weight.new_zeros(batch_size, max_length + 2, self._weight.shape[0])  # [B, S + 2, H]
        self.added[:, 0] = self._project(self._weight.new_zeros(self._weight.shape[1]))
        torch._dynamo.mark_static_address(self.added)

    def write(self, hidden_states: Sequence[Tensor], slots: Tensor) -> None:
        """Keep what the target has computed at `slots` [B, T], for the tokens that come after these.

        hidden_states are Transformers': the embeddings, what each layer gives, and the last one after the final norm.
        """
        features = torch.cat([hidden_states[layer] for layer in self._layers], dim=-1)  # [B, T, D]
        requests = torch.arange(slots.shape[0], device=slots.device)[:, None]  # [B, 1]
        self.added[requests, slots + 1] = self._project(features)

    def move(self, sources: Tensor, places: Tensor) -> None:
        """What was kept at slots [B, T], to others."""
        requests = torch.arange(sources.shape[0], device=sources.device)[:, None]  # [B, 1]
        self.added[requests, places + 1] = self.added[requests, sources + 1]

    def at(self, positions: Tensor, newest: Tensor) -> Tensor:
        """For rows at positions [B, T] of requests whose newest token is at `newest` [B, 1]. [B, T, H]"""
        requests = torch.arange(positions.shape[0], device=positions.device)[:, None]  # [B, 1]
        return self.added[requests, torch.minimum(positions, newest).clamp(min=0)]

    def _project(self, features: Tensor) -> Tensor:
        """[..., D] -> [..., H]"""
        return self._scale * F.linear(features.to(self._weight.dtype), self._weight, self._bias)


def check_target_proj(target_proj: TargetProj, target: PreTrainedModel, draft: PreTrainedModel) -> None:
    """Raise GenerationError if these features do not lead from this target to this draft."""
    features, config = target_proj.features, target.config.get_text_config(decoder=True)
    misfit = features_misfit(draft.name_or_path, features, target.name_or_path, config.to_dict())
    if misfit is not None:
        raise GenerationError(f"target_proj does not fit the target: {misfit}; leave it out for independent mode")
    wanted = [draft.get_input_embeddings().weight.shape[1], features.target_dim]
    if list(target_proj.weight.shape) != wanted:
        raise GenerationError(f"the weight of target_proj must be {wanted}; it is {list(target_proj.weight.shape)}")
