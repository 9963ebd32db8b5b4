"""Candidates to make trees of, and what every tree of draft tokens is."""

import torch
from pard_kernels import DraftTree


def drawn(*shape: int, step: float = 0.0) -> torch.Tensor:
    """Log-probabilities of random distributions; `step`: multiples of it, many of them equal. [B, K, C]"""
    logits = 2 * torch.randn(*shape[:2], 2 * shape[2])
    logprobs = logits.log_softmax(2).sort(2, descending=True).values[..., : shape[2]].contiguous()
    return (logprobs / step).round() * step if step else logprobs


def drawn_ids(logprobs: torch.Tensor, num_ids: int) -> torch.Tensor:
    """Tokens that differ at each depth, out of so many. [B, K, C]"""
    return torch.rand(*logprobs.shape[:2], num_ids).argsort(2)[..., : logprobs.shape[2]].contiguous()


def check_structure(tree: DraftTree, candidate_ids: torch.Tensor) -> None:
    """Of one request: a tree up to any row, main chain first. candidate_ids: [K, C]"""
    token_ids, parents, depths, ancestors, logprobs = (part.tolist() for part in tree)
    seen, is_main = set(), [True]
    for row in range(1, len(parents)):
        parent, token = parents[row], token_ids[row - 1]
        assert 0 <= parent < row
        assert depths[row] == depths[parent] + 1
        assert (parent, token) not in seen, "siblings differ"
        seen.add((parent, token))
        walked, above = {row}, row
        while above:
            above = parents[above]
            walked.add(above)
        assert walked == {i for i in range(64) if ancestors[row] >> i & 1}
        is_main.append(is_main[parent] and token == int(candidate_ids[depths[row] - 1, 0]))
    assert (parents[0], depths[0], ancestors[0]) == (0, 0, 1)
    num_main = sum(is_main)
    assert is_main == [True] * num_main + [False] * (len(parents) - num_main)
    others = logprobs[num_main - 1 :]
    assert others == sorted(others, reverse=True)
