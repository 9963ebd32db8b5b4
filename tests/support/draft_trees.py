"""What every tree of draft tokens is, whatever it is made of."""

import torch
from pard_kernels import DraftTree


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
