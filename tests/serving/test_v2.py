"""PARD on the real V2 runner under Triton's interpreter, against plain vLLM: equal tokens, and the feature happened."""

from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from engine import scenarios_of

pytestmark = pytest.mark.engine

DYNAMIC_K = {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 2, 2], [3, 8, 0]]}


@pytest.fixture(scope="module")
def run(tiny_pair: tuple[Path, Path], release: dict[str, str]) -> Any:
    return scenarios_of("scenarios_v2", tiny_pair, environment=release)


def assert_some_accepted_some_not(counts: dict[str, Any]) -> None:
    assert 0 < counts["num_accepted_tokens"] < counts["num_draft_tokens"]


@pytest.mark.parametrize(
    "asynchronous",
    [pytest.param(True, id="asynchronous"), pytest.param(False, id="synchronous", marks=pytest.mark.slow)],
)
def test_mixed_batches(run: Any, asynchronous: bool) -> None:
    """Twelve prompts of 1 to 90 tokens: chunked prefill, prefill and decode in one batch, requests join and leave.

    All other tests run with asynchronous scheduling, as vLLM chooses on GPUs.
    """
    result = run("mixed_batches", num_drafts=7, asynchronous=asynchronous)
    assert result["steps_in_flight"] == 1 + asynchronous
    assert result["pard"] == result["plain"]
    assert_some_accepted_some_not(result["counts"])
    assert result["counts"]["num_accepted_tokens_per_pos"][6] > 0, "the last mask's draft was accepted at times"
    steps = result["steps"]
    assert sum(step["chunks"] > 0 for step in steps) >= 3, "prompts were chunked"
    assert any(0 < step["prefills"] < step["requests"] for step in steps), "prefill and decode shared a batch"
    assert len({step["requests"] for step in steps}) > 1, "requests joined and left"
    assert all(len(step["rows"]) == 1 for step in steps), "one draft forward a step"
    assert [step["sampled"] for step in steps] == [step["requests"] - step["chunks"] for step in steps], (
        "unfinished prefills ask for no logits"
    )
    assert all(step["rows"] == [[14] * step["requests"]] for step in steps if not step["prefills"]), "2K rows a request"


def test_preemption(run: Any) -> None:
    result = run("preemption")
    assert result["preemptions"] > 0
    assert result["pard"] == result["plain"]
    assert_some_accepted_some_not(result["counts"])


def test_prefix_cache(run: Any) -> None:
    result = run("prefix_cache")
    assert result["hits"] >= 128
    assert result["first"] == result["second"] == result["plain"]
    doubled = {k: v for k, v in result["both_counts"].items() if isinstance(v, int)}
    assert doubled == {k: 2 * result["first_counts"][k] for k in doubled}, "cached blocks hold the draft's K/V too"


def test_prompts_are_read_under_load(run: Any) -> None:
    """The prefix cache hands blocks on that were read while others decoded without drafts."""
    under_load = {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 8, 0]]}
    always, sometimes = (run("scenarios_draft:prefix_cache_after_load", spec=spec) for spec in (None, under_load))
    chunks = [step for step in sometimes["steps"] if step["prefills"] and step["num_drafts"] == 0]
    assert len(chunks) >= 3, "the prompt was read without drafts"
    assert always["hits"] == sometimes["hits"] >= 96
    assert always["tokens"] == sometimes["tokens"]
    assert always["counts"] == sometimes["counts"]
    assert sometimes["counts"]["num_accepted_tokens"] >= sometimes["counts"]["num_drafts"] // 2


def test_what_a_replay_reads_is_never_stale(run: Any) -> None:
    """On FlashAttention 3: up to 64 rows a request there is no schedule, above it is that of the step."""
    result = run("scenarios_draft:flash_schedules", runner="v2-flash")
    assert result["narrow_is_ours"]
    assert result["window_after_narrow"] is None, "a step of ours leaves the platform's first build to the platform"
    assert (result["captured"], result["replayed"]) == (140, 210)


def test_dummy_runs(run: Any) -> None:
    """They fit their buffers, touch no request, and cost what steps cost: decodes replay graphs."""
    result = run("scenarios_draft:dummy_runs", runner="v2-triton")
    assert result["untouched"]
    assert result["rows"] == [16 * 16, 28 * 9, 28 * 9], "a graph for 16; beyond, requests get what fits 256 rows"
    assert result["replays"] == 1


def test_weights_are_reloaded(run: Any, tmp_path: Path) -> None:
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(str(list(range(0, 256, 2))))
    assert run("scenarios_draft:reloaded_weights", draft_vocab=vocabulary) == {"same": True, "is_copy": True}


def test_serving_compiles_nothing(run: Any) -> None:
    """Every variant of our kernels that steps launch was launched at start-up."""
    result = run("scenarios_draft:compilations", runner="v2-triton", spec={"attention_backend": "CUSTOM"})
    assert len(result["started"]) > 3
    assert result["served"] == []


def test_aborts(run: Any) -> None:
    result = run("aborts")
    assert result["aborted"] == [1, 3, 5, 7, 9, 11]
    assert result["pard"] == {str(i): result["plain"][i] for i in range(0, 12, 2)}


def test_max_model_len(run: Any) -> None:
    result = run("max_model_len", num_drafts=15)
    assert result["pard"] == result["plain"]
    assert [len(tokens) for tokens in result["pard"]] == [63, 34, 6], "answers end with the context of 64 tokens"


def test_dynamic_num_drafts(run: Any) -> None:
    result = run("dynamic_num_drafts")
    assert result["pard"] == result["plain"]
    steps = result["steps"]
    assert {step["num_drafts"] for step in steps} == {0, 2, 4}
    without_drafts = [step for step in steps if step["num_drafts"] == 0]
    assert any(step["prefills"] == 0 for step in without_drafts)
    assert any(0 < step["prefills"] < step["requests"] for step in without_drafts)
    assert all(bool(step["rows"]) == (step["prefills"] > 0) for step in without_drafts), (
        "without drafts only prompts are read, since others may find them in the prefix cache"
    )
    assert all(
        len(step["rows"][0]) < step["requests"] for step in without_drafts if 0 < step["prefills"] < step["requests"]
    )


@pytest.mark.parametrize("spec", [None, DYNAMIC_K], ids=["every step drafts", "some steps do not"])
def test_draft_kv_equals_a_fresh_prefill(run: Any, spec: Any) -> None:
    """What others shipped broken: after rejected drafts or skipped steps the draft's K/V must have no holes."""
    result = run("draft_kv", disable_counter=False, spec=spec)
    assert result["rejected"] > 10
    assert len(result["differences"]) == 4
    assert max(result["differences"]) < 1e-5
    if spec is not None:
        assert sum(step["num_drafts"] == 0 for step in result["steps"]) > 10


@pytest.mark.parametrize("schedule", [{}, DYNAMIC_K], ids=["in a step that drafts", "in one that does not"])
def test_draft_kv_of_a_prompt_in_places_of_a_graph(run: Any, schedule: dict[str, Any]) -> None:
    spec = {"attention_backend": "CUSTOM"} | schedule
    result = run("draft_kv", runner="v2-flash", disable_counter=False, spec=spec, joins_graphs=8)
    *_, joined = (step for step in result["steps"] if step["prefills"])
    assert joined["num_drafts"] == (0 if schedule else 4)
    assert joined["places"] == ([5] if schedule else [1, 1, 1, 3])
    assert max(result["differences"]) < 1e-5


def test_draft_kv_check_fails_without_the_counter(run: Any) -> None:
    result = run("draft_kv", disable_counter=True, spec=DYNAMIC_K)
    assert max(result["differences"]) > 0.1


def test_hooks_of_adaptive_verification(run: Any) -> None:
    """vLLM's estimator sees every draft's logits and grades each position that the target looked at."""
    result = run("adaptive", num_drafts=4)
    assert result["pard"] == result["plain"]
    counts = result["counts"]
    accepted = counts["num_accepted_tokens_per_pos"]
    looked_at = [counts["num_drafts"], *accepted[:-1]]  # a position is reached if all before it were accepted
    ends = 3  # a step that was in flight when its request ended is graded and not counted
    assert all(n <= graded <= n + ends for graded, n in zip(result["graded"], looked_at, strict=True))
    confidences = [p for row in result["confidences"] for p in row]
    assert all(0 < p < 1 for p in confidences)
    assert len(set(confidences)) > 6
    assert len({f for row in result["features"] for f in row}) > 6


def num_narrow_rows(rows: list[int]) -> int:
    """Of the leading requests, up to the first that our kernel does not take."""
    return sum(takewhile(lambda num_rows: num_rows <= 64, rows))


@pytest.mark.parametrize(
    ("runner", "in_target"),
    [
        pytest.param("v2-triton", False, id="in the draft", marks=pytest.mark.slow),
        pytest.param("v2-triton", True, id="in both models"),
        pytest.param("v2-flash", True, id="in both models, on FlashAttention", marks=pytest.mark.slow),
    ],
)
def test_own_attention(run: Any, runner: str, in_target: bool) -> None:
    """Our kernel: the same tokens, the same acceptance, and no mask token in the cache."""
    num_drafts, num_layers = 5, 2
    result = run("own_attention", runner=runner, num_drafts=num_drafts, num_splits=3, in_target=in_target)
    assert result["pard"] == result["upstream"] == result["plain"]
    assert result["counts"] == result["upstream_counts"]
    assert_some_accepted_some_not(result["counts"])
    of_draft = [num_narrow_rows(step["rows"][0]) for step in result["steps"]]
    of_target = [num_narrow_rows(step["queries"]) for step in result["steps"]] if in_target else []
    expected = [num_rows for num_rows in of_draft + of_target if num_rows for _ in range(num_layers)]
    assert sorted(result["calls"]) == sorted(expected), "each request by its own kernel"
    split = [step for step in result["steps"] if 0 < num_narrow_rows(step["rows"][0]) < sum(step["rows"][0])]
    assert split, "decodes beside a long prompt"
    decodes = [step for step in result["steps"] if not step["prefills"]]
    assert len(decodes) >= 5
    # Of 2K rows, K - 1 are masks: kept drafts and the bonus are left.
    assert all(step["cached_rows"] <= step["requests"] * (num_drafts + 1) for step in decodes)


@pytest.mark.slow
def test_draft_kv_of_own_attention(run: Any) -> None:
    spec = {"attention_backend": "CUSTOM"} | DYNAMIC_K
    result = run("draft_kv", runner="v2-triton", disable_counter=False, spec=spec)
    assert result["rejected"] > 10
    assert max(result["differences"]) < 1e-5
