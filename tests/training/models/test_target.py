"""The target's own words against an ordinary forward of the stock model, document by document."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from cod_batches import random_pack, tiny_model

from vllm_pard.training.cod import attention
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.models import target
from vllm_pard.training.models.target import ALL, Target, TargetError
from vllm_pard.training.options.config import CodConfig

TOL = {"atol": 1e-4, "rtol": 1e-4}  # fp32, through some layers, attention in blocks against sdpa's own causal mask
LAYERS = (-1, -8, -3, -2, -9)


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def stock(request):
    kind = request.param
    changes = {"layer_types": ["sliding_attention", "full_attention"] * 4} if kind == "gemma3" else {}
    return tiny_model(kind, num_hidden_layers=8, **changes)


def batch_of(packs):
    batch = Collator(cod=CodConfig(num_depths=3), seed=0, vocab_size=61)(packs)
    return Rows(**batch["rows"]), batch["tokens"]


def documents_of(rows, num_tokens):
    for number in range(int(rows.documents.max()) + 1):
        yield (rows.documents[:num_tokens] == number).nonzero()[:, 0]


@pytest.mark.parametrize("at_once", [1, 61 * 5, 1 << 26])
def test_what_it_says_is_what_the_stock_model_says(monkeypatch, stock, at_once):
    monkeypatch.setattr(target, "LOGITS_AT_ONCE", at_once)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 8)
    rows, tokens = batch_of([random_pack((9, 12), num_padding=2), random_pack((6, 1), seed=1, draw=1)])
    model = Target(deepcopy(stock), layers=LAYERS)
    found = model(rows, tokens)
    assert found.features.shape == (len(tokens), model.target_dim) == (len(tokens), 5 * 32)
    for index in documents_of(rows, len(tokens)):
        with torch.no_grad():
            alone = stock(input_ids=tokens[index][None], output_hidden_states=True)
        states = torch.cat([alone.hidden_states[layer][0] for layer in LAYERS], dim=1)
        torch.testing.assert_close(found.features[index], states, **TOL)
        torch.testing.assert_close(found.hidden[index], alone.hidden_states[-1][0], **TOL)
        log_probs = alone.logits[0].log_softmax(-1)[:-1].gather(1, tokens[index][1:, None])[:, 0]
        torch.testing.assert_close(found.log_probs[index], torch.cat([torch.zeros(1), log_probs]), **TOL)
        logits = found.head(index, ALL).logits(slice(None))
        torch.testing.assert_close(logits, alone.logits[0], **TOL)
    assert found.log_probs.dtype == torch.float32
    assert not found.features.requires_grad


def test_the_states_are_told_apart(stock):
    """A list in another order, or -1 before the norm, would be seen above."""
    rows, tokens = batch_of([random_pack((9,))])
    features = Target(deepcopy(stock), layers=LAYERS)(rows, tokens).features.split(32, dim=1)
    differences = [(a - b).abs().max() for i, a in enumerate(features) for b in features[:i]]
    assert min(differences) > 0.1


def test_without_layers_there_are_no_features(stock):
    rows, tokens = batch_of([random_pack((9,))])
    model = Target(deepcopy(stock))
    assert model.target_dim == 0
    assert model(rows, tokens).features.shape == (9, 0)


def test_a_single_token(stock):
    rows, tokens = batch_of([random_pack((1,))])
    assert Target(deepcopy(stock))(rows, tokens).log_probs.tolist() == [0]


def test_it_is_frozen_and_in_evaluation(stock):
    model = Target(deepcopy(stock).train()).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("layer", [-10, 0, 3])
def test_layers_that_it_does_not_have_are_refused(layer):
    message = f"features.layers must be from -9 to -1 for this target, which has 8 layers; got {layer}: choose"
    with pytest.raises(TargetError, match=message):
        Target(tiny_model(num_hidden_layers=8), layers=(-1, layer))
