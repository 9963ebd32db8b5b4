"""Trees that repeat what a request has read and written: the kernel against its twin, the twin against all paths."""

import math
from typing import Any

import pytest
import torch
from draft_trees import check_structure, drawn, drawn_ids
from pard_kernels import DraftTree, History, build_draft_tree, reference
from pard_kernels.build_draft_tree.reference import MAX_HISTORY, MAX_TOKEN_ID, PAIR_SHARE, SINGLE_SHARE

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LAST = 5  # the newest token


def given(logprobs: torch.Tensor, histories: list[list[int]], num_ids: int) -> dict[str, Any]:
    """Tokens that differ at each depth, out of few. logprobs: [B, K, C]"""
    longest = max(map(len, histories))
    token_ids = torch.tensor([[*tokens, *[-7] * (longest + 3 - len(tokens))] for tokens in histories])
    return {
        "candidate_ids": drawn_ids(logprobs, num_ids),
        "candidate_logprobs": logprobs,
        "history": History(token_ids.int(), torch.tensor([len(tokens) for tokens in histories]).int()),
    }


def run_both(arguments: dict[str, Any], num_nodes: int) -> DraftTree:
    wanted = reference.build_draft_tree(**arguments, num_nodes=num_nodes)
    on_device = {
        name: History(*(part.to(DEVICE) for part in value)) if isinstance(value, History) else value.to(DEVICE)
        for name, value in arguments.items()
    }
    got = build_draft_tree(**on_device, num_nodes=num_nodes)
    for name, expected, found in zip(DraftTree._fields, wanted, got, strict=True):
        if name == "logprobs":
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(found.cpu(), expected), name
    return wanted


def one(ids: list[list[int]], probs: list[list[float]], history: list[int]) -> dict[str, Any]:
    return {
        "candidate_ids": torch.tensor([ids]),
        "candidate_logprobs": torch.tensor([probs]).log(),
        "history": History(torch.tensor([history]).int(), torch.tensor([len(history)]).int()),
    }


def probs(tree: DraftTree) -> list[float]:
    return [round(p, 4) for p in tree.logprobs[0].exp().tolist()]


def test_what_followed_both_tokens_comes_before_what_followed_one() -> None:
    """4 5 was followed by 9 first and 8 last; 5 alone by 7, later than both. Then 8 by 2."""
    tree = run_both(one([[1, 2], [1, 2]], [[0.6, 0.4], [0.6, 0.4]], [4, 5, 9, 4, 5, 8, 2, 5, 7, 4, 5]), 5)
    assert tree.token_ids.tolist() == [[1, 1, 8, 2, 2]]
    assert tree.parents.tolist() == [[0, 0, 1, 0, 0, 3]]
    rest = 1 - PAIR_SHARE
    wanted = [0.6 * rest, 0.6 * rest * 0.6, PAIR_SHARE, 0.4 * rest, PAIR_SHARE * (0.4 * rest + PAIR_SHARE)]
    assert probs(tree) == pytest.approx(wanted, abs=1e-4)


def test_one_token_alone() -> None:
    tree = run_both(one([[1, 2], [3, 4]], [[0.6, 0.4], [0.01, 0.01]], [5, 7, 4, 5]), 3)
    assert tree.token_ids.tolist() == [[1, 2, 7]]
    rest = 1 - SINGLE_SHARE
    assert probs(tree) == pytest.approx([0.6 * rest, 0.4 * rest, SINGLE_SHARE], abs=1e-4)


@pytest.mark.parametrize("follower", [1, 2, 3])
def test_no_token_is_there_twice(follower: int) -> None:
    """What has followed is a candidate already: the first, one between, or the last."""
    tree = run_both(one([[1, 2, 3]], [[0.6, 0.3, 0.1]], [LAST, follower, LAST]), 3)
    assert sorted(tree.token_ids[0].tolist()) == [1, 2, 3]
    wanted = {token: p * (1 - SINGLE_SHARE) for token, p in ((1, 0.6), (2, 0.3), (3, 0.1))}
    wanted[follower] += SINGLE_SHARE
    assert dict(zip(tree.token_ids[0].tolist(), probs(tree), strict=True)) == pytest.approx(wanted, abs=1e-4)
    assert tree.token_ids[0, 0] == 1, "the main chain is the draft's"


def test_a_copy_goes_on_by_itself() -> None:
    """To the last depth, as the text did."""
    tree = run_both(one([[1]] * 4, [[0.001]] * 4, [LAST, 10, 11, 12, 13, 14, 6, LAST]), 4)
    assert tree.token_ids.tolist() == [[10, 11, 12, 13]]


@pytest.mark.parametrize("num_nodes", [32, 63])
def test_a_long_copy_fills_all_bits(num_nodes: int) -> None:
    """Up to 32 nodes the search keeps ancestors in narrower numbers."""
    copied = [*range(10, 10 + num_nodes)]
    tree = run_both(one([[1]] * num_nodes, [[1e-37]] * num_nodes, [LAST, *copied, 6, LAST]), num_nodes)
    assert tree.token_ids.tolist() == [copied]
    whole = [(2 << row) - 1 for row in range(num_nodes + 1)]
    assert tree.ancestors[0].tolist() == [bits if bits < 2**63 else bits - 2**64 for bits in whole]


@pytest.mark.parametrize(
    ("history", "token"),
    [
        ([LAST, MAX_TOKEN_ID, LAST], MAX_TOKEN_ID),
        ([LAST, MAX_TOKEN_ID + 1, LAST], 1),
        ([LAST, 7, LAST, MAX_TOKEN_ID + 1, LAST], 7),
        ([LAST, 7, LAST, -1, LAST], 7),
    ],
)
def test_what_is_no_token_is_not_proposed(history: list[int], token: int) -> None:
    """The next older place counts in its stead."""
    assert run_both(one([[1]], [[0.01]], history), 1).token_ids.tolist() == [[token]]


@pytest.mark.parametrize("history", [[], [LAST], [9, LAST]])
def test_what_was_never_there_changes_nothing(history: list[int]) -> None:
    arguments = one([[1, 2], [3, 4]], [[0.6, 0.4], [0.9, 0.1]], history or [LAST])
    if not history:
        arguments["history"].lengths.zero_()
    plain = reference.build_draft_tree(**{k: v for k, v in arguments.items() if k != "history"}, num_nodes=5)
    assert all(map(torch.equal, plain, run_both(arguments, 5)))


def test_old_tokens_are_forgotten() -> None:
    for num_between, token_ids in ((MAX_HISTORY - 4, [7]), (MAX_HISTORY - 3, [7]), (MAX_HISTORY - 2, [1])):
        tree = run_both(one([[1]], [[0.1]], [LAST, 7, *[6] * num_between, LAST]), 1)
        assert tree.token_ids[0].tolist() == token_ids, num_between


@pytest.mark.parametrize(
    ("num_reqs", "num_depths", "num_candidates", "num_nodes"),
    [(1, 1, 1, 1), (2, 2, 2, 6), (1, 3, 2, 14), (3, 4, 3, 7), (2, 8, 4, 16), (1, 15, 8, 31), (1, 15, 10, 63)],
)
@pytest.mark.parametrize("num_ids", [12, 40])
def test_random_trees(num_reqs: int, num_depths: int, num_candidates: int, num_nodes: int, num_ids: int) -> None:
    histories = [torch.randint(num_ids, (number,)).tolist() for number in (40, 3, 90)[:num_reqs]]
    arguments = given(drawn(num_reqs, num_depths, num_candidates), histories, num_ids)
    tree = run_both(arguments, num_nodes)
    for req in range(num_reqs):
        check_structure(DraftTree(*(part[req] for part in tree)), arguments["candidate_ids"][req])


@pytest.mark.parametrize("num_nodes", [1, 5, 12])
def test_no_tree_is_likelier(num_nodes: int) -> None:
    """Against all paths, each as likely as its tokens are one after the other."""
    history = [3, 1, 2, 0, 1, 2, 4, 2, 3, 1]
    arguments = given(drawn(1, 4, 3), [history], 6)
    found = reference.build_draft_tree(**arguments, num_nodes=num_nodes)
    ids, logprobs = arguments["candidate_ids"][0].tolist(), arguments["candidate_logprobs"][0].tolist()

    def below(path: list[int], joint: float) -> list[float]:
        depth = len(path)
        if depth == len(ids):
            return []
        read = history + path
        before, token = read[-2:]
        followers = [
            (history[i] == token and i > 0 and history[i - 1] == before, i)
            for i in range(len(history) - 1)
            if history[i] == token
        ]
        of_depth = {token: math.exp(p) for token, p in zip(ids[depth], logprobs[depth], strict=True)}
        if followers:
            is_pair, place = max(followers)
            share = PAIR_SHARE if is_pair else SINGLE_SHARE
            of_depth = {token: p * (1 - share) for token, p in of_depth.items()}
            follower = history[place + 1]
            of_depth[follower] = of_depth.get(follower, 0.0) + share
        all_below = [(token, joint + math.log(p)) for token, p in of_depth.items()]
        return [each for token, p in all_below for each in (p, *below([*path, token], p))]

    best = sorted(below([], 0.0), reverse=True)[:num_nodes]
    assert found.logprobs[0].sort(descending=True).values.tolist() == pytest.approx(best, abs=1e-5)


def test_histories_of_slots() -> None:
    """A request without a slot has none."""
    arguments = given(drawn(3, 3, 2), [[0, 1, 2, 0, 1], [3, 3, 3], [1, 2, 1], [2, 4, 2]], 5)
    slots = torch.tensor([3, -1, 0])
    found = []
    for build, device in ((reference.build_draft_tree, "cpu"), (build_draft_tree, DEVICE)):
        out = DraftTree.empty(4, 6, device)
        of_requests = DraftTree.empty(3, 6, device)
        out = out._replace(token_ids=of_requests.token_ids, logprobs=of_requests.logprobs)
        moved = arguments | {
            "candidate_ids": arguments["candidate_ids"].to(device),
            "candidate_logprobs": arguments["candidate_logprobs"].to(device),
            "history": History(*(part.to(device) for part in arguments["history"])),
        }
        found.append(build(**moved, num_nodes=6, out=out, request_slots=slots.to(device)).token_ids.cpu())
    assert torch.equal(*found)
    for req, slot in enumerate(slots.tolist()):
        mine = {name: value[req : req + 1] for name, value in arguments.items() if name != "history"}
        if slot >= 0:
            mine["history"] = History(*(part[slot : slot + 1] for part in arguments["history"]))
        assert torch.equal(found[0][req], reference.build_draft_tree(**mine, num_nodes=6).token_ids[0])


@pytest.mark.parametrize(
    ("history", "message"),
    [
        (History(torch.zeros(2, 5).long(), torch.zeros(2).int()), r"int32 \[S, L\].*got torch.int64 \(2, 5\)"),
        (History(torch.zeros(5, 2).int().T, torch.zeros(2).int()), r"contiguous rows.*strides \(1, 2\)"),
        (
            History(torch.zeros(2, 5).int(), torch.zeros(2).long()),
            r"lengths of the history must be contiguous torch.int32",
        ),
        (History(torch.zeros(1, 5).int(), torch.zeros(1).int()), r"each of 2 slots; got \(1, 5\) and \(1,\)"),
        (History(torch.zeros(3, 5).int(), torch.zeros(2).int()), r"each of 2 slots; got \(3, 5\) and \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(history: History, message: str) -> None:
    arguments = {
        name: value.to(DEVICE) for name, value in given(drawn(2, 3, 2), [[1], [2]], 9).items() if name != "history"
    }
    with pytest.raises(ValueError, match=message):
        build_draft_tree(**arguments, num_nodes=4, history=history)
