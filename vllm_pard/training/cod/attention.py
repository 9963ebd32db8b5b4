"""Which rows see each other, and three ways to compute it (PARD, arXiv 2504.18583).

A row (depth s, anchor n) sees a row (depth d, anchor m) of its document iff

    (d = 0 and m <= n)  or  (m = n and 0 < d <= s)

that is, the tokens up to its anchor and its own chain of mask tokens: what a draft sees when it runs. Where a layer has
a sliding window, only the last rows of it count, by position.

    dense    the rule written out: the definition, for tests and very short rows
    blocks   on a CPU: a block of queries at a time, with the keys that any of them sees
    flex     on a GPU: FlexAttention, whose compiled block mask skips what nobody sees

B = 1 · R rows · N tokens · H heads · G K/V heads · D width of a head
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel

from vllm_pard.errors import PardError
from vllm_pard.training.cod.block_mask import block_mask
from vllm_pard.training.cod.rows import Rows

__all__ = ["AttentionError", "Implementation", "RowAttention", "row_attention", "row_rule", "use_row_attention"]

Implementation = Literal["auto", "dense", "blocks", "flex"]
RowAttention = Callable[[Tensor, Tensor, Tensor, float, "int | None"], Tensor]

NAME = "pard_rows"  # in Transformers' attention interface
SOFT_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")  # too weak on few tokens to be seen there
CHECKED_TOKENS = 12
QUERY_BLOCK = 256  # rows at a time on a CPU: long enough for the matrix units, short enough to skip most keys


class AttentionError(PardError):
    """A model's attention can't be computed over COD rows."""


def row_rule(rows: Rows, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The rule as FlexAttention's `mask_mod`: (batch, head, query row, key row) -> bool."""
    anchors, depths, documents, positions = rows.anchors, rows.depths, rows.documents, rows.positions

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        prefix = (depths[k] == 0) & (anchors[k] <= anchors[q])
        chain = (anchors[k] == anchors[q]) & (depths[k] <= depths[q])
        seen = (documents[k] == documents[q]) & (prefix | chain)
        return seen if window is None else seen & (positions[k] > positions[q] - window)

    return sees


def row_attention(rows: Rows, num_tokens: int, implementation: Implementation) -> RowAttention:
    """Attention over these rows: (query [1, H, R, D], key and value [1, G, R, D], scale, window) -> [1, H, R, D].

    What depends on the rows alone is prepared once, for all layers of a forward.
    """
    if implementation not in get_args(Implementation):
        raise AttentionError(f"attention must be one of {', '.join(get_args(Implementation))}; got {implementation!r}")
    if implementation == "auto":
        implementation = "flex" if rows.anchors.is_cuda else "blocks"
    if implementation == "flex":
        return _flex(rows)
    return _dense(rows) if implementation == "dense" else _in_blocks(rows, num_tokens)


def _dense(rows: Rows) -> RowAttention:
    index = torch.arange(len(rows.anchors), device=rows.anchors.device)
    masks = cache(lambda window: _seen(rows, window, index, index))

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        return _masked(query, key, value, masks(window), scale)

    return attend


def _in_blocks(rows: Rows, num_tokens: int) -> RowAttention:
    blocks = [_Block.of(rows, num_tokens, start, stop) for start, stop in _block_ends(num_tokens, len(rows.anchors))]
    masks = cache(lambda window: [_seen(rows, window, block.query_index, block.key_index) for block in blocks])

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        outputs = [
            _masked(query[:, :, block.queries], block.keys_of(key), block.keys_of(value), mask, scale)
            for block, mask in zip(blocks, masks(window), strict=True)
        ]
        return torch.cat(outputs, dim=2)

    return attend


def _flex(rows: Rows) -> RowAttention:
    masks: Callable[[int | None], BlockMask] = cache(
        lambda window: block_mask(row_rule(rows, window), len(rows.anchors), rows.anchors.device)
    )

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        output: Tensor = _compiled_flex_attention()(
            query, key, value, block_mask=masks(window), scale=scale, enable_gqa=True
        )
        return output

    return attend


@cache
def _compiled_flex_attention() -> Any:
    """Uncompiled, it builds the R x R matrix that it is there to avoid."""
    return torch.compile(flex_attention) if torch.cuda.is_available() else flex_attention


class _Block(NamedTuple):
    """A run of query rows and the keys that any of them sees: tokens, then mask tokens."""

    queries: slice
    tokens: slice
    masks: slice  # empty where the queries are tokens

    @classmethod
    def of(cls, rows: Rows, num_tokens: int, start: int, stop: int) -> _Block:
        anchors, depths = rows.anchors[start:stop], rows.depths[start:stop]
        ends = int(anchors.max()) + 1
        # Where the document of each row starts; the document of a padding row is nowhere.
        starts = anchors + depths - rows.positions[start:stop]
        first_depth = int(depths[0])
        # Where the first row's chain starts, if it is whole.
        first_mask = max(start - first_depth + 1, num_tokens) if first_depth > 0 else stop
        return cls(slice(start, stop), slice(min(int(starts.min()), ends), ends), slice(first_mask, stop))

    @property
    def query_index(self) -> Tensor:
        return torch.arange(self.queries.start, self.queries.stop)

    @property
    def key_index(self) -> Tensor:
        return torch.cat([torch.arange(part.start, part.stop) for part in (self.tokens, self.masks)])

    def keys_of(self, states: Tensor) -> Tensor:
        return torch.cat([states[:, :, self.tokens], states[:, :, self.masks]], dim=2)


def _block_ends(num_tokens: int, num_rows: int) -> Iterator[tuple[int, int]]:
    """Blocks of queries, none with tokens and mask tokens in it."""
    for first, last in ((0, num_tokens), (num_tokens, num_rows)):
        for start in range(first, last, QUERY_BLOCK):
            yield start, min(start + QUERY_BLOCK, last)


def _seen(rows: Rows, window: int | None, query_index: Tensor, key_index: Tensor) -> Tensor:
    """The rule for some queries and keys. bool [1, 1, queries, keys]"""
    zero = torch.zeros((), dtype=torch.int64, device=query_index.device)
    return row_rule(rows, window)(zero, zero, query_index[:, None], key_index[None, :])[None, None]


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)


def _attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    row_attention: RowAttention | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What a decoder layer of Transformers calls. [1, H, R, D] -> [1, R, H, D]"""
    if row_attention is None:
        raise AttentionError(
            f"{type(module).__name__} attends over COD rows and was told of none: call the model with row_attention=, "
            "or load it anew for an ordinary forward"
        )
    return row_attention(query, key, value, scaling, sliding_window).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention_forward)


def use_row_attention(model: PreTrainedModel) -> None:
    """Let a stock Transformers model run over rows: `model(..., row_attention=row_attention(...))`.

    Raises:
        AttentionError: it is no plain decoder, whose logits over rows would be those of an ordinary forward.
    """
    config: Any = model.config.get_text_config(decoder=True)
    if not _is_plain(model, config):
        raise AttentionError(
            "a model needs plain softmax attention through Transformers' attention interface, and a plain lm_head, to "
            f"be used in training; {config.model_type} computes something else: choose a model of another architecture"
        )


@torch.no_grad()
def _is_plain(model: PreTrainedModel, config: Any) -> bool:
    """Found out on a few tokens, and read from the config where these few can't show it."""
    if model.base_model is model or any(getattr(config, name, None) is not None for name in SOFT_CAPS):
        return False
    tokens = torch.arange(CHECKED_TOKENS, device=model.device)[None] % config.vocab_size
    wanted = model(input_ids=tokens, use_cache=False).logits
    model.set_attn_implementation(NAME)
    found, windows = _logits_over_rows(model, tokens)
    layers = ["full_attention" if window is None else "sliding_attention" for window in windows]
    # A layer that attends by other means, or keeps a window to itself, is none of these.
    declared = getattr(config, "layer_types", None) or layers
    return len(layers) == config.num_hidden_layers and list(declared) == layers and _nearly_equal(found, wanted)


def _logits_over_rows(model: PreTrainedModel, tokens: Tensor) -> tuple[Tensor, list[int | None]]:
    """Logits, and the window of each layer."""
    index = torch.arange(tokens.shape[1], device=tokens.device)
    zero = torch.zeros_like(index)
    rows = Rows(anchors=index, depths=zero, documents=zero, positions=index, labels=zero)
    dense, windows = row_attention(rows, len(index), "dense"), []

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
        windows.append(window)
        return dense(query, key, value, scale, window)

    states = model.base_model(input_ids=tokens, position_ids=index[None], use_cache=False, row_attention=attend)
    return model.get_output_embeddings()(states.last_hidden_state), windows


def _nearly_equal(found: Tensor, wanted: Tensor) -> bool:
    """Far closer than a scale or a term that is left out, and not as close as two kernels in bfloat16 need be."""
    return bool((found - wanted).float().norm() <= 0.05 * wanted.float().norm())
