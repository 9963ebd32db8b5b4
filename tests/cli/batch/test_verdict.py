"""`generate` says whether drafting pays: while it runs where it does not, and in the end."""

from collections.abc import Callable
from typing import Any

import pytest

from vllm_pard.cli.batch.verdict import BatchVerdict
from vllm_pard.cli.measure.measure import Pair
from vllm_pard.cli.measure.report import judge_pair
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt
from vllm_pard.verdict import StepCosts

Run = Callable[..., Any]
PROMPTS = ("--prompt", "a", "--prompt", "b", "--prompt", "c")
MEASURE = "vllm-pard doctor target --measure"
POOR = AcceptanceStats(
    num_drafts=400, num_draft_tokens=800, num_accepted_tokens=44, accepted_per_position=(40, 4)
)  # fmt: skip
FAIR = AcceptanceStats(
    num_drafts=400, num_draft_tokens=800, num_accepted_tokens=700, accepted_per_position=(380, 320)
)  # fmt: skip


def costs(batch_size: int, step_ms: float) -> dict[str, Any]:
    return {"batch_size": batch_size, "plain_ms": 10.0, "step_ms": step_ms, "draft_ms": 4.0}


@pytest.mark.usefixtures("fake_engine")
def test_a_run_that_loses_says_so_while_it_runs_and_in_the_end(run: Run) -> None:
    said = run("generate", "loses", "--draft", "d", *PROMPTS).stderr
    sentence = "PARD does not pay at K=2, 3 at a time: 0.37x plain decoding"
    assert said.count(sentence) == 2
    assert said.count("(so far, over 400 drafts; --no-pard decodes without)") == 1
    assert said.index("so far") < said.index("tokens in 0.2 s") < said.rindex(sentence)


@pytest.mark.usefixtures("fake_engine")
def test_without_costs_it_names_the_command_that_measures(run: Run) -> None:
    said = run("generate", "unmeasured", "--draft", "d", *PROMPTS).stderr
    assert "1.11 tokens a step hardly ever pay for a draft: decode without one" in said
    assert "; vllm-pard doctor unmeasured d --measure --batch-sizes 3 measures it, for later runs too" in said
    assert "whether 2.50 tokens a step pay" in run("generate", "fine", *PROMPTS).stderr
    assert "doctor" not in run("generate", "fine", "--no-pard", *PROMPTS).stderr


@pytest.mark.usefixtures("fake_engine")
def test_costs_that_the_doctor_found_serve_later_runs(run: Run) -> None:
    pair = Pair(
        target="unmeasured",
        draft="d",
        mask_token_id=9,
        mode="auto",
        num_speculative_tokens=2,
        prompts=[Prompt(id="1", text="one")],
        batch_sizes=[4],
        options={"dtype": "auto"},
    )
    assert [finding.subject for finding in judge_pair(pair, verbose=False)][-1] == "take"
    said = run("generate", "unmeasured", "--draft", "d", *PROMPTS).stderr
    assert "PARD does not pay at K=2, 4 at a time: 0.62x plain decoding" in said
    assert "doctor" not in said
    other_engine = ("--engine-args", '{"tensor_parallel_size": 2}')
    assert "doctor" in run("generate", "unmeasured", "--draft", "d", *PROMPTS, *other_engine).stderr
    assert "doctor" in run("generate", "unmeasured", "--draft", "another", *PROMPTS).stderr


def test_no_warning_where_it_pays_or_nobody_knows() -> None:
    verdict = BatchVerdict(2, MEASURE)
    assert verdict.warning(POOR, 1) is None
    verdict.add_costs(costs(1, 20.0))
    assert verdict.warning(FAIR, 1) is None
    few = AcceptanceStats(num_drafts=9, num_draft_tokens=18, num_accepted_tokens=1, accepted_per_position=(1, 0))
    assert verdict.warning(few, 1) is None
    assert verdict.warning(POOR, 1) is not None
    assert verdict.warning(POOR, 1) is None
    assert verdict.final(FAIR, 1).startswith("PARD pays at K=2, 1 at a time")


def test_the_largest_measured_batch_decides() -> None:
    verdict = BatchVerdict(2, MEASURE)
    verdict.add_costs(costs(8, 40.0))
    verdict.add_costs(costs(1, 15.0))
    assert verdict.final(FAIR, 1).startswith("PARD does not pay at K=2, 8 at a time: 0.69x")
    assert verdict.final(FAIR, 1).endswith("; no smaller K would, either, but K=2 pays at 1 at a time, 1.83x")


def test_known_costs_of_a_batch_like_this_one_decide_where_none_are_measured() -> None:
    known = [StepCosts(batch_size=size, plain_ms=10.0, step_ms={2: 15.0 + size}) for size in (1, 16)]
    verdict = BatchVerdict(2, MEASURE, known)
    assert verdict.final(FAIR, 20).startswith("PARD does not pay at K=2, 16 at a time: 0.89x")
    assert verdict.final(FAIR, 1).startswith("PARD pays at K=2, 1 at a time: 1.72x")
    assert verdict.final(FAIR, 4).endswith("--measure --batch-sizes 4 measures it, for later runs too")
    assert BatchVerdict(3, MEASURE, known).warning(POOR, 16) is None, "K=3 was not measured"
    verdict.add_costs(costs(16, 12.0))
    assert verdict.final(FAIR, 16).startswith("PARD pays at K=2, 16 at a time: 2.29x"), "what is measured now counts"
