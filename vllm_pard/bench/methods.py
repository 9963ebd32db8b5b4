"""What can be compared: each way of decoding is one entry of a table."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any, Literal

from vllm_pard.catalog import DEMO, DEMO_MARKER, choose_draft, model_folder
from vllm_pard.checkpoint import load_config
from vllm_pard.conditions import portable
from vllm_pard.config import check_num_speculative_tokens
from vllm_pard.errors import PardError
from vllm_pard.pard2 import WantedMode
from vllm_pard.target_proj import check_mode

# The models, K -> what vLLM is told
SpeculativeConfig = Callable[["Models", int], dict[str, Any] | None]
NGRAM_LENGTHS = {"prompt_lookup_min": 2, "prompt_lookup_max": 4}
NUM_TREE_NODES = 32
BASELINE = "none"
CONTENDER = re.compile(r"([^=:]*)(?:=(.*?))?(?::([^:/]*))?")  # METHOD[=MODEL][:K]


class MethodError(PardError):
    """A method is unknown, or a model that it needs is not given."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The target and whatever may draft for it; `draft` and `ar_draft` left out are looked up."""

    target: str
    draft: str | None = None
    mode: WantedMode = "auto"  # of a PARD-2 draft
    ar_draft: str | None = None
    eagle3_head: str | None = None

    @cached_property
    def target_config(self) -> dict[str, Any]:
        return load_config(self.target)

    @cached_property
    def _chosen(self) -> tuple[Any, int]:
        return choose_draft(self.target, self.target_config, draft=self.draft)

    @property
    def pard_draft(self) -> str:
        return str(self._chosen[0].path)

    @property
    def mask_token_id(self) -> int:
        return int(self._chosen[0].mask_token_id)

    def check_mode(self) -> None:
        """Raise CheckpointError where the PARD draft can't be run as it is wanted to."""
        check_mode(self._chosen[0], self.target, self.target_config, self.mode)

    @property
    def trained_num_speculative_tokens(self) -> int:
        """K of the PARD draft."""
        return self._chosen[1]

    @property
    def autoregressive_draft(self) -> str:
        if self.ar_draft is not None:
            return model_folder(self.ar_draft)
        if self.target_config.get(DEMO_MARKER) is True:
            return model_folder(f"{DEMO}/draft_ar")
        raise MethodError("an autoregressive draft is needed to compare with; name one with --ar-draft")

    @property
    def head(self) -> str:
        if self.eagle3_head is None:
            raise MethodError("method 'eagle3' needs a head trained for the target; name one with --eagle3-head")
        return self.eagle3_head


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way of decoding: what vLLM is told, and what a step of it reads."""

    about: str
    speculative: SpeculativeConfig
    names: Literal["draft", "ar_draft", "eagle3_head"] | None = None  # which of Models METHOD=MODEL gives
    draft: Callable[[Models], str] | None = None  # the model whose weights a step reads
    reads: Literal["never", "once", "per token", "unknown"] = "never"  # how often a step reads them


def _pard(models: Models, k: int) -> dict[str, Any]:
    check_num_speculative_tokens(k)
    models.check_mode()
    told: dict[str, Any] = {"method": "pard", "model": models.pard_draft, "num_speculative_tokens": k}
    return told if models.mode == "auto" else told | {"mode": models.mode}


def _parallel(models: Models, k: int) -> dict[str, Any]:
    model = {"method": "draft_model", "model": models.pard_draft}
    return model | {"num_speculative_tokens": k, "parallel_drafting": True}


def _draft_model(models: Models, k: int) -> dict[str, Any]:
    return {"method": "draft_model", "model": models.autoregressive_draft, "num_speculative_tokens": k}


def _pard_with(about: str, told: dict[str, Any], reads: Literal["once", "unknown"]) -> Method:
    """PARD with more keys of the speculative config."""
    return Method(
        about=about,
        names="draft",
        speculative=lambda models, k: _pard(models, k) | told,
        draft=lambda models: models.pard_draft,
        reads=reads,
    )


METHODS: Mapping[str, Method] = {
    BASELINE: Method(about="plain decoding", speculative=lambda models, k: None),
    "draft_model": Method(
        about="vanilla speculation: an autoregressive draft, K forwards a step",
        names="ar_draft",
        speculative=_draft_model,
        draft=lambda models: models.autoregressive_draft,
        reads="per token",
    ),
    "draft_model+parallel_drafting": Method(
        about="vLLM's own parallel drafting, with the PARD draft",
        names="draft",
        speculative=_parallel,
        draft=lambda models: models.pard_draft,
        reads="once",
    ),
    "eagle3": Method(
        about="an EAGLE-3 head",
        names="eagle3_head",
        speculative=lambda models, k: {"method": "eagle3", "model": models.head, "num_speculative_tokens": k},
        reads="unknown",
    ),
    "ngram": Method(
        about="tokens that followed the same n-gram before",
        speculative=lambda models, k: {"method": "ngram", "num_speculative_tokens": k} | NGRAM_LENGTHS,
    ),
    "suffix": Method(
        about="suffix trees over prompts and answers (needs arctic-inference)",
        speculative=lambda models, k: {"method": "suffix", "num_speculative_tokens": k},
    ),
    "pard": Method(
        about="PARD by vllm_pard",
        names="draft",
        speculative=_pard,
        draft=lambda models: models.pard_draft,
        reads="once",
    ),
    "pard+independent": Method(
        about="PARD-2 without features of the target",
        names="draft",
        speculative=lambda models, k: _pard(replace(models, mode="independent"), k),
        draft=lambda models: models.pard_draft,
        reads="once",
    ),
    "pard+auto": _pard_with(
        "PARD with as many draft tokens as pay, chosen while it runs", {"num_speculative_tokens": "auto"}, "unknown"
    ),
    "pard+tree": _pard_with(
        f"PARD with trees of {NUM_TREE_NODES} draft tokens (GPU)", {"tree": {"nodes": NUM_TREE_NODES}}, "once"
    ),
    "pard+tree+auto": _pard_with(
        "PARD with trees of as many draft tokens as pay, chosen while it runs (GPU)", {"tree": "auto"}, "unknown"
    ),
    "pard+own_attention": _pard_with(
        "PARD with the draft's attention in our kernel (GPU)", {"attention_backend": "CUSTOM"}, "once"
    ),
    "pard+fp8": Method(
        about="PARD with the draft's weights in 8 bits (GPU)",
        names="draft",
        speculative=lambda models, k: _pard(models, k) | {"quantization": "fp8"},
        reads="unknown",
    ),
}  # fmt: skip

# What `vllm_pard.reference` runs, under the names of the papers.
REFERENCE_METHODS: Mapping[str, Method] = {
    "ar": METHODS[BASELINE],
    "ar+": METHODS[BASELINE],
    "vsd": METHODS["draft_model"],
    "pard": METHODS["pard"],
    "pard+independent": METHODS["pard+independent"],
    "pard+tree": METHODS["pard+tree"],
}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One line of the comparison: a method and its K."""

    name: str  # of the method
    method: Method
    num_speculative_tokens: int  # 0: it drafts nothing
    label: str
    own_model: str | None = None  # in place of the one that all have

    @property
    def title(self) -> str:
        """Its label without K."""
        return self.name if self.own_model is None else f"{self.name}={portable(self.own_model)}"

    @property
    def is_plain(self) -> bool:
        return self.num_speculative_tokens == 0

    @property
    def num_draft_forwards(self) -> int | None:
        """How often a step reads the draft's weights; None where that is not known."""
        return {"never": 0, "once": 1, "per token": self.num_speculative_tokens, "unknown": None}[self.method.reads]

    def models(self, common: Models) -> Models:
        """Those of the comparison, or with its own draft among them."""
        if self.own_model is None or self.method.names is None:
            return common
        given: dict[str, Any] = {self.method.names: self.own_model}
        return replace(common, **given)

    def speculative_config(self, common: Models) -> dict[str, Any] | None:
        return self.method.speculative(self.models(common), self.num_speculative_tokens)

    def draft(self, common: Models) -> str | None:
        """The model whose weights a step reads, where there is one and it is known."""
        return None if self.method.draft is None else self.method.draft(self.models(common))


def parse_contenders(
    text: str, table: Mapping[str, Method], models: Models, num_speculative_tokens: int | None
) -> list[Contender]:
    """`METHOD[=MODEL][:K],...`; K left out is the given one, or else the one that the PARD draft was trained for.

    Every model that a method needs is looked up here, so that a missing one is told before anything starts.
    """
    contenders = [_parse(item.strip(), table) for item in text.split(",")]
    _refuse_twice(contender.label for contender in contenders)
    for place, contender in enumerate(contenders):
        if contender.method is METHODS[BASELINE]:
            continue
        if contender.is_plain:
            k = num_speculative_tokens or contender.models(models).trained_num_speculative_tokens
            contenders[place] = replace(contender, num_speculative_tokens=k)
        contenders[place].speculative_config(models)
    return contenders


def _parse(item: str, table: Mapping[str, Method]) -> Contender:
    """With K = 0 where it is left out."""
    found = CONTENDER.fullmatch(item)
    name, model, k = found.groups() if found else (item, None, None)
    method = _known(name, table)
    if method is METHODS[BASELINE] and k is not None:
        raise MethodError(f"method {name!r} drafts nothing, so it has no K; got {item!r}")
    if model is not None and (method.names is None or not model):
        takers = ", ".join(name for name, method in table.items() if method.names)
        raise MethodError(f"METHOD=MODEL gives a draft or head to one of {takers}; got {item!r}")
    return Contender(
        name=name,
        method=method,
        num_speculative_tokens=0 if k is None else _parse_k(item, k),
        label=item if model is None else item.replace(model, portable(model)),
        own_model=model,
    )


def _known(name: str, table: Mapping[str, Method]) -> Method:
    if name in table:
        return table[name]
    nearest = get_close_matches(name, table, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else "."
    raise MethodError(f"unknown method {name!r}{hint} Known ones: {', '.join(table)}")


def _parse_k(item: str, text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise MethodError(f"K after the colon must be 1 or more; got {item.strip()!r}")
    return int(text)


def _refuse_twice(labels: Iterable[str]) -> None:
    seen: set[str] = set()
    for label in labels:
        if label in seen:
            raise MethodError(f"method {label!r} is named twice; to compare two K give METHOD:K")
        seen.add(label)
