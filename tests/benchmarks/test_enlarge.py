"""An enlarged model computes what the small one does: in fp32 its greedy tokens and all that it samples are equal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import enlarge
import pytest
import torch
from shapes import SHAPES, ModelShape, shape_of
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from vllm_pard.checkpoint import load_config
from vllm_pard.demo import MODELS, SPLITS, demo_path, prompts
from vllm_pard.training.demo_pair.answers import greedy_answers

K = 8
TINY = SHAPES["tiny"]
# fp32 sums of a few hundred products in another order, over 2 to 6 layers: 5e-5 seen.
LOGPROB_TOLERANCE = 2e-4
# bf16 rounds weights and activations to 8 bits: 0.24 seen, 0.03 in fp16.
BF16_LOGPROB_TOLERANCE = 0.5
CPU = torch.device("cpu")


def enlarge_one(source: Path, folder: Path, shape: ModelShape, dtype: torch.dtype = torch.float32) -> Path:
    enlarge.write_model(enlarge.plan_model(source, folder, shape, dtype, {}), CPU, seed=0)
    return folder


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def token_ids() -> Tensor:
    """One prompt and answer of each split, cut to one length and ended by mask tokens. [B, L]"""
    tokenizer = AutoTokenizer.from_pretrained(demo_path("target"))
    records = [prompts(split)[3] for split in SPLITS]
    rows = [tokenizer(f"{record['prompt']} {record['answer']}")["input_ids"][:48] for record in records]
    return torch.tensor([row + [tokenizer.mask_token_id] * (K - 1) for row in rows])


@torch.inference_mode()
def logits_of(folder: Path, token_ids: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, L, V]"""
    logits: Tensor = load(folder, dtype)(token_ids).logits
    return logits.float()


def assert_same_function(
    small: Path,
    large: Path,
    token_ids: Tensor,
    dtype: torch.dtype = torch.float32,
    tolerance: float = LOGPROB_TOLERANCE,
) -> Tensor:
    """Sampled distributions are equal and nothing of them goes to new ids; returns the large model's logits."""
    expected, got = logits_of(small, token_ids), logits_of(large, token_ids, dtype)
    num_old = expected.shape[-1]
    difference = got.log_softmax(-1)[..., :num_old] - expected.log_softmax(-1)
    assert difference.abs().max() < tolerance
    assert torch.isfinite(got[..., :num_old]).all()
    # A hundred below: not even the least likely token gives anything to a new id in fp32.
    assert (got[..., num_old:] < got[..., :num_old].amin(-1, keepdim=True) - 100).all()
    if tolerance == LOGPROB_TOLERANCE:
        assert torch.equal(got.argmax(-1), expected.argmax(-1))
    return got


def test_tiny_needs_every_trick_at_once() -> None:
    for name, shape in (("target", TINY.target), ("draft", TINY.draft)):
        old = shape_of(load_config(str(demo_path(name))))
        assert shape.head_dim == 2 * old.head_dim
        assert shape.group_size > 1
        assert (shape.hidden_size / old.hidden_size) not in (1, 4, 16)
        for size in (
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "vocab_size",
        ):
            assert getattr(shape, size) > getattr(old, size)
    assert TINY.target.tie_word_embeddings != TINY.draft.tie_word_embeddings


@pytest.mark.parametrize("name", MODELS)
def test_distributions_are_the_small_models(name: str, tiny: Path, token_ids: Tensor) -> None:
    logits = assert_same_function(demo_path(name), tiny / name, token_ids)
    assert logits.shape[-1] == TINY.target.vocab_size > 2048


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_may_be_tied_or_not(name: str, tmp_path: Path, token_ids: Tensor) -> None:
    shape = TINY.target if name == "target" else TINY.draft
    other = replace(shape, tie_word_embeddings=not shape.tie_word_embeddings)
    assert_same_function(demo_path(name), enlarge_one(demo_path(name), tmp_path / name, other), token_ids)


@pytest.mark.parametrize("name", ["target", "draft_ar"])
def test_greedy_tokens_are_the_small_models(name: str, tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / name)
    prompt_ids = tokenizer([prompts(split)[number]["prompt"] for split in SPLITS for number in (0, 1)])["input_ids"]
    settings: dict[str, Any] = {"max_new_tokens": 32, "batch_size": 10, "report": lambda line: None}
    expected = greedy_answers(load(demo_path(name)), prompt_ids, **settings)
    assert greedy_answers(load(tiny / name), prompt_ids, **settings) == expected
    assert len({tuple(answer) for answer in expected}) >= 8  # the prompts matter


def test_parallel_drafts_are_the_small_drafts(tiny: Path, token_ids: Tensor) -> None:
    """K rows at every length of every prompt, not only at the end of the text."""
    small, large = load(demo_path("draft")), load(tiny / "draft")
    proposed = set()
    for length in range(4, 45, 8):
        rows = torch.cat([token_ids[:, :length], token_ids[:, 1 - K :]], dim=1)
        with torch.inference_mode():
            expected = small(rows, logits_to_keep=K).logits.argmax(-1)  # [B, K]
            assert torch.equal(large(rows, logits_to_keep=K).logits.argmax(-1), expected)
        proposed |= {tuple(row) for row in expected.tolist()}
    assert len(proposed) > 10


# 6 query heads to 2 key/value heads: groups of 3. A group of new heads may be smaller, equal or larger.
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "num_copies"), [(6, 6, 3), (8, 4, 2), (12, 4, 1), (8, 2, 1), (12, 2, 1)]
)
@pytest.mark.parametrize("head_dim", [8, 24])
def test_any_grouping_of_heads(
    num_heads: int, num_kv_heads: int, num_copies: int, head_dim: int, tmp_path: Path
) -> None:
    old = ModelShape(
        hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        head_dim=8, vocab_size=32, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    sizes = {name: getattr(old, name) for name in ModelShape.__dataclass_fields__}
    # An eps that counts, unlike the demo pair's.
    config = LlamaConfig(**sizes, initializer_range=0.3, rms_norm_eps=0.05)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    # No new ids: nothing to guard.
    new = replace(
        old, hidden_size=72, num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=head_dim
    )
    assert enlarge.num_kv_copies(old, new) == num_copies
    large = enlarge_one(tmp_path / "small", tmp_path / "large", new)
    assert_same_function(tmp_path / "small", large, torch.randint(0, 32, (3, 40)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["target", "draft"])
def test_sixteen_bits(name: str, dtype: torch.dtype, tmp_path: Path, token_ids: Tensor) -> None:
    shape = TINY.target if name == "target" else TINY.draft
    folder = enlarge_one(demo_path(name), tmp_path / name, shape, dtype)
    assert_same_function(demo_path(name), folder, token_ids[:2, -24:], dtype, BF16_LOGPROB_TOLERANCE)


def test_new_weights_are_not_zero(tiny: Path) -> None:
    """A device that skips zeros, or clocks higher on them, would flatter the benchmark."""
    state = load(tiny / "target").state_dict()
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight")):
            assert (weight == 0).float().mean() < 0.25, name
        if ".layers.6." in name and name.endswith(("o_proj.weight", "down_proj.weight")):
            assert (weight == 0).all(), name


def test_shards(tmp_path: Path, token_ids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enlarge, "MAX_SHARD_BYTES", 4_000_000)
    folder = enlarge_one(demo_path("draft"), tmp_path / "draft", TINY.draft)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    assert_same_function(demo_path("draft"), folder, token_ids)
