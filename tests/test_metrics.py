from types import SimpleNamespace

from vllm_pard.metrics import AcceptanceStats

FIVE_DRAFTS = AcceptanceStats(
    num_drafts=5, num_draft_tokens=15, num_accepted_tokens=9, accepted_per_position=(4, 3, 2)
)  # fmt: skip


def counter(name: str, value: int) -> SimpleNamespace:
    return SimpleNamespace(name=f"vllm:spec_decode_{name}", labels={}, value=value)


def vector(name: str, values: list[int]) -> SimpleNamespace:
    return SimpleNamespace(name=f"vllm:spec_decode_{name}", labels={}, values=values)


VLLM_METRICS = [
    SimpleNamespace(name="vllm:num_requests_running", labels={}, value=3.0),
    counter("num_drafts", 5),
    counter("num_draft_tokens", 15),
    counter("num_accepted_tokens", 9),
    vector("num_accepted_tokens_per_pos", [4, 3, 2]),
]


def test_ratios() -> None:
    assert FIVE_DRAFTS.mean_acceptance_length == 1 + 9 / 5
    assert FIVE_DRAFTS.acceptance_rate == 9 / 15
    assert FIVE_DRAFTS.acceptance_by_position == (4 / 5, 3 / 5, 2 / 5)


def test_no_drafts_is_plain_decoding() -> None:
    stats = AcceptanceStats()
    assert stats.mean_acceptance_length == 1
    assert stats.acceptance_rate == 0
    assert stats.acceptance_by_position == ()


def test_one_draft() -> None:
    stats = AcceptanceStats.of_draft(num_draft_tokens=4, num_accepted_tokens=3)
    assert stats.accepted_per_position == (1, 1, 1, 0)
    assert (stats.num_drafts, stats.num_draft_tokens, stats.num_accepted_tokens) == (1, 4, 3)


def test_addition_adds_counts_not_means() -> None:
    both = FIVE_DRAFTS + AcceptanceStats.of_draft(num_draft_tokens=5, num_accepted_tokens=0)
    assert both.num_drafts == 6
    assert both.num_draft_tokens == 20
    assert both.mean_acceptance_length == 1 + 9 / 6
    assert both.accepted_per_position == (4, 3, 2, 0, 0)


def test_difference_of_snapshots() -> None:
    later = FIVE_DRAFTS + AcceptanceStats.of_draft(num_draft_tokens=3, num_accepted_tokens=2)
    assert later - FIVE_DRAFTS == AcceptanceStats.of_draft(num_draft_tokens=3, num_accepted_tokens=2)


def test_reads_vllm_counters_and_nothing_else() -> None:
    assert AcceptanceStats.from_vllm_metrics(VLLM_METRICS) == FIVE_DRAFTS


def test_adds_up_engines() -> None:
    assert AcceptanceStats.from_vllm_metrics(VLLM_METRICS * 2) == FIVE_DRAFTS + FIVE_DRAFTS


def test_vllm_without_speculation_has_no_counters() -> None:
    assert AcceptanceStats.from_vllm_metrics(VLLM_METRICS[:1]) == AcceptanceStats()
