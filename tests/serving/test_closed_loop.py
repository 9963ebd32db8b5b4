"""Chosen lengths where requests come and go, beside fixed ones: never slower than none, and near the best."""

from statistics import mean

import pytest
from closed_loop import Fixed, job_speeds, tokens_per_second

from vllm_pard.choice import LengthChoice

K, LENGTHS = 8, (0, 2, 4, 8)


def two_cores(num_requests: int, num_rows: int, num_reading: int, num_drafted: int) -> float:
    """With eight drafts 1.5, 2.8 and 5.7 plain steps at 1, 4 and 16 requests: the 291M pair's in float32."""
    return 0.05 + 0.0025 * num_rows + (0.007 * num_requests if num_drafted else 0.0)


class Gpu:
    """An 8B target on an H200: steps of decodes alone replay a graph, others and those of another k don't."""

    def __init__(self) -> None:
        self.k = K

    def __call__(self, num_requests: int, num_rows: int, num_reading: int, num_drafted: int) -> float:
        is_graph, self.k = num_reading == 0 and num_drafted == self.k, num_drafted
        rows, draft, launches = 0.000012 * max(0, num_rows - 100), 0.0012, 0.010
        return 0.0047 + rows + draft * (num_drafted > 0) + launches * (not is_graph)


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize(
    ("num_users", "num_tokens", "acceptance"),
    [(1, 40, 0.1), (1, 300, 0.7), (4, 40, 0.4), (4, 300, 0.7), (16, 40, 0.9), (16, 300, 0.4)],
)
def test_never_slower_where_requests_come_and_go(
    runner: str, num_users: int, num_tokens: int, acceptance: float
) -> None:
    """On V1 a step without drafts leaves requests that can have none again, and probes see few that can."""

    def speed(choice: LengthChoice) -> float:
        return tokens_per_second(
            runner,
            choice,
            two_cores,
            acceptance,
            max_k=K,
            num_users=num_users,
            num_tokens=num_tokens,
            num_steps=3000,
        )

    chosen = speed(LengthChoice(LENGTHS, tries_none_last=runner == "v1"))
    fixed = {k: speed(Fixed(k)) for k in LENGTHS}
    assert chosen > 0.98 * fixed[0]
    assert chosen > 0.95 * max(fixed.values())


@pytest.mark.parametrize(("num_users", "num_tokens"), [(16, 60), (32, 40), (64, 60)])
def test_learns_from_steps_that_read_prompts(num_users: int, num_tokens: int) -> None:
    """With so many users hardly a step reads none."""

    def speed(choice: LengthChoice) -> float:
        return tokens_per_second(
            "v2", choice, two_cores, 0.5, max_k=K, num_users=num_users, num_tokens=num_tokens, num_steps=150
        )

    assert speed(LengthChoice(LENGTHS)) > 0.95 * speed(Fixed(0)), "after so many steps"


@pytest.mark.parametrize("num_away", [0, 2])
@pytest.mark.parametrize(("num_users", "acceptance"), [(4, 0.85), (16, 0.85), (32, 0.85), (32, 0.5)])
def test_keeps_its_choice_while_batches_change_a_little(num_users: int, acceptance: float, num_away: int) -> None:
    """On a GPU prompts and changes leave the graphs, and cost more than a wrong choice."""

    def speed(choice: LengthChoice) -> float:
        return tokens_per_second(
            "v2",
            choice,
            Gpu(),
            acceptance,
            max_k=K,
            num_users=num_users,
            num_tokens=60,
            num_steps=1000,
            num_away=num_away,
        )

    assert speed(LengthChoice(LENGTHS)) > 0.95 * max(speed(Fixed(k)) for k in LENGTHS)


@pytest.mark.parametrize("acceptance", [0.5, 0.87])
@pytest.mark.parametrize(("num_requests", "num_at_once"), [(128, 32), (32, 32), (16, 16)])
def test_jobs_of_few_steps(num_requests: int, num_at_once: int, acceptance: float) -> None:
    """Hardly fifty steps, and fewer and fewer requests: trying everything at each batch size took half of them."""

    def speeds(choice: LengthChoice, seed: int) -> list[float]:
        return job_speeds(
            "v2",
            choice,
            two_cores,
            acceptance,
            max_k=K,
            jobs=[num_requests] * 4,
            num_at_once=num_at_once,
            num_tokens=45,
            seed=seed,
        )

    chosen, *fixed = (
        [speeds(LengthChoice(LENGTHS) if k is None else Fixed(k), seed) for seed in range(3)] for k in (None, *LENGTHS)
    )
    none, best = fixed[0], max(fixed, key=lambda runs: mean(map(mean, runs)))
    assert mean(run[0] for run in chosen) > 0.8 * mean(run[0] for run in none), "the first of all, which learns"
    assert mean(mean(run[1:]) for run in chosen) > 0.95 * mean(mean(run[1:]) for run in best)


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("acceptance", [0.3, 0.6])
@pytest.mark.parametrize(("few", "many"), [(1, 16), (1, 32), (4, 16), (4, 32)])
def test_what_a_few_requests_cost_says_nothing_of_many(runner: str, acceptance: float, few: int, many: int) -> None:
    """For a few, drafts are nearly free; for many they take several plain steps."""

    def speeds(choice: LengthChoice) -> list[float]:
        jobs = [few, *[many] * 4]
        return job_speeds(runner, choice, two_cores, acceptance, max_k=K, jobs=jobs, num_at_once=many, num_tokens=110)

    chosen, *fixed = (
        speeds(LengthChoice(LENGTHS, tries_none_last=runner == "v1") if k is None else Fixed(k))
        for k in (None, *LENGTHS)
    )
    best = max(mean(runs[2:]) for runs in fixed)
    assert chosen[1] > (0.6 if runner == "v1" else 0.8) * best, "the first one learns"
    assert mean(chosen[2:]) > 0.95 * best
