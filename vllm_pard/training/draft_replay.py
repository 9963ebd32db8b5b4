"""A finished draft on answers of its target: acceptance at any K and in both modes, without decoding again.

N tokens of a few documents side by side · K draft tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.target_proj import TargetProj
from vllm_pard.training.acceptance import accepted_tokens, replay
from vllm_pard.training.collator import Collator
from vllm_pard.training.config import CodConfig, FeatureConfig, LossConfig
from vllm_pard.training.parallel_draft import ParallelDraft
from vllm_pard.training.rows import Rows
from vllm_pard.training.target import Target

__all__ = ["Answered", "DraftReplay"]

TOKENS_AT_ONCE = 1024


class Answered(NamedTuple):
    """A prompt and the target's greedy answer to it, in token ids."""

    prompt: list[int]
    answer: list[int]


class DraftReplay:
    """A draft of up to `num_speculative_tokens`, independent or, with a target and its projection, dependent.

    Args:
        draft: changed in place to attend over rows, and moved to the target's device.
        target: only needed with a `target_proj`.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        *,
        mask_token_id: int,
        num_speculative_tokens: int,
        target: PreTrainedModel | None = None,
        target_proj: TargetProj | None = None,
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        self._target, features = None, None
        if target is not None and target_proj is not None:
            given = target_proj.features
            features = FeatureConfig(layers=given.target_layers, scale=given.scale, dropout=0)
            self._target = Target(target, layers=given.target_layers)
            draft = draft.to(target.device)
        self._draft = ParallelDraft(
            draft,
            mask_token_id=mask_token_id,
            loss=LossConfig(),
            num_depths=num_speculative_tokens,
            features=features,
            target_dim=target_proj.features.target_dim if features and target_proj else 0,
        ).eval()
        if self._draft.target_proj is not None and target_proj is not None:
            self._draft.target_proj.weight.data.copy_(target_proj.weight)
            self._draft.target_proj.to(draft.device)
        whole = CodConfig(num_depths=num_speculative_tokens, retention=1, min_retention=1)
        self._collate = Collator(cod=whole, seed=0, vocab_size=draft.config.vocab_size)

    def acceptance(self, answered: Sequence[Answered], ks: Sequence[int]) -> dict[int, AcceptanceStats]:
        """The steps of greedy decoding at each K, none above `num_speculative_tokens`."""
        totals = {k: AcceptanceStats() for k in ks}
        for documents in _portions(answered):
            pack = _pack(documents)
            accepted = self._accepted(pack)  # [N]
            for k in ks:
                totals[k] += replay(accepted.clamp(max=k), pack["is_trained"], pack["documents"], k)
        return totals

    @torch.inference_mode()
    def _accepted(self, pack: dict[str, Tensor]) -> Tensor:
        batch = self._collate([pack | {"draw": 0}])
        inputs = send_to_device(batch, self._draft.draft.device)
        target = None if self._target is None else self._target(Rows(**inputs["rows"]), inputs["tokens"])
        predictions = self._draft(**inputs, target=target, predicts=True)["predictions"].cpu()
        matches, num_tokens = predictions == batch["labels"], len(pack["tokens"])
        return accepted_tokens(
            Rows(**batch["rows"]), num_tokens, batch["labelled"], matches, self.num_speculative_tokens
        )


def _portions(answered: Sequence[Answered]) -> Iterator[list[Answered]]:
    """A few documents at a time, in their order."""
    portion: list[Answered] = []
    for document in answered:
        if portion and sum(len(part) for each in [*portion, document] for part in each) > TOKENS_AT_ONCE:
            yield portion
            portion = []
        portion.append(document)
    if portion:
        yield portion


def _pack(documents: Sequence[Answered]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(document.prompt) + len(document.answer) for document in documents])
    return {
        "tokens": torch.tensor([token for document in documents for part in document for token in part]),
        "documents": torch.arange(len(documents)).repeat_interleave(lengths),
        "is_trained": torch.cat(
            [torch.arange(len(each.prompt) + len(each.answer)) >= len(each.prompt) for each in documents]
        ),
    }
