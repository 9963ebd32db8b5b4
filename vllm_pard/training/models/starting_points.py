"""Where a draft begins: a smaller model of the family, layers of the target itself, or random weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from vllm_pard.catalog import CATALOG, DEMO_MARKER
from vllm_pard.checkpoint import DEFAULT_LOADING, Loading, check_exists, check_tokenizers
from vllm_pard.errors import PardError, first_sentence
from vllm_pard.training.data.documents import columns
from vllm_pard.training.loop.out_of_memory import is_out_of_memory

__all__ = [
    "StartingPointError",
    "check_mask_unused",
    "check_tokens_known",
    "find_mask_token",
    "load_draft",
    "load_model",
    "new_model",
    "prune_target",
]

# Config fields that say how many of the first layers are of one kind, and such that list layers by number.
NUM_FIRST_LAYERS = ("max_window_layers", "first_k_dense_replace")
LAYER_NUMBERS = ("mlp_only_layers",)
LAYER = re.compile(r"model\.layers\.\d+\.")
# Lists that have nothing to do with layers, however long they are.
NO_LAYERS = re.compile(r"token|architectures")
# Tokens that were put into vocabularies for later use.
RESERVED = re.compile(r"reserved|unused|extra_id|<\|extra|placeholder|dummy", re.IGNORECASE)


class StartingPointError(PardError):
    """A draft can't begin like this."""


def load_model(model: str, dtype: torch.dtype | str, loading: Loading = DEFAULT_LOADING) -> PreTrainedModel:
    """A causal language model from a folder or the hub, on the CPU.

    Raises:
        StartingPointError: there is none, or it can't be read.
    """
    check_exists(model)
    options = {"revision": loading.revision, "token": loading.token, "trust_remote_code": loading.trust_remote_code}
    with _loading(model):
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **options)
    return loaded


def load_draft(
    draft: str,
    target: str,
    dtype: torch.dtype,
    report: Callable[[str], None],
    *,
    loading: Loading = DEFAULT_LOADING,
    target_loading: Loading = DEFAULT_LOADING,
) -> PreTrainedModel:
    """A smaller model of the target's family, whose tokens are the target's.

    Raises:
        CheckpointError: its tokenizer is another one; the message names a token.
        StartingPointError: it can't be read.
    """
    note = check_tokenizers(target, draft, target_loading=target_loading, draft_loading=loading)
    if note:
        report(note)
    return load_model(draft, dtype, loading)


def prune_target(
    target: PreTrainedModel | str,
    layers: int | Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    loading: Loading = DEFAULT_LOADING,
) -> PreTrainedModel:
    """A draft of chosen layers of the target, in that order, with its embeddings, final norm and lm_head.

    So many `layers` are taken half from the front and half from the back. The target is loaded unless it is given, and
    stays as it is. The draft is a stock model on the CPU in `dtype` (None: the target's).

    Raises:
        StartingPointError: the layers can't be chosen, or the target has no list of layers.
    """
    if isinstance(target, str):
        target = load_model(target, dtype or "auto", loading)
    num_layers = _num_layers(target)
    chosen = _choose(layers, num_layers)
    config = _config_of_layers(target.config, chosen, num_layers)
    config.architectures = [type(target).__name__]
    with torch.random.fork_rng(devices=[]):  # its first weights are random, and all are replaced
        draft: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype or target.dtype)
    try:
        draft.load_state_dict(dict(_weights_of_layers(target, chosen)))
    except RuntimeError as error:
        raise StartingPointError(
            f"the layers {chosen} of {target.config.name_or_path!r} make no stock {type(target).__name__}: "
            f"{first_sentence(error)}; choose others, or take a smaller model of the family"
        ) from error
    draft.generation_config = copy.deepcopy(target.generation_config)
    return draft.eval()


def new_model(config: str | Mapping[str, Any], seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """A causal language model with random weights, from a folder with a config.json or from such a config.

    Raises:
        StartingPointError: no model is made from this config.
    """
    name = config if isinstance(config, str) else str(config.get("model_type"))
    if isinstance(config, str):
        check_exists(config)
    with _loading(name), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parsed = AutoConfig.from_pretrained(config) if isinstance(config, str) else AutoConfig.for_model(**config)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(parsed, dtype=dtype)
    return model.eval()


def find_mask_token(tokenizer: Any, config: PreTrainedConfig, given: int | None) -> int:
    """The id that fills open draft positions: given, or the draft's own, or the family's, or an unused one.

    Raises:
        StartingPointError: the given id or the draft's own can't be used, or none is unused.
    """
    tokens = {token_id: token for token, token_id in tokenizer.get_added_vocab().items()}

    def why_not(token_id: int) -> str | None:
        if type(token_id) is not int or not 0 <= token_id < config.vocab_size:
            return f"ids of the draft are from 0 to {config.vocab_size - 1}"
        if token_id in _roles(tokenizer, config):
            return f"it is the tokenizer's {tokenizer.convert_ids_to_tokens(token_id)!r}, which has a meaning"
        if token_id in tokens and tokens[token_id] in str(tokenizer.chat_template):
            return f"the chat template writes it as {tokens[token_id]!r}"
        return None

    for source, token_id in (("given", given), ("draft's", getattr(config, "pard_token", None))):
        if token_id is not None:
            if reason := why_not(token_id):
                raise StartingPointError(
                    f"the {source} mask token {token_id!r} can't be used: {reason}; give an unused id as mask_token_id"
                )
            return token_id
    for token_id in _unused_tokens(tokenizer, config, tokens):
        if not why_not(token_id):
            return token_id
    raise StartingPointError(
        "no mask token was found: the tokenizer has no reserved token, and the embedding no row behind its "
        f"{len(tokenizer)} tokens; give the id of a token that is never used as mask_token_id"
    )


def check_mask_unused(documents: Any, mask_token_id: int) -> None:
    """Raise StartingPointError if a Dataset or Documents hold the mask token: it must mean nothing else."""
    count = sum(int(np.count_nonzero(tokens == mask_token_id)) for tokens, *_ in columns(documents))
    if count:
        times = "once" if count == 1 else f"{count} times"
        raise StartingPointError(
            f"the mask token {mask_token_id} occurs {times} in the training data; give an unused id as mask_token_id"
        )


def check_tokens_known(documents: Any, vocab_size: int) -> None:
    """Raise StartingPointError if a Dataset or Documents hold tokens that the draft has no embedding of."""
    highest = max((int(tokens.max(initial=0)) for tokens, *_ in columns(documents)), default=0)
    if highest >= vocab_size:
        raise StartingPointError(
            f"the draft must know all tokens of the training data; it has {vocab_size} vocabulary rows, and the "
            f"tokenizer gives tokens up to {highest}: take a draft of the target's own family, or a new_model whose "
            "config has a larger vocab_size"
        )


def _unused_tokens(tokenizer: Any, config: PreTrainedConfig, added: Mapping[int, str]) -> Iterator[int]:
    """Tokens that text hardly holds, best first."""
    known = (entry.mask_token_id for entry in CATALOG if entry.fits(config.to_dict()))
    yield from (token_id for token_id in known if token_id is not None)
    if tokenizer.mask_token_id is not None:
        yield tokenizer.mask_token_id
    yield from (token_id for token_id, token in sorted(added.items()) if RESERVED.search(token))
    yield from range(max(tokenizer.get_vocab().values()) + 1, config.vocab_size)
    yield from sorted(added, reverse=True)  # the later one was added, the rarer it is


def _roles(tokenizer: Any, config: PreTrainedConfig) -> set[int]:
    """Tokens with a meaning of their own, the mask token not among them."""
    named = [getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad", "unk", "sep", "cls")]
    for role in ("bos", "eos", "pad"):
        of_config = getattr(config, f"{role}_token_id", None)
        named += of_config if isinstance(of_config, list) else [of_config]
    return set(named)


def _num_layers(target: PreTrainedModel) -> int:
    layers = getattr(getattr(target, "model", None), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != getattr(target.config, "num_hidden_layers", None):
        raise StartingPointError(
            f"a {type(target).__name__} can't be pruned: it has no list of layers at model.layers, as Llama, Qwen2 and "
            "Qwen3 have; take a smaller model of its family as the draft"
        )
    return len(layers)


def _choose(layers: int | Sequence[int], num_layers: int) -> list[int]:
    if isinstance(layers, int):
        if not 1 <= layers <= num_layers:
            raise StartingPointError(
                f"a target of {num_layers} layers gives a draft of 1 to {num_layers}; got {layers}"
            )
        num_back = layers // 2
        return [*range(layers - num_back), *range(num_layers - num_back, num_layers)]
    chosen = list(layers)
    if not chosen:
        raise StartingPointError("a draft needs at least one layer of the target; got none")
    for layer in chosen:
        if type(layer) is not int or not 0 <= layer < num_layers:
            raise StartingPointError(f"layers of the target are numbered from 0 to {num_layers - 1}; got {layer!r}")
        if chosen.count(layer) > 1:
            raise StartingPointError(f"each layer of the target can be taken once; {layer} comes more often")
    return chosen


def _config_of_layers(config: PreTrainedConfig, chosen: list[int], num_layers: int) -> PreTrainedConfig:
    """What the config says of each layer, for the chosen ones."""
    fields = config.to_dict()
    fields.pop(DEMO_MARKER, None)  # it marks a target
    for name, value in fields.items():
        if name in NUM_FIRST_LAYERS and value is not None:
            fields[name] = sum(layer < value for layer in chosen)
        elif name in LAYER_NUMBERS and value is not None:
            fields[name] = [place for place, layer in enumerate(chosen) if layer in value]
        elif isinstance(value, list | tuple) and len(value) == num_layers and not NO_LAYERS.search(name):
            fields[name] = [value[layer] for layer in chosen]
    fields["num_hidden_layers"] = len(chosen)
    return type(config).from_dict(fields)


def _weights_of_layers(target: PreTrainedModel, chosen: list[int]) -> Iterator[tuple[str, torch.Tensor]]:
    places = {f"model.layers.{layer}.": f"model.layers.{place}." for place, layer in enumerate(chosen)}
    for name, tensor in target.state_dict().items():
        layer = LAYER.match(name)
        if layer is None:
            yield name, tensor
        elif layer.group() in places:
            yield places[layer.group()] + name[layer.end() :], tensor


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise StartingPointError(f"can't load the model {model!r}: {first_sentence(error)}") from error
