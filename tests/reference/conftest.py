from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_pard.pard2 import FeatureConfig
from vllm_pard.reference.engine import Generation, generate
from vllm_pard.target_proj import TargetProj

# Few tokens, so that random models agree by chance and every acceptance length occurs.
VOCAB_SIZE = 11
MASK_TOKEN_ID = 10
NUM_NEW = 30


def make_tiny_llama(seed: int, vocab_size: int = VOCAB_SIZE, max_length: int = 128, **config: Any) -> LlamaForCausalLM:
    shape: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_length,
        "initializer_range": 0.5,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(shape | config))).eval()


def slightly_off(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy as a draft: sometimes right and sometimes wrong."""
    draft = LlamaForCausalLM(model.config).eval()
    draft.load_state_dict(model.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in draft.parameters():
            weight += 0.03 * torch.randn_like(weight)
    return draft


def random_target_proj(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    layers: tuple[int, ...] = (-1, -2),
    *,
    weight: float = 0.5,
    has_bias: bool = False,
) -> TargetProj:
    """From random features of the target; with a `weight` of 0.5, they matter to the draft as much as its tokens."""
    target_dim, hidden_size = len(layers) * target.config.hidden_size, draft.config.hidden_size
    generator = torch.Generator().manual_seed(7)
    features = FeatureConfig(
        target_layers=layers, scale=0.7, target_dim=target_dim, has_bias=has_bias, target="org/target"
    )
    bias = torch.randn(hidden_size, generator=generator) if has_bias else None
    return TargetProj(features, weight * torch.randn(hidden_size, target_dim, generator=generator), bias)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., LlamaForCausalLM]:
    return make_tiny_llama


@pytest.fixture(scope="session")
def as_draft() -> Callable[[LlamaForCausalLM], LlamaForCausalLM]:
    return slightly_off


@pytest.fixture(scope="session")
def target_proj_of() -> Callable[..., TargetProj]:
    return random_target_proj


@pytest.fixture(scope="session")
def target() -> LlamaForCausalLM:
    return make_tiny_llama(seed=0)


@pytest.fixture(scope="session")
def draft(target: LlamaForCausalLM) -> LlamaForCausalLM:
    return slightly_off(target)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    lengths = [1, *torch.randint(2, 20, (7,), generator=generator).tolist()]
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


@pytest.fixture
def not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "ar+" without the wait; test_compiled.py compiles."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.fixture(scope="session")
def run(target: LlamaForCausalLM, draft: LlamaForCausalLM) -> Callable[..., list[Generation]]:
    """`generate` on the tiny pair, with PARD unless told otherwise."""

    def run(prompts: list[list[int]], **changes: Any) -> list[Generation]:
        request: dict[str, Any] = {
            "target": target,
            "draft": draft,
            "prompts": prompts,
            "method": "pard",
            "num_speculative_tokens": 4,
            "max_new_tokens": NUM_NEW,
            "mask_token_id": MASK_TOKEN_ID,
        }
        return generate(**(request | changes))

    return run


@pytest.fixture(scope="session")
def plain_outputs(run: Callable[..., list[Generation]], prompts: list[list[int]]) -> list[list[int]]:
    return [run([prompt], method="ar", draft=None)[0].token_ids for prompt in prompts]
