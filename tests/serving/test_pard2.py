"""PARD-2 on the real V2 runner: what a draft reads of its target is the definition's, whatever the engine does."""

from pathlib import Path
from typing import Any

import pytest
from engine import run_scenario, scenarios_of
from exact_sampling import mask_row_probs, p_value, second_token_probs
from pard2_draft import MASK_TOKEN_ID, save_pard2_draft
from public_checkpoints import PUBLIC_DRAFTS, PublicDraft, save_draft, save_target
from target_kinds import save_target_of

pytestmark = pytest.mark.engine

# fp32, sums in another order; a wrong feature is a hundred times as far away.
INPUT_TOL, OUTPUT_TOL = 1e-5, 1e-3
OURS, PROBABILISTIC = {"attention_backend": "CUSTOM"}, {"draft_sample_method": "probabilistic"}
PROMPT = [72, 105, 44, 32, 116]
UNLIKELY = 1e-4  # p-value of a sampler that is taken for wrong
PUBLIC_PARD2 = [draft for draft in PUBLIC_DRAFTS if draft.is_pard2]
DYNAMIC_K = {"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 2, 2], [3, 8, 0]]}


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    target, draft = tiny_pair
    return target, save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", draft)


@pytest.fixture(scope="module")
def run(pair: tuple[Path, Path], release: dict[str, str]) -> Any:
    return scenarios_of("scenarios_pard2", pair, environment=release)


def test_rows_of_mixed_batches(run: Any) -> None:
    """Prompts of several chunks, prompts and decodes in one batch, rejected drafts: inputs and outputs, row by row."""
    found = run("rows_of_mixed_batches", fault="none")
    assert found["num_tokens"] > 250
    assert found["num_masks"] > 50
    assert found["tokens"] < INPUT_TOL
    assert found["masks"] < INPUT_TOL
    assert found["outputs"] < OUTPUT_TOL


@pytest.mark.parametrize("fault", ["eagles_shift", "stale_carry", "before_the_norm", "order_of_layers"])
def test_a_wrong_feature_is_seen(run: Any, fault: str) -> None:
    """Controls: with each of these faults the comparison above fails."""
    found = run("rows_of_mixed_batches", fault=fault)
    assert found["tokens"] > 100 * INPUT_TOL


def test_steps_without_drafts_are_read(run: Any) -> None:
    """K is 0 above two requests; what the target says in such a step is gone with it."""
    found = run("rows_of_mixed_batches", fault="none", spec=DYNAMIC_K)
    assert found["num_tokens"] > 250
    assert found["tokens"] < INPUT_TOL
    assert found["outputs"] < OUTPUT_TOL


@pytest.mark.parametrize("forgets", [True, False], ids=["forgotten", "inherited"])
def test_after_a_prefix_hit_the_missing_feature_is_nothing(run: Any, forgets: bool) -> None:
    """And never that which another request has left in the slot: the control sees it."""
    found = run("rows_after_prefix_hits", forgets=forgets)
    assert found["hits"] == found["first_position"] == 96
    assert (found["first_row"] < INPUT_TOL) == forgets
    assert found["others"] < INPUT_TOL


@pytest.mark.parametrize("spec", [None, DYNAMIC_K], ids=["K", "dynamic K"])
def test_the_drafts_cache_is_that_of_a_fresh_prefill(run: Any, spec: dict[str, Any] | None) -> None:
    result = run("scenarios_v2:draft_kv", disable_counter=False, spec=spec)
    assert result["rejected"] > 0
    assert len(result["differences"]) >= 3
    assert max(result["differences"]) < OUTPUT_TOL


@pytest.mark.parametrize(
    ("most", "schedule", "places"),
    [
        pytest.param(4, {}, [], id="its own forward"),
        pytest.param(6, {}, [1, 1, 1, 3], id="places of the graph"),
        pytest.param(8, DYNAMIC_K, [1, 1, 1, 5], id="nothing is drafted"),
    ],
)
def test_a_prompt_beside_a_graph(run: Any, most: int, schedule: dict[str, Any], places: list[int]) -> None:
    """A graph reads no more rows of the target than its decodes have; the others of a prompt in it are read before."""
    spec = OURS | schedule
    result = run("scenarios_v2:draft_kv", runner="v2-flash", disable_counter=False, spec=spec, joins_graphs=most)
    *_, joined = (step for step in result["steps"] if step["prefills"])
    assert len(joined["replays"]) == 1
    assert joined["places"] == places
    assert bool(joined["rows"]) == (places == [])
    assert max(result["differences"]) < OUTPUT_TOL


def test_mixed_batches_are_lossless(run: Any) -> None:
    result = run("scenarios_v2:mixed_batches", num_drafts=7, asynchronous=True)
    assert result["pard"] == result["plain"]
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]
    assert all(len(step["rows"]) == 1 for step in result["steps"]), "one draft forward a step"


def test_preemption(run: Any) -> None:
    result = run("scenarios_v2:preemption")
    assert result["preemptions"] > 0
    assert result["pard"] == result["plain"]


def test_aborted_requests_leave_their_slots(run: Any) -> None:
    result = run("scenarios_v2:aborts")
    assert len(result["aborted"]) >= 3
    assert all(result["plain"][int(index)] == tokens for index, tokens in result["pard"].items())


def test_the_end_of_the_context(run: Any) -> None:
    result = run("scenarios_v2:max_model_len", num_drafts=9)
    assert result["pard"] == result["plain"]


def test_dynamic_k(run: Any) -> None:
    result = run("scenarios_v2:dynamic_num_drafts")
    assert {step["num_drafts"] for step in result["steps"]} == {0, 2, 4}
    assert result["pard"] == result["plain"]


@pytest.mark.parametrize(
    ("runner", "spec", "temperature", "most"),
    [
        pytest.param("v2-flash", OURS, 0.0, 4, id="greedy, our attention"),
        pytest.param("v2-flash", OURS, 0.0, 16, id="prompts in places of decodes"),
        pytest.param("v2-triton", PROBABILISTIC, 0.7, 4, id="sampled, Triton attention", marks=pytest.mark.slow),
    ],
)
def test_graphs(run: Any, runner: str, spec: dict[str, Any], temperature: float, most: int) -> None:
    """A replay reads the features of its own step, whatever lay in their place at the capture."""
    result = run("scenarios_v2:graphs", runner=runner, num_drafts=4, spec=spec, temperature=temperature, most=most)
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert 0 < result["counts"]["num_accepted_tokens"] < result["counts"]["num_draft_tokens"]
    assert sum(result["replays"].values()) >= 8
    mixed = [step for step in result["steps"] if step["replays"] and step["prefills"]]
    assert any(bool(step["rows"]) == (most == 4) for step in mixed), "decodes beside a prefill"


@pytest.mark.slow
def test_graphs_beside_pieces(run: Any) -> None:
    """Rows that pad a piecewise graph read nothing."""
    result = run("scenarios_draft:pieces", runner="v2-flash")
    assert any(mode == "PIECEWISE" for _, mode in result["forwards"])
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]


def test_serving_compiles_nothing(run: Any) -> None:
    """Every variant of our kernels that steps launch was launched at start-up."""
    result = run("scenarios_draft:compilations", runner="v2-triton", spec=OURS)
    assert any("add_target_features" in str(variant) for variant in result["started"])
    assert result["served"] == []


# Architectures that hand out states of their layers, with an lm_head of their own and without.
ARCHITECTURES = [("Llama", True), ("Llama", False), ("Qwen2", True), ("Qwen3", True), ("Qwen3", False)]


@pytest.mark.parametrize(("architecture", "is_tied"), ARCHITECTURES)
def test_states_are_those_of_transformers(
    tiny_pair: tuple[Path, Path], tmp_path: Path, newest_vllm: dict[str, str], architecture: str, is_tied: bool
) -> None:
    """-1 after the final norm, the others between layers, in the draft's order."""
    target = save_target_of(architecture, tmp_path / "target", is_tied=is_tied)
    draft = save_pard2_draft(tmp_path / "draft", tiny_pair[1], layers=(-2, -1, -4, -3))
    found = run_scenario(
        "scenarios_pard2:states_against_transformers", runner="v2", environment=newest_vllm, target=target, draft=draft
    )
    assert found["scale"] > 0.05
    assert found["difference"] < INPUT_TOL


@pytest.mark.parametrize("mode", ["auto", "independent"])
@pytest.mark.parametrize(
    "public",
    [draft if "Qwen3-8B" in draft.name else pytest.param(draft, marks=pytest.mark.slow) for draft in PUBLIC_PARD2],
    ids=[draft.short_name for draft in PUBLIC_PARD2],
)
def test_look_alikes_of_the_public_drafts(
    tmp_path: Path, newest_vllm: dict[str, str], public: PublicDraft, mode: str
) -> None:
    """warp_model.bin, no tokenizer, embeddings saved twice, the target known by its name."""
    target = save_target(public, tmp_path / public.target.rpartition("/")[2])
    draft = save_draft(public, tmp_path / public.short_name)
    found = run_scenario(
        "scenarios_pard2:look_alike", runner="v2", environment=newest_vllm, target=target, draft=draft, mode=mode
    )
    assert found["mode"] == {"auto": "dependent"}.get(mode, mode)
    assert found["pard"] == found["plain"]
    assert found["counts"]["num_draft_tokens"] > 0


@pytest.mark.slow
def test_samples_follow_the_target(pair: tuple[Path, Path]) -> None:
    """The second token is the first that can come from a draft. Control: the draft's own distribution is another."""
    target, draft = pair
    result = run_scenario(
        "scenarios_sampling:sampling", runner="v2", target=target, draft=draft, spec=PROBABILISTIC,
        given={"temperature": 0.7}, num_samples=600, prompt=PROMPT, is_seeded=True,
    )  # fmt: skip
    tokens = [answer[1] for answer in result["tokens"]]
    assert p_value(tokens, second_token_probs(target, PROMPT, temperature=0.7)) > UNLIKELY
    assert p_value(tokens, mask_row_probs(draft, PROMPT, MASK_TOKEN_ID, temperature=0.7)) < 1e-2 * UNLIKELY
    assert result["counts"]["num_accepted_tokens"] > 0
