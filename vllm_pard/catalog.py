"""Known target families and their public drafts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_pard.checkpoint import DEFAULT_LOADING, Loading, PardCheckpoint, load_config, own_draft_vocab, read_checkpoint
from vllm_pard.errors import PardError
from vllm_pard.pard2 import is_named

DEMO = "demo"  # what commands call the bundled target
# A demo target's config.json carries this key, so that a renamed or copied folder is still known.
DEMO_MARKER = "vllm_pard_demo"
# K of drafts whose config names none: public PARD drafts were trained with 8 depths, PARD-2's are evaluated with 15 by
# https://github.com/AMD-AGI/PARD.
NUM_SPECULATIVE_TOKENS: dict[str, int] = {"pard": 8, "pard2": 15}


class CatalogError(PardError):
    """No draft is known for a target."""


@dataclass(frozen=True, kw_only=True)
class SingleTarget:
    """One model of a family, which has a draft of its own."""

    name: str  # the last part of its repository's
    num_layers: int
    hidden_size: int

    def fits(self, model: str, config: Mapping[str, Any]) -> bool:
        """Whether this is the very model: its base model and its fine-tunes have its shapes too."""
        shapes = config.get("num_hidden_layers"), config.get("hidden_size")
        return shapes == (self.num_layers, self.hidden_size) and is_named(self.name, model, config)


@dataclass(frozen=True, kw_only=True)
class CatalogEntry:
    """A target family, or one model of it, and the draft that serves it."""

    family: str
    draft: str  # a Hugging Face name or a folder
    mask_token_id: int | None  # for a draft whose config names none; None: its config always does
    model_types: tuple[str, ...] = ()  # empty: known by a marker alone
    vocab_sizes: tuple[int, ...] = ()
    name_pattern: str = ""  # set for a narrow family inside a wider one, which only a name can tell apart
    single: SingleTarget | None = None  # of a PARD-2 draft, which was trained with the features of one model

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether architecture and vocabulary are this family's."""
        architectures = config.get("architectures") or ("",)
        return (
            str(architectures[0]).endswith("ForCausalLM")
            and config.get("model_type") in self.model_types
            and config.get("vocab_size") in self.vocab_sizes
        )

    def serves(self, model: str, config: Mapping[str, Any]) -> bool:
        """Whether the draft is for the target `model`, by its name too where that counts."""
        names = f"{model} {config.get('_name_or_path', '')}"
        return (
            self.fits(config)
            and re.search(self.name_pattern, names, re.IGNORECASE) is not None
            and (self.single is None or self.single.fits(model, config))
        )

    @property
    def is_narrow(self) -> bool:
        """Whether a wider entry serves all of its targets too."""
        return bool(self.name_pattern) or self.single is not None


CATALOG = (
    CatalogEntry(
        family="Llama-3.1-8B-Instruct",
        draft="amd/PARD2-Llama-3.1-8B",
        mask_token_id=128020,
        model_types=("llama",),
        vocab_sizes=(128256,),
        single=SingleTarget(name="Llama-3.1-8B-Instruct", num_layers=32, hidden_size=4096),
    ),
    CatalogEntry(
        family="Qwen3-8B",
        draft="amd/PARD2-Qwen3-8B",
        mask_token_id=151670,
        model_types=("qwen3",),
        vocab_sizes=(151936,),
        single=SingleTarget(name="Qwen3-8B", num_layers=36, hidden_size=4096),
    ),
    CatalogEntry(
        family="Qwen3-14B",
        draft="amd/PARD2-Qwen3-14B",
        mask_token_id=151670,
        model_types=("qwen3",),
        vocab_sizes=(151936,),
        single=SingleTarget(name="Qwen3-14B", num_layers=40, hidden_size=5120),
    ),
    CatalogEntry(
        family="Llama 3, 3.1, 3.2, 3.3",
        draft="amd/PARD-Llama-3.2-1B",
        mask_token_id=128020,
        model_types=("llama",),
        vocab_sizes=(128256,),
    ),
    CatalogEntry(
        family="DeepSeek-R1-Distill-Qwen",
        draft="amd/PARD-DeepSeek-R1-Distill-Qwen-1.5B",
        mask_token_id=151665,
        model_types=("qwen2",),
        vocab_sizes=(151936, 152064),
        name_pattern="deepseek-r1-distill-qwen",
    ),
    CatalogEntry(
        family="Qwen2, Qwen2.5",
        draft="amd/PARD-Qwen2.5-0.5B",
        mask_token_id=151665,
        model_types=("qwen2",),
        vocab_sizes=(151936, 152064),
    ),
    CatalogEntry(
        family="Qwen3",
        draft="amd/PARD-Qwen3-0.6B",
        mask_token_id=151670,
        model_types=("qwen3", "qwen3_moe"),
        vocab_sizes=(151936,),
    ),
)


def find_draft(model: str, config: Mapping[str, Any]) -> CatalogEntry:
    """The entry for the target `model` with this Hugging Face config."""
    if config.get(DEMO_MARKER) is True:
        return demo_entry()
    fitting = [entry for entry in CATALOG if entry.serves(model, config)]
    if fitting:
        return min(fitting, key=lambda entry: not entry.is_narrow)
    pairs = "; ".join(f"{entry.family} -> {entry.draft}" for entry in known_pairs())
    raise CatalogError(
        f"no PARD draft is known for {model!r} (model_type {config.get('model_type')!r}, "
        f"vocabulary {config.get('vocab_size')!r}, architectures {config.get('architectures')!r}). "
        f"Known pairs: {pairs}. "
        "Name another draft: with --draft (vllm-pard doctor: after the target), "
        'or as "model" in the speculative config. '
        "vllm-pard train makes one, from a smaller model of the family or from layers of the target"
    )


def choose_draft(
    target: str,
    target_config: Mapping[str, Any],
    *,
    draft: str | None = None,
    loading: Loading = DEFAULT_LOADING,
    num_speculative_tokens: int | None = None,
    mask_token_id: int | None = None,
) -> tuple[PardCheckpoint, int]:
    """The checked draft for a target, and K: what is given beats the checkpoint, which beats what is usual."""
    entry = find_draft(target, target_config) if draft is None else None
    model = entry.draft if entry else model_folder(str(draft))
    config = load_config(model, loading)
    if mask_token_id is None and entry and "pard_token" not in config:
        mask_token_id = entry.mask_token_id
    checkpoint = read_checkpoint(model, config, mask_token_id=mask_token_id)
    checkpoint = replace(checkpoint, draft_vocab=own_draft_vocab(model, config, loading))
    trained = checkpoint.num_speculative_tokens or NUM_SPECULATIVE_TOKENS[checkpoint.format]
    return checkpoint, num_speculative_tokens or trained


def known_pairs() -> list[CatalogEntry]:
    """Every known pair, the bundled demo last if this installation has it."""
    try:
        return [*CATALOG, demo_entry()]
    except CatalogError:
        return list(CATALOG)


def demo_entry() -> CatalogEntry:
    """The bundled demo pair, which `python -m vllm_pard.training.demo_pair` makes."""
    return CatalogEntry(family="the bundled demo target", draft=_demo_folder("draft"), mask_token_id=None)


def model_folder(model: str) -> str:
    """A folder or a hub name as it is, the bundled models by theirs: "demo" is the target, "demo/NAME" any of them."""
    from vllm_pard.demo import MODELS

    if model == DEMO:
        return _demo_folder("target")
    name = model.removeprefix(f"{DEMO}/")
    return _demo_folder(name) if name in MODELS and name != model else model


def short_name(target: str) -> str:
    """The name under which a command takes the target that `model_folder` gave."""
    try:
        return DEMO if target == _demo_folder("target") else target
    except CatalogError:
        return target


def _demo_folder(name: str) -> str:
    from vllm_pard.demo import demo_path

    try:
        return str(demo_path(name))
    except FileNotFoundError as error:
        raise CatalogError(str(error)) from error
