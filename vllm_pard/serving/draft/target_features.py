"""What a PARD-2 draft reads of its target (arXiv 2605.08632), from the target's step into the draft's embeddings.

    Emb(x_p) + scale * target_proj(h_{p-1})

h_p are the target's hidden states at position p, h_{-1} is 0, and mask tokens repeat what the newest token reads. Each
target row is projected once, into a place that graphs know. A request goes on with the feature of its last kept token,
which its slot carries.

B requests · R request slots · T target rows · D draft rows · F width of the states · H hidden size of the draft
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pard_kernels import FeatureRows, add_target_features
from torch import Tensor, nn

from vllm_pard.serving.target_layers import column_order, scaled_target_proj


class TargetFeatures:
    """States, features and what they are added to, in tensors of fixed places."""

    def __init__(self, speculator: Any) -> None:
        """`speculator` has its `draft_kv`."""
        spec, device = speculator.speculative_config, speculator.device
        target, draft = speculator.vllm_config.model_config, spec.draft_model_config
        self.features = spec.features
        self._spec, hidden_size = spec, int(draft.get_hidden_size())
        self._order = column_order(self.features.target_layers, target.get_total_num_hidden_layers())
        num_rows = len(speculator.input_buffers.input_ids)

        def zeros(*shape: int, dtype: torch.dtype = draft.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, device=device)

        self.states = zeros(speculator.max_num_tokens, self.features.target_dim)  # [T, F]
        self.weight = zeros(hidden_size, self.features.target_dim)  # [H, F], with the scale in it
        self.bias = zeros(hidden_size) if self.features.has_bias else None
        self.rows = FeatureRows(
            rows=zeros(num_rows, dtype=torch.int32),
            carries=zeros(speculator.max_num_reqs, 2, dtype=torch.int32),
            num_carried=speculator.draft_kv.num_carried,
            first_carried=len(self.states),
        )
        self.projected = zeros(self.rows.nothing + 1, hidden_size)  # [T + R + 1, H]
        self.inputs_embeds = zeros(num_rows, hidden_size)  # [D, H]

    def load(self) -> None:
        """Read target_proj; again where weights were discarded. Nothing is carried on."""
        weight, bias = scaled_target_proj(self._spec, self.weight.device)
        self.weight.copy_(weight)
        self.projected.zero_()
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
            self.projected[self.rows.nothing] = bias
        self.rows.num_carried.zero_()

    def take(self, last_hidden_states: Tensor, aux_hidden_states: list[Tensor] | None) -> None:
        """Copy a step's states, [T, any] each, side by side in the draft's order.

        Raises ValueError if they are not those that the draft reads.
        """
        given = [last_hidden_states, *(aux_hidden_states or ())]
        num_rows = len(last_hidden_states)
        states = [given[place][:num_rows] for place in self._order if place < len(given)]
        width = sum(part.shape[1] for part in states)
        if len(states) < len(self._order) or width != self.states.shape[1] or num_rows > len(self.states):
            raise ValueError(
                f"the draft reads states of layers {list(self.features.target_layers)}, {self.states.shape[1]} wide "
                f"and of at most {len(self.states)} rows; got {[tuple(part.shape) for part in given]}"
            )
        torch.cat(states, dim=1, out=self.states[:num_rows])

    def embed(self, module: nn.Module, input_ids: Tensor, starts: Tensor, target_rows: slice) -> Tensor:
        """The draft's input for rows that `FeatureRows` tells of. [D] -> [D, H]

        Args:
            starts: int32 [B + 1], where each request's rows begin; rows of no request stay as they are.
            target_rows: those of these requests, projected now.
        """
        self.project(target_rows)
        add_target_features(
            embeddings=module.embed_input_ids(input_ids),  # type: ignore[operator]
            features=self.projected,
            feature_rows=self.rows.rows,
            carries=self.rows.carries,
            query_start_loc=starts,
            inputs_embeds=self.inputs_embeds,
        )
        return self.inputs_embeds[: len(input_ids)]

    def project(self, target_rows: slice) -> None:
        """Features of these rows of the target's step."""
        states, projected = self.states[target_rows], self.projected[: len(self.states)][target_rows]
        if self.bias is None:
            torch.mm(states, self.weight.t(), out=projected)
        else:
            torch.addmm(self.bias, states, self.weight.t(), out=projected)

    @contextmanager
    def carried_later(self, num_reqs: int) -> Iterator[None]:
        """Have slots carry their features on once this is over: a request may be several to what runs inside."""
        carries = self.rows.carries[:num_reqs].long()
        self.rows.carries.fill_(self.rows.nothing)
        yield
        self.projected[carries[:, 1]] = self.projected[carries[:, 0]]

    def clear(self, rows: slice) -> None:
        """Zero the input of rows that no request owns, for the model adds to what it is given."""
        self.inputs_embeds[rows].zero_()

    def warm_up(self) -> None:
        """Compile the one variant of the kernel, by a request without rows that carries nothing on."""
        self.rows.carries.fill_(self.rows.nothing)
        add_target_features(
            embeddings=self.inputs_embeds[:0],
            features=self.projected,
            feature_rows=self.rows.rows,
            carries=self.rows.carries,
            query_start_loc=self.rows.num_carried.new_zeros(2),
            inputs_embeds=self.inputs_embeds,
        )
