"""Verdicts from made-up cells."""

import pytest

from vllm_pard.bench.measurement import Cell, Measurement
from vllm_pard.bench.methods import METHODS, Contender
from vllm_pard.bench.verdicts import as_record, noise, step_ms, verdicts
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import NOISE


def contender(label: str) -> Contender:
    title, _, k = label.partition(":")
    name, _, model = title.partition("=")
    return Contender(
        name=name, method=METHODS[name], num_speculative_tokens=int(k or 0), label=label, own_model=model or None
    )


def cell(label: str, concurrency: int, *speeds: float, shares: tuple[float, ...] = ()) -> Cell:
    """Runs with these tokens/s; `shares` accepted by position."""
    accepted = tuple(round(1000 * share) for share in shares)
    stats = AcceptanceStats(
        num_drafts=1000 if shares else 0,
        num_draft_tokens=1000 * len(shares),
        num_accepted_tokens=sum(accepted),
        accepted_per_position=accepted,
    )
    runs = [Measurement(num_requests=1, num_tokens=1000, seconds=1000 / speed, stats=stats) for speed in speeds]
    return Cell(label=label, concurrency=concurrency, runs=runs)


def sentences(*cells: Cell) -> list[str]:
    labels = dict.fromkeys(one.label for one in cells)
    found = verdicts([contender(label) for label in labels], {(one.label, one.concurrency): one for one in cells})
    return [verdict.sentence for _, verdict in found]


FOUR = (0.9, 0.8, 0.7, 0.6)  # accepted by position: 4 tokens a step


def test_the_speed_up_is_the_measured_one() -> None:
    (sentence,) = sentences(cell("none", 2, 100.0), cell("pard:4", 2, 250.0, shares=FOUR))
    assert sentence == (
        "pard pays at K=4, 2 at a time: 2.50x plain decoding (a step takes 1.60 times a plain one and yields 4.00 "
        "tokens)"
    )


def test_one_concurrency_helps_another() -> None:
    at_1, at_16 = sentences(
        *(cell("none", 1, 100.0), cell("none", 16, 1600.0)),
        *(cell("pard:4", 1, 250.0, shares=FOUR), cell("pard:4", 16, 800.0, shares=FOUR)),
    )
    assert at_1.startswith("pard pays at K=4, 1 at a time: 2.50x")
    assert at_16.startswith("pard does not pay at K=4, 16 at a time: 0.50x")


def test_another_k_of_the_same_method_helps() -> None:
    plain, two = cell("none", 1, 100.0), cell("pard:2", 1, 200.0, shares=FOUR[:2])
    _, four = sentences(plain, two, cell("pard:4", 1, 150.0, shares=FOUR))
    assert four.endswith("; K=2 gains more, 2.00x")
    _, other = sentences(plain, two, cell("ngram:4", 1, 150.0, shares=FOUR))
    assert "2.00x" not in other
    _, of_other_draft = sentences(plain, two, cell("pard=a/draft:4", 1, 150.0, shares=FOUR))
    assert of_other_draft.startswith("pard=a/draft pays at K=4")
    assert "2.00x" not in of_other_draft


def test_of_two_with_the_same_k_each_is_judged_by_its_own_speed() -> None:
    first, second = sentences(
        cell("none", 1, 100.0), cell("pard:4", 1, 250.0, shares=FOUR), cell("pard:04", 1, 300.0, shares=FOUR)
    )
    assert "2.50x" in first
    assert "3.00x" in second


def test_what_was_not_measured_is_not_judged() -> None:
    plain, pard = cell("none", 1, 100.0), cell("pard:4", 1, 250.0, shares=FOUR)
    assert sentences(pard, plain) == []  # the baseline drafts
    assert sentences(plain, cell("pard:4", 1)) == []
    assert sentences(cell("none", 1), pard) == []
    assert len(sentences(plain, pard, cell("none", 2, 100.0), cell("pard:4", 2))) == 1


def test_noisy_runs_make_no_claim() -> None:
    pard = [104.0, 110.0, 116.0]
    assert noise([100.0], [110.0]) == NOISE
    assert noise([90.0, 100.0, 110.0], [100.0]) == pytest.approx(2 * 1.25 * 10 / 3**0.5 / 100)
    (steady,) = sentences(cell("none", 1, 100.0, 100.0, 100.0), cell("pard:4", 1, *[110.0] * 3, shares=FOUR))
    (noisy,) = sentences(cell("none", 1, 85.0, 100.0, 115.0), cell("pard:4", 1, *pard, shares=FOUR))
    assert steady.startswith("pard pays at K=4")
    assert noisy.startswith(
        "speeds differ too much from run to run to tell whether pard pays at K=4, 1 at a time: 1.10x"
    )


def test_effective_cost_of_a_step() -> None:
    assert step_ms(200.0, 4.0, 2) == 40.0  # 2 requests x 4 tokens in 40 ms: 200 tokens/s


def test_record() -> None:
    plain, pard = cell("none", 1, 100.0), cell("pard:4", 1, 250.0, shares=FOUR)
    ((found, verdict),) = verdicts(
        [contender("none"), contender("pard:4")], {("none", 1): plain, ("pard:4", 1): pard}
    )  # fmt: skip
    record = as_record(found, verdict)
    assert (record["method"], record["concurrency"], record["outcome"]) == ("pard:4", 1, "pays")
    assert record["speed_up"] == pytest.approx(2.5)
    assert record["best"]["num_speculative_tokens"] == 4
