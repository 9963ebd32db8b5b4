"""PARD-2 against its definition, which computes everything anew at each step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from vllm_pard.reference import engine
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.engine import Generation, GenerationError, ReferenceEngine
from vllm_pard.reference.features import Features
from vllm_pard.target_proj import TargetProj

Run = Callable[..., list[Generation]]
Prompts = list[list[int]]
Proposals = list[list[list[int]]]  # for each request, the draft tokens of each step
MakeLlama = Callable[..., LlamaForCausalLM]
MakeTargetProj = Callable[..., TargetProj]

MASK_TOKEN_ID = 10
NUM_NEW = 24
NUM_LAYERS = 5  # of the target: 6 hidden states
LAYERS = [(-1,), (-1, -3), (-1, -2, -4, -6), (0, 5, 2)]


@pytest.fixture(scope="module")
def deep_target(tiny_llama: MakeLlama) -> LlamaForCausalLM:
    model = tiny_llama(seed=3, num_hidden_layers=NUM_LAYERS)
    with torch.no_grad():
        model.model.norm.weight += torch.rand(16)  # a new model's norm has weights of 1
    return model


@pytest.fixture(scope="module")
def wide_draft(tiny_llama: MakeLlama) -> LlamaForCausalLM:
    """Of another hidden size."""
    return tiny_llama(seed=4, hidden_size=24)


def hidden_states(target: LlamaForCausalLM, token_ids: list[int]) -> list[torch.Tensor]:
    """The embeddings, what each layer gives, and the last of these after the final norm. Each [T, W]"""
    states = [target.get_input_embeddings()(torch.tensor([token_ids]))]
    hooks = [layer.register_forward_hook(lambda _, __, output: states.append(output)) for layer in target.model.layers]
    target(torch.tensor([token_ids]))
    for hook in hooks:
        hook.remove()
    states[-1] = target.model.norm(states[-1])
    return [state[0] for state in states]


def draft_logits(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, target_proj: TargetProj, token_ids: list[int], num_drafts: int
) -> torch.Tensor:
    """arXiv 2605.08632: x_0..x_n, K - 1 masks; what is added at p is of h_{p-1}, at masks of h_{n-1}. [K, V]"""
    newest = len(token_ids) - 1
    read = token_ids[:newest]  # the target has not read the newest token yet
    states = hidden_states(target, read) if read else []
    rows = []
    for p, token_id in enumerate(token_ids + [MASK_TOKEN_ID] * (num_drafts - 1)):
        before = min(p, newest) - 1
        feature = torch.zeros(target_proj.features.target_dim)
        if before >= 0:
            feature = torch.cat([states[layer][before] for layer in target_proj.features.target_layers])
        added = target_proj.weight @ feature
        if target_proj.bias is not None:
            added = added + target_proj.bias
        rows.append(draft.get_input_embeddings().weight[token_id] + target_proj.features.scale * added)
    logits: torch.Tensor = draft(inputs_embeds=torch.stack(rows)[None]).logits[0, -num_drafts:]
    return logits


@torch.no_grad()
def by_definition(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    target_proj: TargetProj,
    prompt: list[int],
    num_drafts: int,
    eos_token_id: int | None = None,
) -> tuple[list[int], list[list[int]]]:
    """The answer, and the draft tokens of each step."""
    token_ids, proposed = list(prompt), []
    while True:
        drafts = draft_logits(target, draft, target_proj, token_ids, num_drafts).argmax(dim=-1).tolist()
        proposed.append(drafts)
        best = target(torch.tensor([token_ids + drafts])).logits[0, -num_drafts - 1 :].argmax(dim=-1).tolist()
        num_accepted = next((j for j in range(num_drafts) if drafts[j] != best[j]), num_drafts)
        for token_id in best[: num_accepted + 1]:
            token_ids.append(token_id)
            if token_id == eos_token_id or len(token_ids) == len(prompt) + NUM_NEW:
                return token_ids[len(prompt) :], proposed


@pytest.fixture
def proposals(monkeypatch: pytest.MonkeyPatch) -> Proposals:
    """What the engine proposes for each request of the batch, until it is finished."""
    proposed: Proposals = []
    score = engine.score

    def recording_score(target: Any, requests: Any, draft_ids: torch.Tensor) -> torch.Tensor:
        proposed.extend([] for _ in range(len(draft_ids) - len(proposed)))
        for i, is_finished in enumerate(requests.finished.tolist()):
            if not is_finished:
                proposed[i].append(draft_ids[i].tolist())
        return score(target, requests, draft_ids)

    monkeypatch.setattr(engine, "score", recording_score)
    return proposed


@pytest.fixture
def make_engine(deep_target: LlamaForCausalLM, wide_draft: LlamaForCausalLM) -> Callable[..., ReferenceEngine]:
    def make(target_proj: TargetProj | None, **changes: Any) -> ReferenceEngine:
        options: dict[str, Any] = {"method": "pard2", "num_speculative_tokens": 4, "batch_size": 8, "max_length": 50}
        return ReferenceEngine(
            deep_target, wide_draft, target_proj=target_proj, mask_token_id=MASK_TOKEN_ID, **(options | changes)
        )

    return make


@pytest.mark.parametrize(
    ("num_drafts", "layers", "has_bias"),
    [*((4, layers, False) for layers in LAYERS), (4, (-1, -3), True), (1, (-1, -3), False), (7, (-1, -3), True)],
)
def test_drafts_are_those_of_the_definition(
    num_drafts: int,
    layers: tuple[int, ...],
    has_bias: bool,
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    proposals: Proposals,
    prompts: Prompts,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
) -> None:
    """Prompts of 1 to 19 tokens, in one batch; on the second call, the slots hold what the first has left."""
    target_proj = target_proj_of(deep_target, wide_draft, layers, has_bias=has_bias)
    reference = make_engine(target_proj, num_speculative_tokens=num_drafts)
    expected = [by_definition(deep_target, wide_draft, target_proj, prompt, num_drafts) for prompt in prompts]
    for batch in (prompts, prompts[::-1]):
        proposals.clear()
        generations = reference.generate(batch, max_new_tokens=NUM_NEW)
        assert [generation.token_ids for generation in generations] == [answer for answer, _ in expected]
        assert proposals == [proposed for _, proposed in expected]
        expected.reverse()
    accepted = [generation.stats.num_accepted_tokens for generation in generations]
    assert min(accepted) < max(accepted)


def test_end_of_sequence(
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    proposals: Proposals,
    prompts: Prompts,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
) -> None:
    target_proj = target_proj_of(deep_target, wide_draft)
    models = (deep_target, wide_draft, target_proj)
    eos_token_id = by_definition(*models, prompts[0], 4)[0][5]
    generations = make_engine(target_proj).generate(prompts, max_new_tokens=NUM_NEW, eos_token_ids=(eos_token_id,))
    expected = [by_definition(*models, prompt, 4, eos_token_id) for prompt in prompts]
    assert [generation.token_ids for generation in generations] == [answer for answer, _ in expected]
    assert proposals == [proposed for _, proposed in expected]
    assert len({len(answer) for answer, _ in expected}) > 2


def eagle_shift(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in EAGLE, token 0 is dropped and the others move to the left; each keeps its feature."""
    assert reference.draft is not None
    forward = reference.draft.forward
    monkeypatch.setattr(reference.draft, "forward", lambda ids, positions, **rest: forward(ids, positions - 1, **rest))


def ascending_layers(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reference.features is not None
    monkeypatch.setattr(reference.features, "_layers", (-4, -2, -1))


def before_the_norm(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    raw: list[torch.Tensor] = []
    layer, write = reference.target.model.model.layers[-1], Features.write
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args, **rest: raw.append(forward(*args, **rest)) or raw[-1])
    monkeypatch.setattr(Features, "write", lambda self, states, slots: write(self, [*states[:-1], raw[-1]], slots))


def masks_without_a_feature(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Features.at
    monkeypatch.setattr(
        Features, "at", lambda self, rows, newest: at(self, rows, newest) * (rows <= newest)[:, :, None]
    )


def feature_of_the_token_itself(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    at = Features.at
    monkeypatch.setattr(Features, "at", lambda self, rows, newest: at(self, rows + 1, newest))


def accepted_tokens_without_features(reference: ReferenceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the prompt gave is kept."""
    write = Features.write
    monkeypatch.setattr(
        Features, "write", lambda self, states, slots: slots.shape[1] == 5 or write(self, states, slots)
    )


FAULTS = [
    None,
    eagle_shift,
    ascending_layers,
    before_the_norm,
    masks_without_a_feature,
    feature_of_the_token_itself,
    accepted_tokens_without_features,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_definition_can_tell(
    fault: Callable[..., None] | None,
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    proposals: Proposals,
    prompts: Prompts,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fault changes drafts, and no fault changes an answer."""
    target_proj = target_proj_of(deep_target, wide_draft, (-1, -2, -4))
    expected = [by_definition(deep_target, wide_draft, target_proj, prompt, 4) for prompt in prompts]
    reference = make_engine(target_proj)
    if fault is not None:
        fault(reference, monkeypatch)
    generations = reference.generate(prompts, max_new_tokens=NUM_NEW)
    assert [generation.token_ids for generation in generations] == [answer for answer, _ in expected]
    assert (proposals == [proposed for _, proposed in expected]) == (fault is None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_independent_is_pard(
    temperature: float,
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    prompts: Prompts,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
) -> None:
    def answers(target_proj: TargetProj | None, **changes: Any) -> list[Generation]:
        return make_engine(target_proj, **changes).generate(
            prompts, max_new_tokens=NUM_NEW, temperature=temperature, seed=5
        )

    pard = answers(None, method="pard")
    assert answers(None) == pard
    assert answers(target_proj_of(deep_target, wide_draft, weight=0.0)) == pard
    assert answers(target_proj_of(deep_target, wide_draft)) != pard, "the features matter"


def test_weights_in_training(
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    prompts: Prompts,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
) -> None:
    target_proj = target_proj_of(deep_target, wide_draft, has_bias=True)
    weight, bias = torch.nn.Parameter(target_proj.weight), torch.nn.Parameter(target_proj.bias)
    reference = make_engine(target_proj._replace(weight=weight, bias=bias))
    generations = reference.generate(prompts, max_new_tokens=NUM_NEW)
    assert generations == make_engine(target_proj).generate(prompts, max_new_tokens=NUM_NEW)
    assert reference.features is not None
    assert not reference.features.added.requires_grad


@torch.no_grad()
def test_rows_that_are_nowhere_touch_nothing(
    target_proj_of: MakeTargetProj, deep_target: LlamaForCausalLM, wide_draft: LlamaForCausalLM
) -> None:
    target_proj = target_proj_of(deep_target, wide_draft, has_bias=True)
    features = Features(target_proj, draft=wide_draft, batch_size=1, max_length=6)
    cached = CachedModel(deep_target, max_length=6, compiled=False, features=features)
    positions = torch.arange(6)[None]
    cached.forward(positions, positions, num_logits=1)
    everything, newest = torch.arange(7)[None], torch.tensor([[6]])
    before = features.at(everything, newest)  # [1, 7, H]
    cached.forward(torch.tensor([[7, 8, 9]]), torch.tensor([[-1, 6, 60]]), num_logits=1)
    assert torch.equal(features.at(everything, newest), before)
    assert len({tuple(row.tolist()) for row in before[0]}) == 7


@pytest.mark.parametrize(("target_length", "draft_length"), [(40, 128), (128, 40), (128, 5)])
def test_contexts_that_end(
    target_length: int, draft_length: int, run: Run, tiny_llama: MakeLlama, target_proj_of: MakeTargetProj
) -> None:
    target, draft = tiny_llama(0, max_length=target_length), tiny_llama(1, max_length=draft_length)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3]]
    options = {"target": target, "draft": draft, "num_speculative_tokens": 6, "max_new_tokens": 32}
    generations = run(prompts, method="pard2", target_proj=target_proj_of(target, draft), **options)
    plain = run(prompts, method="ar", **options)
    assert [generation.token_ids for generation in generations] == [generation.token_ids for generation in plain]
    assert generations[1].stats.num_drafts > 0


SHAPE: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.5,
    "pad_token_id": None,
}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3"])
def test_embeddings_are_the_models_own(architecture: str, tiny_llama: MakeLlama) -> None:
    """Nothing added is nothing changed, to the bit; Gemma scales its embeddings."""
    model: PreTrainedModel
    if architecture == "llama":
        model = tiny_llama(seed=0)
    elif architecture == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).eval()
    elif architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE)).eval()
    else:
        model = Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE)).eval()
    token_ids = torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(3))
    positions = torch.arange(9).expand(2, -1)
    logits = []
    for added in (None, torch.zeros(2, 9, 16), torch.ones(2, 9, 16)):
        with torch.no_grad():
            cached = CachedModel(model, max_length=16, compiled=False)
            logits.append(cached.forward(token_ids, positions, num_logits=9, added=added))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("layers", "weight_shape", "message"),
    [
        ((-1, -7), None, "target_proj does not fit the target: .* features of layer -7, and .* has 5 layers"),
        ((6,), None, "features of layer 6"),
        ((-1, -2), (24, 33), r"the weight of target_proj must be \[24, 32\]; it is \[24, 33\]"),
        ((-1, -2), (16, 32), r"the weight of target_proj must be \[24, 32\]; it is \[16, 32\]"),
    ],
)
def test_target_proj_that_does_not_fit(
    layers: tuple[int, ...],
    weight_shape: tuple[int, int] | None,
    message: str,
    make_engine: Callable[..., ReferenceEngine],
    target_proj_of: MakeTargetProj,
    deep_target: LlamaForCausalLM,
    wide_draft: LlamaForCausalLM,
) -> None:
    target_proj = target_proj_of(deep_target, wide_draft, layers)
    if weight_shape is not None:
        target_proj = target_proj._replace(weight=torch.zeros(weight_shape))
    with pytest.raises(GenerationError, match=message):
        make_engine(target_proj)


def test_target_of_another_hidden_size(
    run: Run, tiny_llama: MakeLlama, target_proj_of: MakeTargetProj, deep_target: LlamaForCausalLM
) -> None:
    other = tiny_llama(seed=0, hidden_size=24)
    with pytest.raises(GenerationError, match="features of a target with hidden size 16, and '' has 24"):
        run([[1]], target=other, draft=other, method="pard2", target_proj=target_proj_of(deep_target, other))


def test_target_proj_of_another_method(
    run: Run, target_proj_of: MakeTargetProj, target: LlamaForCausalLM, draft: LlamaForCausalLM
) -> None:
    with pytest.raises(GenerationError, match="target_proj is for method 'pard2'; got 'pard'"):
        run([[1]], target_proj=target_proj_of(target, draft))
