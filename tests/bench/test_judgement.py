"""Rounding or an error: made-up differences, and the sentences that judge them."""

import pytest

from vllm_pard.bench.judgement import TOLERANCES, Judgement, tolerance_of
from vllm_pard.bench.verify import Divergence, Verification


def parts(*gaps: float | None, label: str = "pard", concurrency: int = 4) -> Verification:
    """Of four outputs, one parts with each gap."""
    divergences = [
        Divergence(request=f"r{number}", position=7 + number, expected=23, got=42, gap=gap)
        for number, gap in enumerate(gaps)
    ]
    return Verification(label=label, concurrency=concurrency, num_requests=4, divergences=divergences)


def judged(*gaps: float | None, control: Verification | None = None, dtype: str = "bfloat16") -> Judgement:
    return Judgement(verification=parts(*gaps), control=control, dtype=dtype)


def itself(*gaps: float | None) -> Verification:
    return parts(*gaps, label="none", concurrency=1)


def test_equal() -> None:
    judgement = judged(control=itself(0.1))
    assert (judgement.outcome, judgement.in_words) == ("equal", "all 4 outputs equal")


def test_near_ties_as_plain_decoding_has_them() -> None:
    judgement = judged(0.05, 0.12, control=itself(0.1))
    assert judgement.outcome == "near-ties"
    assert judgement.in_words == (
        "2 of 4 outputs equal; the others part at near-ties (gaps up to 0.12 nats; rounding in bfloat16 explains "
        "0.25), as plain decoding parts from itself at 1 at a time (1 of 4, up to 0.1 nats): harmless"
    )


@pytest.mark.parametrize(
    ("gaps", "control", "words"),
    [
        ((0.12,), itself(), "3 of 4 outputs equal; the other parts at a near-tie (a gap of 0.12 nats; rounding in "),
        ((0.12,), itself(), " explains 0.25), while plain decoding equals itself at 1 at a time: harmless"),
        ((0.1, 0.1, 0.1, 0.1), None, "0 of 4 outputs equal; all part at near-ties (gaps up to 0.1 nats; rounding in "),
        ((0.1,), None, " explains 0.25): harmless"),
        ((0.1,), itself(None), ", as plain decoding parts from itself at 1 at a time (1 of 4): harmless"),
    ],
)
def test_near_ties_in_words(gaps: tuple[float, ...], control: Verification | None, words: str) -> None:
    assert words in judged(*gaps, control=control).in_words


def test_the_larger_of_tolerance_and_control_is_allowed() -> None:
    assert judged(0.4).outcome == "different"
    assert judged(0.4, control=itself(0.3)).outcome == "different"
    assert judged(0.4, control=itself(0.1, 0.4)).outcome == "near-ties"
    assert judged(0.2, control=itself(0.1)).outcome == "near-ties"
    assert judged(0.2, control=itself(0.1)).allowed_gap == 0.25


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
def test_tolerances(dtype: str, tolerance: float) -> None:
    assert judged(tolerance, dtype=dtype).outcome == "near-ties"
    assert judged(1.01 * tolerance, dtype=dtype).outcome == "different"


def test_an_unknown_dtype_gets_no_more_than_float32() -> None:
    assert tolerance_of("float64") == TOLERANCES["float32"]


def test_a_real_difference_is_named() -> None:
    judgement = judged(0.1, 0.5, 2.0, control=itself(0.1))
    assert judgement.outcome == "different"
    assert judgement.in_words == (
        "1 of 4 outputs equal; DIFFERENT: request 'r2' at position 9 has 42 instead of 23, by plain decoding 2 nats "
        "less likely (rounding explains 0.25), and 1 more. Please report this, with the file that --json writes"
    )


@pytest.mark.parametrize(
    ("expected", "got", "words"),
    [
        (23, 42, "has 42 instead of 23, and is not among plain decoding's 10 likeliest there."),
        (23, None, "request 'a' at position 3 ends without an end token, where plain decoding goes on with 23."),
        (None, 42, "request 'a' at position 3 goes on with 42, where plain decoding was cut off."),
    ],
)
def test_a_difference_without_a_gap_is_real(expected: int | None, got: int | None, words: str) -> None:
    divergence = Divergence(request="a", position=3, expected=expected, got=got, gap=None)
    verification = Verification(label="pard", concurrency=1, num_requests=1, divergences=[divergence])
    judgement = Judgement(verification=verification, control=itself(9.0), dtype="bfloat16")
    assert judgement.outcome == "different"
    assert words in judgement.in_words


def test_a_record_holds_the_control() -> None:
    record = judged(0.12, control=itself(0.1)).as_record()
    assert (record["label"], record["num_equal"], record["judgement"]) == ("pard", 3, "near-ties")
    assert (record["tolerance"], record["allowed_gap"]) == (0.25, 0.25)
    assert (record["control"]["concurrency"], record["control"]["divergences"][0]["gap"]) == (1, 0.1)
    assert judged().as_record()["control"] is None
