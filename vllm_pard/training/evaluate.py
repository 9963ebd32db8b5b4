"""How often the target is right, and how many tokens it keeps per step of the draft.

B requests · L tokens of the longest prefix · K draft tokens · V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_pard.demo.text.sample import Sample
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.training.generate import greedy_answers

__all__ = ["AnswerCounts", "count_acceptance", "score_answers"]


@dataclass(frozen=True)
class AnswerCounts:
    """Answers of the target against the computed ones."""

    num_prompts: int
    num_exact: int  # the whole text is equal
    num_final_line: int  # the last line is equal: the result of a worked answer


def score_answers(
    target: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    samples: Sequence[Sample],
    max_new_tokens: int,
) -> tuple[AnswerCounts, list[tuple[list[int], list[int]]]]:
    """Answer all questions greedily; also return the token ids of each prompt and answer."""
    prompts = tokenizer([sample.prompt for sample in samples])["input_ids"]
    answers = greedy_answers(
        target, prompts, max_new_tokens=max_new_tokens, batch_size=len(prompts), report=lambda line: None
    )
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    pairs = [(text, sample.completion) for text, sample in zip(texts, samples, strict=True)]
    counts = AnswerCounts(
        num_prompts=len(samples),
        num_exact=sum(got == wanted for got, wanted in pairs),
        num_final_line=sum(got.split("\n")[-1] == wanted.split("\n")[-1] for got, wanted in pairs),
    )
    return counts, list(zip(prompts, answers, strict=True))


@torch.inference_mode()
def count_acceptance(
    draft: LlamaForCausalLM,
    answered: Sequence[tuple[list[int], list[int]]],
    mask_id: int,
    num_speculative_tokens: int,
) -> AcceptanceStats:
    """Replay greedy speculative decoding of known target answers, all requests side by side.

    Greedy decoding ends in the target's own answer whatever the draft says, so the answer (with END) stands in for
    the target. As in an engine, the target gives the first token alone; after that each step has one draft of K
    tokens, of which the prefix equal to the answer is accepted, and one bonus token.
    """
    num_kept = [1] * len(answered)
    stats = AcceptanceStats()
    while open_requests := [r for r, (_, answer) in enumerate(answered) if num_kept[r] < len(answer)]:
        prefixes = [answered[r][0] + answered[r][1][: num_kept[r]] for r in open_requests]
        drafts = _draft_tokens(draft, prefixes, mask_id, num_speculative_tokens).tolist()
        for r, tokens in zip(open_requests, drafts, strict=True):
            rest = answered[r][1][num_kept[r] :]
            accepted = _common_prefix(tokens, rest)
            stats += AcceptanceStats.of_draft(num_speculative_tokens, accepted)
            num_kept[r] += accepted + 1
    return stats


def _draft_tokens(
    draft: LlamaForCausalLM, prefixes: Sequence[list[int]], mask_id: int, num_speculative_tokens: int
) -> Tensor:
    """One parallel forward: K - 1 mask tokens behind each prefix. -> int64 [B, K]"""
    rows = [prefix + [mask_id] * (num_speculative_tokens - 1) for prefix in prefixes]
    length = max(len(row) for row in rows)
    # Attention is causal, so what stands behind a row does not change it.
    tokens = torch.tensor([row + [mask_id] * (length - len(row)) for row in rows])  # [B, L]
    last = torch.tensor([len(prefix) - 1 for prefix in prefixes])  # [B]
    places = last[:, None] + torch.arange(num_speculative_tokens)  # [B, K]
    hidden = draft.model(input_ids=tokens, use_cache=False).last_hidden_state  # [B, L, H]
    picked = hidden.gather(1, places[:, :, None].expand(-1, -1, hidden.shape[2]))  # [B, K, H]
    logits: Tensor = draft.lm_head(picked)  # [B, K, V]
    return logits.argmax(dim=-1)


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    length = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        length += 1
    return length
