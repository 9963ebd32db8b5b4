"""The file that `vllm-pard train` reads: every option, with default, check and message."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from vllm_pard.catalog import model_folder
from vllm_pard.errors import PardError
from vllm_pard.files import read_text
from vllm_pard.training.data.config import DataConfig, SourceConfig
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig, TrainConfigError

__all__ = ["EvaluationConfig", "TrainConfig", "load_config"]


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out acceptance, by which the best checkpoint is chosen."""

    sources: tuple[SourceConfig, ...] = ()  # answers of the target; none: documents are taken out of the training data
    num_documents: int = 64  # at most
    num_speculative_tokens: int | None = None  # K; None: the number of depths


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. The draft starts from exactly one of `draft`, `prune_layers` and `new_model`."""

    output: str  # folder; the draft is in it when the run has ended, checkpoints before
    data: DataConfig
    target: str | None = None  # folder or hub name of the model that is to be sped up
    draft: str | None = None  # start from this smaller model of the target's family
    prune_layers: int | tuple[int, ...] | None = None  # start from these layers of the target, or so many
    new_model: str | None = None  # start from random weights of the model that this folder's config.json describes
    mask_token_id: int | None = None  # None: the draft's own, the family's, or a token that nothing uses
    draft_vocab: str | int | None = None  # train these ids only: a file, or how many of the most frequent in answers
    freeze_embeddings: bool = False  # neither embeddings nor lm_head learn
    cod: CodConfig = field(default_factory=CodConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    features: FeatureConfig | None = None  # PARD-2; left out: PARD
    target_cache: str | None = None  # folder: the target reads the data once, before training; None: beside the draft
    target_top_k: int = 64  # tokens of each distribution that the cache keeps, where the loss distils
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    attention: Literal["auto", "dense", "blocks", "flex"] = "auto"
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"  # of the draft that is written at the end
    seed: int = 0
    trainer: Mapping[str, Any] = field(default_factory=dict)  # any of Transformers' TrainingArguments

    def __post_init__(self) -> None:
        starts = [name for name in ("draft", "prune_layers", "new_model") if getattr(self, name) is not None]
        if len(starts) != 1:
            raise TrainConfigError(
                "a draft starts from exactly one of draft (a smaller model of the family), prune_layers (layers of the "
                f"target) and new_model (random weights); got {' and '.join(starts) or 'none'}"
            )
        reads_target = self.loss.needs_target or self.features is not None or self.prune_layers is not None
        if reads_target and self.target is None:
            wants = (
                "prune_layers"
                if self.prune_layers is not None
                else "this loss"
                if self.features is None
                else "features"
            )
            raise TrainConfigError(f"{wants} needs the target, and none is named: set target")
        if self.target_top_k < 1:
            raise TrainConfigError(f"target_top_k must be a whole number from 1; got {self.target_top_k}")
        if self.target_cache is not None and not self.runs_target:
            raise TrainConfigError(
                "target_cache keeps what the target says, and neither loss nor features ask it: leave it out, or set "
                "loss.kl, loss.weights to cat, or features"
            )
        if self.target_cache is not None and self.data.streaming:
            raise TrainConfigError(
                "target_cache needs data that stays the same, and data.streaming is true: set it to false, or leave "
                "target_cache out"
            )
        for key, name in RENAMED.items():
            if key in self.trainer:
                raise TrainConfigError(f"trainer.{key} is set by {name}: leave it out")

    @property
    def runs_target(self) -> bool:
        """Whether the target reads each batch."""
        return self.loss.needs_target or self.features is not None

    @property
    def num_speculative_tokens(self) -> int:
        """K of the evaluation."""
        return self.evaluation.num_speculative_tokens or self.cod.num_depths


# Trainer's own names for what the config says itself.
RENAMED = {
    "output_dir": "output",
    "seed": "seed",
    "data_seed": "seed",
    "remove_unused_columns": "the batches themselves",
    "resume_from_checkpoint": "the output folder: a run goes on where it was",
    "hub_strategy": "the run: the finished draft is uploaded, once",
    "hub_token": "HF_TOKEN or `hf auth login`, and would be kept in the run's files",
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file; `overrides` are words of a command line: --any.field value, or --any.field=value.

    Raises:
        TrainConfigError: no such file, no YAML, a key that does not exist, a value of another type.
    """
    from yaml import YAMLError

    text = read_text(path, "config", TrainConfigError)
    try:
        given = _yaml(text)
    except YAMLError as error:
        raise TrainConfigError(f"the config file {str(path)!r} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(given, dict):
        raise TrainConfigError(
            f"the config file {str(path)!r} must hold options by name; it holds {type(given).__name__}"
        )
    for key, value in _parse(overrides):
        _set(given, key.split("."), _yaml(value))
    for name in ("target", "draft"):
        if isinstance(given.get(name), str):
            given[name] = model_folder(given[name])
    return from_mapping(given)


def from_mapping(given: Mapping[str, Any]) -> TrainConfig:
    """Check and build. Raises TrainConfigError, which names the option."""
    from pydantic import TypeAdapter, ValidationError

    _check_keys(TrainConfig, given, "")
    try:
        return TypeAdapter(TrainConfig).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        if isinstance(ours := first.get("ctx", {}).get("error"), PardError):
            raise ours from error  # a check of ours, whose message says all
        # Where a value may be of several types, the place ends with the type that was tried.
        place = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part.isidentifier())
        if first["type"] == "missing":
            raise TrainConfigError(f"the training config needs {place}, and has none: set it") from error
        message = first["msg"][0].lower() + first["msg"][1:]
        raise TrainConfigError(f"{place} of the training config: {message}; got {first['input']!r}") from error


def _yaml(text: str) -> Any:
    """YAML 1.1, but 1e-5 is a number, as it is in YAML 1.2 and to everybody who writes a learning rate."""
    import yaml

    class Loader(yaml.SafeLoader):  # its own, since a resolver stays with its class
        pass

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )
    return yaml.load(text, Loader)


def _parse(words: Sequence[str]) -> list[tuple[str, str]]:
    """--prune-layers 4 -> ("prune_layers", "4")"""
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) < 3:
            raise TrainConfigError(f"after the config come options, --any.field VALUE; got {word!r}")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise TrainConfigError(f"{word} needs a value: {word} VALUE")
            value = rest.pop(0)
        pairs.append((key.replace("-", "_"), value))
    return pairs


def _set(given: dict[str, Any], keys: list[str], value: Any) -> None:
    for depth, key in enumerate(keys[:-1]):
        inner = given.setdefault(key, {})
        if inner is None:
            inner = given[key] = {}
        if not isinstance(inner, dict):
            raise TrainConfigError(f"{'.'.join(keys[: depth + 1])} has no options of its own; it is {inner!r}")
        given = inner
    given[keys[-1]] = value


def _check_keys(config: Any, given: Mapping[str, Any], place: str) -> None:
    """Unknown keys, with the nearest that exists."""
    known = {name: _section(hint) for name, hint in get_type_hints(config).items()}
    for key, value in given.items():
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {place}{nearest[0]}?" if nearest else f"known options: {', '.join(sorted(known))}"
            raise TrainConfigError(f"unknown option {place}{key} in the training config; {hint}")
        section = known[key]
        for number, inner in enumerate(value if isinstance(value, list) else [value]):
            if section is not None and isinstance(inner, Mapping):
                _check_keys(section, inner, f"{place}{key}[{number}]." if isinstance(value, list) else f"{place}{key}.")


def _section(hint: Any) -> Any:
    """The dataclass of an option's type, alone, in a tuple or as one of several types; None if there is none."""
    if is_dataclass(hint):
        return hint
    return next(filter(None, map(_section, get_args(hint))), None)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
