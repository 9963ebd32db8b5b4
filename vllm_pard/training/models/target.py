"""What the frozen target says of a batch: features for PARD-2, hidden states to distil, its confidence in the text.

N tokens · S layers that are read · H hidden size of the target · F = S * H · V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from vllm_pard.errors import PardError
from vllm_pard.training.cod.attention import Implementation, row_attention, use_row_attention
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.row_losses import Head

__all__ = ["ALL", "Target", "TargetError", "TargetOutput", "Vocabulary", "check_layers", "head_of"]

Vocabulary = Tensor | slice  # which ids: int64 [V], or the first ones

ALL = slice(None)
LOGITS_AT_ONCE = 1 << 26  # elements: 256 MiB in float32


class TargetError(PardError):
    """The target can't give what the training asks of it."""


@dataclass(frozen=True)
class TargetOutput:
    """Of each token of a batch; no gradient."""

    features: Tensor  # [N, F]; F is 0 where no features are read
    read_text: Callable[
        [], Tensor
    ]  # gives log_probs, which cost an lm_head over all tokens and are not always asked for
    hidden: Tensor  # [N, H], after the final norm
    lm_head: nn.Module

    @cached_property
    def log_probs(self) -> Tensor:
        """log P(x_t | x_{<t}) of each token; 0 for the first token of a document. float32 [N]"""
        with torch.no_grad():
            return self.read_text()

    def head(self, positions: Tensor, vocabulary: Vocabulary) -> Head:
        """Hidden states of some tokens and lm_head, over the vocabulary that is trained. int64 [U]"""
        return _head(self.lm_head, self.hidden[positions], vocabulary)


class Target:
    """The target, run over the tokens of a batch in the process that trains.

    Args:
        model: frozen, and changed in place to attend over rows.
        layers: which hidden states are features: -1 is the last, after the final norm, -2 what goes into the last
            layer, and so on, as in Transformers' `hidden_states`.
    """

    def __init__(
        self, model: PreTrainedModel, *, layers: Sequence[int] = (), attention: Implementation = "auto"
    ) -> None:
        use_row_attention(model)
        self.model = model.requires_grad_(False).eval()
        self.layers, self.attention = tuple(layers), attention
        check_layers(layers, len(model.base_model.layers))

    @property
    def target_dim(self) -> int:
        """F, the width of the features."""
        return len(self.layers) * int(self.model.get_input_embeddings().embedding_dim)

    @torch.no_grad()
    def __call__(self, rows: Rows, tokens: Tensor) -> TargetOutput:
        """Read the N tokens of a batch, whose rows these are."""
        num_tokens = len(tokens)
        rows = rows.at(slice(num_tokens))
        states: dict[int, Tensor] = {}
        hooks = [self._keep(layer, states) for layer in self.layers if layer != -1]
        try:
            output = self.model.base_model(
                input_ids=tokens[None],
                position_ids=rows.positions[None],
                use_cache=False,
                row_attention=row_attention(rows, num_tokens, self.attention),
            )
        finally:
            for hook in hooks:
                hook.remove()
        hidden = states[-1] = output.last_hidden_state[0]
        features = torch.cat([states[layer] for layer in self.layers], dim=1) if self.layers else hidden[:, :0]
        read_text = partial(self._log_probs, hidden, tokens, rows.positions)
        return TargetOutput(features, read_text, hidden, self._lm_head)

    @property
    def _lm_head(self) -> nn.Module:
        lm_head: nn.Module = self.model.get_output_embeddings()
        return lm_head

    def _keep(self, layer: int, states: dict[int, Tensor]) -> torch.utils.hooks.RemovableHandle:
        """hidden_states[-2] goes into the last layer, so hidden_states[layer] into layers[layer + 1]."""

        def keep(module: nn.Module, arguments: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            states[layer] = (arguments[0] if arguments else options["hidden_states"])[0]

        module: nn.Module = self.model.base_model.layers[layer + 1]
        return module.register_forward_pre_hook(keep, with_kwargs=True)

    def _log_probs(self, hidden: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
        """A few rows of logits at a time."""
        head = _head(self._lm_head, hidden, ALL)
        step, last = max(1, LOGITS_AT_ONCE // head.weight.shape[0]), len(tokens) - 1
        found = [
            -F.cross_entropy(head.logits(slice(start, stop)).float(), tokens[start + 1 : stop + 1], reduction="none")
            for start, stop in ((start, min(start + step, last)) for start in range(0, last, step))
        ]
        nothing = hidden.new_zeros(1, dtype=torch.float32)
        return torch.cat([nothing, *found]).where(positions > 0, 0.0)


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise TargetError if a target of so many layers has not got one that is to be a feature."""
    for layer in layers:
        if not -num_layers - 1 <= layer <= -1:
            raise TargetError(
                f"features.layers must be from -{num_layers + 1} to -1 for this target, which has {num_layers} layers; "
                f"got {layer}: choose others"
            )


def head_of(model: PreTrainedModel, hidden: Tensor, vocabulary: Vocabulary) -> Head:
    """The model's lm_head over some ids [V], or over all. hidden: [T, H]"""
    return _head(model.get_output_embeddings(), hidden, vocabulary)


def _head(lm_head: Any, hidden: Tensor, vocabulary: Vocabulary) -> Head:
    bias = getattr(lm_head, "bias", None)
    return Head(hidden, lm_head.weight[vocabulary], None if bias is None else bias[vocabulary])
