"""A Transformers model together with its K/V cache."""

# T rows of one forward · V vocabulary

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class CachedModel:
    """Holds the keys and values of the first `num_cached` tokens of one sequence."""

    def __init__(self, model: PreTrainedModel) -> None:
        config: Any = model.config.get_text_config(decoder=True)
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.max_length: int = config.max_position_embeddings
        # Without a config every layer keeps all tokens, so that rows can be rolled back. Sliding windows stay right:
        # they are in the attention mask.
        self._cache = DynamicCache()

    @property
    def num_cached(self) -> int:
        return int(self._cache.get_seq_length())

    def forward(self, token_ids: Sequence[int], *, num_logits: int) -> Tensor:
        """Run `token_ids` after the cached tokens; the logits of the last `num_logits` rows. [num_logits, V]"""
        # Qwen2.5 pads its vocabulary to 151936 or 152064 rows by model size. An id that this model has no row for is
        # replaced: in a draft that costs acceptance, never correctness.
        known_ids = [min(token_id, self.vocab_size - 1) for token_id in token_ids]
        input_ids = torch.tensor([known_ids], device=self.model.device)  # [1, T]
        output = self.model(input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=num_logits)
        logits: Tensor = output.logits[0]
        return logits

    def roll_back(self, num_rows: int) -> None:
        """Forget the last `num_rows` rows."""
        if num_rows > 0:
            self._cache.crop(-num_rows)

    def truncate(self, length: int) -> None:
        """Forget every row past `length`; a shorter cache stays as it is."""
        self.roll_back(self.num_cached - length)
