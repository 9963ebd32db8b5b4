"""Every serving knob of `{"method": "pard"}`: default, check and message. Imports neither torch nor vLLM."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from vllm_pard.errors import PardError
from vllm_pard.pard2 import WantedMode

AUTO = "auto"
MAX_TREE_NODES = 63  # a row's ancestors, and the root, are the bits of a word
AUTO_TREE_NODES = 31  # at most, where it is chosen: with the root 32 rows, whole tiles of matrix products
NUM_CANDIDATES = 16  # of each depth of a tree; the 60 likeliest paths of a draft hardly ever take a later one
MAX_NUM_SPECULATIVE_TOKENS = 127  # vLLM's V1 rejection sampler takes 128 tokens a request: the drafts and the bonus

# Fields of vLLM's SpeculativeConfig that mean the same for a PARD draft and are handed through unchanged.
UPSTREAM_FIELDS = frozenset(
    {
        "attention_backend",
        "code_revision",
        "draft_load_config",
        "draft_sample_method",
        "draft_tensor_parallel_size",
        "enable_adaptive_verification",
        "enforce_eager",
        "kv_cache_dtype",
        "max_model_len",
        "moe_backend",
        "num_speculative_tokens_per_batch_size",
        "quantization",
        "rejection_sample_method",
        "revision",
        "synthetic_acceptance_length",
        "synthetic_acceptance_rates",
    }
)

# Options of vLLM's command line that say one key of the speculative config.
SPEC_FLAGS = {"--spec-method": "method", "--spec-model": "model", "--spec-tokens": "num_speculative_tokens"}

# Known words that this version can't serve; each gets its reason instead of "unknown key".
NOT_SERVED = {
    "parallel_drafting": "switching parallel drafting off; PARD always drafts in parallel",
    "use_heterogeneous_vocab": "drafts of another tokenizer family",
    "disable_padded_drafter_batch": "unpadded draft batches",
}

# What a PARD-2 draft takes from its target, by the file that says so.
OF_THE_DRAFT = {
    "target_layers": "config.json (pard2_target_layers)",
    "target_proj": "warp_model.bin, or pard_warp_model/model.safetensors",
}


class ConfigError(PardError):
    """A speculative config that can't be served; the message says what was wanted, what came and what to do."""


@dataclass(frozen=True)
class TreeConfig:
    """Draft tokens as a tree of the likeliest paths, in place of a chain."""

    nodes: int  # draft tokens that the target reads a step
    is_chosen: bool = False  # "auto": so many at most, as many as pay

    @classmethod
    def from_value(cls, given: object) -> "TreeConfig":
        """Read `"tree": {"nodes": N}` or `"tree": "auto"`. Raises ConfigError on anything else."""
        if given == AUTO:
            return cls(AUTO_TREE_NODES, is_chosen=True)
        if not isinstance(given, Mapping) or set(given) != {"nodes"}:
            raise ConfigError(f'"tree" must be {{"nodes": N}} or "{AUTO}"; got {given!r}')
        if not _is_int(given["nodes"], at_least=1) or given["nodes"] > MAX_TREE_NODES:
            raise ConfigError(
                f'"nodes" of "tree" must be an integer from 1 to {MAX_TREE_NODES}; got {given["nodes"]!r}'
            )
        return cls(given["nodes"])


@dataclass(frozen=True, kw_only=True)
class PardConfig:
    """What the user said in `--speculative-config '{"method": "pard", ...}'`; None means: decide for me."""

    model: str | None = None  # draft folder or hub name; None asks the catalog
    num_speculative_tokens: int | None = None  # K; None takes what the draft was trained for
    chooses_length: bool = False  # "num_speculative_tokens": "auto": K tokens at most, as many as pay
    mask_token_id: int | None = None  # None reads the draft's config.json
    draft_vocab: str | None = None  # file with a JSON list of the ids that may be drafted; None drafts all
    tree: TreeConfig | None = None  # None: a chain
    mode: WantedMode = "auto"  # of a PARD-2 draft; "auto" is dependent where draft, target and engine allow it
    upstream: Mapping[str, Any] = field(default_factory=dict)  # fields of vLLM's SpeculativeConfig, as given

    @property
    def chooses(self) -> bool:
        """Whether the number of draft tokens is chosen while the server runs."""
        return self.chooses_length or (self.tree is not None and self.tree.is_chosen)

    def __post_init__(self) -> None:
        if self.model is not None and (not isinstance(self.model, str) or not self.model):
            raise ConfigError(f'"model" must be a draft folder or a hub name; got {self.model!r}')
        if self.num_speculative_tokens is not None:
            check_num_speculative_tokens(self.num_speculative_tokens)
        if self.mask_token_id is not None and not _is_int(self.mask_token_id, at_least=0):
            raise ConfigError(f'"mask_token_id" must be a token id, an integer from 0; got {self.mask_token_id!r}')
        if self.draft_vocab is not None and (not isinstance(self.draft_vocab, str) or not self.draft_vocab):
            raise ConfigError(f'"draft_vocab" must be a file with a JSON list of token ids; got {self.draft_vocab!r}')
        if self.mode not in get_args(WantedMode):
            raise ConfigError(f'"mode" must be one of {", ".join(get_args(WantedMode))}; got {self.mode!r}')

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> "PardConfig":
        """Build from the user's JSON object. Raises ConfigError on an unknown, unservable or ill-typed key."""
        own = {f.name for f in fields(cls)} - {"upstream", "chooses_length"}
        given = {key.replace("-", "_"): value for key, value in given.items() if key != "method"}
        for key in given.keys() - own - UPSTREAM_FIELDS:
            raise ConfigError(_unknown_key(key, sorted(own | UPSTREAM_FIELDS)))
        if given.get("num_speculative_tokens") == AUTO:
            given |= {"num_speculative_tokens": None, "chooses_length": True}
        if given.get("tree") is not None:
            given["tree"] = TreeConfig.from_value(given["tree"])
        return cls(
            **{key: value for key, value in given.items() if key in own | {"chooses_length"}},
            upstream={key: value for key, value in given.items() if key in UPSTREAM_FIELDS},
        )


def check_num_speculative_tokens(value: object) -> None:
    """Raise ConfigError unless `value` is a draft length that vLLM can verify."""
    if not _is_int(value, at_least=1) or value > MAX_NUM_SPECULATIVE_TOKENS:  # type: ignore[operator]
        raise ConfigError(
            f'"num_speculative_tokens" must be an integer from 1 to {MAX_NUM_SPECULATIVE_TOKENS}; got {value!r}'
        )


def _is_int(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _unknown_key(key: str, known: list[str]) -> str:
    if key in NOT_SERVED:
        return f'"{key}" asks for {NOT_SERVED[key]}, which this version does not serve: leave it out'
    if key in OF_THE_DRAFT:
        return f'"{key}" is no option: it is read from the draft\'s {OF_THE_DRAFT[key]}; leave it out'
    if key == "tensor_parallel_size":
        return '"tensor_parallel_size" of the draft is called "draft_tensor_parallel_size"'
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f'did you mean "{nearest[0]}"?' if nearest else f"known keys: {', '.join(known)}"
    return f'unknown key "{key}" in the PARD speculative config; {hint}'
