"""A finished draft on answers of its target: acceptance at any K and in both modes, without decoding again.

The counts are those of greedy decoding, but for draft tokens beyond the end of an answer, which an engine counts too.

N tokens of a few documents side by side · K draft tokens · H hidden size of the draft · F width of its features
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel

from vllm_pard.errors import PardError
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.pard2 import Mode
from vllm_pard.target_proj import TargetProj
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.evaluation.acceptance import accepted_tokens, replay
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.models.target import Target
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig

__all__ = ["Answered", "DraftReplay", "ReplayError", "check_replay"]

ROWS_AT_ONCE = 8192  # tokens and mask tokens of one forward; a longer document has one of its own


class ReplayError(PardError):
    """The draft can't be replayed as asked."""


class Answered(NamedTuple):
    """A prompt and the target's greedy answer to it, in token ids."""

    prompt: list[int]
    answer: list[int]


class DraftReplay:
    """A draft of up to `num_speculative_tokens`, independent and, with a target and its projection, dependent.

    Args:
        draft: changed in place to attend over rows, and moved to the target's device.
        vocab_size: of the target: ids beyond it are never drafted; None: that of the draft.
        draft_vocab: the ids that the draft was trained to propose; None: all.
        target: changed in the same way; only needed with a `target_proj`.
    """

    def __init__(
        self,
        draft: PreTrainedModel,
        *,
        mask_token_id: int,
        num_speculative_tokens: int,
        vocab_size: int | None = None,
        draft_vocab: Sequence[int] | None = None,
        target: PreTrainedModel | None = None,
        target_proj: TargetProj | None = None,
    ) -> None:
        self.num_speculative_tokens = num_speculative_tokens
        draft_vocab_size: int = _text_config(draft).vocab_size
        vocab_size = min(vocab_size or draft_vocab_size, draft_vocab_size)
        trimmed = None if draft_vocab is None else torch.tensor(sorted(draft_vocab))
        self._target, features = None, None
        if target is not None and target_proj is not None:
            check_replay(target_proj)
            layers = _from_the_end(target_proj.features.target_layers, _text_config(target).num_hidden_layers)
            features = FeatureConfig(layers=layers, scale=target_proj.features.scale, dropout=0)
            self._target = Target(target, layers=layers)
            draft = draft.to(target.device)
        self._draft = ParallelDraft(
            draft,
            mask_token_id=mask_token_id,
            loss=LossConfig(),
            num_depths=num_speculative_tokens,
            features=features,
            target_dim=0 if target_proj is None else target_proj.features.target_dim,
            vocabulary=slice(vocab_size) if trimmed is None else trimmed,
        ).eval()
        if self._draft.target_proj is not None and target_proj is not None:
            self._draft.target_proj.to(draft.device).weight.data.copy_(target_proj.weight)  # [H, F]
        whole = CodConfig(num_depths=num_speculative_tokens, retention=1, min_retention=1)
        num_ids = vocab_size if trimmed is None else len(trimmed)
        self._collate = Collator(cod=whole, seed=0, vocab_size=num_ids, vocabulary=trimmed)

    def acceptance(
        self, answered: Sequence[Answered], ks: Sequence[int], *, mode: Mode = "independent"
    ) -> dict[int, AcceptanceStats]:
        """The steps of greedy decoding at each K, none above `num_speculative_tokens`."""
        if mode == "dependent" and self._target is None:
            raise ReplayError("dependent mode needs a target and its target_proj; got none: replay independent mode")
        totals = {k: AcceptanceStats() for k in ks}
        for documents in _portions(answered, self.num_speculative_tokens):
            pack = _pack(documents)
            accepted = self._accepted(pack, self._target if mode == "dependent" else None)  # [N]
            for k in ks:
                totals[k] += replay(accepted.clamp(max=k), pack["is_trained"], pack["documents"], k)
        return totals

    @torch.inference_mode()
    def _accepted(self, pack: dict[str, Tensor], target: Target | None) -> Tensor:
        batch = self._collate([pack | {"draw": 0}])
        inputs = send_to_device(batch, self._draft.draft.device)
        said = None if target is None else target(Rows(**inputs["rows"]), inputs["tokens"])
        # As in the reference engine, an id of the target that the draft has no embedding for is replaced.
        inputs["tokens"] = inputs["tokens"].clamp(max=_text_config(self._draft.draft).vocab_size - 1)
        predictions = self._draft(**inputs, target=said, predicts=True)["predictions"].cpu()
        matches, num_tokens = predictions == batch["labels"], len(pack["tokens"])
        return accepted_tokens(
            Rows(**batch["rows"]), num_tokens, batch["labelled"], matches, self.num_speculative_tokens
        )


def check_replay(target_proj: TargetProj) -> None:
    """Raise ReplayError if dependent mode with this projection is not what a ParallelDraft computes."""
    if target_proj.bias is not None:
        raise ReplayError(
            "a target_proj with a bias can't be replayed, since drafts are trained without; "
            "ask for independent mode, or decode with --engine reference of vllm-pard generate"
        )


def _from_the_end(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Of N + 1 hidden states, counted from either end."""
    return tuple(layer if layer < 0 else layer - num_layers - 1 for layer in layers)


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config(decoder=True)


def _portions(answered: Sequence[Answered], num_depths: int) -> Iterator[list[Answered]]:
    """A few documents at a time, in their order."""
    portion: list[Answered] = []
    num_rows = 0
    for document in answered:
        num_more = len(document.prompt) + len(document.answer) * num_depths
        if portion and num_rows + num_more > ROWS_AT_ONCE:
            yield portion
            portion, num_rows = [], 0
        portion.append(document)
        num_rows += num_more
    if portion:
        yield portion


def _pack(documents: Sequence[Answered]) -> dict[str, Tensor]:
    lengths = torch.tensor([len(document.prompt) + len(document.answer) for document in documents])
    return {
        "tokens": torch.tensor([token for document in documents for part in document for token in part]),  # [N]
        "documents": torch.arange(len(documents)).repeat_interleave(lengths),  # [N]
        "is_trained": torch.cat(
            [torch.arange(len(each.prompt) + len(each.answer)) >= len(each.prompt) for each in documents]
        ),  # [N]
    }
