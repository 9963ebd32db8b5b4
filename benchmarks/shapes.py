"""Sizes of real models by name, and whether a model can be enlarged to one."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vllm_pard.errors import PardError


class EnlargeError(PardError):
    """The pair can't be enlarged as asked."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """Sizes of a Llama, under the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def group_size(self) -> int:
        """Query heads that read one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads


@dataclass(frozen=True)
class PairShape:
    """A target and its draft."""

    target: ModelShape
    draft: ModelShape


LLAMA_3_1_8B = ModelShape(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)
LLAMA_3_2_1B = ModelShape(
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=128256,
    tie_word_embeddings=True,
)
LLAMA_3_3_70B = ModelShape(
    hidden_size=8192,
    intermediate_size=28672,
    num_hidden_layers=80,
    num_attention_heads=64,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    tie_word_embeddings=False,
)
QWEN3_8B = ModelShape(
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=False,
)
QWEN3_0_6B = ModelShape(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    tie_word_embeddings=True,
)
# Above the caches of ordinary CPUs, so that a step there waits for memory as an 8B's does on a GPU.
CPU_300M = ModelShape(
    hidden_size=1024,
    intermediate_size=3584,
    num_hidden_layers=20,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=64,
    vocab_size=8192,
    tie_word_embeddings=True,
)
CPU_20M = ModelShape(
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=5,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=8192,
    tie_word_embeddings=True,
)
# Every dimension grows, for tests: head_dim doubles, heads share keys and values, no ratio is a power of 4.
TINY_TARGET = ModelShape(
    hidden_size=320,
    intermediate_size=832,
    num_hidden_layers=7,
    num_attention_heads=10,
    num_key_value_heads=5,
    head_dim=128,
    vocab_size=2112,
    tie_word_embeddings=False,
)
TINY_DRAFT = ModelShape(
    hidden_size=256,
    intermediate_size=448,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=2112,
    tie_word_embeddings=True,
)

SHAPES = {
    "llama-3.1-8b": PairShape(LLAMA_3_1_8B, LLAMA_3_2_1B),
    "llama-3.3-70b": PairShape(LLAMA_3_3_70B, LLAMA_3_2_1B),
    "qwen3-8b": PairShape(QWEN3_8B, QWEN3_0_6B),
    "300m": PairShape(CPU_300M, CPU_20M),
    "tiny": PairShape(TINY_TARGET, TINY_DRAFT),
}


def find_shape(name: str) -> PairShape:
    """The pair's sizes of that name."""
    if name not in SHAPES:
        raise EnlargeError(f"--shape must be one of {', '.join(SHAPES)}; got {name!r}")
    return SHAPES[name]


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The sizes in a config.json."""
    return ModelShape(**{name: config[name] for name in ModelShape.__dataclass_fields__})


def num_kv_copies(old: ModelShape, new: ModelShape) -> int:
    """New key/value heads for each old one: more than one if a new one has fewer query heads."""
    return -(-old.group_size // new.group_size)


def check_fits(source: str, old: ModelShape, new: ModelShape) -> None:
    """Refuse a shape that has no room for the model."""
    wanted = asdict(old) | {
        # One dimension of its own keeps the new ids from being sampled.
        "hidden_size": old.hidden_size + int(new.vocab_size > old.vocab_size),
        "num_key_value_heads": old.num_key_value_heads * num_kv_copies(old, new),
    }
    del wanted["tie_word_embeddings"]
    got = asdict(new)
    for name, least in wanted.items():
        if got[name] < least:
            raise EnlargeError(f"the shape's {name} must be {least} or more to hold {source!r}; it is {got[name]}")
    if new.head_dim % old.head_dim:
        raise EnlargeError(
            f"the shape's head_dim must be a multiple of {old.head_dim}, or rotary positions would change; "
            f"it is {new.head_dim}"
        )
    if new.num_attention_heads % new.num_key_value_heads:
        raise EnlargeError(
            f"the shape's num_attention_heads must be a multiple of num_key_value_heads; "
            f"got {new.num_attention_heads} and {new.num_key_value_heads}"
        )
    if new.tie_word_embeddings and not old.tie_word_embeddings:
        raise EnlargeError(f"the shape ties its embeddings, and those of {source!r} differ; use an untied shape")
