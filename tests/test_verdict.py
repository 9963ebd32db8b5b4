"""Does drafting pay: made-up cases whose answer is known."""

from typing import Any

import pytest

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.verdict import StepCosts, judge, standard_error


def stats(*shares: float, num_drafts: int = 10_000) -> AcceptanceStats:
    """Of drafts whose token i is accepted in this share of them."""
    accepted = tuple(round(share * num_drafts) for share in shares)
    return AcceptanceStats(
        num_drafts=num_drafts,
        num_draft_tokens=len(shares) * num_drafts,
        num_accepted_tokens=sum(accepted),
        accepted_per_position=accepted,
    )


def costs(batch_size: int, plain_ms: float, step_ms: float, draft_ms: float | None = None) -> StepCosts:
    return StepCosts(batch_size=batch_size, plain_ms=plain_ms, step_ms={4: step_ms}, draft_ms=draft_ms)


GOOD = stats(0.9, 0.8, 0.7, 0.6)  # 4 tokens a step
POOR = stats(0.1, 0.01, 0.0, 0.0)  # 1.11


def test_pays() -> None:
    verdict = judge(GOOD, [costs(1, 10.0, 16.0)], num_speculative_tokens=4, batch_size=1)
    assert verdict.outcome == "pays"
    assert verdict.speed_up == pytest.approx(2.5)
    assert verdict.sentence == (
        "PARD pays at K=4, 1 at a time: 2.50x plain decoding (a step takes 1.60 times a plain one and yields 4.00 "
        "tokens)"
    )
    assert verdict.best is not None
    assert (verdict.best.num_speculative_tokens, verdict.best.is_measured) == (4, True)


def test_loses_at_16_and_pays_at_1() -> None:
    measured = [costs(1, 10.0, 16.0, 4.0), costs(16, 12.0, 60.0, 30.0)]
    verdict = judge(GOOD, measured, num_speculative_tokens=4, batch_size=16)
    assert verdict.outcome == "does not pay"
    assert verdict.sentence.startswith(
        "PARD does not pay at K=4, 16 at a time: 0.80x plain decoding (a step takes 5.00"
    )
    assert verdict.sentence.endswith("; no smaller K would, either, but K=4 pays at 1 at a time, 2.50x")
    assert verdict.best is None


def test_loses_everywhere() -> None:
    measured = [costs(1, 10.0, 16.0, 4.0), costs(16, 12.0, 60.0, 30.0)]
    for batch_size in (1, 16):
        verdict = judge(POOR, measured, num_speculative_tokens=4, batch_size=batch_size)
        assert verdict.outcome == "does not pay"
        assert verdict.sentence.endswith("; no smaller K would, either: decode without drafts")


@pytest.mark.parametrize("num_drafts", [4, 40])
def test_too_few_drafts_to_tell(num_drafts: int) -> None:
    few = stats(0.5, 0.5, 0.5, 0.5, num_drafts=num_drafts)
    verdict = judge(few, [costs(1, 10.0, 28.0)], num_speculative_tokens=4, batch_size=1)
    assert verdict.outcome == "unknown"
    assert verdict.sentence.startswith("too few drafts to tell whether PARD pays at K=4, 1 at a time: 3.00 ± ")
    assert verdict.sentence.endswith(f" tokens a step over {num_drafts} drafts, and it pays from 2.80 on")


def test_hardly_any_draft() -> None:
    for counted in (AcceptanceStats(), AcceptanceStats(num_drafts=1, num_draft_tokens=4)):
        verdict = judge(counted, [costs(1, 10.0, 12.0)], num_speculative_tokens=4, batch_size=1, name="suffix")
        assert verdict.sentence == (
            f"too few drafts to tell whether suffix pays at K=4, 1 at a time: {counted.num_drafts}"
        )


def test_a_wide_margin_needs_few_drafts_but_not_none() -> None:
    for num_drafts, outcome in ((20, "pays"), (10, "unknown")):
        few = stats(0.9, 0.9, 0.9, 0.9, num_drafts=num_drafts)
        assert judge(few, [costs(1, 10.0, 16.0)], num_speculative_tokens=4, batch_size=1).outcome == outcome


def test_no_difference() -> None:
    verdict = judge(GOOD, [costs(1, 10.0, 39.8, 5.0)], num_speculative_tokens=4, batch_size=1, name="ngram")
    assert verdict.outcome == "makes no difference"
    assert verdict.sentence.startswith("ngram makes no difference at K=4, 1 at a time: 1.01x")


def test_noisy_speeds_are_no_claim() -> None:
    verdicts = {
        noise: judge(
            GOOD,
            [StepCosts(batch_size=1, plain_ms=10.0, step_ms={4: 34.0}, noise=noise)],
            num_speculative_tokens=4,
            batch_size=1,
        )
        for noise in (0.03, 0.1, 0.2, 0.3)
    }
    assert [verdict.outcome for verdict in verdicts.values()] == ["pays", "pays", "unknown", "unknown"]
    assert verdicts[0.3].sentence == (
        "speeds differ too much from run to run to tell whether PARD pays at K=4, 1 at a time: 1.18x plain decoding "
        "± 30%"
    )


@pytest.mark.parametrize(
    ("other", "advice"),
    [
        ({"step_ms": {2: 16.0, 4: 40.0}}, "; K=2 gains more, 1.69x"),
        ({"step_ms": {4: 40.0}, "draft_ms": 0.1}, "; K=1 would gain more, 1.08x"),
        ({"step_ms": {1: 10.5, 4: 60.0}}, "; K=1 gains more, 1.81x"),
        ({"step_ms": {4: 40.0}}, "; K=1 might gain more, 1.09x at the very best: measure it"),
    ],
    ids=["measured", "known draft", "lowest", "bound"],
)
def test_another_k(other: dict[str, Any], advice: str) -> None:
    costs_here = StepCosts(batch_size=1, plain_ms=10.0, **other)
    verdict = judge(GOOD, [costs_here], num_speculative_tokens=4, batch_size=1)
    assert verdict.sentence.endswith(advice)
    assert (verdict.best is None) == ("might" in advice), "what is only hoped for is not recommended"


def test_between_two_measured_k_costs_are_interpolated() -> None:
    found = StepCosts(batch_size=1, plain_ms=10.0, step_ms={2: 14.0, 6: 22.0})
    assert found.at(4) == (18.0, False)
    assert found.at(6) == (22.0, False)
    assert found.at(7) is None
    assert found.at(1) == (12.0, True)
    known = StepCosts(batch_size=1, plain_ms=10.0, step_ms={2: 14.0}, draft_ms=3.0)
    assert known.at(1) == (13.5, False)


def test_standard_error_is_that_of_the_lengths() -> None:
    lengths = [0] * 5 + [1] * 3 + [2] * 2
    of_lengths = stats(0.5, 0.2, num_drafts=10)
    mean = sum(lengths) / 10
    variance = sum((length - mean) ** 2 for length in lengths) / 10
    assert standard_error(of_lengths) == pytest.approx((variance / 10) ** 0.5)
    assert standard_error(AcceptanceStats()) == float("inf")
