"""The rule, its three implementations, and the golden test: a row is what a draft sees when it runs."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from cod_batches import KINDS, MASK, random_pack, tiny_model
from torch.nn.attention.flex_attention import create_block_mask

from vllm_pard.training.cod import attention, block_mask
from vllm_pard.training.cod.attention import AttentionError, row_attention, row_rule, use_row_attention
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.options.config import CodConfig, LossConfig

KERNEL_TOL = {"atol": 1e-5, "rtol": 1e-5}  # fp32 sums of some dozens of terms in another order
GOLDEN_TOL = {"atol": 1e-4, "rtol": 1e-4}  # the same, through three layers and an lm_head
SCALE = 0.4


def batch_of(packs, *, num_depths=5, multiple=1):
    return Collator(cod=CodConfig(num_depths=num_depths), seed=0, vocab_size=61, multiple=multiple)(packs)


def some_rows(*, multiple=16) -> tuple[Rows, int]:
    packs = [random_pack((12, 5, 19), num_padding=5), random_pack((2, 21), seed=1, draw=1, num_padding=3)]
    batch = batch_of(packs, multiple=multiple)
    return Rows(**batch["rows"]), len(batch["tokens"])


def query_key_value(num_rows):
    """4 heads that share 2 keys."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, num_rows, 8, generator=generator).requires_grad_() for heads in (4, 2, 2)]


def seen(rows, window=None):
    index, zero = torch.arange(len(rows.anchors)), torch.tensor(0)
    return row_rule(rows, window)(zero, zero, index[:, None], index[None, :])


@pytest.mark.parametrize("window", [None, 3])
def test_the_rule_is_read_out_row_by_row(window):
    rows, _ = some_rows(multiple=1)
    names = list(zip(*(t.tolist() for t in (rows.anchors, rows.depths, rows.documents, rows.positions)), strict=True))
    mask = seen(rows, window)
    for q, (n, s, document, position) in enumerate(names):
        wanted = {
            k
            for k, (m, d, other, place) in enumerate(names)
            if other == document
            and ((d == 0 and m <= n) or (m == n and 0 < d <= s))
            and (window is None or position - place < window)
        }
        assert set(mask[q].nonzero()[:, 0].tolist()) == wanted


def test_rows_that_are_padding_see_nothing_real_and_are_not_seen():
    rows, _ = some_rows()
    is_real = rows.documents >= 0
    assert int((~is_real).sum()) > 8
    assert not seen(rows)[is_real][:, ~is_real].any()
    assert not seen(rows)[~is_real][:, is_real].any()
    assert seen(rows).diagonal().all()


@pytest.mark.parametrize("window", [None, 3, 9])
@pytest.mark.parametrize("query_block", [7, 16, 1000])
def test_dense_blocks_and_flex_agree(monkeypatch, window, query_block):
    monkeypatch.setattr(attention, "QUERY_BLOCK", query_block)
    rows, num_tokens = some_rows()
    is_real = rows.documents >= 0
    outputs, gradients = {}, {}
    for name in ("dense", "blocks", "flex"):
        inputs = query_key_value(len(rows.anchors))
        if name == "flex":  # uncompiled, it has no way back on a CPU
            inputs = [tensor.detach() for tensor in inputs]
        output = row_attention(rows, num_tokens, name)(*inputs, SCALE, window)
        assert torch.isfinite(output).all()
        outputs[name] = output[:, :, is_real]
        if name != "flex":
            (outputs[name] * torch.linspace(-1, 1, 8)).sum().backward()
            gradients[name] = [tensor.grad for tensor in inputs]
    for name in ("blocks", "flex"):
        torch.testing.assert_close(outputs[name], outputs["dense"], **KERNEL_TOL)
    for found, wanted in zip(gradients["blocks"], gradients["dense"], strict=True):
        torch.testing.assert_close(found, wanted, **KERNEL_TOL)
    assert all(gradient.abs().max() > 0.1 for gradient in gradients["dense"])


def test_dense_is_softmax_written_out():
    rows, num_tokens = some_rows()
    query, key, value = query_key_value(len(rows.anchors))
    found = row_attention(rows, num_tokens, "dense")(query, key, value, SCALE, 3)
    scores = SCALE * query @ key.repeat_interleave(2, dim=1).mT
    wanted = scores.masked_fill(~seen(rows, 3), -torch.inf).softmax(-1) @ value.repeat_interleave(2, dim=1)
    torch.testing.assert_close(found, wanted, **KERNEL_TOL)


def long_rows():
    packs = [random_pack([90] * 12, seed=seed, draw=seed) for seed in range(2)]
    batch = batch_of(packs, num_depths=8)
    return Rows(**batch["rows"]), len(batch["tokens"])


def test_blocks_compute_few_pairs(monkeypatch):
    """At most the keys of the documents that a block of queries touches, and its own chains."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 64)
    rows, num_tokens = long_rows()
    num_pairs = 0

    def counted(query, key, value, mask, scale):
        nonlocal num_pairs
        num_pairs += query.shape[2] * key.shape[2]
        return query

    monkeypatch.setattr(attention, "_masked", counted)
    states = torch.zeros(1, 1, len(rows.anchors), 8)
    row_attention(rows, num_tokens, "blocks")(states, states, states, 1.0, None)
    assert num_pairs >= int(seen(rows).sum())
    assert num_pairs < 0.06 * len(rows.anchors) ** 2
    assert num_pairs < 5 * int(seen(rows).sum())


def test_a_block_mask_skips_most_blocks(monkeypatch):
    monkeypatch.setattr(block_mask, "BLOCK", 64)
    rows, _ = long_rows()
    mask = block_mask.block_mask(row_rule(rows, None), len(rows.anchors), torch.device("cpu"))
    assert mask.sparsity() > 90


@pytest.mark.parametrize("num_rows", [3, 128, 700, 1024])
@pytest.mark.parametrize("window", [None, 90])
@pytest.mark.parametrize("pairs_at_once", [1, 1 << 26])
def test_a_block_mask_is_that_of_torch(monkeypatch, num_rows, window, pairs_at_once):
    """Partial blocks and full ones, and those of the keys that flow back; with rows that fill no block."""
    monkeypatch.setattr(block_mask, "PAIRS_AT_ONCE", pairs_at_once)
    rows = Rows(**batch_of([random_pack([600, 424])])["rows"]).at(slice(num_rows))
    rule = row_rule(rows, window)
    found = block_mask.block_mask(rule, num_rows, torch.device("cpu"))
    wanted = create_block_mask(rule, 1, None, num_rows, num_rows, device="cpu")
    assert found.shape == wanted.shape
    for name in ("kv", "full_kv", "q", "full_q"):
        for field in (f"{name}_num_blocks", f"{name}_indices"):
            assert torch.equal(getattr(found, field), getattr(wanted, field)), field
    assert num_rows < 700 or (found.full_kv_num_blocks.sum() > 0) == (window is None)


def rows_of_model(kind, implementation, packs, num_depths=4):
    stock = tiny_model(kind)
    draft = ParallelDraft(
        deepcopy(stock), mask_token_id=MASK, loss=LossConfig(), num_depths=num_depths, attention=implementation
    )
    batch = batch_of(packs, num_depths=num_depths, multiple=8)
    rows = Rows(**batch["rows"])
    with torch.no_grad():
        logits = draft.head(draft.hidden_states(rows, batch["tokens"])).logits(slice(None))
    return stock, rows, batch["tokens"], logits


@pytest.mark.parametrize("implementation", ["dense", "blocks", "flex"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma2"])
def test_a_row_gives_the_logits_of_what_it_stands_for(monkeypatch, kind, implementation):
    """The golden test: an ordinary forward of the stock model over [x_0 .. x_n, mask * i]."""
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    packs = [random_pack((14, 6), num_padding=2), random_pack((9,), seed=1, draw=1)]
    stock, rows, tokens, logits = rows_of_model(kind, implementation, packs)
    num_compared = 0
    for r in (rows.documents >= 0).nonzero()[:, 0].tolist():
        n, i, position = int(rows.anchors[r]), int(rows.depths[r]), int(rows.positions[r])
        literal = [*tokens[n - (position - i) : n + 1].tolist(), *[MASK] * i]
        with torch.no_grad():
            wanted = stock(input_ids=torch.tensor([literal])).logits[0, -1]
        torch.testing.assert_close(logits[r], wanted, **GOLDEN_TOL)
        num_compared += i > 0
    assert num_compared > 15


def test_the_golden_test_would_see_a_wrong_window():
    packs = [random_pack((11, 6))]
    _, _, _, logits = rows_of_model("mistral", "dense", packs)
    KINDS["other"] = {**KINDS["mistral"], "sliding_window": 5}
    try:
        _, _, _, others = rows_of_model("other", "dense", packs)
    finally:
        del KINDS["other"]
    assert (logits - others).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["gemma2", "gemma3 with a cap", "granite", "llama4", "bloom"])
def test_a_model_of_another_architecture_is_refused(kind):
    models = {
        "bloom": lambda: tiny_model("llama", model_type="bloom", n_head=4, attention="eager"),
        "gemma2": lambda: tiny_model("gemma2"),
        "gemma3 with a cap": lambda: tiny_model("gemma3", final_logit_softcapping=30.0),
        "granite": lambda: tiny_model("llama", model_type="granite", logits_scaling=4.0),
        "llama4": lambda: tiny_model(
            "llama", model_type="llama4_text", head_dim=8, num_local_experts=2, intermediate_size_mlp=48
        ),
    }
    with pytest.raises(AttentionError, match=r"plain softmax attention .* computes something else: choose a model of"):
        use_row_attention(models[kind]())


def test_a_window_that_a_layer_keeps_to_itself_is_refused(monkeypatch):
    """Too wide for the few tokens of the check, a window that only the model's own masks know would go unseen."""
    model = tiny_model("gemma3", sliding_window=64)
    use_row_attention(deepcopy(model))
    for layer in model.model.layers:
        layer.self_attn.sliding_window = None
    with pytest.raises(AttentionError, match="gemma3_text computes something else"):
        use_row_attention(model)


def test_an_ordinary_forward_of_a_changed_model_is_refused():
    model = tiny_model()
    use_row_attention(model)
    with pytest.raises(
        AttentionError, match="LlamaAttention attends over COD rows and was told of none: call the model"
    ):
        model(input_ids=torch.arange(4)[None])


def test_an_unknown_implementation_is_refused():
    rows, num_tokens = some_rows()
    with pytest.raises(AttentionError, match="must be one of auto, dense, blocks, flex; got 'eager'"):
        row_attention(rows, num_tokens, "eager")
