"""The lm_head of greedy drafts: cut to a vocabulary, sharded, in 8 bits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from vllm_pard.config import ConfigError

HIDDEN_SIZE, VOCAB_SIZE = 64, 200


def make_draft(weight: Tensor, *, start: int = 0, tp_size: int = 1, bias: Tensor | None = None) -> Any:
    """What a model shows of its lm_head: one shard, with rows of padding behind the vocabulary."""
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    processor = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(processor)
    processor.logits_as_input, processor.head_dtype, processor.scale, processor.soft_cap = False, None, 0.5, None
    padding = torch.full((8, HIDDEN_SIZE), 100.0)
    lm_head = SimpleNamespace(
        weight=torch.nn.Parameter(torch.cat([weight, padding]), requires_grad=False),
        bias=bias,
        quant_method=UnquantizedEmbeddingMethod(),
        shard_indices=SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=start + len(weight)),
        tp_size=tp_size,
    )
    return SimpleNamespace(lm_head=lm_head, logits_processor=processor)


def choose(draft: Any, **options: Any) -> Any:
    from vllm_pard.serving.draft.head import choose_head

    defaults = {"num_tokens": VOCAB_SIZE, "token_ids": None, "k": 1, "use_int8": False, "group": None}
    return choose_head(draft, max_num_rows=12, **(defaults | options))


class Ranks:
    """A tensor-parallel group whose members take turns: what all have sent is gathered for each of them."""

    def __init__(self) -> None:
        self.sent: list[Tensor] = []

    def all_gather(self, packed: Tensor, dim: int) -> Tensor:
        assert dim == 0
        self.sent.append(packed)
        return torch.cat(self.sent[-2:])


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(10, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1))


def test_tokens_that_the_target_lacks_are_not_drafted(weight: Tensor, hidden: Tensor) -> None:
    head = choose(make_draft(weight), num_tokens=150, token_ids=torch.arange(VOCAB_SIZE))
    best = head.best(hidden)
    assert torch.equal(best, (hidden @ weight[:150].T).argmax(1))
    assert not torch.equal(best, (hidden @ weight.T).argmax(1))


def test_trimmed(weight: Tensor, hidden: Tensor) -> None:
    token_ids, bias = torch.arange(3, VOCAB_SIZE, 7), torch.randn(VOCAB_SIZE + 8)
    head = choose(make_draft(weight, bias=bias), token_ids=token_ids)
    logits = hidden @ weight.T + bias[:VOCAB_SIZE]
    assert torch.equal(head.best(hidden), token_ids[logits[:, token_ids].argmax(1)])


@pytest.mark.parametrize("token_ids", [None, torch.arange(2, VOCAB_SIZE, 3)], ids=["all", "trimmed"])
def test_two_ranks(weight: Tensor, hidden: Tensor, token_ids: Tensor | None) -> None:
    """Each rank sends its best token, its logit and its sum; both find the better one."""
    group, half = Ranks(), VOCAB_SIZE // 2
    shards = [make_draft(part, start=i * half, tp_size=2) for i, part in enumerate(weight.split(half))]
    heads = [choose(shard, token_ids=token_ids, group=group) for shard in shards]
    group.sent.append(torch.full((1, len(hidden), 3), -torch.inf))  # the second rank has not spoken yet
    first_alone = heads[0].best(hidden)
    best = heads[1].best(hidden)
    kept = torch.arange(VOCAB_SIZE) if token_ids is None else token_ids
    assert torch.equal(best, kept[(hidden @ weight[kept].T).argmax(1)])
    assert 0 < (best < half).sum() < len(best), "each rank wins somewhere"
    assert (first_alone < half).all()
    assert group.sent[-1].shape == (1, len(hidden), 3), "three numbers a row"


@pytest.mark.parametrize("token_ids", [None, torch.arange(2, VOCAB_SIZE, 3)], ids=["all", "trimmed"])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_candidates_of_trees(weight: Tensor, hidden: Tensor, token_ids: Tensor | None, num_ranks: int) -> None:
    """The fused head's, and those of logits: the same tokens, with what makes probabilities of their logits."""
    from vllm_pard.serving.draft.head import top_of_logits

    group, share, k = Ranks(), VOCAB_SIZE // num_ranks, 5
    shards = [make_draft(part, start=i * share, tp_size=num_ranks) for i, part in enumerate(weight.split(share))]
    heads = [choose(shard, token_ids=token_ids, k=k, group=group) for shard in shards]
    group.sent.append(torch.full((1, len(hidden), 2 * k + 1), -torch.inf))
    found = [head.fused.top(hidden) for head in heads][-1]
    kept = torch.arange(VOCAB_SIZE) if token_ids is None else token_ids
    wanted = top_of_logits(0.5 * hidden @ weight[kept].T, k)
    assert torch.equal(found.ids, kept[wanted.ids])
    torch.testing.assert_close(found.logits, wanted.logits)
    torch.testing.assert_close(found.log_sum_exps, wanted.log_sum_exps)


def test_fewer_tokens_than_candidates(weight: Tensor, hidden: Tensor) -> None:
    token_ids = torch.tensor([3, 50, 120])
    assert choose(make_draft(weight), token_ids=token_ids, k=16).top(hidden).ids.shape == (len(hidden), 3)
    with pytest.raises(ConfigError, match=r'"draft_vocab" has 2 token\(s\) from 0 to 99, .* which needs 16'):
        choose(make_draft(weight[:100], tp_size=2), token_ids=token_ids, k=16, group=Ranks())


def test_a_rank_needs_tokens(weight: Tensor) -> None:
    draft = make_draft(weight, start=VOCAB_SIZE, tp_size=2)
    with pytest.raises(ConfigError, match=r'"draft_vocab" has no token\(s\) from 200 to 399, .* one of 2 ranks'):
        choose(draft, num_tokens=400, token_ids=torch.tensor([1, 2]), group=Ranks())


def test_int8(weight: Tensor, hidden: Tensor) -> None:
    from vllm_pard.serving.draft.head import quantize_rows

    weight[5] = 0
    rounded, scale = quantize_rows(weight)
    assert rounded.dtype == torch.int8
    assert (rounded.float() * scale[:, None] - weight).abs().max() <= scale.max() / 2 * 1.001
    assert rounded.abs().amax(1).tolist() == [0 if i == 5 else 127 for i in range(VOCAB_SIZE)]

    head = choose(make_draft(weight), use_int8=True)
    assert head.fused.weight.dtype == torch.int8
    assert torch.equal(head.best(hidden), (hidden @ (rounded.float() * scale[:, None]).T).argmax(1))


@pytest.mark.parametrize("part", ["quant_method", "processor", "head_dtype", "lm_head"])
def test_not_a_plain_matrix(part: str, weight: Tensor) -> None:
    draft = make_draft(weight)
    if part == "quant_method":
        draft.lm_head.quant_method = object()
    elif part == "processor":
        draft.logits_processor = SimpleNamespace()
    elif part == "head_dtype":
        draft.logits_processor.head_dtype = torch.float64
    else:
        del draft.lm_head
    assert choose(draft, use_int8=True) is None


def test_logits_are_the_default_without_a_gpu(weight: Tensor, hidden: Tensor) -> None:
    draft = make_draft(weight)
    draft.compute_logits = lambda hidden: -hidden @ weight.T
    head = choose(draft)
    head.measure([8])
    assert torch.equal(head.best(hidden), (hidden @ weight.T).argmin(1))


def test_the_faster_one_for_each_number_of_rows(weight: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_pard.serving.draft import head as module

    head = choose(make_draft(weight))
    on_a_gpu = SimpleNamespace(is_cuda=True, new_zeros=torch.zeros, shape=weight.shape)
    fused = SimpleNamespace(ids=torch.tensor([[7]]))
    head.fused = SimpleNamespace(weight=on_a_gpu, k=1, top=lambda hidden: fused)
    head._best_of_logits = lambda hidden: torch.tensor([5])
    milliseconds = {("fused", 8): 1.0, ("logits", 8): 2.0, ("fused", 64): 4.0, ("logits", 64): 3.0}

    def timed(call: Any) -> float:
        return milliseconds["fused" if call() is fused else "logits", len(call.args[0])]

    monkeypatch.setattr(module, "median_milliseconds", timed)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    head.measure([64, 8, 8])
    chosen = {num_rows: int(head.best(torch.empty(num_rows, HIDDEN_SIZE))) for num_rows in (3, 8, 9, 64, 100)}
    assert chosen == {3: 7, 8: 7, 9: 5, 64: 5, 100: 5}


@pytest.mark.parametrize("options", [{"use_int8": True}, {"token_ids": torch.arange(2, VOCAB_SIZE, 3)}])
def test_reload(options: dict[str, Any], weight: Tensor, hidden: Tensor) -> None:
    """Copies follow the model's weights, in the memory that graphs read."""
    draft = make_draft(weight)
    head = choose(draft, **options)
    before, place = head.best(hidden), head.fused.weight.data_ptr()
    draft.lm_head.weight.data.neg_()
    assert torch.equal(head.best(hidden), before)
    head.reload()
    assert head.fused.weight.data_ptr() == place
    assert torch.equal(head.best(hidden), choose(draft, **options).best(hidden))
    assert not torch.equal(head.best(hidden), before)
