"""Which of vLLM's layer outputs a PARD-2 draft reads, and where each lies among its features."""

import pytest
import torch
from public_checkpoints import TARGET_LAYERS
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_pard.serving.target_layers import column_order, hook_layers

NUM_LAYERS = 3


@pytest.mark.parametrize(
    ("num_layers", "ids"),
    [(32, (9, 17, 25)), (36, (13, 21, 29)), (40, (17, 25, 33))],
    ids=["Llama-3.1-8B", "Qwen3-8B", "Qwen3-14B"],
)
def test_layers_of_the_public_drafts(num_layers: int, ids: tuple[int, ...]) -> None:
    """-1 is the target's output, -8 comes last of vLLM's states, -24 first."""
    assert hook_layers(TARGET_LAYERS, num_layers) == ids
    assert column_order(TARGET_LAYERS, num_layers) == (0, 3, 2, 1)


def test_the_output_alone_asks_vllm_for_nothing() -> None:
    for last in (-1, 36):
        assert (hook_layers([last], 36), column_order([last], 36)) == ((), (0,))


def test_one_state_said_twice_is_asked_for_once() -> None:
    assert hook_layers([0, -4, 2, 3, -1], NUM_LAYERS) == (0, 2)
    assert column_order([0, -4, 2, 3, -1], NUM_LAYERS) == (1, 1, 2, 0, 0)


@pytest.mark.parametrize("layer", [-5, 4])
def test_a_layer_that_the_target_has_not_is_refused(layer: int) -> None:
    with pytest.raises(ValueError, match=f"a target of 3 layers has no hidden states {layer}"):
        hook_layers([-1, layer], NUM_LAYERS)


def test_features_are_the_states_that_transformers_counts() -> None:
    """vLLM's value before a layer, by a hook on that layer, in the order in which vLLM's models pass their layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=NUM_LAYERS, num_attention_heads=1
    )
    model = LlamaForCausalLM(config).eval()
    wanted = (2, -1, 0, -3)
    before: list[torch.Tensor] = []
    for index, layer in enumerate(model.model.layers):
        if index in hook_layers(wanted, NUM_LAYERS):
            layer.register_forward_pre_hook(lambda _, given: before.append(given[0]))
    with torch.no_grad():
        output = model.model(torch.arange(5)[None], output_hidden_states=True)
    taken = [output.last_hidden_state, *before]
    for layer, place in zip(wanted, column_order(wanted, NUM_LAYERS), strict=True):
        assert torch.equal(taken[place], output.hidden_states[layer]), layer
