"""The model that is trained: a stock causal language model over COD rows, and PARD-2's projection beside it.

N tokens · R rows · T labelled rows · U positions that they predict from · H hidden size · V trained vocabulary
F width of the target's features
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vllm_pard.training.cod.attention import Implementation, row_attention, use_row_attention
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.losses import cat_weights, d_pace_weights
from vllm_pard.training.models.target import ALL, TargetOutput, Vocabulary, head_of
from vllm_pard.training.options.config import FeatureConfig, LossConfig
from vllm_pard.training.row_losses import Head, predictions, row_losses
from vllm_pard.training.top_k import TopKOutput

__all__ = ["ParallelDraft", "shifted_features"]


class ParallelDraft(nn.Module):
    """Weighted losses of a batch. Its parameters are those that a checkpoint holds.

    Args:
        draft: any decoder that `use_row_attention` takes; changed in place to attend over rows.
        mask_token_id: the token of every row below depth 0.
        features: layers and scale of PARD-2; None trains PARD.
        target_dim: F, what `features` reads of the target.
        vocabulary: the ids that the draft may propose.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        *,
        mask_token_id: int,
        loss: LossConfig,
        num_depths: int,
        features: FeatureConfig | None = None,
        target_dim: int = 0,
        vocabulary: Vocabulary = ALL,
        attention: Implementation = "auto",
    ) -> None:
        super().__init__()
        use_row_attention(draft)
        self.draft = draft
        self.mask_token_id, self.loss, self.num_depths = mask_token_id, loss, num_depths
        self.features, self.attention = features, attention
        self.config = draft.config  # the Trainer asks for it
        self._no_split_modules = draft._no_split_modules  # FSDP: these layers are gathered one at a time
        width = draft.get_input_embeddings().embedding_dim
        self.target_proj = None if features is None else nn.Linear(target_dim, width, bias=False, dtype=draft.dtype)
        self._vocabulary = vocabulary

    def forward(
        self,
        rows: Mapping[str, Tensor],
        tokens: Tensor,
        labelled: Tensor,
        labels: Tensor,
        positions: Tensor,
        teacher_rows: Tensor,
        chunks: Sequence[Any],
        target: TargetOutput | TopKOutput | None = None,
        keeps_features: Tensor | None = None,
        predicts: bool = False,
    ) -> dict[str, Tensor]:
        """The sum of the weighted losses, the sum of the weights, and the unweighted cross-entropy of each row [T]; or,
        if `predicts`, the most likely token of each row alone: "predictions", indices into the trained vocabulary [T].

        Args:
            rows: the fields of `Rows`, each [R].
            tokens: int64 [N].
            labelled: int64 [T]: which rows have a label, sorted by anchor + depth.
            labels: int64 [T], indices into the trained vocabulary.
            positions: int64 [U], ascending: the tokens that the labelled rows predict from, their anchor + depth.
            teacher_rows: int64 [T], an index into `positions`.
            chunks: of `chunks_of`.
            target: what the target says of the N tokens, where the loss or the features need it.
            keeps_features: bool [N]: whose features are used; left out: all.
        """
        layout = Rows(**rows)
        hidden = self.hidden_states(layout, tokens, target, keeps_features)[labelled]  # [T, H]
        if predicts:
            return {"predictions": predictions(self.head(hidden), chunks)}
        losses = row_losses(
            self.head(hidden),
            labels,
            chunks,
            teacher=None if target is None else target.head(positions, self.vocabulary),
            teacher_rows=teacher_rows,
            kinds=self.loss.kinds,
        )
        weights = self._weights(layout, labelled, losses["ce"], target)  # [T]
        total = sum(scale * losses[kind] for kind, scale in self.loss.scales.items())
        return {"loss": (weights * total).sum(), "weight": weights.sum(), "ce": losses["ce"].detach()}

    def hidden_states(
        self,
        rows: Rows,
        tokens: Tensor,
        target: TargetOutput | TopKOutput | None = None,
        keeps_features: Tensor | None = None,
    ) -> Tensor:
        """One forward over all rows: the final hidden states, after the final norm. [R, H]"""
        row_tokens = torch.where(rows.depths == 0, tokens[rows.anchors], self.mask_token_id)
        embeddings = self.draft.get_input_embeddings()(row_tokens)  # [R, H]
        if self.target_proj is not None and self.features is not None and target is not None:
            projected = self.features.scale * self.target_proj(target.features.to(self.target_proj.weight.dtype))
            shifted = shifted_features(projected, rows.positions[: len(tokens)])
            if keeps_features is not None:
                shifted = shifted * keeps_features[:, None]
            embeddings = embeddings + shifted[rows.anchors].to(embeddings.dtype)
        output = self.draft.base_model(
            inputs_embeds=embeddings[None],
            position_ids=rows.positions[None],
            use_cache=False,
            row_attention=row_attention(rows, len(tokens), self.attention),
        )
        states: Tensor = output.last_hidden_state[0]
        return states

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids that are trained, on the draft's device."""
        return self._vocabulary.to(self.draft.device) if isinstance(self._vocabulary, Tensor) else self._vocabulary

    def head(self, hidden: Tensor) -> Head:
        """The draft's lm_head over the trained vocabulary."""
        return head_of(self.draft, hidden, self.vocabulary)

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """Called by the Trainer where its arguments say so."""
        self.draft.gradient_checkpointing_enable(**options)

    def _weights(self, rows: Rows, labelled: Tensor, ce: Tensor, target: TargetOutput | TopKOutput | None) -> Tensor:
        if self.loss.weights == "cat" and target is not None:
            return cat_weights(rows, target.log_probs)[labelled]
        if self.loss.weights == "d-pace":
            log_probs = ce.new_zeros(len(rows.anchors)).index_copy(0, labelled, -ce.detach())
            weights = d_pace_weights(rows, log_probs, num_depths=self.num_depths, smoothing=self.loss.smoothing)
            return weights[labelled]
        return torch.ones_like(ce)


def shifted_features(projected: Tensor, positions: Tensor) -> Tensor:
    """The token at position p reads the feature of p - 1, and the first of a document reads zero. [N, H] -> [N, H]

    The target has not read a token yet when the draft does, so its own feature is not there (PARD-2, section 3.2).
    """
    return torch.where(positions[:, None] > 0, projected.roll(1, dims=0), 0)
