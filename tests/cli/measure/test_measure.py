"""`vllm-pard doctor --measure` on engines that are not vLLM's: what is measured, said and recommended."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vllm_pard.cli.engine.client import EngineProcess
from vllm_pard.cli.measure.measure import PROMPTS, Measured, MeasureError, Pair, measure, recommended
from vllm_pard.cli.measure.report import default_prompts, findings
from vllm_pard.demo import demo_path
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.prompts import Prompt
from vllm_pard.verdict import StepCosts, judge

Run = Callable[..., Any]
PAIR = Pair(
    target="fine",
    draft="the-draft",
    mask_token_id=9,
    mode="auto",
    num_speculative_tokens=8,
    prompts=[Prompt(id="1", text="one"), Prompt(id="2", text="two")],
    batch_sizes=[1, 4],
    options={"dtype": "float32"},
)
GOOD = AcceptanceStats(
    num_drafts=1000, num_draft_tokens=4000, num_accepted_tokens=3000, accepted_per_position=(900, 800, 700, 600)
)


def measured(*costs: StepCosts, stats: AcceptanceStats = GOOD) -> Measured:
    verdicts = [judge(stats, costs, num_speculative_tokens=4, batch_size=cost.batch_size) for cost in costs]
    return Measured(stats=stats, costs=list(costs), verdicts=verdicts, about={})


def costs(batch_size: int, **step_ms: float) -> StepCosts:
    return StepCosts(
        batch_size=batch_size, plain_ms=10.0, step_ms={int(key.removeprefix("k")): ms for key, ms in step_ms.items()}
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, fake_engine: None) -> list[dict[str, Any]]:
    """The options of every engine, of which there is never more than one."""
    running, options_of_each = [], []

    class Recording(EngineProcess):
        def __init__(self, options: dict[str, Any], **kwargs: Any) -> None:
            assert not any(engine.exit_code is None for engine in running)
            running.append(self)
            options_of_each.append(options)
            super().__init__(options, **kwargs)

    monkeypatch.setattr("vllm_pard.cli.measure.measure.EngineProcess", Recording)
    return options_of_each


SHARED = {"dtype": "float32", "max_num_seqs": 4, "enable_prefix_caching": False}
DRAFT = {"method": "pard", "model": "the-draft", "mask_token_id": 9, "mode": "auto"}


def test_three_engines_where_the_drafts_part_is_not_known(asked: list[Any], capsys: Any) -> None:
    found = measure(PAIR)
    assert asked == [
        SHARED | {"model": "fine"},
        SHARED | {"model": "fine", "speculative_config": DRAFT | {"num_speculative_tokens": 8}},
        SHARED | {"model": "fine", "speculative_config": DRAFT | {"num_speculative_tokens": 2}},
    ]
    assert found.costs == [
        StepCosts(batch_size=1, plain_ms=10.0, step_ms={2: 12.0, 8: 18.0}),
        StepCosts(batch_size=4, plain_ms=10.0, step_ms={2: 18.0, 8: 42.0}),
    ]
    assert found.stats.num_drafts == 8, "of the engine with the largest K, at both batch sizes"
    assert "starting vLLM without drafts\n" in capsys.readouterr().err


def test_two_engines_where_it_is_known_or_needless(asked: list[Any]) -> None:
    assert measure(replace(PAIR, target="tells-all")).costs == [
        StepCosts(batch_size=1, plain_ms=10.0, step_ms={8: 18.0}, draft_ms=5.0),
        StepCosts(batch_size=4, plain_ms=10.0, step_ms={8: 42.0}, draft_ms=5.0),
    ]
    measure(replace(PAIR, num_speculative_tokens=1))
    assert len(asked) == 4


@pytest.mark.usefixtures("fake_engine")
def test_what_cannot_be_measured() -> None:
    with pytest.raises(MeasureError, match="the answers end too early to measure 4 requests at a time"):
        measure(replace(PAIR, target="short-answers"))
    with pytest.raises(
        MeasureError, match="the prompt '0-1' was refused: the prompt is too long; give other --prompts"
    ):
        measure(replace(PAIR, prompts=[Prompt(id="1", text="too long")]))


def test_says_all_that_it_found() -> None:
    shown = list(findings(measured(costs(1, k1=12.0, k4=16.0), costs(16, k1=70.0, k4=90.0)), can_schedule=True))
    assert [(finding.subject, finding.status) for finding in shown] == [
        ("acceptance", "ok"),
        ("step costs", "ok"),
        ("step costs", "ok"),
        ("verdict", "ok"),
        ("verdict", "note"),
        ("take", "ok"),
    ]
    assert shown[0].text == "4.00 tokens a step over 1000 drafts, by position 0.90 0.80 0.70 0.60"
    assert shown[1].text == "1 at a time: 10.00 ms plain, 12.00 ms with K=1, 16.00 ms with K=4"
    assert shown[4].text.startswith("PARD does not pay at K=4, 16 at a time")
    assert shown[5].text == (
        '--speculative-config \'{"method": "pard", "num_speculative_tokens": 4, '
        '"num_speculative_tokens_per_batch_size": [[1, 1, 4], [2, 16, 0]]}\''
    )


def test_recommends_what_the_runner_serves() -> None:
    pays, loses = costs(1, k1=12.0, k4=16.0), costs(16, k1=70.0, k4=90.0)
    assert recommended(measured(pays, loses), can_schedule=False) == {"method": "pard", "num_speculative_tokens": 4}
    assert recommended(measured(pays), can_schedule=True) == {"method": "pard", "num_speculative_tokens": 4}
    assert recommended(measured(loses), can_schedule=True) is None
    (*_, take) = findings(measured(loses), can_schedule=True)
    assert take.text == "no draft: at no measured batch size does this one pay, with any K"


def test_prompts_for_the_demo_and_for_others(tiny_pair: Any) -> None:
    from vllm_pard.checkpoint import load_config

    target = str(demo_path("target"))
    own = default_prompts(target, load_config(target))
    assert own[0].text is not None
    assert own[0].text.startswith("Question: ")
    everyday = default_prompts(str(tiny_pair[0]), load_config(str(tiny_pair[0])))
    assert [prompt.messages for prompt in everyday] == [[{"role": "user", "content": text}] for text in PROMPTS]


def test_needs_a_target(run: Run) -> None:
    result = run("doctor", "--measure")
    assert result.exit_code == 2
    assert "--measure needs a target" in result.stderr
    assert "--batch-sizes must be numbers" in run("doctor", "demo", "--measure", "--batch-sizes", "1,x").stderr


@pytest.fixture
def sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without problems, of which the doctor says nothing."""
    from vllm_pard.cli import doctor

    for check in ("check_versions", "check_engine", "check_plugin", "check_demo"):
        monkeypatch.setattr(doctor, check, lambda: [])


@pytest.mark.usefixtures("fake_engine", "sound")
def test_doctor_measures_when_asked(run: Run, tiny_pair: Any, tmp_path: Any) -> None:
    target, draft = tiny_pair
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    arguments = ("doctor", target, draft, "--measure", "--prompts", prompts, "--batch-sizes", "2,1", "--json")
    result = run(*arguments, "--num-speculative-tokens", 4)
    assert result.exit_code == 0, result.output
    found = [finding for finding in json.loads(result.stdout) if finding["subject"] in ("step costs", "verdict")]
    assert [finding["text"][:48] for finding in found] == [
        "1 at a time: 10.00 ms plain, 11.00 ms with K=1, ",
        "2 at a time: 10.00 ms plain, 12.00 ms with K=1, ",
        "too few drafts to tell whether PARD pays at K=4,",
        "too few drafts to tell whether PARD pays at K=4,",
    ]


@pytest.mark.usefixtures("fake_engine", "sound")
def test_doctor_does_not_judge_unasked(run: Run, tiny_pair: Any) -> None:
    target, draft = map(str, tiny_pair)
    (said,) = [f for f in json.loads(run("doctor", target, draft, "--json").stdout) if f["subject"] == "speed"]
    assert said["status"] == "note"
    assert said["text"].startswith(f"not judged: vllm-pard doctor {target} {draft} --measure tells")
