"""PARD-2's features, the trimmed vocabulary and the weights, against forwards of the stock model."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from cod_batches import MASK, VOCAB_SIZE, random_pack, tiny_model

from vllm_pard.training.cod import collator
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import IGNORED, Rows
from vllm_pard.training.losses import cat_weights, d_pace_weights, forward_kl
from vllm_pard.training.models.parallel_draft import ParallelDraft, shifted_features
from vllm_pard.training.models.target import Target
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig

TOL = {"atol": 1e-4, "rtol": 1e-4}  # fp32 through three layers and an lm_head, in another order
DEPTHS, SCALE = 4, 0.5
FEATURES = FeatureConfig(layers=(-1, -3), scale=SCALE, dropout=0.4)


@pytest.fixture(scope="module")
def stock():
    return tiny_model("qwen3")


@pytest.fixture(scope="module")
def target():
    return Target(tiny_model("llama", seed=1, hidden_size=24, num_hidden_layers=4), layers=FEATURES.layers)


def draft_of(stock, *, loss=None, features=None, target_dim=0, **options):
    torch.manual_seed(2)
    return ParallelDraft(
        deepcopy(stock),
        mask_token_id=MASK,
        loss=loss or LossConfig(),
        num_depths=DEPTHS,
        features=features,
        target_dim=target_dim,
        **options,
    )


def dependent(stock, target, **options):
    return draft_of(stock, features=FEATURES, target_dim=target.target_dim, **options)


def batch_of(packs, **options):
    return Collator(cod=CodConfig(num_depths=DEPTHS), seed=0, **{"vocab_size": VOCAB_SIZE, **options})(packs)


@pytest.fixture(scope="module")
def packs():
    return [random_pack((11, 7), num_padding=2), random_pack((9, 5, 4), seed=1, draw=1)]


def logits_over_rows(draft, batch, **options):
    with torch.no_grad():
        hidden = draft.hidden_states(Rows(**batch["rows"]), batch["tokens"], **options)
        return draft.head(hidden).logits(slice(None))


def decoding_logits(stock, draft, target, tokens, num_masks, is_shifted=False):
    """As an engine drafts: the token at p reads the feature of p - 1, and all masks that of the last token's."""
    alone = Target.__call__(target, Rows(**batch_of_tokens(tokens)["rows"]), tokens)
    features = SCALE * (alone.features @ draft.target_proj.weight.T)
    literal = torch.cat([tokens, torch.full((num_masks,), MASK)])
    read = torch.cat([torch.zeros(1, 32), features[:-1], features[-2:-1].expand(num_masks, -1)])
    if len(tokens) == 1:
        read = torch.zeros(1 + num_masks, 32)
    if is_shifted:  # EAGLE's way: ids to the left, so that a feature meets the token after its own; token 0 is lost
        literal, read = literal[1:], read[1:]
    with torch.no_grad():
        return stock(inputs_embeds=(stock.get_input_embeddings()(literal) + read)[None]).logits[0, -1]


def batch_of_tokens(tokens):
    return batch_of([{"tokens": tokens, "documents": tokens * 0, "is_trained": tokens >= 0, "draw": 0}])


def compare(stock, draft, target, batch, logits, **options):
    rows, tokens = Rows(**batch["rows"]), batch["tokens"]
    differences = []
    for r in (rows.documents >= 0).nonzero()[:, 0].tolist():
        n, i = int(rows.anchors[r]), int(rows.depths[r])
        document = tokens[n - (int(rows.positions[r]) - i) : n + 1]
        if len(document) > 1:
            wanted = decoding_logits(stock, draft, target, document, i, **options)
            differences.append(float((logits[r] - wanted).abs().max() / wanted.abs().max()))
    assert len(differences) > 30
    return torch.tensor(differences)


def test_rows_read_the_features_that_an_engine_has(stock, target, packs):
    draft, batch = dependent(stock, target), batch_of(packs)
    rows = Rows(**batch["rows"])
    logits = logits_over_rows(draft, batch, target=target(rows, batch["tokens"]))
    assert compare(stock, draft, target, batch, logits).max() < 1e-4
    firsts = (rows.positions == 0) & (rows.documents >= 0)
    alone = logits_over_rows(draft, batch)
    torch.testing.assert_close(logits[firsts], alone[firsts], **TOL)
    assert (logits - alone)[rows.positions > 1].abs().max() > 0.1, "elsewhere, features matter"


def test_a_shift_as_in_eagle_is_another_model(stock, target, packs):
    """The first token, which much attention goes to, would be missing: acceptance fell from 7.7 to 2.0."""
    draft, batch = dependent(stock, target), batch_of(packs)
    logits = logits_over_rows(draft, batch, target=target(Rows(**batch["rows"]), batch["tokens"]))
    assert compare(stock, draft, target, batch, logits, is_shifted=True).median() > 0.05


def test_documents_without_features_are_drafted_for_independently(stock, target, packs):
    draft, batch = dependent(stock, target), batch_of(packs, feature_dropout=0.5)
    rows = Rows(**batch["rows"])
    keeps = batch["keeps_features"]
    mixed = logits_over_rows(draft, batch, target=target(rows, batch["tokens"]), keeps_features=keeps)
    full = logits_over_rows(draft, batch, target=target(rows, batch["tokens"]))
    none, plain = logits_over_rows(draft, batch), logits_over_rows(draft_of(stock), batch)
    kept = keeps[rows.anchors]
    assert 5 < int(kept.sum()) < len(kept) - 5
    torch.testing.assert_close(none, plain, **TOL)
    torch.testing.assert_close(mixed[kept], full[kept], **TOL)
    torch.testing.assert_close(mixed[~kept], plain[~kept], **TOL)


def test_features_by_hand():
    projected = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    shifted = shifted_features(projected, torch.tensor([0, 1, 2, 0, 1]))
    assert shifted[:, 0].tolist() == [0, 1, 2, 0, 4]


def test_depth_0_is_ordinary_training(stock, packs):
    """Cross-entropy of a draft with one depth, and its gradients: Transformers' own loss."""
    pack = packs[0]
    draft = draft_of(stock)
    batch = Collator(cod=CodConfig(num_depths=1), seed=0, vocab_size=VOCAB_SIZE)([pack])
    outputs = draft(**batch)
    (outputs["loss"] / outputs["weight"]).backward()
    model, total, num_labels = deepcopy(stock), 0.0, 0
    for number in (0, 1):
        chosen = pack["documents"] == number
        labels = torch.where(pack["is_trained"], pack["tokens"], IGNORED)[chosen][None]
        labels[0, 0] = IGNORED
        of_document = int((labels != IGNORED).sum())
        total = total + of_document * model(input_ids=pack["tokens"][chosen][None], labels=labels).loss
        num_labels += of_document
    (total / num_labels).backward()
    assert float(outputs["weight"]) == num_labels
    torch.testing.assert_close(outputs["loss"] / num_labels, total / num_labels, **TOL)
    wanted = dict(model.named_parameters())
    for name, parameter in draft.draft.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, **TOL)


@pytest.mark.parametrize("weights", ["none", "cat", "d-pace"])
@pytest.mark.parametrize("chunk", [7, 10**6])
def test_the_loss_is_the_weighted_sum_of_the_rows(monkeypatch, stock, target, packs, weights, chunk):
    monkeypatch.setattr(collator, "LOGITS_AT_ONCE", chunk * VOCAB_SIZE)
    loss = LossConfig(ce=0.1, kl=1.0, weights=weights, smoothing=0.25)
    draft, batch = dependent(stock, target, loss=loss), batch_of(packs)
    rows, read = Rows(**batch["rows"]), target(Rows(**batch["rows"]), batch["tokens"])
    with torch.no_grad():
        outputs = draft(**batch, target=read)
    logits, is_labelled = logits_over_rows(draft, batch, target=read), rows.labels != IGNORED
    ce = F.cross_entropy(logits, rows.labels, reduction="none")
    teacher = target.model.get_output_embeddings()(read.hidden)
    teacher_rows = (rows.anchors + rows.depths).clamp(max=len(teacher) - 1)
    kl = forward_kl(logits.log_softmax(-1), teacher.log_softmax(-1)[teacher_rows])
    found = {
        "none": torch.ones_like(ce),
        "cat": cat_weights(rows, read.log_probs),
        "d-pace": d_pace_weights(rows, -ce, num_depths=DEPTHS, smoothing=0.25),
    }[weights]
    total = (found * (0.1 * ce + kl))[is_labelled].sum()
    torch.testing.assert_close(outputs["loss"], total, **TOL)
    torch.testing.assert_close(outputs["weight"], found[is_labelled].sum(), **TOL)
    torch.testing.assert_close(outputs["ce"], ce[batch["labelled"]], **TOL)


@pytest.mark.parametrize("ids", [slice(20), torch.tensor([0, 3, 4, *range(9, 50), 58])])
def test_a_trimmed_vocabulary_is_the_softmax_over_its_ids(stock, target, packs, ids):
    """For draft and target alike; rows that would have to propose another id, or follow one, are left out."""
    ids_tensor = torch.arange(61)[ids]
    draft = dependent(stock, target, loss=LossConfig(ce=1.0, kl=1.0), vocabulary=ids)
    batch = batch_of(packs, vocabulary=ids_tensor, vocab_size=len(ids_tensor))
    rows, read = Rows(**batch["rows"]), target(Rows(**batch["rows"]), batch["tokens"])
    with torch.no_grad():
        outputs = draft(**batch, target=read)
        predicted = draft(**batch, target=read, predicts=True)["predictions"]
        hidden = draft.hidden_states(rows, batch["tokens"], read)
        logits = draft.draft.get_output_embeddings()(hidden)[batch["labelled"]][:, ids_tensor]
        teacher = target.model.get_output_embeddings()(read.hidden)[:, ids_tensor]
    labels = rows.labels[batch["labelled"]]
    assert torch.isin(labels, ids_tensor).all()
    assert torch.equal(ids_tensor[batch["labels"]], labels)
    log_probs = logits.log_softmax(-1)
    ce = -log_probs[labels[:, None] == ids_tensor]
    kl = forward_kl(log_probs, teacher.log_softmax(-1)[(rows.anchors + rows.depths)[batch["labelled"]]])
    torch.testing.assert_close(outputs["ce"], ce, **TOL)
    torch.testing.assert_close(outputs["loss"], (ce + kl).sum(), **TOL)
    assert torch.equal(predicted, logits.argmax(-1))


def test_without_features_there_is_no_projection(stock):
    assert {name.split(".")[0] for name in draft_of(stock).state_dict()} == {"draft"}


def test_the_projection_starts_small_and_learns(stock, target, packs):
    draft, batch = dependent(stock, target), batch_of(packs)
    bound = target.target_dim**-0.5
    assert draft.target_proj.weight.abs().max() <= bound
    assert draft.target_proj.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    draft(**batch, target=target(Rows(**batch["rows"]), batch["tokens"]))["loss"].backward()
    assert draft.target_proj.weight.grad.abs().max() > 0


def test_gradient_checkpointing_changes_no_gradient(stock, target, packs):
    batch, gradients = batch_of(packs), []
    for is_checkpointed in (False, True):
        draft = dependent(stock, target).train()
        if is_checkpointed:
            draft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            assert draft.draft.is_gradient_checkpointing
        draft(**batch, target=target(Rows(**batch["rows"]), batch["tokens"]))["loss"].backward()
        gradients.append([parameter.grad for parameter in draft.parameters()])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, **TOL)
