"""Read and check PARD checkpoints. Importing this module imports neither torch nor transformers."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vllm_pard.config_values import CheckpointError as CheckpointError
from vllm_pard.config_values import is_int, positive_int
from vllm_pard.errors import first_sentence
from vllm_pard.pard2 import FeatureConfig, is_pard2, read_features

# Any one of these makes a folder ship a tokenizer; PARD-2 drafts were first published without.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True, kw_only=True)
class PardCheckpoint:
    """What serving needs to know of a PARD draft."""

    path: str
    vocab_size: int
    mask_token_id: int
    num_speculative_tokens: int | None  # K it was trained for, where the config says so
    features: FeatureConfig | None  # of the target, for a PARD-2 draft
    draft_vocab: str | None = None  # file with the ids that it was trained to propose; None: all

    @property
    def format(self) -> Literal["pard", "pard2"]:
        return "pard" if self.features is None else "pard2"


@dataclass(frozen=True, kw_only=True)
class Loading:
    """How an engine was told to read models: checks that see less than it does would refuse what it serves.

    Where weights come from (download_dir, load_format) is left out: no check reads any.
    """

    revision: str | None = None
    token: bool | str | None = None  # for the hub; None: the environment's
    trust_remote_code: bool = False
    skip_tokenizer: bool = False  # the engine takes and gives token ids only


DEFAULT_LOADING = Loading()


def read_checkpoint(model: str, config: Mapping[str, Any], *, mask_token_id: int | None = None) -> PardCheckpoint:
    """Check the config of the draft `model`; a given `mask_token_id` beats the config's."""
    _check_architecture(model, config)
    vocab_size = positive_int(model, config, "vocab_size")
    if vocab_size is None:
        raise CheckpointError(f"the draft {model!r} needs a vocab_size in its config.json; there is none")
    return PardCheckpoint(
        path=model,
        vocab_size=vocab_size,
        mask_token_id=_mask_token_id(model, config, mask_token_id, vocab_size),
        num_speculative_tokens=positive_int(model, config, "num_speculative_tokens_trained"),
        features=read_features(model, config) if is_pard2(config) else None,
    )


def own_draft_vocab(model: str, config: Mapping[str, Any], loading: Loading = DEFAULT_LOADING) -> str | None:
    """The file with the ids that the draft `model` was trained to propose, where its config names one ("draft_vocab").

    What it says of other ids means nothing.
    """
    name = config.get("draft_vocab")
    if name is None:
        return None
    if not isinstance(name, str) or os.path.basename(name) != name or not name:
        raise CheckpointError(f"draft_vocab in the config.json of {model!r} must name a file beside it; got {name!r}")
    from transformers.utils import cached_file

    try:
        return str(cached_file(model, name, revision=loading.revision, token=loading.token))
    except OSError as error:
        raise CheckpointError(
            f"the config.json of the draft {model!r} names {name!r}, the ids that it may propose, and there is no such "
            f"file ({first_sentence(error)})"
        ) from error


def load_config(model: str, loading: Loading = DEFAULT_LOADING) -> dict[str, Any]:
    """The config.json of a local folder or of a Hugging Face repository, as it is written."""
    _check_is_model(model)
    if os.path.isdir(model):
        return _load_local_config(Path(model))
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(model, revision=loading.revision, token=loading.token)
    except OSError as error:
        raise CheckpointError(
            f"can't read the config of {model!r}: no such folder here, and Hugging Face said: {first_sentence(error)}"
        ) from error
    if not config:
        raise CheckpointError(f"the Hugging Face repository {model!r} has no config.json, so it is no model")
    return dict(config)


def is_local(model: str) -> bool:
    """Whether `model` is a path, or can't be anything else."""
    if "://" in model:  # a bucket's, which vLLM reads
        return False
    return not model or model[0] in "/.~" or model.count("/") > 1 or os.path.exists(model)


def check_exists(model: str) -> None:
    """Raise CheckpointError if `model` is a path and nothing is there."""
    if is_local(model) and not os.path.exists(model):
        raise CheckpointError(f"there is no model folder {model!r}; check the path")


def check_tokenizers(
    target: str, draft: str, *, target_loading: Loading = DEFAULT_LOADING, draft_loading: Loading = DEFAULT_LOADING
) -> str | None:
    """Refuse a draft whose ordinary tokens have other ids than the target's.

    Sizes may differ (padding), and so may special tokens (Llama 3 and 3.1 differ there): that costs a few accepted
    tokens and never a wrong one, so it comes back as a note. So does a tokenizer that can't be had: an engine never
    loads the draft's, and may have a way of its own to load the target's. A draft without tokenizer files has the
    target's.
    """
    if target == draft:
        return None
    if target_loading.skip_tokenizer:
        return "tokenizers are not compared: the engine loads none (skip_tokenizer_init)"
    try:
        if not _has_tokenizer(draft, draft_loading):
            return None
        theirs, ours = load_tokenizer(target, target_loading), load_tokenizer(draft, draft_loading)
    except CheckpointError as error:
        return f"tokenizers are not compared: {error}"
    if hasattr(theirs, "backend_tokenizer") != hasattr(ours, "backend_tokenizer"):
        # Libraries write the same token differently, as bytes or as text.
        return f"tokenizers are not compared: one is a {type(theirs).__name__}, the other a {type(ours).__name__}"
    target_tokens, draft_tokens = ({i: token for token, i in each.get_vocab().items()} for each in (theirs, ours))
    special_ids = {*theirs.get_added_vocab().values(), *ours.get_added_vocab().values()}
    first_special = None
    for token_id in sorted(target_tokens.keys() & draft_tokens.keys()):
        if target_tokens[token_id] == draft_tokens[token_id]:
            continue
        difference = f"token {token_id} is {target_tokens[token_id]!r} there and {draft_tokens[token_id]!r} here"
        if token_id not in special_ids:
            raise CheckpointError(
                f"the draft {draft!r} needs the tokenizer of its target {target!r}, but {difference}; "
                "use a draft of the target's own family"
            )
        first_special = first_special or difference
    return first_special and f"special tokens differ: {first_special}"


def load_tokenizer(model: str, loading: Loading = DEFAULT_LOADING) -> Any:
    """Transformers' tokenizer of a model; its own code is run where `loading` trusts it, and never asked about."""
    _check_is_model(model)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model, revision=loading.revision, token=loading.token, trust_remote_code=loading.trust_remote_code
        )
    except Exception as error:  # a tokenizer may be anyone's code
        raise CheckpointError(f"can't load the tokenizer of {model!r}: {first_sentence(error)}") from error


def _check_is_model(model: str) -> None:
    check_exists(model)
    if os.path.isfile(model):
        raise CheckpointError(f"a model is a folder or a Hugging Face name; {model!r} is a file")


def _check_architecture(model: str, config: Mapping[str, Any]) -> None:
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not str(architectures[0]).endswith("ForCausalLM"):
        raise CheckpointError(
            f'the draft {model!r} needs "architectures": ["...ForCausalLM"] in its config.json; '
            f"got {architectures!r}; use a causal language model"
        )


def _mask_token_id(model: str, config: Mapping[str, Any], given: int | None, vocab_size: int) -> int:
    dflash_config = config.get("dflash_config")
    in_dflash = dflash_config.get("mask_token_id") if isinstance(dflash_config, Mapping) else None
    candidates = {
        "the given mask_token_id": given,
        "pard_token": config.get("pard_token"),
        "mask_token_id": config.get("mask_token_id"),
        "dflash_config.mask_token_id": in_dflash,
        "ptd_token_id": config.get("ptd_token_id"),
    }
    for source, value in candidates.items():
        if value is None:
            continue
        if not is_int(value) or not 0 <= value < vocab_size:
            raise CheckpointError(
                f"the mask token of {model!r} must be a token id from 0 to {vocab_size - 1}; {source} is {value!r}"
            )
        return int(value)
    raise CheckpointError(
        f'the draft {model!r} needs a mask token ("pard_token" in its config.json), and names none; '
        'use a PARD draft, or, if you know it, give "mask_token_id" in the speculative config (vllm-pard generate: '
        "--speculative-config '{\"mask_token_id\": ID}', vllm-pard doctor: --mask-token-id ID)"
    )


def _load_local_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"the folder {str(folder)!r} has no config.json, so it is no model") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{str(path)!r} is not valid JSON: {error}") from error
    except OSError as error:
        raise CheckpointError(f"can't read {str(path)!r}: {error.strerror}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object; it holds a {type(config).__name__}")
    return config


def _has_tokenizer(model: str, loading: Loading) -> bool:
    from transformers.utils import has_file

    try:
        return any(has_file(model, name, revision=loading.revision, token=loading.token) for name in TOKENIZER_FILES)
    except OSError as error:
        raise CheckpointError(f"can't look for the tokenizer of {model!r}: {first_sentence(error)}") from error
