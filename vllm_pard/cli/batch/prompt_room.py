"""Prompts that surely don't fit, told before an engine starts. In doubt a prompt is left to the engine."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_pard.checkpoint import is_local, load_config, load_tokenizer
from vllm_pard.cli.model_checks import MISTRAL_CONFIG, OTHER_CONFIG
from vllm_pard.context_length import context_length
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
    room = context_length(load_config(target), options)
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


def num_bytes(prompt: Prompt) -> int:
    """UTF-8 bytes of a text or of all messages, without the words that a chat template adds."""
    texts = [prompt.text or ""] if prompt.messages is None else [message["content"] for message in prompt.messages]
    return sum(len(text.encode()) for text in texts)


def _num_tokens(tokenizer: Any, prompt: Prompt) -> int:
    try:
        return len(prompt_token_ids(tokenizer, prompt.text, prompt.messages))
    except Exception:  # a chat template is anyone's code; the engine says what is wrong with it
        return 0
