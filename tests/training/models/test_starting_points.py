"""Drafts from a smaller model, from layers of the target, from nothing; and the mask token."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from tiny_models import save_llama, save_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from vllm_pard.catalog import DEMO_MARKER
from vllm_pard.checkpoint import CheckpointError
from vllm_pard.demo import demo_path
from vllm_pard.training.data.config import Document
from vllm_pard.training.models.starting_points import (
    StartingPointError,
    check_mask_unused,
    find_mask_token,
    load_draft,
    new_model,
    prune_target,
)

NUM_LAYERS, WINDOW = 6, 3
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": [1, 2, 3, 4, 5, 6],  # as many as layers
    "pad_token_id": None,
}
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**SIZES, **SLIDING, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SIZES, no_rope_layer_interval=3),
    "gemma3": Gemma3TextConfig(**SIZES, sliding_window=WINDOW, sliding_window_pattern=2),
}


@pytest.fixture(params=CONFIGS)
def target(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[request.param])).eval()


@torch.no_grad()
def logits_of_layers(target, layers: list[int], tokens: torch.Tensor) -> torch.Tensor:
    """The target's own modules, called by hand."""
    decoder, config = target.model, target.config
    hidden = decoder.embed_tokens(tokens)
    positions = torch.arange(tokens.shape[1])[None]
    distance = positions[0][:, None] - positions[0]  # [L, L]
    for layer in layers:
        kind = config.layer_types[layer] if getattr(config, "layer_types", None) else "full_attention"
        is_seen = (distance >= 0) & ((distance < WINDOW) | (kind == "full_attention"))
        mask = torch.zeros(distance.shape).masked_fill(~is_seen, -torch.inf)[None, None]
        rotary = decoder.rotary_emb(hidden, positions, *([kind] if config.model_type.startswith("gemma3") else []))
        hidden = decoder.layers[layer](hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    return target.lm_head(decoder.norm(hidden))


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layers", [[0, 1, 2, 3, 4, 5], [0, 2, 5], [1, 3], [5, 0, 4]], ids=str)
def test_a_pruned_target_gives_what_its_layers_give(target, layers, tokens, tmp_path):
    before = copy.deepcopy(target.state_dict())
    draft = prune_target(target, layers)
    expected = logits_of_layers(target, layers, tokens)
    with torch.no_grad():
        # The same products in another order of calls: fp32, logits of about 10.
        torch.testing.assert_close(draft(tokens).logits, expected, rtol=1e-4, atol=1e-4)
        draft.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(loaded(tokens).logits, draft(tokens).logits)
        # Attention finds its part of a KV cache by the layer's number.
        cache = loaded(tokens[:, :5]).past_key_values
        continued = loaded(tokens[:, 5:], past_key_values=cache).logits
        torch.testing.assert_close(continued, expected[:, 5:], rtol=1e-4, atol=1e-4)
    assert type(loaded) is type(target)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
    assert target.config.num_hidden_layers == NUM_LAYERS


def test_the_config_of_a_pruned_target_follows_its_layers():
    targets = {name: AutoModelForCausalLM.from_config(copy.deepcopy(config)) for name, config in CONFIGS.items()}
    drafts = {name: prune_target(target, [1, 2, 5]).config for name, target in targets.items()}
    assert {config.num_hidden_layers for config in drafts.values()} == {3}
    assert all(config.eos_token_id == [1, 2, 3, 4, 5, 6] for config in drafts.values())
    assert drafts["qwen2"].layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert drafts["qwen2"].max_window_layers == 1
    assert drafts["smollm3"].no_rope_layers == [1, 0, 0]
    assert drafts["gemma3"].layer_types == ["full_attention", "sliding_attention", "full_attention"]
    assert drafts["qwen2"].architectures == ["Qwen2ForCausalLM"]


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_as_they_were(tied):
    config = copy.deepcopy(CONFIGS["llama"])
    config.tie_word_embeddings = tied
    target = AutoModelForCausalLM.from_config(config)
    draft = prune_target(target, 2)
    assert (draft.lm_head.weight is draft.model.embed_tokens.weight) is tied
    assert torch.equal(draft.lm_head.weight, target.lm_head.weight)
    assert torch.equal(draft.model.embed_tokens.weight, target.model.embed_tokens.weight)
    with torch.no_grad():
        draft.model.embed_tokens.weight += 1
    assert not torch.equal(draft.model.embed_tokens.weight, target.model.embed_tokens.weight), "memory is its own"


@pytest.mark.parametrize(
    ("number", "layers"), [(1, [0]), (2, [0, 5]), (3, [0, 1, 5]), (4, [0, 1, 4, 5]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_so_many_layers_are_taken_from_front_and_back(number, layers):
    target = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"]))
    draft = prune_target(target, number)
    taken = [
        next(
            i
            for i, theirs in enumerate(target.model.layers)
            if torch.equal(theirs.mlp.up_proj.weight, layer.mlp.up_proj.weight)
        )
        for layer in draft.model.layers
    ]
    assert taken == layers


def test_a_pruned_target_is_a_stock_checkpoint_in_a_fresh_process(tmp_path, tokens):
    target = save_llama(tmp_path / "target", seed=0, config={DEMO_MARKER: True})
    draft = prune_target(str(target), [1], dtype=torch.bfloat16)
    assert draft.dtype == torch.bfloat16
    draft.save_pretrained(tmp_path / "draft")
    torch.save(draft(tokens).logits, tmp_path / "logits.pt")
    config = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert DEMO_MARKER not in config, "the draft of a demo target is none"
    program = (
        "import sys, torch; from transformers import LlamaForCausalLM;"
        "torch.set_num_threads(1); folder, tokens = sys.argv[1], torch.tensor(eval(sys.argv[2]));"
        "model = LlamaForCausalLM.from_pretrained(folder + '/draft');"
        "assert torch.equal(model(tokens).logits, torch.load(folder + '/logits.pt'))"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(tokens.tolist())], check=True, timeout=120)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (0, "a target of 6 layers gives a draft of 1 to 6; got 0"),
        (7, "1 to 6; got 7"),
        ([], "at least one layer of the target; got none"),
        ([0, 6], "numbered from 0 to 5; got 6"),
        ([-1], "numbered from 0 to 5; got -1"),
        ([0, True], "got True"),
        (["0"], "got '0'"),
        ([1, 3, 1], "taken once; 1 comes more often"),
    ],
)
def test_wrong_layers(layers, message):
    with pytest.raises(StartingPointError, match=message):
        prune_target(AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS["llama"])), layers)


def test_targets_that_can_not_be_pruned(tmp_path):
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    with pytest.raises(
        StartingPointError, match=r"GPT2LMHeadModel can't be pruned: it has no list of layers at model.la"
    ):
        prune_target(gpt2, 1)
    with pytest.raises(CheckpointError, match="there is no model folder"):
        prune_target(str(tmp_path / "none"), 1)
    with pytest.raises(StartingPointError, match=f"can't load the model '{tmp_path}': "):
        prune_target(str(tmp_path), 1)


def test_a_smaller_model_of_the_family(tmp_path):
    target, draft = save_llama(tmp_path / "target", seed=0), save_llama(tmp_path / "draft", seed=1)
    lines = []
    model = load_draft(str(draft), str(target), torch.float32, lines.append)
    assert isinstance(model, LlamaForCausalLM)
    expected = LlamaForCausalLM.from_pretrained(draft, dtype=torch.float32).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    assert lines == []


def test_another_tokenizer_is_refused(tmp_path):
    target, draft = save_llama(tmp_path / "target", seed=0), save_llama(tmp_path / "draft", seed=1)
    save_tokenizer(draft, rename={65: "ab"})
    with pytest.raises(
        CheckpointError, match=r"needs the tokenizer of its target .*, but token 65 is '.' there and 'ab'"
    ):
        load_draft(str(draft), str(target), torch.float32, print)


def test_a_new_model_has_the_weights_of_its_seed(tmp_path):
    fields = CONFIGS["qwen3"].to_dict()
    (tmp_path / "config.json").write_text(json.dumps(fields))
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, same, other = (
        new_model(c, seed, torch.float32) for c, seed in ((fields, 1), (str(tmp_path), 1), (fields, 2))
    )
    assert torch.equal(torch.random.get_rng_state(), state), "other random numbers stay as they were"
    weights = [model.model.layers[0].mlp.up_proj.weight for model in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.config.model_type == "qwen3"
    with pytest.raises(StartingPointError, match="can't load the model 'None': "):
        new_model({"hidden_size": 8}, 0, torch.float32)
    with pytest.raises(CheckpointError, match="no model folder"):
        new_model(str(tmp_path / "none"), 0, torch.float32)


def make_tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate("abcdef")}, merges=[])),
        **named,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = "{{ '<turn>' }}"
    return tokenizer


def config_of(vocab_size: int, **fields: object) -> PreTrainedConfig:
    return PreTrainedConfig.from_dict({"vocab_size": vocab_size, "model_type": "other", **fields})


NAMED = {"eos_token": "<eos>", "pad_token": "<pad>"}  # 6 and 7 in every tokenizer here


@pytest.mark.parametrize(
    ("special", "config", "given", "expected"),
    [
        ((), config_of(12), 9, 9),
        ((), config_of(12, pard_token=10), None, 10),
        ((), config_of(12, pard_token=10), 9, 9),
        (("<turn>", "<|reserved_1|>", "<|reserved_2|>"), config_of(12), None, 9),
        (("<turn>", "<unused_a>"), config_of(20), None, 9),
        (("<turn>", "<image>"), config_of(12), None, 10),
        (("<turn>", "<image>"), config_of(10), None, 9),
        (("<image>", "<turn>"), config_of(10), None, 8),
        (("<image>", "<reserved>"), config_of(10, eos_token_id=[6, 9]), None, 8),
    ],
)  # fmt: skip
def test_mask_tokens(special, config, given, expected):
    assert find_mask_token(make_tokenizer(*special, **NAMED), config, given) == expected


def test_a_tokenizers_own_mask_token_comes_before_reserved_ones():
    tokenizer = make_tokenizer("<|reserved|>", mask_token="<mask>", **NAMED)
    mask_token_id = tokenizer.convert_tokens_to_ids("<mask>")
    assert find_mask_token(tokenizer, config_of(12), None) == mask_token_id
    demo = AutoTokenizer.from_pretrained(demo_path("target"))
    assert find_mask_token(demo, config_of(2048), None) == demo.mask_token_id


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "llama", "vocab_size": 128256, "architectures": ["LlamaForCausalLM"]}, 128020),
        ({"model_type": "qwen2", "vocab_size": 151936, "architectures": ["Qwen2ForCausalLM"]}, 151665),
        ({"model_type": "qwen3", "vocab_size": 151936, "architectures": ["Qwen3ForCausalLM"]}, 151670),
    ],
)
def test_known_families_have_their_known_mask_token(fields, expected):
    assert find_mask_token(make_tokenizer(**NAMED), AutoConfig.for_model(**fields), None) == expected


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (
            config_of(12),
            12,
            "the given mask token 12 can't be used: ids of the draft are from 0 to 11; give an unused id",
        ),
        (config_of(12), -1, "ids of the draft are from 0 to 11"),
        (config_of(12), True, "the given mask token True can't be used"),
        (config_of(12), 6, "it is the tokenizer's '<eos>', which has a meaning"),
        (config_of(12), 7, "it is the tokenizer's '<pad>'"),
        (config_of(12, eos_token_id=[6, 2]), 2, "it is the tokenizer's 'c'"),
        (config_of(12), 8, "the chat template writes it as '<turn>'"),
        (config_of(12, pard_token=6), None, "the draft's mask token 6 can't be used"),
        (config_of(9), None, "no mask token was found: .* behind its 9 tokens; give the id of"),
    ],
)
def test_wrong_mask_tokens(config, given, message):
    with pytest.raises(StartingPointError, match=message):
        find_mask_token(make_tokenizer("<turn>", **NAMED), config, given)


def test_a_mask_token_may_not_occur_in_the_data():
    documents = [Document([1, 2, 9], [False] * 3), Document([9, 3], [True] * 2)]
    check_mask_unused(documents, 8)
    for count, mask_token_id in (("2 times", 9), ("once", 3)):
        with pytest.raises(
            StartingPointError, match=f"the mask token {mask_token_id} occurs {count} in the training data"
        ):
            check_mask_unused(documents, mask_token_id)
