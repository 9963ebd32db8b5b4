"""Answers of a target, and what an independent parallel draft says before each of their tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trees import Loaded

from vllm_pard.training.cod.attention import row_rule
from vllm_pard.training.cod.rows import build_rows


def answer(target: PreTrainedModel, prompt: list[int], temperature: float, length: int) -> Tensor:
    """The prompt and its answer, greedy at temperature 0. [N]"""
    given = torch.tensor([prompt])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    tokens: Tensor = target.generate(
        given, attention_mask=given.new_ones(given.shape), max_new_tokens=length, **sampling
    )
    return tokens[0]


@torch.inference_mode()
def draft_logits(loaded: Loaded, tokens: Tensor, start: int, num_depths: int) -> Tensor:
    """Of each token from `start` on, and those after it, as a draft says that has read what is before it.

    One forward: the answer's tokens, and for each of them mask tokens that see the tokens before it and one another.

    Returns:
        float32 [N - start, num_depths, V]; depth d of row n is of token start + n + d. Tokens that the draft never
        proposes have -inf.
    """
    num_read = len(tokens) - 1
    lengths = torch.zeros(num_read, dtype=torch.int64).index_fill(0, torch.arange(start - 1, num_read), num_depths)
    rows = build_rows(tokens[:-1], torch.zeros_like(lengths), lengths)
    index = torch.arange(len(rows.anchors))
    is_seen = row_rule(rows, None)(index, index, index[:, None], index)  # [rows, rows]
    mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, torch.finfo(torch.float32).min)
    ids = torch.where(rows.depths == 0, tokens[rows.anchors], loaded.drafting.checkpoint.mask_token_id)
    output = loaded.draft(ids[None], attention_mask=mask[None, None], position_ids=rows.positions[None])
    of_tokens, of_masks = output.logits[0].float().split([num_read, len(index) - num_read])
    of_tokens = of_tokens[start - 1 :, None]
    found = torch.cat([of_tokens, of_masks.view(len(of_tokens), num_depths - 1, -1)], dim=1)
    proposed = loaded.drafting.checkpoint.read_draft_vocab()
    if proposed is not None:
        never = torch.ones(found.shape[-1], dtype=torch.bool).index_fill(0, torch.tensor(proposed), False)
        found.masked_fill_(never, -torch.inf)
    return found
