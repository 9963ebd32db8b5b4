"""Packs of a stream, looked at as they come: what a dataset's documents are checked for before a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from vllm_pard.training.cod.rows import PADDING
from vllm_pard.training.data.config import Document
from vllm_pard.training.models.starting_points import check_mask_unused, check_tokens_known

__all__ = ["CheckedPacks"]


class CheckedPacks(IterableDataset[dict[str, Any]]):
    """Raises StartingPointError at the first pack that has the mask token, or one that the draft does not know."""

    def __init__(self, packs: IterableDataset[dict[str, Any]], mask_token_id: int, vocab_size: int) -> None:
        self._packs, self._mask_token_id, self._vocab_size = packs, mask_token_id, vocab_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for item in self._packs:
            is_real = item["documents"] != PADDING
            documents = [Document(item["tokens"][is_real].tolist(), item["is_trained"][is_real].tolist())]
            check_mask_unused(documents, self._mask_token_id)
            check_tokens_known(documents, self._vocab_size)
            yield item
