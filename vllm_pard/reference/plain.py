"""AR: the target alone, by the `generate` of Transformers.

B prompts · L tokens of the longest
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from vllm_pard.reference.requests import Prompts
from vllm_pard.reference.sampling import Sampler


def plain_answers(
    target: PreTrainedModel, prompts: Prompts, max_new_tokens: int, eos_token_ids: Sequence[int], sampler: Sampler
) -> list[list[int]]:
    """Continue each prompt, up to and with the first end-of-sequence token."""
    length = max(map(len, prompts))
    num_pads = [length - len(prompt) for prompt in prompts]
    input_ids = [[0] * num + list(prompt) for num, prompt in zip(num_pads, prompts, strict=True)]
    attention_mask = [[0] * num + [1] * (length - num) for num in num_pads]
    options: dict[str, Any] = {"do_sample": True, "temperature": sampler.temperature, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(eos_token_ids) or None,
        pad_token_id=0,
        **(options if sampler.temperature > 0 else {"do_sample": False}),
    )
    # What a call leaves open, `generate` takes from the model: penalties, top-p, end-of-sequence tokens.
    model: Any = copy.copy(target)
    model.generation_config = GenerationConfig()
    device = target.device
    # `generate` draws from torch's own generator.
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(sampler.seed)
        output = model.generate(
            torch.tensor(input_ids, device=device),  # [B, L]
            attention_mask=torch.tensor(attention_mask, device=device),  # [B, L]
            generation_config=config,
        )
    return [up_to_end(row, eos_token_ids) for row in output[:, length:].tolist()]


def up_to_end(token_ids: list[int], eos_token_ids: Sequence[int]) -> list[int]:
    ends = [i + 1 for i, token_id in enumerate(token_ids) if token_id in eos_token_ids]
    return token_ids[: ends[0]] if ends else token_ids
