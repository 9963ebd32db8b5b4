"""A step with a tree of draft tokens in place of a chain.

One forward of a parallel draft gives K distributions that do not know of each other's tokens, so any token of one may
follow any of another: the tree of the N likeliest paths is had for the price of a chain. The target reads all of them
in one forward, in which each row sees its ancestors, and its own token in each row leads from the root to a leaf of
what is kept (arXiv 2604.12989).

B requests · K depths · C candidates of a depth · N nodes · V vocabulary of the target
"""

from collections.abc import Callable

import torch
from pard_kernels import DraftTree, History
from pard_kernels.reference import accept_tree_path, build_draft_tree
from torch import Tensor

from vllm_pard.config import MAX_TREE_NODES, NUM_CANDIDATES
from vllm_pard.reference.cache import Branches, CachedModel
from vllm_pard.reference.requests import GenerationError, Requests
from vllm_pard.reference.sampling import Sampler

DepthLogits = Callable[[Requests], Tensor]  # [B, K, V of the draft]


def check_tree(num_nodes: int, num_depths: int, vocab_size: int, *, is_parallel: bool) -> None:
    """Raise GenerationError where there can't be such a tree; 0 nodes are none."""
    if num_nodes == 0:
        return
    if not is_parallel:
        raise GenerationError("a tree of draft tokens needs a parallel draft, method 'pard' or 'pard2'")
    width = min(NUM_CANDIDATES, vocab_size)
    most = min(MAX_TREE_NODES, sum(width**depth for depth in range(1, num_depths + 1)))
    if not 1 <= num_nodes <= most:
        raise GenerationError(f"a tree of {num_depths} depths needs from 1 to {most} nodes; got {num_nodes}")


def likeliest_candidates(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-probabilities and ids of what a depth's tree may hold, the likeliest first. [..., V] -> [..., C], [..., C]"""
    scores = logits.float() / (temperature or 1.0)
    likeliest = scores.log_softmax(dim=-1).topk(min(NUM_CANDIDATES, scores.shape[-1]))
    return likeliest.values, likeliest.indices


def draft_tree(logits: Tensor, num_nodes: int, temperature: float, requests: Requests) -> DraftTree:
    """The likeliest paths through the logits [B, K, V] of the depths, and through what requests have seen before.

    Which paths these are is the draft's own affair: the tokens that are kept are the target's.
    """
    logprobs, ids = likeliest_candidates(logits, temperature)  # [B, K, C]
    return build_draft_tree(
        candidate_ids=ids,
        candidate_logprobs=logprobs,
        num_nodes=num_nodes,
        history=History(requests.tokens.int(), requests.lengths.int()),
    )


def score_tree(target: CachedModel, requests: Requests, tree: DraftTree) -> Tensor:
    """One target forward over the newest token and all nodes. [B, N + 1, V]"""
    newest = requests.lengths[:, None] - 1  # [B, 1]
    rows = torch.arange(tree.parents.shape[1], device=newest.device)  # [N + 1]
    is_ancestor = (tree.ancestors[:, :, None] >> rows) & 1  # [B, N + 1, N + 1]
    return target.step(
        torch.cat([requests.at(newest), tree.token_ids], dim=1),
        newest + tree.depths,
        num_logits=len(rows),
        branches=Branches(newest + rows, is_ancestor.bool()),
    )


def verify_tree(
    tree: DraftTree, target_token_ids: Tensor, newest_ids: Tensor, max_depths: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens that are kept, the rows that gave them, and how many they are. [B, N + 1], [B, N + 1], [B]

    Each row has a token of the target, target_token_ids [B, N + 1]: the likeliest, or one drawn from what follows the
    row's path. The path goes on while a child has it, to max_depths [B] at most, so greedy tokens are plain decoding's,
    and drawn ones are distributed as plain decoding's, whatever the tree.
    """
    num_reqs, num_rows = target_token_ids.shape
    token_ids, accepted_rows = torch.zeros_like(target_token_ids), torch.zeros_like(tree.parents)
    num_sampled = torch.zeros_like(accepted_rows[:, 0])
    accept_tree_path(
        target_token_ids=target_token_ids.flatten(),
        draft_token_ids=torch.cat([newest_ids, tree.token_ids], dim=1).flatten(),
        row_starts=torch.arange(num_reqs + 1, dtype=torch.int32, device=num_sampled.device) * num_rows,
        parents=tree.parents,
        is_chain_only=torch.zeros_like(num_sampled, dtype=torch.bool),
        request_slots=torch.arange(num_reqs, device=num_sampled.device),
        token_ids=token_ids,
        accepted_rows=accepted_rows,
        num_sampled=num_sampled,
    )
    return token_ids, accepted_rows, torch.minimum(num_sampled, max_depths + 1)


def tree_step(
    target: CachedModel,
    logits: Tensor,
    requests: Requests,
    sampler: Sampler,
    *,
    num_nodes: int,
    max_depths: Tensor,
) -> None:
    """Draft a tree from logits [B, K, V], verify it, and keep what the target agrees with."""
    tree = draft_tree(logits, num_nodes, sampler.temperature, requests)
    newest = requests.lengths[:, None] - 1  # [B, 1]
    target_token_ids = sampler.sample(sampler.probs(score_tree(target, requests, tree)))  # [B, N + 1]
    token_ids, accepted_rows, num_sampled = verify_tree(tree, target_token_ids, requests.at(newest), max_depths)
    places = torch.arange(accepted_rows.shape[1], device=newest.device)  # [N + 1]
    # A node's keys and values lie in its row's slot; a chain's already lie where they belong.
    target.move(newest + accepted_rows, newest + places, places < num_sampled[:, None])
    requests.count(max_depths, num_sampled - 1)
    requests.append(token_ids, num_sampled)
