"""The kernel against its twin, and both against plain decoding: token ids are equal or wrong."""

import hashlib
from itertools import product
from typing import Any

import pytest
import torch
from pard_kernels import accept_tree_path, reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
POISON = -77
NUM_SLOTS, NUM_TREE_ROWS, WIDTH, VOCAB_SIZE = 6, 12, 13, 5

Tree = list[int]  # the row of each row's parent


def arguments(
    trees: list[Tree], drafts: list[list[int]], targets: list[list[int]], width: int = WIDTH, **options: Any
) -> dict[str, Any]:
    """A request for each tree, each in another slot; rows as many as it has draft tokens."""
    slots = options.get("slots") or [(5 * req + 2) % NUM_SLOTS for req in range(len(trees))]
    parents = torch.full(
        (max([NUM_SLOTS, *(slot + 1 for slot in slots)]), options.get("num_rows", NUM_TREE_ROWS)), POISON
    )
    for slot, tree in zip(slots, trees, strict=True):
        if slot >= 0:
            parents[slot, : len(tree)] = torch.tensor(tree)
    num_reqs = len(trees)
    given = {
        "target_token_ids": torch.tensor([token for tokens in targets for token in tokens], dtype=torch.int64),
        "draft_token_ids": torch.tensor([token for tokens in drafts for token in tokens], dtype=torch.int32),
        "row_starts": torch.tensor([0, *(len(tokens) for tokens in drafts)]).cumsum(0).int(),
        "parents": parents.int(),
        "is_chain_only": torch.zeros(len(parents), dtype=torch.bool),
        "request_slots": torch.tensor(slots),
        "token_ids": torch.full((num_reqs, width), POISON),
        "accepted_rows": torch.full((len(parents), width), POISON, dtype=torch.int32),
        "num_sampled": torch.full((num_reqs,), POISON, dtype=torch.int32),
    }
    return {name: tensor.to(DEVICE) for name, tensor in given.items()}


def run_both(given: dict[str, Any]) -> dict[str, Any]:
    """What both have written, accepted rows by request."""
    expected = {name: tensor.cpu().clone() for name, tensor in given.items()}
    reference.accept_tree_path(**expected)
    accept_tree_path(**given)
    for name, tensor in expected.items():
        assert torch.equal(given[name].cpu(), tensor), name
    slots, rows = expected["request_slots"].long(), expected["accepted_rows"]
    return expected | {"accepted_rows": rows[slots].masked_fill(slots[:, None] < 0, POISON)}


def draw(high: int, generator: torch.Generator) -> int:
    return int(torch.randint(high, (), generator=generator))


def random_tree(num_nodes: int, generator: torch.Generator) -> tuple[Tree, list[list[int]]]:
    """A tree in any order in which parents come first, and the tokens from the root to each row."""
    tree, paths = [0], [[]]
    while len(tree) <= num_nodes:
        parent, token = draw(len(tree), generator), draw(VOCAB_SIZE, generator)
        if paths[parent] + [token] not in paths:
            tree.append(parent)
            paths.append(paths[parent] + [token])
    return tree, paths


def answer(req: int, path: list[int]) -> int:
    """What the target says after these tokens: two in three times a small one, so that paths are long."""
    digest = hashlib.sha256(repr((req, path)).encode()).digest()
    return digest[0] % (2 if digest[1] % 3 else VOCAB_SIZE)


def decode(req: int, num_tokens: int) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        tokens.append(answer(req, tokens))
    return tokens


def test_worked_example() -> None:
    """The main chain 7 8 9, beside it 6 after the root, below it 5 and 4, and 3 below 5. The target says 6 5 2."""
    tree = [0, 0, 1, 2, 0, 4, 4, 5]
    out = run_both(arguments([tree], [[1, 7, 8, 9, 6, 5, 4, 3]], [[6, 0, 0, 0, 5, 2, 0, 0]]))
    assert out["num_sampled"].tolist() == [3]
    assert out["token_ids"].tolist() == [[6, 5, 2] + [POISON] * (WIDTH - 3)]
    assert out["accepted_rows"].tolist() == [[0, 4, 5] + [POISON] * (WIDTH - 3)]


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
def test_tokens_are_those_of_plain_decoding(ids_dtype: torch.dtype) -> None:
    """Trees of all sizes, some cut off from behind, among requests without drafts and without rows."""
    generator = torch.Generator().manual_seed(0)
    trees, drafts, targets = [], [], []
    num_reqs = 48
    for req in range(num_reqs):
        tree, paths = random_tree(draw(NUM_TREE_ROWS, generator), generator)
        paths = paths[: 1 + draw(len(paths), generator)] if req % 3 == 0 else paths
        paths = paths[: req % 2] if req % 10 < 2 else paths
        trees.append(tree)
        drafts.append([(path or [9])[-1] for path in paths])
        targets.append([answer(req, path) for path in paths])
    given = arguments(trees, drafts, targets, slots=torch.randperm(num_reqs, generator=generator).tolist())
    given["draft_token_ids"], given["request_slots"] = (
        given[name].to(ids_dtype) for name in ("draft_token_ids", "request_slots")
    )
    out = run_both(given)
    counts = out["num_sampled"].tolist()
    for req, count in enumerate(counts):
        wanted = decode(req, count)
        assert out["token_ids"][req].tolist() == wanted + [POISON] * (WIDTH - count)
        rows = out["accepted_rows"][req, :count].tolist()
        assert rows == sorted(set(rows)), "rows rise"
        assert [drafts[req][row] for row in rows[1:]] == wanted[:-1]
        assert (out["accepted_rows"][req, count:] == POISON).all()
        if drafts[req]:
            kept = [i for i, parent in enumerate(trees[req][: len(drafts[req])]) if i and parent == rows[-1]]
            assert wanted[-1] not in [drafts[req][i] for i in kept], "it could have gone on"
    assert [count == 0 for count in counts] == [not tokens for tokens in drafts]
    assert {0, 1, 2, 3, 4} <= set(counts), "nothing was tested"


def test_drawn_tokens_have_the_targets_distribution() -> None:
    """Every draw that there can be, weighed by its probability; tokens 0 and 1 after the root, 0 and 2 below 1."""
    tree, drafts = [0, 0, 0, 2, 2], [9, 0, 1, 0, 2]
    probs = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    probs /= probs.sum(1, keepdim=True)  # [rows, V]
    draws = [list(tokens) for tokens in product(range(3), repeat=5)]
    out = run_both(arguments([tree] * len(draws), [drafts] * len(draws), draws, slots=list(range(len(draws)))))
    weights = torch.stack([probs[range(5), tokens].prod() for tokens in draws])
    got: dict[tuple[int, ...], float] = {}
    for tokens, count, weight in zip(out["token_ids"].tolist(), out["num_sampled"], weights, strict=True):
        got[tuple(tokens[:count])] = got.get(tuple(tokens[:count]), 0.0) + float(weight)
    root, after_0, after_1, after_10, after_12 = probs.tolist()
    wanted = {(2,): root[2]}
    wanted |= {(0, x): root[0] * after_0[x] for x in range(3)}
    wanted |= {(1, 1): root[1] * after_1[1]}
    wanted |= {(1, 0, x): root[1] * after_1[0] * after_10[x] for x in range(3)}
    wanted |= {(1, 2, x): root[1] * after_1[2] * after_12[x] for x in range(3)}
    assert got == pytest.approx(wanted, abs=1e-12), "sums of products of float64"


@pytest.mark.parametrize("num_right", [0, 1, 62, 63])
def test_a_chain_as_long_as_trees_can_be(num_right: int) -> None:
    chain, tokens = [max(row - 1, 0) for row in range(64)], list(range(100, 165))
    drafts = [*tokens[: num_right + 1], *[3] * (63 - num_right)]
    out = run_both(arguments([chain], [drafts], [tokens[1:]], width=64, num_rows=64))
    assert out["num_sampled"].tolist() == [num_right + 1]
    assert out["token_ids"][0, : num_right + 1].tolist() == tokens[1 : num_right + 2]


@pytest.mark.parametrize("width", [1, 2, 5, 6, 70])
def test_a_path_that_does_not_fit_is_cut(width: int) -> None:
    """Five right drafts in a chain, for two requests in a row; behind each line of outputs lies poison."""
    chain, tokens = [0, 0, 1, 2, 3, 4], list(range(10, 17))
    given = arguments([chain] * 2, [tokens[:6]] * 2, [tokens[1:]] * 2, width=80)
    whole = {name: given[name] for name in ("token_ids", "accepted_rows")}
    out = run_both(given | {name: tensor[:, :width] for name, tensor in whole.items()})
    count = min(width, 6)
    assert out["num_sampled"].tolist() == [count] * 2
    assert out["token_ids"][:, :count].tolist() == [tokens[1 : count + 1]] * 2
    assert out["accepted_rows"][:, :count].tolist() == [list(range(count))] * 2
    assert all((tensor[:, count:] == POISON).all() for tensor in whole.values())


@pytest.mark.parametrize(
    ("tree", "count"),
    [
        pytest.param([0, 0, 1, 2], 4, id="as it should be"),
        pytest.param([3, 0, 1, 2], 4, id="root with a parent"),
        pytest.param([0, 1, 1, 2], 1, id="its own parent"),
        pytest.param([0, 2, 1, 2], 1, id="a circle"),
        pytest.param([0, 0, 3, 2], 2, id="a circle further down"),
        pytest.param([0, 0, -1, 1], 3, id="no parent"),
        pytest.param([0, 0, 2**31 - 1, -(2**31)], 2, id="far away"),
    ],
)
def test_bad_parents_neither_hang_nor_are_followed(tree: Tree, count: int) -> None:
    """Everyone gives and gets token 4, so that any edge would be followed."""
    out = run_both(arguments([tree], [[4] * 4], [[4] * 4]))
    assert out["num_sampled"].tolist() == [count]
    assert out["accepted_rows"][0, 0] == 0


def test_the_first_of_equal_siblings_is_taken() -> None:
    out = run_both(arguments([[0, 0, 0, 1, 2]], [[9, 4, 4, 5, 6]], [[4, 6, 6, 0, 0]]))
    assert out["accepted_rows"][0, :2].tolist() == [0, 1]
    assert out["token_ids"][0, :2].tolist() == [4, 6]


@pytest.mark.parametrize(
    ("answers", "path"),
    [
        pytest.param([7, 8, 9, 2, 0, 0, 0, 0], [0, 1, 2, 3], id="the main chain is"),
        pytest.param([6, 0, 0, 0, 5, 2, 0, 0], [0], id="a branch of the root is not"),
        pytest.param([7, 4, 0, 0, 0, 0, 0, 0], [0, 1], id="nor one further down"),
    ],
)
def test_what_a_chain_only_request_follows(answers: list[int], path: list[int]) -> None:
    """The main chain 7 8 9, beside it 6 after the root, below it 5, which stands right behind it, and 4 after 7."""
    tree, drafts = [0, 0, 1, 2, 0, 4, 1, 5], [1, 7, 8, 9, 6, 5, 4, 3]
    given = arguments([tree] * 2, [drafts] * 2, [answers] * 2, slots=[0, 1])
    given["is_chain_only"][1] = True
    out = run_both(given)
    assert out["accepted_rows"][1, : len(path)].tolist() == path
    assert out["num_sampled"][1] == len(path)
    assert out["num_sampled"][0] >= len(path)


def test_rows_beyond_the_tree_are_not_looked_at() -> None:
    """Five rows of a slot that has three: behind them the next slot's parents would make a path."""
    given = arguments([[0, 0, 1], [1, 2, 3]], [[4] * 5, []], [[4] * 5, []], slots=[0, 1], num_rows=3)
    assert run_both(given)["num_sampled"].tolist() == [3, 0]


def test_who_must_not_be_touched() -> None:
    """Rows of a dummy, and a batch padded to a graph: requests without rows, in longer buffers."""
    chain = [0, 0, 1]
    given = arguments([chain] * 4, [[9, 1, 2]] * 2 + [[]] * 2, [[1, 2, 3]] * 2 + [[]] * 2, slots=[2, -1, 1, -1])
    out = run_both(given)
    assert out["num_sampled"].tolist() == [3, 0, 0, 0]
    assert (out["token_ids"][1:] == POISON).all()
    given = arguments([chain] * 4, [[9, 1, 2]] * 4, [[1, 2, 3]] * 4)
    given["row_starts"] = given["row_starts"][:3]
    out = run_both(given)
    assert out["num_sampled"].tolist() == [3, 3, POISON, POISON]
    assert (out["accepted_rows"][2:] == POISON).all()


def test_parts_of_a_batch() -> None:
    """Requests from the second on in a call of their own."""
    generator = torch.Generator().manual_seed(1)
    trees = [random_tree(8, generator) for _ in range(3)]
    drafts = [[(path or [9])[-1] for path in paths] for _, paths in trees]
    targets = [[answer(7, path) for path in paths] for _, paths in trees]
    whole = run_both(arguments([tree for tree, _ in trees], drafts, targets))
    part = arguments([tree for tree, _ in trees], drafts, targets)
    for name in ("row_starts", "request_slots", "token_ids", "num_sampled"):
        part[name] = part[name][1:]
    out = run_both(part)
    for name in ("token_ids", "accepted_rows", "num_sampled"):
        assert torch.equal(out[name], whole[name][1:]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draft_token_ids": torch.zeros(5)}, r"got target_token_ids \(6,\) and draft_token_ids \(5,\)"),
        ({"parents": torch.zeros(6, 65)}, r"parents must have 1 to 64 rows for each slot; got \(6, 65\)"),
        ({"parents": torch.zeros(6, 0)}, r"parents must have 1 to 64 rows"),
        ({"request_slots": torch.zeros(1)}, r"tells of 2 requests, request_slots must too; got \(1,\)"),
        ({"token_ids": torch.zeros(1, 4)}, r"tells of 2 requests, token_ids must too"),
        (
            {"accepted_rows": torch.zeros(1, 13)},
            r"has 6 slots, .* accepted_rows must have as many rows; got .*\(1, 13\)",
        ),
        ({"is_chain_only": torch.zeros(6)}, r"is_chain_only must be bool \[6\] .*; got torch.float32 \(6,\)"),
        ({"is_chain_only": torch.zeros(5, dtype=torch.bool)}, r"is_chain_only must be bool \[6\]"),
        ({"num_sampled": torch.zeros(1)}, r"tells of 2 requests, num_sampled must too"),
        ({"token_ids": torch.zeros(2, 0)}, r"room for a token, .*; got \(2, 0\) and \(6, 13\)"),
        ({"accepted_rows": torch.zeros(6, 12)}, r"for as many rows; got \(2, 13\) and \(6, 12\)"),
        ({"token_ids": torch.zeros(2, 26)[:, ::2]}, r"token_ids must be contiguous in the last dimension"),
        ({"parents": torch.zeros(12, 6).T}, r"parents must be contiguous in the last dimension"),
        ({"target_token_ids": torch.zeros(12)[::2]}, r"target_token_ids must be contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        accept_tree_path(**arguments([[0, 0, 1]] * 2, [[9, 1, 2]] * 2, [[1, 2, 3]] * 2) | change)
