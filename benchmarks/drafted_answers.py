"""Answers of a target, and what an independent parallel draft says before each of their tokens."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trees import Loaded


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
    num_read, read = len(tokens) - 1, torch.arange(len(tokens) - 1)
    anchors = torch.arange(start - 1, num_read)  # the last token that is read, of each draft
    num_masks = num_depths - 1
    sees = torch.cat([read, anchors.repeat_interleave(num_masks)])  # the last real token that a row sees
    depths = torch.cat([0 * read, torch.arange(1, num_depths).repeat(len(anchors))])
    is_same = (sees[:, None] == sees) & (depths[:, None] >= depths)  # masks of one draft, in their order
    is_seen = torch.where(depths > 0, is_same & (depths[:, None] > 0), sees[:, None] >= sees)  # [rows, rows]
    ids = torch.cat(
        [tokens[:-1], tokens.new_full((len(anchors) * num_masks,), loaded.drafting.checkpoint.mask_token_id)]
    )
    mask = torch.zeros(is_seen.shape).masked_fill_(~is_seen, torch.finfo(torch.float32).min)
    logits = (
        loaded.draft(ids[None], attention_mask=mask[None, None], position_ids=(sees + depths)[None]).logits[0].float()
    )
    found = torch.cat([logits[anchors][:, None], logits[num_read:].view(len(anchors), num_masks, -1)], dim=1)
    proposed = loaded.drafting.checkpoint.read_draft_vocab()
    if proposed is not None:
        never = torch.ones(found.shape[-1], dtype=torch.bool).index_fill(0, torch.tensor(proposed), False)
        found.masked_fill_(never, -torch.inf)
    return found
