"""What is printed, written and drawn of an evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.bench.plots import data_of
from vllm_pard.cli.evaluation.measure import Evaluation
from vllm_pard.cli.evaluation.report import picture, show

CONDITIONS: dict[str, Any] = {
    "target": "org/target",
    "draft": "org/draft",
    "engine": "vllm",
    "modes": ["independent"],
    "decoded_mode": "independent",
    "mode_reason": None,
    "weight_dtype": "bfloat16",
    "tasks": [{"name": "gsm8k", "num_prompts": 9}, {"name": "code", "num_prompts": 9}],
}


def row(task: str, k: int, shares: list[float], mode: str = "independent", **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "mode": mode,
        "num_speculative_tokens": k,
        "acceptance_length": 1 + sum(shares),
        "acceptance_by_position": shares,
        "num_drafts": 10,
        **more,
    }


@pytest.fixture
def evaluation() -> Evaluation:
    rows = [
        row("gsm8k", 1, [0.75]),
        row("gsm8k", 3, [0.75, 0.5, 0.25], decoded={}, decoded_acceptance_length=2.625),
        row("code", 1, [0.5]),
        row("code", 3, [0.5, 0.5, 0.125], decoded={}, decoded_acceptance_length=2.25),
    ]
    return Evaluation(CONDITIONS, rows, {})


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str]) -> Callable[[Evaluation], list[str]]:
    """The lines on stdout."""

    def shown(evaluation: Evaluation) -> list[str]:
        show(evaluation, None, None)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return shown


def test_table(evaluation: Evaluation, shown: Callable[[Evaluation], list[str]]) -> None:
    head, _, *lines = shown(evaluation)
    assert head.split() == ["task", "K", "length", "decoded", "1", "2", "3"]
    assert [line.split() for line in lines[:4]] == [
        ["gsm8k", "1", "1.75", "75%"],
        ["gsm8k", "3", "2.50", "2.62", "75%", "50%", "25%"],
        ["code", "1", "1.50", "50%"],
        ["code", "3", "2.12", "2.25", "50%", "50%", "12%"],
    ]
    assert lines[4:] == [
        "length: tokens per step, the bonus token counted; 1, 2, ...: drafts accepted up to this token",
        "decoded: as the engine counts, with drafts beyond the end of an answer",
    ]


def test_modes_and_why(evaluation: Evaluation, shown: Callable[[Evaluation], list[str]]) -> None:
    rows = [row("gsm8k", 2, [0.75, 0.5], "dependent"), row("gsm8k", 2, [0.5, 0.25])]
    conditions = CONDITIONS | {"modes": ["dependent", "independent"], "mode_reason": "the draft takes features of 'x'"}
    lines = shown(Evaluation(conditions, rows, {}))
    assert lines[0].split() == ["task", "mode", "K", "length", "1", "2"]
    assert lines[2].split() == ["gsm8k", "dependent", "2", "2.25", "75%", "50%"]
    assert lines[3].split() == ["gsm8k", "independent", "2", "1.75", "50%", "25%"]
    assert lines[-2:] == [
        "mode: dependent and independent; the draft takes features of 'x'",
        "vLLM decodes independent; dependent mode is replayed on its answers",
    ]
    of_reference = conditions | {"engine": "reference", "decoded_mode": "dependent"}
    assert shown(Evaluation(of_reference, rows, {}))[-1] == (
        "the reference engine decodes dependent; independent mode is replayed on its answers"
    )


def test_refused_prompts(evaluation: Evaluation, shown: Callable[[Evaluation], list[str]]) -> None:
    refused = {"gsm8k": {"a": "too [long]", "b": "no"}, "code": {"c": "no room"}}
    assert shown(Evaluation(CONDITIONS, evaluation.rows, refused))[-2:] == [
        "2 of 9 prompts of gsm8k refused; a: too [long]",
        "1 of 9 prompts of code refused; c: no room",
    ]


def test_more_positions_than_fit(shown: Callable[[Evaluation], list[str]]) -> None:
    head, _, line, *_ = shown(Evaluation(CONDITIONS, [row("gsm8k", 12, [0.5] * 12)], {}))
    assert head.split()[3:] == [str(place) for place in range(1, 9)]
    assert line.split() == ["gsm8k", "12", "7.00", *["50%"] * 8]


def test_a_task_without_drafts(evaluation: Evaluation, shown: Callable[[Evaluation], list[str]]) -> None:
    lines = shown(Evaluation(CONDITIONS, [*evaluation.rows, row("one", 3, [0, 0, 0], num_drafts=0)], {}))
    assert lines[6].split() == ["one", "3", "-"]
    assert lines[-1] == "-: no drafts, since every answer is a single token"


def test_files(evaluation: Evaluation, tmp_path: Path) -> None:
    output, plot = tmp_path / "out.json", tmp_path / "out.png"
    show(evaluation, output, plot)
    assert json.loads(output.read_text()) == {"conditions": CONDITIONS, "rows": evaluation.rows, "refused": {}}
    drawn = data_of(plot)
    assert drawn is not None
    assert drawn["series"] == {
        "gsm8k": [[1, 0.75, ""], [2, 0.5, ""], [3, 0.25, ""]],
        "code": [[1, 0.5, ""], [2, 0.5, ""], [3, 0.125, ""]],
    }
    assert drawn["title"] == "org/target, draft org/draft, K = 3, bfloat16, greedy"


def test_a_picture_of_both_modes() -> None:
    rows = [row("gsm8k", 2, [0.75, 0.5], "dependent"), row("gsm8k", 2, [0.5, 0.25])]
    assert set(picture(Evaluation(CONDITIONS, rows, {})).series) == {"gsm8k, dependent", "gsm8k, independent"}
