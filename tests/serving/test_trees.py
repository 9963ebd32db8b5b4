"""Trees of draft tokens on the real V2 runner under Triton's interpreter, against plain vLLM."""

from pathlib import Path
from typing import Any

import pytest
from engine import scenarios_of
from exact_sampling import p_value, second_token_probs
from pard2_draft import save_pard2_draft
from tiny_models import sharpen

pytestmark = pytest.mark.engine

K, NODES = 4, 9
KV_TOL = 1e-5
PROMPT = [72, 105, 44, 32, 116]
UNLIKELY = 1e-4  # p-value of a sampler that is taken for wrong


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The tiny target, and its draft with sharper distributions."""
    return tiny_pair[0], sharpen(tiny_pair[1], tmp_path_factory.mktemp("sharp") / "draft")


@pytest.fixture(scope="module")
def run(pair: tuple[Path, Path], release: dict[str, str]) -> Any:
    return of_pair(pair, release)


def of_pair(pair: tuple[Path, Path], release: dict[str, str]) -> Any:
    """A scenario of chains by its name, with trees; or one of trees."""
    scenario = scenarios_of("scenarios_tree", pair, runner="v2-flash", environment=release)

    def run(name: str, num_nodes: int | str = NODES, **arguments: Any) -> Any:
        if name in ("target_kv", "other_wishes", "known_texts"):
            return scenario(name, num_nodes=num_nodes, **arguments)
        return scenario("with_trees", chain=name, num_nodes=num_nodes, **arguments)

    return run


def assert_deep_and_shallow(counts: dict[str, Any]) -> None:
    """Paths of several lengths were accepted."""
    by_depth = counts["num_accepted_tokens_per_pos"]
    assert 0 < by_depth[1] < by_depth[0] <= counts["num_drafts"]


def test_mixed_batches(run: Any) -> None:
    """Chunks of prompts beside trees, asynchronous scheduling, requests that join and leave."""
    result = run("scenarios_v2:mixed_batches", num_drafts=K, asynchronous=True)
    assert result["pard"] == result["plain"]
    assert_deep_and_shallow(result["counts"])
    assert result["counts"]["num_draft_tokens"] > 5 * result["counts"]["num_drafts"]
    steps = result["steps"]
    assert any(0 < step["prefills"] < step["requests"] for step in steps), "prefill and decode shared a batch"
    assert all(len(step["rows"]) == 1 for step in steps), "one draft forward a step"
    decodes = [step for step in steps if not step["prefills"]]
    assert {max(step["rows"][0]) for step in decodes} == {2 * K}, "as for a chain"
    assert any(NODES + 1 in step["queries"] for step in steps), "the target read whole trees"


@pytest.mark.parametrize(
    "mistake",
    [
        "kept rows stay where they are",
        "rows see their siblings",
        pytest.param("positions by row", marks=pytest.mark.slow),
    ],
)
def test_the_test_can_tell(run: Any, mistake: str) -> None:
    result = run("scenarios_v2:mixed_batches", num_drafts=K, asynchronous=True, mistake=mistake)
    assert result["pard"] != result["plain"]


def test_the_targets_cache_is_that_of_plain_decoding(run: Any) -> None:
    """Every kept token's keys and values, over block borders."""
    assert max(run("target_kv", num_drafts=K)["differences"]) < KV_TOL
    moved = run("target_kv", num_drafts=K, mistake="kept rows stay where they are")["differences"]
    assert max(moved) > 100 * KV_TOL


def test_trees_know_the_text_up_to_the_newest_token(run: Any) -> None:
    """After each step of a request once: its prompt, what it has written, and the token of this step."""
    result = run("known_texts", num_drafts=K)
    for text, num_read in zip(result["texts"], result["prompts"], strict=True):
        mine = [known for known in result["known"] if known[:num_read] == text[:num_read] and len(known) > num_read]
        lengths = [len(known) for known in mine]
        assert lengths[0] == num_read + 1
        assert lengths == sorted(set(lengths))
        assert lengths[-1] > len(text) - 1 - K
        assert all(known[: len(text)] == text[: len(known)] for known in mine)


def test_wishes_of_a_request(run: Any) -> None:
    """Bias, allowed tokens, least lengths and log-probabilities on trees; penalties on the main chain."""
    result = run("scenarios_sampling:wishes", num_nodes=6, names_tokens=True)
    plain, pard = result["plain"], result["pard"]
    assert [answer["tokens"] for answer in pard] == [answer["tokens"] for answer in plain]
    for of_pard, of_plain in zip(pard, plain, strict=True):
        for got, wanted in zip(of_pard["logprobs"], of_plain["logprobs"], strict=True):
            assert got == pytest.approx(wanted, abs=1e-4)  # float32, other batch shapes
    assert len(pard[6]["logprobs"]) == 20


def test_what_looks_at_the_tokens_before(run: Any) -> None:
    """Penalties, bad words and grammars on the main chain; stop strings, several answers and prompt scores on trees."""
    result = run("other_wishes", num_drafts=K)
    assert result["trees"] == result["plain"]
    for i in range(6):
        assert result["plain"][i] != result["free"][i], "the wish makes a difference"
    assert len(result["plain"][5]) == 2
    assert_deep_and_shallow(result["counts"])


def test_serving_compiles_nothing(run: Any) -> None:
    """Every variant of our kernels that steps launch was launched at start-up."""
    result = run("scenarios_draft:compilations", num_nodes=15, runner="v2-triton", spec={})
    assert any("accept_tree_path" in variant for variant in result["started"])
    assert any("compact_tree_kv" in variant for variant in result["started"])
    assert result["served"] == []


@pytest.mark.slow
def test_many_prompts(run: Any) -> None:
    """As many as show a rare mistake, in batches that they join and leave."""
    lengths = [1 + 7 * i % 60 for i in range(200)]
    result = run("scenarios:compare", num_drafts=K, prompt_lengths=lengths, max_tokens=12)
    assert result["pard"] == result["plain"]
    assert_deep_and_shallow(result["counts"])


@pytest.mark.slow
def test_preemption(run: Any) -> None:
    result = run("scenarios_v2:preemption")
    assert result["preemptions"] > 0
    assert result["pard"] == result["plain"]


@pytest.mark.slow
def test_prefix_cache(run: Any) -> None:
    result = run("scenarios_v2:prefix_cache")
    assert result["hits"] >= 128
    assert result["first"] == result["second"] == result["plain"]


@pytest.mark.slow
def test_aborts(run: Any) -> None:
    result = run("scenarios_v2:aborts")
    assert len(result["aborted"]) >= 4
    assert all(tokens == result["plain"][int(i)] for i, tokens in result["pard"].items())


@pytest.mark.slow
def test_max_model_len(run: Any) -> None:
    """Trees that are cut off by the end of the context."""
    result = run("scenarios_v2:max_model_len", num_drafts=K)
    assert result["pard"] == result["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "most"), [(0.0, 4), (0.8, 4), (0.0, 16)])
def test_graphs(run: Any, temperature: float, most: int) -> None:
    """The draft's forward and the building of trees, replayed, and prompts among decodes where there is room."""
    result = run("scenarios_v2:graphs", num_drafts=K, spec={}, temperature=temperature, most=most)
    assert result["graphs"] == result["eager"]
    assert result["counts"] == result["eager_counts"]
    assert sum(result["replays"].values()) > 5
    assert most == 4 or any(step["places"] for step in result["steps"])


@pytest.mark.slow
def test_the_drafts_cache_is_that_of_a_fresh_prefill(run: Any) -> None:
    """It reads accepted paths, which may leave the main chain."""
    result = run("scenarios_v2:draft_kv", disable_counter=False)
    assert len(result["differences"]) >= 3
    assert max(result["differences"]) < KV_TOL


@pytest.mark.slow
def test_numbers_of_nodes_that_change(run: Any) -> None:
    """Whole trees, their first nodes and none, in turn."""
    result = run("scenarios:changing_lengths", num_nodes="auto", lengths=[31, 7, 0, 15, 31, 0], num_steps=4)
    assert result["pard"] == result["plain"]
    assert {0, 7, 15, 31} <= {number for numbers in result["verified"] for number in numbers}
    assert_deep_and_shallow(result["counts"])
    assert {"0", "31"} <= {k for of_size in result["costs"].values() for k in of_size}


@pytest.mark.slow
@pytest.mark.parametrize("use_int8", [False, True], ids=["trimmed", "trimmed, 8 bits"])
def test_candidates_of_a_head_of_ours(run: Any, tmp_path: Path, use_int8: bool) -> None:
    """Trees of tokens that the lm_head is cut to, chosen without its logits, and of what has followed before."""
    vocabulary = tmp_path / "vocabulary.json"
    vocabulary.write_text(str(list(range(0, 256, 2))))
    result = run("scenarios:trimmed", spec={"draft_vocab": str(vocabulary)}, use_int8=use_int8)
    assert result["pard"] == result["plain"]
    assert set(result["drafted"]) - set(result["known"]) <= set(range(0, 256, 2))
    assert_deep_and_shallow(result["counts"])


@pytest.mark.slow
def test_pard2_reads_the_rows_of_the_path(pair: tuple[Path, Path], release: dict[str, str], tmp_path: Path) -> None:
    """Features follow accepted nodes: inputs and outputs of the draft, row by row."""
    target, draft = pair
    run = of_pair((target, save_pard2_draft(tmp_path / "draft", draft)), release)
    found = run("scenarios_pard2:rows_of_mixed_batches", fault="none")
    assert found["num_tokens"] > 250
    assert found["tokens"] < 1e-5
    assert found["outputs"] < 1e-3
    result = run("scenarios_v2:mixed_batches", num_drafts=K, asynchronous=True)
    assert result["pard"] == result["plain"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [{"temperature": 0.5}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.5, "top_p": 0.9}, {"min_p": 0.1}],
)
def test_sampling_follows_the_target(run: Any, pair: tuple[Path, Path], given: dict[str, Any]) -> None:
    """The second token is the first that can come from a tree; its distribution must be the target's."""
    arguments: dict[str, Any] = {"spec": {}, "num_samples": 400, "prompt": PROMPT, "given": given, "is_seeded": True}
    result = run("scenarios_sampling:sampling", num_nodes=4, **arguments)
    probs = second_token_probs(pair[0], PROMPT, **given)
    assert p_value([answer[1] for answer in result["tokens"]], probs) > UNLIKELY
    assert result["counts"]["num_accepted_tokens"] > 0
    blind = run("scenarios_sampling:sampling", num_nodes=4, mistake="drafts are accepted blindly", **arguments)
    assert p_value([answer[1] for answer in blind["tokens"]], probs) < 1e-2 * UNLIKELY
