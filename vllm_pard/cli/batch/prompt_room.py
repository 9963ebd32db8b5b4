"""Prompts that surely don't fit, told before an engine starts. In doubt a prompt is left to the engine."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_pard.checkpoint import is_local, load_config, load_tokenizer
from vllm_pard.cli.model_checks import MISTRAL_CONFIG, OTHER_CONFIG
from vllm_pard.prompts import Prompt, prompt_token_ids

# Engine arguments, and files of a model, after which an engine's tokenizer may not be Transformers' own.
OTHER_TOKENIZER = ("skip_tokenizer_init", "tokenizer", "tokenizer_mode", "tokenizer_revision", "trust_remote_code")
MISTRAL_FILES = (MISTRAL_CONFIG, "tekken.json", "tokenizer.model.v*")


def too_long(prompts: list[Prompt], options: Mapping[str, Any]) -> dict[str, str]:
    """Why prompts have no room in a local target, by id; `options` are those of vLLM's LLM class.

    Only prompts with more bytes than the target has room for tokens are tokenized: tokenizers make at most a token of
    a byte, and a few special ones.
    """
    target = options["model"]
    if not is_local(target) or options.keys() & {*OTHER_CONFIG, *OTHER_TOKENIZER}:
        return {}
    if any(found for name in MISTRAL_FILES for found in Path(target).glob(name)):
        return {}
    room = max_num_tokens(load_config(target), options)
    if room is None:
        return {}
    long = [prompt for prompt in prompts if num_bytes(prompt) > room]
    if not long:
        return {}
    tokenizer = load_tokenizer(target)
    tokenizer.model_max_length = sys.maxsize  # or it warns of each
    counts = {prompt.id: _num_tokens(tokenizer, prompt) for prompt in long}
    return {
        prompt_id: f"the target has room for {room} tokens, and the prompt has {count}"
        for prompt_id, count in counts.items()
        if count > room
    }


def max_num_tokens(config: Mapping[str, Any], options: Mapping[str, Any]) -> int | None:
    """The longest prompt that vLLM may take: what was asked for, or what the target was made for; None if unclear."""
    given = options.get("max_model_len")
    if given is not None:
        return given if type(given) is int and given > 0 else None
    is_plain = not {"text_config", "language_config", "model_max_length"} & config.keys()
    if not is_plain or config.get("rope_scaling") or _is_scaled(config.get("rope_parameters")):
        return None
    made_for = config.get("max_position_embeddings")
    return made_for if type(made_for) is int and made_for > 0 else None


def num_bytes(prompt: Prompt) -> int:
    """UTF-8 bytes of a text or of all messages, without the words that a chat template adds."""
    texts = [prompt.text or ""] if prompt.messages is None else [message["content"] for message in prompt.messages]
    return sum(len(text.encode()) for text in texts)


def _num_tokens(tokenizer: Any, prompt: Prompt) -> int:
    try:
        return len(prompt_token_ids(tokenizer, prompt.text, prompt.messages))
    except Exception:  # a chat template is anyone's code; the engine says what is wrong with it
        return 0


def _is_scaled(rope: object) -> bool:
    """Whether positions are stretched beyond max_position_embeddings, in any kind of layer."""
    if not isinstance(rope, Mapping):
        return False
    return (
        rope.get("rope_type", rope.get("type", "default")) != "default"
        or "factor" in rope
        or any(_is_scaled(value) for value in rope.values())
    )
