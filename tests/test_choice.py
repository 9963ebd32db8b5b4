"""Chosen lengths against the best fixed ones, on machines whose costs and drafts are made up."""

from collections.abc import Callable
from random import Random

import pytest

from vllm_pard.choice import ChoiceLimits, LengthChoice, TreeChoice

K = 8
LENGTHS = (0, 2, 4, 8)
Cost = Callable[[int, int], float]  # batch size, k -> seconds


def cpu(batch_size: int, k: int) -> float:
    """The costs of 2 cores: 1.6, 3.0 and 5.8 plain steps at 1, 4 and 16 requests with 8 drafts each."""
    ratio = {1: 1.6, 4: 3.0, 16: 5.8, 32: 7.5}[batch_size]
    return 0.05 * (1 + 0.05 * batch_size) * (1.0 if k == 0 else 1.0 + (ratio - 1.0) * (0.3 + 0.7 * k / K))


def gpu(batch_size: int, k: int) -> float:
    """A step that waits for weights: rows are nearly free, the draft costs a tenth."""
    return 0.01 * (1.0 + (0.1 + 0.002 * batch_size * k if k else 0.0))


def geometric(a: float) -> list[float]:
    """Acceptance by position where each token is accepted with a after the one before."""
    return [a ** (i + 1) for i in range(K)]


def length(shares: list[float], k: int) -> float:
    return 1 + sum(shares[:k])


def serve(
    choice: LengthChoice,
    cost: Cost,
    accept: Callable[[Random, int], int],  # k -> how many of a request's drafts
    batch_size: int,
    *,
    num_steps: int,
    noise: float,
    seed: int = 0,
) -> float:
    """Tokens a second of a request, exploration included."""
    rng = Random(seed)
    tokens = seconds = 0.0
    for _ in range(num_steps):
        k = choice.choose(batch_size)
        accepted = [accept(rng, k) for _ in range(batch_size)]
        took = cost(batch_size, k) * (1 + noise * abs(rng.gauss(0, 1)))
        tokens += 1 + sum(accepted) / batch_size
        seconds += took
        choice.observe_step(batch_size, k, took, batch_size + sum(accepted))
        if k:
            choice.observe_drafts(k, accepted)
    return tokens / seconds


def run(
    choice: LengthChoice,
    cost: Cost,
    shares: list[float],
    batch_size: int,
    *,
    num_steps: int = 4000,
    noise: float = 0.05,
    seed: int = 0,
) -> float:
    """Of chains whose tokens are accepted with these shares."""
    return serve(
        choice,
        cost,
        lambda rng, k: draw(rng, shares, k),
        batch_size,
        num_steps=num_steps,
        noise=noise,
        seed=seed,
    )


def draw(rng: Random, shares: list[float], k: int) -> int:
    accepted, given = 0, 1.0
    while accepted < k and rng.random() < shares[accepted] / given:
        given = shares[accepted]
        accepted += 1
    return accepted


def fixed(cost: Cost, shares: list[float], batch_size: int, k: int, noise: float = 0.05) -> float:
    return length(shares, k) / (cost(batch_size, k) * (1 + noise * 0.798))  # E|N(0, 1)|


@pytest.mark.parametrize("cost", [cpu, gpu], ids=["cpu", "gpu"])
@pytest.mark.parametrize("a", [0.05, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 32])
def test_never_slower_than_none_and_near_the_best(cost: Cost, a: float, batch_size: int) -> None:
    found = run(LengthChoice(LENGTHS), cost, geometric(a), batch_size, num_steps=6000)
    speeds = [fixed(cost, geometric(a), batch_size, k) for k in LENGTHS]
    assert found > 0.98 * speeds[0]
    assert found > 0.95 * max(speeds)


def test_follows_acceptance_both_ways() -> None:
    choice = LengthChoice(LENGTHS)
    run(choice, cpu, geometric(0.05), 4)
    assert choice.choose(4) == 0
    good = run(choice, cpu, geometric(0.9), 4, num_steps=8000)
    assert good > 0.9 * max(fixed(cpu, geometric(0.9), 4, k) for k in LENGTHS)
    assert run(choice, cpu, geometric(0.05), 4, num_steps=8000) > 0.95 * fixed(cpu, geometric(0.05), 4, 0)


def test_each_batch_size_has_its_own() -> None:
    choice = LengthChoice(LENGTHS)
    for batch_size in (1, 16, 1, 16):
        run(choice, cpu, geometric(0.6), batch_size, num_steps=1000)
    settled = {batch_size: settled_choice(choice, batch_size) for batch_size in (1, 16)}
    assert settled[1] > 2
    assert settled[16] == 0


def settled_choice(choice: LengthChoice, batch_size: int) -> int:
    return choice._batch(batch_size).k


def test_noise_alone_changes_nothing() -> None:
    """Two choices of about one speed: it stays with the one it has."""
    choice = LengthChoice(LENGTHS, ChoiceLimits(num_costs=50))
    flat = [0.1] * K  # eight drafts yield 1.8 tokens
    changes, before = 0, None
    for seed in range(20):
        run(choice, lambda batch_size, k: 0.01 * length(flat, k), flat, 1, num_steps=200, seed=seed)
        now = settled_choice(choice, 1)
        changes += before is not None and now != before
        before = now
    assert changes <= 4


@pytest.mark.parametrize(("tries_none_last", "order"), [(False, [0, 2, 4, 8]), (True, [2, 4, 8, 0])])
def test_all_are_tried_before_anything_is_believed(tries_none_last: bool, order: list[int]) -> None:
    choice = LengthChoice(LENGTHS, ChoiceLimits(num_steps=3), tries_none_last=tries_none_last)
    seen = []
    for _ in range(12):
        seen.append(choice.choose(1))
        choice.observe_step(1, seen[-1], 0.01, 1)
    assert seen == [k for k in order for _ in range(3)]


def test_what_is_much_slower_is_not_tried_on() -> None:
    """Steps with two drafts say enough; none has four or eight until those are paid."""
    choice = LengthChoice(LENGTHS)
    seen = []
    for _ in range(200):
        seen.append(choice.choose(32))
        choice.observe_step(32, seen[-1], cpu(32, seen[-1]), 32)
        choice.observe_drafts(seen[-1], [0] * 32 if seen[-1] else [])
    assert seen == [0] * 5 + [2] * 5 + [0] * 190


def test_another_batch_size_begins_with_what_a_near_one_knows() -> None:
    """Its choice, and its costs in proportion, so that nothing else is tried at first; far ones know nothing of it."""
    choice = LengthChoice(LENGTHS)
    run(choice, gpu, geometric(0.9), 4, num_steps=200)
    assert settled_choice(choice, 4) == 8

    def choices(batch_size: int) -> list[int]:
        seen = []
        for _ in range(50):
            seen.append(choice.choose(batch_size))
            choice.observe_step(batch_size, seen[-1], gpu(batch_size, seen[-1]), 32)
        return seen

    assert choices(8) == [8] * 50
    there = choice._batch(8)
    assert there.cost(2) is None
    assert choice._cost(there, 2) == pytest.approx(gpu(4, 2) * gpu(8, 8) / gpu(4, 8), rel=0.1)
    assert choices(64)[:10] == [0] * 5 + [2] * 5


def test_what_prompts_take_is_no_cost_of_drafts() -> None:
    """No step is without a prompt, and those beside drafts are longer: what they take is found and left out."""
    rng, choice = Random(0), LengthChoice(LENGTHS)
    for k in LENGTHS * 3:
        for _ in range(5):
            num_prompt_tokens = rng.choice((30, 60)) if k == 0 else rng.choice((60, 120))
            seconds = (cpu(16, k) + 0.002 * num_prompt_tokens) * (1 + 0.02 * rng.random())
            choice.observe_step(16, k, seconds, 16, num_prompt_tokens)
    found = [choice._batch(16).cost(k) for k in LENGTHS]
    assert found == pytest.approx([cpu(16, k) for k in LENGTHS], rel=0.06)


# What the first nodes of a tree yield, by their number.
TREE_LENGTHS = (0, 8, 16, 32)


def tree_gpu(batch_size: int, k: int) -> float:
    """An 8B target on an H200: rows are free up to some hundred of them, and each costs its arithmetic beyond."""
    num_rows = batch_size * (1 + k)
    return 0.0047 + (0.0014 if k else 0.0) + 0.00002 * max(0, num_rows - 100)


def run_trees(choice: TreeChoice, yields: dict[int, float], batch_size: int, num_steps: int = 6000) -> float:
    """Of trees whose paths are about so long."""

    def accept(rng: Random, k: int) -> int:
        return max(0, round(rng.gauss(yields[k], 0.3 * yields[k])))

    return serve(choice, tree_gpu, accept, batch_size, num_steps=num_steps, noise=0.03)


@pytest.mark.parametrize("share", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 4, 16, 64])
def test_trees_are_as_large_as_pays(share: float, batch_size: int) -> None:
    """Whole ones for one request, few nodes or none where rows cost."""
    yields = {k: share * most for k, most in zip(TREE_LENGTHS, (0.0, 2.6, 3.2, 3.8), strict=True)}
    found = run_trees(TreeChoice(TREE_LENGTHS), yields, batch_size)
    speeds = {k: (1 + yields[k]) / (tree_gpu(batch_size, k) * (1 + 0.03 * 0.798)) for k in TREE_LENGTHS}
    assert found > 0.97 * speeds[0]
    assert found > 0.95 * max(speeds.values())
    if (share, batch_size) in ((1.0, 1), (1.0, 64), (0.02, 16)):
        best = {(1.0, 1): 32, (1.0, 64): 8, (0.02, 16): 0}[share, batch_size]
        assert max(speeds, key=lambda k: speeds[k]) == best, "the machine that is made up has something to choose"
        assert settled_choice(choice_after(yields, batch_size), batch_size) == best


def choice_after(yields: dict[int, float], batch_size: int) -> TreeChoice:
    choice = TreeChoice(TREE_LENGTHS)
    run_trees(choice, yields, batch_size)
    return choice


def test_trees_follow_what_changes() -> None:
    """Paths that get longer, and shorter again."""
    bad, good = dict.fromkeys(TREE_LENGTHS, 0.05), {0: 0.0, 8: 2.6, 16: 3.2, 32: 3.8}
    choice = choice_after(bad, 1)
    assert settled_choice(choice, 1) == 0
    run_trees(choice, good, 1, num_steps=20_000)
    assert settled_choice(choice, 1) == 32
    run_trees(choice, bad, 1, num_steps=20_000)
    assert settled_choice(choice, 1) == 0


def test_what_trees_yield() -> None:
    choice = TreeChoice(TREE_LENGTHS)
    assert choice.length(16) == 1.0, "nothing is known"
    choice.observe_drafts(16, [2, 2, 2])
    assert [choice.length(k) for k in TREE_LENGTHS] == [1.0, 2.0, 3.0, 3.0]
    choice.observe_drafts(8, [4, 4])
    assert choice.length(8) == 3.0, "no more than a tree that holds it"
    choice.observe_drafts(5, [5])
    assert choice.length(8) == 3.0
