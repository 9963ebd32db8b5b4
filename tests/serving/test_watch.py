"""Whether a server whose drafts are of no use says so: counts without an engine, and real engines."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine import run_scenario
from tiny_models import MASK_TOKEN_ID, save_llama

from vllm_pard.metrics import AcceptanceStats

K = 4
HOUR = 3600.0
NUM_REQUESTS = 4  # of a small engine of scenarios.py


class Clock:
    """A clock that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def warnings() -> list[AcceptanceStats]:
    return []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(warnings: list[AcceptanceStats], clock: Clock) -> Any:
    from vllm_pard.serving.watch import AcceptanceWatch, WatchLimits

    return AcceptanceWatch(warnings.append, WatchLimits(num_drafts=10), clock)


def output(*num_tokens: int) -> Any:
    """What a runner returns of a step: requests "0", "1", ... with so many tokens each."""
    return SimpleNamespace(
        sampled_token_ids=[list(range(count)) for count in num_tokens],
        req_id_to_index={str(request): request for request in range(len(num_tokens))},
    )


def step(watch: Any, *num_tokens: int) -> None:
    result = output(*num_tokens)
    assert watch.watch(result, [str(request) for request in range(len(num_tokens))]) is result


def test_warns_below_the_limit_and_with_the_numbers(watch: Any, warnings: list[AcceptanceStats]) -> None:
    for _ in range(4):
        step(watch, 1, 1)
    assert warnings == [], "eight drafts are too few"
    step(watch, 2, 1)
    assert warnings == [AcceptanceStats(num_drafts=10, num_accepted_tokens=1)]


@pytest.mark.parametrize(("num_tokens", "num_warnings"), [((2, 2, 1, 1), 0), ((2, 1, 1, 1), 1), ((5, 1, 1, 1), 0)])
def test_at_the_limit_is_not_below(
    num_tokens: tuple[int, ...], num_warnings: int, watch: Any, warnings: list[AcceptanceStats]
) -> None:
    """Two tokens of ten drafts are 1.2."""
    step(watch, *num_tokens, *[1] * 6)
    assert len(warnings) == num_warnings


def test_not_repeated_within_the_hour(watch: Any, warnings: list[AcceptanceStats], clock: Clock) -> None:
    for now, num_warnings in ((100.0, 1), (101.0, 1), (100.0 + HOUR - 1, 1), (100.0 + HOUR, 2), (200.0 + HOUR, 2)):
        clock.now = now
        step(watch, *[1] * 10)
        assert len(warnings) == num_warnings, now


def test_good_drafts_of_the_past_do_not_hide_bad_ones(watch: Any, warnings: list[AcceptanceStats]) -> None:
    for _ in range(50):
        step(watch, *[5] * 10)
    step(watch, *[1] * 10)
    assert warnings == [AcceptanceStats(num_drafts=10)]


def test_only_what_was_drafted_counts(watch: Any, warnings: list[AcceptanceStats]) -> None:
    """A prefill has no draft, and a request that got no token had none: its step was discarded."""
    for _ in range(9):
        watch.watch(output(1, 1, 0), ["1", "2"])
    assert warnings == []
    watch.watch(output(1, 1, 0), [])
    assert warnings == []
    watch.watch(output(1, 1, 0), ["1"])
    assert warnings == [AcceptanceStats(num_drafts=10)]


def test_an_output_on_its_way_is_not_waited_for(watch: Any, warnings: list[AcceptanceStats]) -> None:
    from vllm.v1.outputs import AsyncModelRunnerOutput

    class Pending(AsyncModelRunnerOutput):
        arrived = False

        def get_output(self) -> Any:
            self.arrived = True
            return output(*[1] * 10)

    pending = Pending()
    watched = watch.watch(pending, [str(request) for request in range(10)])
    assert isinstance(watched, AsyncModelRunnerOutput)
    assert not pending.arrived
    assert watched.get_output().sampled_token_ids == [[0]] * 10
    assert warnings == [AcceptanceStats(num_drafts=10)]


def test_the_warning_names_causes_in_order() -> None:
    from vllm_pard.serving.watch import warning

    spec = SimpleNamespace(num_speculative_tokens=8, mask_token_id=300, model="amd/draft")
    text = warning(AcceptanceStats(num_drafts=4000, num_accepted_tokens=40), spec, "Qwen/target")
    assert text.startswith("PARD: mean acceptance length 1.01 over the last 4000 drafts (40 draft tokens kept, K=8)")
    words = ("1. the mask token 300", "'amd/draft'", "2. prompts", "3. ", "'Qwen/target'", "4. ")
    assert [text.index(word) for word in words] == sorted(text.index(word) for word in words)


@pytest.mark.engine
def test_a_draft_of_another_target(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Random weights draft at random. Twice 4,000 drafts pass, with the limits that servers have; one warning comes."""
    draft = save_llama(tmp_path, seed=9, config={"pard_token": MASK_TOKEN_ID, "spd_type": "pard"})
    many = {"max_num_seqs": 64, "max_num_batched_tokens": 1024}
    result = run_scenario(
        "scenarios:told", runner="v1", target=tiny_pair[0], draft=draft, num_drafts=K, max_tokens=70, num_rounds=2,
        **many,
    )  # fmt: skip
    assert result["counts"]["num_drafts"] > 8000
    [warned] = [message for level, message in result["messages"] if level == "WARNING"]
    assert warned.startswith("PARD: mean acceptance length 1.")
    assert f"K={K}): outputs are right" in warned


EVERYWHERE = "EngineArgs.create_speculative_config, SamplingParams._validate_spec_decode"
PATCHED = {"v1": f"{EVERYWHERE}, expand_batch_to_tokens", "v2": EVERYWHERE}


@pytest.mark.engine
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_counts_are_the_schedulers(runner: str, tiny_pair: tuple[Path, Path]) -> None:
    """But for the step that is in flight when a request ends: V2's outputs come later, as on GPUs.

    And once an engine is ready, one line says what it drafts with.
    """
    import vllm

    target, draft = tiny_pair
    limits = {"num_drafts": 10**6}
    result = run_scenario(
        "scenarios:told", runner=runner, target=target, draft=draft, num_drafts=K, limits=limits, max_tokens=12
    )
    counts = result["counts"]
    num_drafts, num_accepted_tokens = result["watched"]
    in_flight = num_drafts - counts["num_drafts"]
    assert 0 <= in_flight <= (NUM_REQUESTS if runner == "v2" else 0)
    assert 0 <= num_accepted_tokens - counts["num_accepted_tokens"] <= K * in_flight
    assert counts["num_accepted_tokens"] > 0
    seconds = result["seconds_of_drafting"]
    assert seconds is None if runner == "v2" else seconds > 0, "V2 can hold no drafts back"
    assert result["messages"] == [
        [
            "INFO",
            f"PARD: draft {draft}, K={K} draft tokens in one forward, mask token {MASK_TOKEN_ID}, target-independent; "
            f"vLLM {vllm.__version__}, model runner {runner.upper()}, patched: {PATCHED[runner]}; "
            "attention of the target CPU_ATTN, of the draft CPU_ATTN; draft graphs: none, enforce_eager is set; "
            "draft tokens from logits",
        ]
    ]
