"""Trees of draft tokens: the output is the target's own, and more of it comes in a step."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pard_kernels import DraftTree
from transformers import DynamicCache, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference import tree
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.engine import Generation, ReferenceEngine
from vllm_pard.reference.requests import GenerationError
from vllm_pard.target_proj import TargetProj

Run = Callable[..., list[Generation]]
Prompts = list[list[int]]
Outputs = list[list[int]]
MakeLlama = Callable[..., LlamaForCausalLM]

TOL = {"atol": 1e-4, "rtol": 1e-4}  # fp32, the same sums in another order


def token_ids(generations: list[Generation]) -> Outputs:
    return [generation.token_ids for generation in generations]


def total(generations: list[Generation]) -> AcceptanceStats:
    return sum((generation.stats for generation in generations), start=AcceptanceStats())


@pytest.mark.parametrize(
    ("k", "num_nodes"), [*((1, n) for n in (1, 4, 11)), *((k, n) for k in (2, 5) for n in (1, 4, 11, 40, 63))]
)
def test_trees_change_nothing(k: int, num_nodes: int, run: Run, prompts: Prompts, plain_outputs: Outputs) -> None:
    generations = run(prompts, num_speculative_tokens=k, num_tree_nodes=num_nodes)
    assert token_ids(generations) == plain_outputs
    for prompt, generation in zip(prompts, generations, strict=True):
        assert run([prompt], num_speculative_tokens=k, num_tree_nodes=num_nodes) == [generation]
    stats = total(generations)
    assert stats.accepted_per_position[0] > 0
    if num_nodes < 11:
        assert stats.accepted_per_position[0] < stats.num_drafts


def test_pard2(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    target_proj_of: Callable[..., TargetProj],
    run: Run,
    prompts: Prompts,
    plain_outputs: Outputs,
) -> None:
    """Features follow the tokens that are kept: drafts are those of a chain wherever the same tokens were kept."""
    options = {"method": "pard2", "target_proj": target_proj_of(target, draft)}
    trees = run(prompts, **options, num_tree_nodes=20)
    assert token_ids(trees) == plain_outputs
    assert total(trees).num_accepted_tokens > total(run(prompts, **options)).num_accepted_tokens


def test_more_nodes_are_worth_more(run: Run, prompts: Prompts) -> None:
    lengths = [total(run(prompts, num_tree_nodes=n)).mean_acceptance_length for n in (4, 12, 40)]
    chain = total(run(prompts)).mean_acceptance_length
    assert chain < lengths[1] < lengths[2]
    assert lengths[0] < lengths[2]


def test_one_candidate_a_depth_is_the_chain(run: Run, prompts: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is known of what has followed before, which is worth something."""
    monkeypatch.setattr(tree, "NUM_CANDIDATES", 1)
    with_history = total(run(prompts, num_tree_nodes=4))
    monkeypatch.setattr(tree, "History", lambda *_: None)
    assert run(prompts, num_tree_nodes=4) == run(prompts)
    assert with_history.mean_acceptance_length > total(run(prompts)).mean_acceptance_length


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_window(attention: str, run: Run, prompts: Prompts) -> None:
    """Shorter than a path is deep."""
    torch.manual_seed(5)
    shape = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    window = {"sliding_window": 3, "use_sliding_window": True, "max_window_layers": 1, "initializer_range": 0.5}
    target = Qwen2ForCausalLM(Qwen2Config(**shape, **heads, **window, eos_token_id=None)).eval()  # type: ignore[arg-type]
    target.set_attn_implementation(attention)
    expected = token_ids(run(prompts, target=target, method="ar", draft=None))
    generations = run(prompts, target=target, draft=target, num_tree_nodes=30)
    assert token_ids(generations) == expected
    assert total(generations).accepted_per_position[3] > 0


@pytest.mark.parametrize("mistake", ["kept rows stay where they are", "rows see their siblings", "depth by row"])
def test_the_test_can_tell(
    mistake: str, run: Run, prompts: Prompts, plain_outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tree.build_draft_tree

    def wrong(**given: Any) -> DraftTree:
        found = build(**given)
        if mistake == "rows see their siblings":
            return found._replace(ancestors=found.ancestors | (2 << torch.arange(found.parents.shape[1])) - 1)
        return found._replace(depths=torch.arange(found.parents.shape[1], dtype=torch.int32).expand_as(found.depths))

    if mistake == "kept rows stay where they are":
        monkeypatch.setattr(CachedModel, "move", lambda *_: None)
    else:
        monkeypatch.setattr(tree, "build_draft_tree", wrong)
    assert token_ids(run(prompts, num_tree_nodes=20)) != plain_outputs


def test_caches_hold_the_kept_tokens(
    monkeypatch: pytest.MonkeyPatch, target: LlamaForCausalLM, draft: LlamaForCausalLM, prompts: Prompts
) -> None:
    """After each step, what the next one builds on is what one forward over these tokens gives."""
    num_kept: Counter[int] = Counter()
    step = tree.tree_step
    reference = ReferenceEngine(
        target,
        draft,
        method="pard",
        num_speculative_tokens=4,
        mask_token_id=10,
        batch_size=len(prompts),
        max_length=50,
        num_tree_nodes=20,
    )

    def checking_step(cached: CachedModel, logits: Any, requests: Any, *arguments: Any, **options: Any) -> None:
        before = requests.lengths.tolist()
        step(cached, logits, requests, *arguments, **options)
        for i, length in enumerate(requests.lengths.tolist()):
            num_kept[length - before[i]] += 1
            tokens, fresh = requests.tokens[i, : length - 1][None], DynamicCache()
            cached.model(tokens, past_key_values=fresh)
            for layer, expected in zip(cached.cache.layers, fresh.layers, strict=True):
                torch.testing.assert_close(layer.keys[i, :, : length - 1], expected.keys[0], **TOL)
                torch.testing.assert_close(layer.values[i, :, : length - 1], expected.values[0], **TOL)

    monkeypatch.setattr("vllm_pard.reference.engine.tree_step", checking_step)
    reference.generate(prompts, max_new_tokens=30)
    assert set(num_kept) >= {1, 2, 3, 4, 5}


@pytest.mark.parametrize(("target_length", "draft_length"), [(40, 128), (128, 40), (128, 5)])
def test_trees_stay_inside_both_contexts(
    target_length: int, draft_length: int, run: Run, tiny_llama: MakeLlama
) -> None:
    target, draft = tiny_llama(0, max_length=target_length), tiny_llama(0, max_length=draft_length)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3]]
    num_new = min(target_length, 48) - len(prompts[0])
    options: dict[str, Any] = {"target": target, "max_new_tokens": num_new}
    plain = run(prompts, **options, method="ar", draft=None)
    trees = run(prompts, **options, draft=draft, num_tree_nodes=30)
    assert token_ids(trees) == token_ids(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_tree_nodes": 64}, r"a tree of 4 depths needs from 1 to 63 nodes; got 64"),
        ({"num_tree_nodes": -1}, r"needs from 1 to 63 nodes; got -1"),
        ({"num_tree_nodes": 12, "num_speculative_tokens": 1}, r"a tree of 1 depths needs from 1 to 11 nodes; got 12"),
        ({"num_tree_nodes": 4, "method": "vsd"}, r"needs a parallel draft"),
    ],
)
def test_trees_that_can_not_be(changes: dict[str, Any], message: str, run: Run, prompts: Prompts) -> None:
    with pytest.raises(GenerationError, match=message):
        run(prompts, **changes)
