"""Sampling with PARD: each request gets what plain decoding gives it, also with filters, biases and named tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import run_scenario
from exact_sampling import filtered_probs, mask_row_probs, p_value, second_token_probs
from tiny_models import MASK_TOKEN_ID, save_adapter

pytestmark = pytest.mark.engine

PROMPT = [72, 105, 44, 32, 116]
UNLIKELY = 1e-4  # p-value of a sampler that is taken for wrong
FILTERS = [{"top_p": 0.8}, {"top_k": 5}, {"min_p": 0.1}, {}]


def test_wishes_of_a_request(tiny_pair: tuple[Path, Path], engine: dict[str, Any]) -> None:
    target, draft = tiny_pair
    result = run_scenario(
        "scenarios_sampling:wishes", target=target, draft=draft, names_tokens=engine["runner"] == "v2", **engine
    )  # fmt: skip
    plain, pard = result["plain"], result["pard"]
    assert [answer["tokens"] for answer in pard] == [answer["tokens"] for answer in plain]
    for i in (0, 1, 3, 4, 5):
        assert plain[i]["tokens"] != result["unbiased"][i], "the wish makes a difference"
    for of_pard, of_plain in zip(pard, plain, strict=True):
        assert len(of_pard["logprobs"]) == len(of_plain["logprobs"])
        for got, wanted in zip(of_pard["logprobs"], of_plain["logprobs"], strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)  # float32, other batch shapes
    if engine["runner"] == "v2":
        assert all({"5", "77", "200"} < set(scores) for i in (7, 8) for scores in pard[i]["logprobs"])
        assert len(pard[7]["logprobs"]) == 20
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]


@pytest.mark.parametrize("runner", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_adapters(tiny_pair: tuple[Path, Path], tmp_path: Path, request: pytest.FixtureRequest, runner: str) -> None:
    """One adapter of the layers, one of the lm_head, whose rows are a request's drafts and its bonus token."""
    target, draft = tiny_pair
    folders = [
        save_adapter(tmp_path / "layers", target, ("q_proj", "down_proj"), seed=1),
        save_adapter(tmp_path / "head", target, ("lm_head",), seed=2),
    ]
    variables = request.getfixturevalue("newest_vllm") if runner == "v2" else {}
    result = run_scenario(
        "scenarios_sampling:adapters", runner=runner, environment=variables, target=target, draft=draft,
        folders=folders,
    )  # fmt: skip
    assert result["pard"] == result["plain"]
    for i in (1, 2, 4, 5):
        assert result["plain"][i] != result["unadapted"][i], "an adapter makes a difference"
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]


@pytest.mark.parametrize(
    ("runner", "spec", "given", "num_samples"),
    [("v1", {"draft_sample_method": "probabilistic"}, {"temperature": 0.7}, 2000)]
    + [
        pytest.param("v1", {"draft_sample_method": method}, given, 4000, marks=pytest.mark.slow)
        for method, given in (("greedy", {"temperature": 0.7}), ("probabilistic", {"min_p": 0.1}))
    ]
    + [
        pytest.param("v2", spec, given, 600, marks=pytest.mark.slow)
        for spec, given in (
            ({"draft_sample_method": "greedy"}, {"temperature": 0.7}),
            ({"draft_sample_method": "greedy"}, {"min_p": 0.1}),
            ({"draft_sample_method": "probabilistic"}, {"temperature": 0.7}),
            ({"draft_sample_method": "probabilistic"}, {"min_p": 0.1}),
            ({"draft_sample_method": "probabilistic"}, {"temperature": 0.7, "top_p": 0.8}),
            ({"draft_sample_method": "probabilistic"}, {"temperature": 0.7, "top_k": 5}),
            ({"draft_sample_method": "probabilistic", "rejection_sample_method": "block"}, {"temperature": 0.7}),
            ({"draft_sample_method": "probabilistic", "rejection_sample_method": "block"}, {"top_p": 0.8}),
        )
    ],
)
def test_sampling_follows_the_target(
    tiny_pair: tuple[Path, Path], runner: str, spec: dict[str, Any], given: dict[str, Any], num_samples: int
) -> None:
    """The second token is the first that can come from a draft; its distribution must be the target's."""
    target, draft = tiny_pair
    result = run_scenario(
        "scenarios_sampling:sampling", runner=runner, target=target, draft=draft, spec=spec, given=given,
        num_samples=num_samples, prompt=PROMPT, is_seeded=runner == "v2",
    )  # fmt: skip
    tokens = [answer[1] for answer in result["tokens"]]
    assert p_value(tokens, second_token_probs(target, PROMPT, **given)) > UNLIKELY
    of_the_draft = p_value(tokens, mask_row_probs(draft, PROMPT, MASK_TOKEN_ID, **given))
    assert of_the_draft < 1e-2 * UNLIKELY, "the test can tell the difference"
    if not (runner == "v1" and "min_p" in given):
        assert result["counts"]["num_accepted_tokens"] > 0


def test_drafts_within_the_filters_are_accepted_more_often(
    tiny_pair: tuple[Path, Path], newest_vllm: dict[str, str]
) -> None:
    target, draft = tiny_pair
    run = {"runner": "v2", "environment": newest_vllm, "target": target, "draft": draft, "filters": FILTERS}
    within, without = run_scenario("scenarios_sampling:filtered", num_requests=12, **run)
    assert within["tokens"][3::4] == without["tokens"][3::4], "requests without a filter draft as ever"
    assert within["tokens"] != without["tokens"]
    assert within["rate"] > 1.2 * without["rate"]


def test_redrawn_drafts_follow_the_target(newest_vllm: dict[str, str]) -> None:
    """A draft unlike its target, so that a cached distribution that is not the drawn one shows; and a trimmed one."""
    target, noise = torch.randn(2, 24, generator=torch.Generator().manual_seed(8))
    whole = 0.7 * target + 0.7 * noise
    trimmed = whole.clone()
    trimmed[::3] = torch.tensor(-1e4).bfloat16().item()
    filters = [{"temperature": 0.7} | wish for wish in ({"top_p": 0.6}, {"top_k": 5}, {"min_p": 0.2})]
    result = run_scenario(
        "scenarios_sampling:redrawn", runner="v2", environment=newest_vllm, wishes=filters,
        drafts=torch.stack([whole, trimmed]).tolist(), target=target.tolist(), num_each=200,
    )  # fmt: skip
    assert result["lowest"] > -100, "vLLM's kernel keeps every token of a row with a finite outlier"
    for i, draft in enumerate((whole, trimmed)):
        for j, wish in enumerate(filters):
            drafts, tokens, num_sampled = (result[name][i][j] for name in ("drafts", "tokens", "num"))
            assert p_value(drafts, filtered_probs(draft, **wish)) > UNLIKELY
            assert p_value(tokens, filtered_probs(target, **wish)) > UNLIKELY
            assert p_value(tokens, filtered_probs(draft, **wish)) < 1e-2 * UNLIKELY
            assert p_value(tokens, filtered_probs(target, temperature=0.7)) < 1e-2 * UNLIKELY, "without the filter"
            assert set(num_sampled) == {1, 2}, "some drafts are accepted"
