"""Acceptance on held-out answers while a draft is trained, shared among the processes that train it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows, trained_run_lengths
from vllm_pard.training.evaluation.acceptance import accepted_tokens, at_every_anchor, replay
from vllm_pard.training.options.config import CodConfig

__all__ = ["HeldOut", "HeldOutResult"]

Inputs = dict[str, Any]


@dataclass(frozen=True)
class HeldOutResult:
    """Counts of one draft on the held-out answers."""

    replayed: AcceptanceStats  # the steps of greedy decoding
    everywhere: AcceptanceStats  # a draft at every token
    num_labels: int = 0
    num_matches: int = 0  # rows whose own token is right, whatever became of the rows before


class HeldOut:
    """Packs of held-out documents, and how a draft of K tokens does on them.

    Args:
        packs: items of a PackedDataset.
        num_speculative_tokens: K.
        vocabulary, vocab_size, multiple, names_packs: as in Collator.
    """

    def __init__(
        self,
        packs: Sequence[dict[str, Any]],
        *,
        num_speculative_tokens: int,
        vocab_size: int,
        vocabulary: Tensor | None = None,
        multiple: int = 1,
        names_packs: bool = False,
    ) -> None:
        whole = CodConfig(num_depths=num_speculative_tokens, retention=1, min_retention=1)
        self.packs, self.num_depths = packs, num_speculative_tokens
        self._collate = Collator(
            cod=whole,
            seed=0,
            vocab_size=vocab_size,
            vocabulary=vocabulary,
            multiple=multiple,
            names_packs=names_packs,
        )

    def measure(self, predict: Callable[[Inputs], Tensor], accelerator: Accelerator) -> HeldOutResult:
        """Every process takes its share; all get the sum.

        Args:
            predict: the draft's token for each labelled row: arguments of `ParallelDraft.forward` -> int64 [T].
        """
        total = torch.zeros(2 * (2 + self.num_depths) + 2, dtype=torch.int64)
        rank, num_processes = accelerator.process_index, accelerator.num_processes
        for start in range(0, len(self.packs), num_processes):
            # A sharded model only runs on all processes at once: who has no pack left runs the first once more.
            is_counted = start + rank < len(self.packs)
            counts = self._counts(self.packs[start + rank if is_counted else 0], predict)
            total += counts if is_counted else 0
        summed = accelerator.reduce(total.to(accelerator.device), reduction="sum").tolist()
        return self._result(summed)

    @torch.no_grad()
    def _counts(self, pack: dict[str, Any], predict: Callable[[Inputs], Tensor]) -> Tensor:
        inputs = self._collate([pack])
        matches = predict(inputs).cpu() == inputs["labels"]
        rows, labelled = Rows(**inputs["rows"]), inputs["labelled"]
        accepted = accepted_tokens(rows, len(pack["tokens"]), labelled, matches, self.num_depths)
        run_lengths = trained_run_lengths(pack["documents"], pack["is_trained"])
        replayed = replay(accepted, pack["is_trained"], pack["documents"], self.num_depths)
        everywhere = at_every_anchor(accepted, run_lengths, self.num_depths)
        numbers = [
            number
            for stats in (replayed, everywhere)
            for number in (stats.num_drafts, stats.num_accepted_tokens, *stats.accepted_per_position)
        ]
        return torch.tensor([*numbers, len(matches), int(matches.sum())])

    def _result(self, numbers: list[int]) -> HeldOutResult:
        size = 2 + self.num_depths
        parts = [numbers[:size], numbers[size : 2 * size]]
        replayed, everywhere = (
            AcceptanceStats(
                num_drafts=num_drafts,
                num_draft_tokens=num_drafts * self.num_depths,
                num_accepted_tokens=num_accepted,
                accepted_per_position=tuple(per_position),
            )
            for num_drafts, num_accepted, *per_position in parts
        )
        return HeldOutResult(replayed, everywhere, *numbers[2 * size :])
