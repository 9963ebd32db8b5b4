"""PARD on the real V1 runner, at full CPU speed: against plain vLLM, the reference engine and vLLM's own drafting."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario
from tiny_models import MASK_TOKEN_ID, edit_config, save_pair
from transformers import LlamaForCausalLM

from vllm_pard.reference.engine import generate

pytestmark = pytest.mark.engine


def run(scenario: str, pair: tuple[Path, Path], **arguments: Any) -> Any:
    target, draft = pair
    return run_scenario(f"scenarios_v1:{scenario}", runner="v1", target=target, draft=draft, **arguments)


def test_one_hundred_prompts_against_plain_and_reference(tiny_pair: tuple[Path, Path]) -> None:
    result = run("many_prompts", tiny_pair, num_prompts=100, num_drafts=6)
    assert result["pard"] == result["plain"]
    counts = result["counts"]
    assert 0 < counts["num_accepted_tokens_per_pos"][5] < counts["num_accepted_tokens"] < counts["num_draft_tokens"]

    target, draft = (LlamaForCausalLM.from_pretrained(folder).eval() for folder in tiny_pair)
    generations = generate(
        target, draft, result["prompts"], method="pard", num_speculative_tokens=6, max_new_tokens=24,
        mask_token_id=MASK_TOKEN_ID,
    )  # fmt: skip
    assert [generation.token_ids for generation in generations] == result["pard"]


def test_same_drafts_as_upstream(tiny_pair: tuple[Path, Path]) -> None:
    ours = run("drafted", tiny_pair, spec={})
    theirs = run("drafted", tiny_pair, spec={"method": "draft_model", "parallel_drafting": True})
    assert ours == theirs
    assert ours["counts"]["num_accepted_tokens"] > 0


def test_same_drafts_on_both_runners(tiny_pair: tuple[Path, Path]) -> None:
    """Two independent implementations of a step draft the same tokens, so they accept the same."""
    arguments = {"num_drafts": 4, "prompt_lengths": [1, 9, 40, 77], "max_tokens": 16}
    target, draft = tiny_pair
    v1, v2 = (
        run_scenario("scenarios:compare", runner=runner, target=target, draft=draft, **arguments)
        for runner in ("v1", "v2")
    )
    assert v1 == v2
    assert v1["pard"] == v1["plain"]


def test_log_probabilities_of_given_tokens(tiny_pair: tuple[Path, Path]) -> None:
    """vLLM's V1 gives none with drafts, and dies where another request of the batch asks for the likeliest ones.

    (While they share a batch the other gets its own token's only, as without drafts.)
    """
    result = run("given_tokens", tiny_pair, token_ids=[7, 200])
    assert result["counts"]["num_accepted_tokens"] > 0
    plain, pard = result["plain"][1], result["pard"][1]
    assert len(pard) == 16
    assert all({"7", "200"} <= token.keys() for token in pard)
    assert [token.keys() for token in pard] == [token.keys() for token in plain]
    assert [p for token in pard for p in token.values()] == pytest.approx(
        [p for token in plain for p in token.values()], abs=1e-4
    )
    assert [len(tokens) for tokens in result["pard"]] == [16, 16, 0]


def test_drafts_that_are_held_back(tiny_pair: tuple[Path, Path]) -> None:
    """Steps without drafts can be measured in a running engine, at no loss: the draft goes on reading."""
    result = run("held_drafts", tiny_pair, hold_from=3, hold_to=7)
    held, untouched = result["held"], result["untouched"]
    assert held["tokens"] == untouched["tokens"] == result["plain"]
    # The first step still verifies what was drafted before; so it is at the other end.
    assert held["num_drafted"][2:9] == [2, 2, 0, 0, 0, 0, 2]
    assert untouched["num_drafted"][2:9] == [2, 2, 2, 2, 2, 2, 2]
    common = held["drafts"].keys() & untouched["drafts"].keys()
    assert len(common) > 10
    assert {place: held["drafts"][place] for place in common} == {place: untouched["drafts"][place] for place in common}
    assert all(later > earlier for earlier, later in pairwise(held["seconds"]))


@pytest.mark.parametrize("runner", ["v1", "v2"])
@pytest.mark.parametrize("draft_vocab_size", [312, 336], ids=["smaller", "larger"])
def test_other_vocabulary_size(tmp_path: Path, runner: str, draft_vocab_size: int) -> None:
    """Padding differs within a tokenizer family (151936 / 152064); the target emits ids that a smaller draft lacks."""
    target, draft = save_pair(tmp_path, draft_vocab_size=draft_vocab_size)
    result = run_scenario(
        "scenarios:compare", runner=runner, target=target, draft=draft, num_drafts=4,
        prompt_lengths=[5, 40, 63, 64, 65, 66], max_tokens=30, spec={"draft_sample_method": "probabilistic"},
    )  # fmt: skip
    assert result["pard"] == result["plain"]
    assert result["counts"]["num_accepted_tokens"] > 0


@pytest.mark.parametrize("runner", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_draft_with_fewer_positions(tiny_pair: tuple[Path, Path], tmp_path: Path, runner: str) -> None:
    """The first text grows beyond the draft's 64 positions, the second begins there."""
    target, draft = tiny_pair
    short = edit_config(draft, tmp_path / "short", max_position_embeddings=64)
    arguments = {"num_drafts": 4, "prompt_lengths": [50, 90], "max_tokens": 40}
    result = run_scenario("scenarios:compare", runner=runner, target=target, draft=short, **arguments)
    assert result["pard"] == result["plain"]
    if runner == "v1":
        assert result["counts"]["num_accepted_tokens"] > 0, "up to the draft's last position"
    else:
        whole = run_scenario("scenarios:compare", runner=runner, target=target, draft=draft, **arguments)
        assert result == whole, "the same rotary table, only longer"
