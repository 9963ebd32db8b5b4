"""Where vLLM has the hidden states that a PARD-2 draft reads, and by what they are multiplied.

A draft counts as Transformers does: of a target with N layers, hidden_states has 0, the embeddings, to N, the output of
the last layer after the final norm, and negative indices count from its end. vLLM hands out the value before a layer
by that layer's id, from 0 to N - 1, in ascending order and each once; N is the target's output, which a draft always
gets.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vllm_pard.checkpoint import Loading
from vllm_pard.target_proj import read_target_proj


def scaled_target_proj(spec: Any, device: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [H, F] and bias [H] of the draft's target_proj in its dtype, with the scale of the features in them.

    The product alone may be beyond float16, the scaled one is not.
    """
    draft, features = spec.draft_model_config, spec.features
    loading = Loading(revision=draft.revision, token=draft.hf_token)
    _, weight, bias = read_target_proj(draft.model, features, int(draft.get_hidden_size()), loading)

    def scaled(part: Tensor) -> Tensor:
        product: Tensor = features.scale * part.float()
        return product.to(device, draft.dtype)

    return scaled(weight), None if bias is None else scaled(bias)


def hook_layers(target_layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The ids that vLLM is to be asked for, in the order in which it hands them out; none for the output alone."""
    return tuple(sorted({index for index in _indices(target_layers, num_layers) if index < num_layers}))


def column_order(target_layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """For each of `target_layers`, in order: which of [target's output, *states of `hook_layers`] it is."""
    places = {index: place for place, index in enumerate(hook_layers(target_layers, num_layers), start=1)}
    return tuple(places.get(index, 0) for index in _indices(target_layers, num_layers))


def _indices(target_layers: Sequence[int], num_layers: int) -> list[int]:
    """As non-negative indices of hidden_states. Raises ValueError for one that the target has not."""
    for layer in target_layers:
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(f"a target of {num_layers} layers has no hidden states {layer}")
    return [layer % (num_layers + 1) for layer in target_layers]
