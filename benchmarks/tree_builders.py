"""What might make a better tree of draft tokens than the likeliest paths, measured by replay.

python benchmarks/tree_builders.py --json benchmarks/results/tree_builders_cpu.json \
    [--real-pair runs/real_pair --test gsm8k_test.jsonl]    # what benchmarks/real_pair.py has trained

built                what is built: likely paths, and what has followed their last tokens before (`build_draft_tree`)
product              a path is as likely as its tokens are together, each by its depth's distribution
siblings             a token below a likelier one of its depth counts as half as likely: its distribution did not know
                     of that one
temperature          deeper distributions flatter, or sharper: those of depth d at a temperature of 1 + s (d - 1)
bigrams, trigrams    mixed with all that has followed a path's last one or two tokens in this request so far

The target's own answers, greedy and sampled, are walked as trees of N nodes would be: a path is followed as far as the
answer goes on in it. That is exact, since no tree changes what the target says.
"""

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from drafted_answers import answer, draft_logits
from pard_kernels import History
from pard_kernels.reference import build_draft_tree
from trees import Loaded, Question, run

from vllm_pard.reference.tree import likeliest_candidates

NUM_NODES, NUM_DEPTHS, TEMPERATURES = (16, 32), 15, (0.0, 1.0)

Tokens = tuple[int, ...]  # of a path, from the root's child on
Ranked = list[tuple[float, int]]  # log-probabilities and tokens, the likeliest first
Children = Callable[[Tokens], Ranked]


class Drafted(NamedTuple):
    """What one draft forward says, and what is known before it."""

    tokens: list[int]  # the prompt, and the answer so far
    candidates: list[Ranked]  # of each depth


Builder = Callable[[Drafted, int], set[Tokens]]  # paths of so many nodes


def built(drafted: Drafted, num_nodes: int) -> set[Tokens]:
    """As the reference engine has them built."""
    found = build_draft_tree(
        candidate_ids=torch.tensor([[[token for _, token in ranked] for ranked in drafted.candidates]]),
        candidate_logprobs=torch.tensor([[[logprob for logprob, _ in ranked] for ranked in drafted.candidates]]),
        num_nodes=num_nodes,
        history=History(torch.tensor([drafted.tokens]).int(), torch.tensor([len(drafted.tokens)]).int()),
    )
    paths: list[Tokens] = [()]
    for token, parent in zip(found.token_ids[0].tolist(), found.parents[0, 1:].tolist(), strict=True):
        paths.append((*paths[parent], token))
    return set(paths[1:])


def product(drafted: Drafted) -> Children:
    return lambda path: drafted.candidates[len(path)]


def siblings(drafted: Drafted) -> Children:
    lower = [
        [(logprob - math.log(2) * (rank > 0), token) for rank, (logprob, token) in enumerate(of_depth)]
        for of_depth in drafted.candidates
    ]
    return lambda path: lower[len(path)]


def temperature(drafted: Drafted, *, slope: float) -> Children:
    """Among the candidates of a depth, which have nearly all of its probability."""
    tempered = []
    for depth, of_depth in enumerate(drafted.candidates):
        logprobs = torch.tensor([logprob for logprob, _ in of_depth])
        scaled = (logprobs / (1 + slope * depth)).log_softmax(-1) + logprobs.logsumexp(-1)
        tempered.append(list(zip(scaled.tolist(), (token for _, token in of_depth), strict=True)))
    return lambda path: tempered[len(path)]


def ngrams(drafted: Drafted, *, order: int, share: float) -> Children:
    """The table's share of the probability, where it knows what followed."""
    followed: dict[Tokens, Counter[int]] = defaultdict(Counter)
    tokens = drafted.tokens
    for end in range(order, len(tokens)):
        followed[tuple(tokens[end - order : end])][tokens[end]] += 1

    def children(path: Tokens) -> Ranked:
        table = followed.get((*tokens[-order:], *path)[-order:])
        if table is None:
            return drafted.candidates[len(path)]
        mixed = {token: (1 - share) * math.exp(logprob) for logprob, token in drafted.candidates[len(path)]}
        for token, count in table.items():
            mixed[token] = mixed.get(token, 0.0) + share * count / table.total()
        return sorted(((math.log(p), token) for token, p in mixed.items() if p > 0), reverse=True)

    return children


def likeliest_paths(of: Callable[[Drafted], Children], drafted: Drafted, num_nodes: int) -> set[Tokens]:
    """Best first: one that is taken opens its next sibling and its first child."""
    children, num_depths = of(drafted), len(drafted.candidates)
    taken: set[Tokens] = set()
    opened: list[tuple[float, int, Tokens, float, int]] = []

    def open_node(parent: Tokens, of_parent: float, rank: int) -> None:
        ranked = children(parent)
        if rank < len(ranked):
            heapq.heappush(opened, (-of_parent - ranked[rank][0], len(taken), parent, of_parent, rank))

    open_node((), 0.0, 0)
    while opened and len(taken) < num_nodes:
        cost, _, parent, of_parent, rank = heapq.heappop(opened)
        path = (*parent, children(parent)[rank][1])
        taken.add(path)
        open_node(parent, of_parent, rank + 1)
        if len(path) < num_depths:
            open_node(path, -cost, 0)
    return taken


BUILDERS: dict[str, Builder] = {
    "built": built,
    "product": partial(likeliest_paths, product),
    "siblings": partial(likeliest_paths, siblings),
    **{
        f"temperature, s = {slope:g}": partial(likeliest_paths, partial(temperature, slope=slope))
        for slope in (-0.03, 0.05, 0.1)
    },
    **{
        f"{name}, {share:.0%}": partial(likeliest_paths, partial(ngrams, order=order, share=share))
        for order, name in ((1, "bigrams"), (2, "trigrams"))
        for share in (0.15, 0.3)
    },
}


class Answer(NamedTuple):
    """What the target said, and what the draft says at each token of it."""

    prompt: list[int]
    said: list[int]
    candidates: list[list[Ranked]]


def accepted_lengths(answered: Answer, build: Builder, num_nodes: int) -> Iterator[int]:
    """How many nodes each step keeps; the target gives an answer's first token alone."""
    prompt, said, candidates = answered
    done = 1
    while done < len(said):
        paths = build(Drafted(prompt + said[:done], candidates[done]), num_nodes)
        kept = 0
        while tuple(said[done : done + kept + 1]) in paths and done + kept < len(said):
            kept += 1
        yield kept
        done += kept + 1


def answered(loaded: Loaded, prompt: list[int], temperature: float, length: int) -> Answer:
    tokens = answer(loaded.target, prompt, temperature, length)
    logits = draft_logits(loaded, tokens, len(prompt), NUM_DEPTHS)
    logprobs, ids = (part.tolist() for part in likeliest_candidates(logits, temperature))  # [N, NUM_DEPTHS, C]
    candidates = [
        [list(zip(*depth, strict=True)) for depth in zip(*of_token, strict=True)]
        for of_token in zip(logprobs, ids, strict=True)
    ]
    return Answer(prompt, tokens[len(prompt) :].tolist(), candidates)


def measure(question: Question, given: Any) -> Iterator[dict[str, Any]]:
    """A row for each temperature, number of nodes and builder."""
    loaded = Loaded.of(question, given.num_prompts, wanted="independent")
    for at in TEMPERATURES:
        torch.manual_seed(0)
        answers = [answered(loaded, prompt, at, given.max_tokens) for prompt in loaded.prompts]
        for num_nodes in NUM_NODES:
            for name, build in BUILDERS.items():
                kept = [n for each in answers for n in accepted_lengths(each, build, num_nodes)]
                yield question.names | {
                    "temperature": at,
                    "nodes": num_nodes,
                    "builder": name,
                    "acceptance_length": round(1 + sum(kept) / len(kept), 4),
                    "num_drafts": len(kept),
                }


def main() -> None:
    run(measure, __doc__, num_prompts=16, max_tokens=128)


if __name__ == "__main__":
    main()
