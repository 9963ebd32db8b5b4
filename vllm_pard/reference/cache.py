"""A Transformers model with a K/V cache in which the slot of a token is its position.

Nothing is ever rolled back. A row sees the slots up to its own position, and a forward writes before it reads: what
rejected tokens and mask tokens leave behind lies past the newest token, and is written over before any row sees it.
Of a tree several rows have one position, so each row's slot is the one after its neighbour's; those that are kept move
to their positions.

B requests · T rows of one forward · S positions · N slots, more than S · H heads · D width of a head · V vocabulary
W hidden size
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticLayer

from vllm_pard.reference.features import Features
from vllm_pard.reference.requests import GenerationError

# SDPA copies a mask whose rows are not aligned into one whose rows are, at every call.
SLOT_MULTIPLE = 8


class Branches(NamedTuple):
    """The rows of a forward that are no chain: they see the slots before the first row's, and their ancestors."""

    slots: Tensor  # [B, T]
    is_ancestor: Tensor  # bool [B, T, T]: whether row t sees row u; each sees itself


class SlotLayer(StaticLayer):
    """Keys and values of one layer, both [B, H, N, D]."""

    def update(self, key_states: Tensor, value_states: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows [B, H, T, D] to slots [B, T]; return all slots."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        requests = torch.arange(slots.shape[0], device=slots.device)[:, None]  # [B, 1]
        self.keys[requests, :, slots] = key_states.transpose(1, 2)
        self.values[requests, :, slots] = value_states.transpose(1, 2)
        return self.keys, self.values


class SlotCache(Cache):
    """A SlotLayer for each layer. `slots` [B, T] is set before each forward."""

    def __init__(self, num_layers: int, num_slots: int) -> None:
        super().__init__(layers=[SlotLayer(max_cache_len=num_slots) for _ in range(num_layers)])
        self.num_slots = num_slots
        self.slots: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        return self.layers[layer_idx].update(key_states, value_states, self.slots)


class CachedModel:
    """Runs tokens at given positions and keeps their keys and values; in `features`, also what a draft takes of it.

    Of a draft that was trained to propose some tokens only, these are the `vocabulary`. Trees need as many spare slots
    as they have nodes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        max_length: int,
        compiled: bool,
        features: Features | None = None,
        vocabulary: Sequence[int] | None = None,
        num_spare_slots: int = 0,
    ) -> None:
        config: Any = model.config.get_text_config(decoder=True)
        check_attention(model)
        self.model = model
        self.vocab_size: int = config.vocab_size
        self.context: int = config.max_position_embeddings
        self.max_length = min(max_length, self.context)
        self._features = features
        self._is_left_out = None if vocabulary is None else left_out(vocabulary, self.vocab_size, model.device)
        self._windows = attention_windows(config)
        self._nowhere = self.max_length + num_spare_slots
        num_slots = -(-(self._nowhere + 1) // SLOT_MULTIPLE) * SLOT_MULTIPLE
        self.cache = SlotCache(config.num_hidden_layers, num_slots)
        self._compiled_forward = compile_forward(self.forward, model.device) if compiled else None

    def step(
        self,
        token_ids: Tensor,
        positions: Tensor,
        *,
        num_logits: int,
        added: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """`forward`, for shapes that come up in every step: compiled, if the engine is."""
        options: dict[str, Any] = {"num_logits": num_logits, "added": added, "branches": branches}
        if self._compiled_forward is None:
            return self.forward(token_ids, positions, **options)
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        logits: Tensor = self._compiled_forward(token_ids, positions, **options)
        return logits.clone()  # the next replay of a CUDA graph writes to the same memory

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        *,
        num_logits: int,
        added: Tensor | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Run token_ids [B, T] at positions [B, T]; the logits of the last `num_logits` rows. [B, num_logits, V]

        `added` [B, T, W] comes on top of the embeddings. Without `branches` a token's slot is its
        position. A row at a negative position, or past the end, is nowhere: its logits mean nothing, and no row ever
        sees it.
        """
        is_somewhere = (positions >= 0) & (positions < self.max_length)  # [B, T]
        slots = positions if branches is None else branches.slots
        self.cache.slots = torch.where(is_somewhere, slots, self._nowhere)
        # Position 0: some rotary embeddings change with the largest position of a forward.
        positions = torch.where(is_somewhere, positions, 0)
        # Qwen2.5 pads its vocabulary to 151936 or 152064 rows by model size. An id that this model has no row for is
        # replaced: in a draft that costs acceptance, never correctness.
        token_ids = token_ids.clamp(max=self.vocab_size - 1)
        # The module, not its weight: some models scale what it gives.
        inputs_embeds = None if added is None else self.model.get_input_embeddings()(token_ids) + added  # [B, T, W]
        output = self.model(
            input_ids=token_ids if inputs_embeds is None else None,
            inputs_embeds=inputs_embeds,
            position_ids=positions,
            attention_mask=self._attention_mask(positions, branches),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=num_logits,
            output_hidden_states=self._features is not None,
        )
        if self._features is not None:
            self._features.write(output.hidden_states, self.cache.slots)
        self.cache.slots = None  # memory of a CUDA graph must not be held from one replay to the next
        logits: Tensor = output.logits
        return logits if self._is_left_out is None else logits.masked_fill(self._is_left_out, float("-inf"))

    def move(self, sources: Tensor, places: Tensor, is_moved: Tensor) -> None:
        """Keys and values, and features, from slots to slots, both [B, T], where bool [B, T] says so."""
        requests = torch.arange(sources.shape[0], device=sources.device)[:, None]  # [B, 1]
        places = torch.where(is_moved, places, self._nowhere)
        sources = torch.where(is_moved, sources, self._nowhere)
        for layer in self.cache.layers:
            for states in (layer.keys, layer.values):
                states[requests, :, places] = states[requests, :, sources]
        if self._features is not None:
            self._features.move(sources, places)

    def _attention_mask(self, positions: Tensor, branches: Branches | None) -> Tensor | dict[str, Tensor]:
        """What is added to the scores, by kind of layer. [B, 1, T, N]"""
        slots = torch.arange(self.cache.num_slots, device=positions.device)  # [N]
        rows = positions[:, None, :, None]  # [B, 1, T, 1]
        held, is_later = slots, slots > rows  # [N], [B, 1, T, N]
        if branches is not None:
            # The positions of what the slots hold, and what each row sees of them.
            held = slots.expand(len(positions), -1).scatter(1, branches.slots, positions)[:, None, None]  # [B, 1, 1, N]
            is_seen = (slots < branches.slots[:, :1, None]).repeat(1, positions.shape[1], 1)  # [B, T, N]
            index = branches.slots[:, None].expand_as(branches.is_ancestor)  # [B, T, T]
            is_later = ~is_seen.scatter(2, index, branches.is_ancestor)[:, None]
        masks = {}
        for kind, window in self._windows.items():
            is_hidden = is_later if window is None else is_later | (held <= rows - window)
            zeros = torch.zeros(is_hidden.shape, dtype=self.model.dtype, device=positions.device)
            masks[kind] = zeros.masked_fill(is_hidden, float("-inf"))
        # Only a model that mixes kinds of layers takes one mask for each.
        return masks if len(masks) > 1 else next(iter(masks.values()))


def left_out(vocabulary: Sequence[int], vocab_size: int, device: torch.device) -> Tensor:
    """Every token but these. bool [V]"""
    is_left_out = torch.ones(vocab_size, dtype=torch.bool)
    is_left_out[torch.tensor(vocabulary)] = False
    return is_left_out.to(device)


def compile_forward(forward: Any, device: torch.device) -> Any:
    """Fixed shapes, and on a GPU a CUDA graph for each."""
    # Dynamo counts the shapes of all engines together, and gives up after 8.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    mode = "reduce-overhead" if device.type == "cuda" else None
    return torch.compile(forward, fullgraph=True, dynamic=False, mode=mode)


def attention_windows(config: Any) -> dict[str, int | None]:
    """The kinds of attention in a model, under Transformers' names, each with its window."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    windows = {"full_attention": None, "sliding_attention": window}
    if unknown := set(kinds) - set(windows):
        raise GenerationError(
            f"the reference engine runs {' and '.join(windows)}; this model ({config.model_type}) has "
            f"{min(unknown)}, which needs another cache"
        )
    return {kind: windows[kind] for kind in windows if kind in kinds}


def check_attention(model: PreTrainedModel) -> None:
    attention = model.config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise GenerationError(
            "the reference engine needs an attention that takes any mask; load the model with "
            f"attn_implementation='sdpa'; got {attention!r}"
        )
