import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vllm_pard.demo
from vllm_pard.cli.demo import TOY, demo_prompts, show_answers
from vllm_pard.cli.demo_report import Measurement, identical_in_words, median_speed, verdict
from vllm_pard.metrics import AcceptanceStats

Run = Callable[..., Any]


@pytest.fixture
def demo_model(monkeypatch: pytest.MonkeyPatch, fake_engine: None) -> Callable[[str], None]:
    """Make the demo target one of the fake engine's models."""

    def use(model: str) -> None:
        monkeypatch.setattr(
            vllm_pard.demo, "demo_path", lambda part: Path(model if part == "target" else f"the-{part}")
        )
        monkeypatch.setattr(
            vllm_pard.demo,
            "prompts",
            lambda split: [{"prompt": f"{split} {i}", "question": f"[{split}] {i}?"} for i in range(3)],
        )

    return use


def test_shows_the_answers_and_the_difference(run: Run, demo_model: Callable[[str], None], tmp_path: Path) -> None:
    demo_model("fine")
    path = tmp_path / "result.json"
    result = run("demo", "--prompts", 3, "--runs", 2, "--json", path)
    assert result.exit_code == 0, result.output
    shown = result.stdout
    assert TOY in " ".join(shown.split())
    assert shown.index(TOY.split(":")[0]) < shown.index("[word_problems] 0?")
    assert "vLLM: PARD: draft None, K=2" in shown  # the log line of the fake engine, which has no catalog
    assert shown.count("[word_problems] 0?\n<0><1><2>") == 2  # once by each engine
    assert shown.count("[word_problems] 0?") == 2
    assert shown.index("[word_problems] 0?") < shown.index("[code] 0?") < shown.index("[word_problems] 1?")
    for words in ("median of 2 runs", "4.00x", "2.50", "1.00 0.50", "yes"):
        assert words in shown
    report = json.loads(path.read_text())
    assert report["speed_up"] == 4
    assert report["outputs_identical"] is True
    assert shown.index("outputs identical") < shown.index(report["verdict"]["sentence"])
    assert report["acceptance_counts"]["num_accepted_tokens"] == 12
    assert report["conditions"]["options"]["num_speculative_tokens"] == 8
    assert report["conditions"]["engine"]["device"] == "fake"
    assert len(report["plain"]["runs"]) == len(report["pard"]["runs"]) == 2


def test_the_draft_that_reads_the_target(run: Run, demo_model: Callable[[str], None], tmp_path: Path) -> None:
    demo_model("fine")
    path = tmp_path / "result.json"
    result = run("demo", "--draft", "pard2", "--prompts", 1, "--json", path)
    assert result.exit_code == 0, result.output
    assert "vLLM: PARD: draft the-draft_pard2, K=2" in result.stdout
    assert "\nPARD-2\n" in result.stdout
    assert json.loads(path.read_text())["conditions"]["options"]["draft"] == "pard2"


def test_the_report_names_no_folder_of_this_machine(
    run: Run, demo_model: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo_model("fine")
    folders = {"target": Path("fine"), "draft_pard2": Path("/home/someone/demo/draft_pard2")}
    monkeypatch.setattr(vllm_pard.demo, "demo_path", folders.__getitem__)
    path = tmp_path / "result.json"
    assert run("demo", "--draft", "pard2", "--prompts", 1, "--json", path).exit_code == 0
    assert json.loads(path.read_text())["conditions"]["engine"]["draft"] == "demo/draft_pard2"


def test_says_so_when_outputs_differ(run: Run, demo_model: Callable[[str], None], tmp_path: Path) -> None:
    demo_model("differs")
    path = tmp_path / "result.json"
    result = run("demo", "--prompts", 2, "--batch-size", 2, "--json", path)
    assert result.stdout.count("[code] 0?\n<0><1><2>") == 2
    assert "out of turn" not in result.stdout  # several at a time can't be shown while they grow
    assert "no: 2 of 2 differ" in result.stdout
    assert "In float32 outputs should be equal. How close" in result.stdout
    assert "vllm-pard bench --dtype float32 --verify" in result.stdout
    assert json.loads(path.read_text())["outputs_identical"] is False


def test_differences_in_bfloat16(run: Run, demo_model: Callable[[str], None]) -> None:
    demo_model("differs")
    result = run("demo", "--prompts", 2, "--dtype", "bfloat16")
    assert "no: 2 of 2 differ" in result.stdout
    assert "In bfloat16 near-ties may fall either way" in result.stdout
    assert "--dtype float32 shows whether outputs are equal without that rounding" in result.stdout
    assert "vllm-pard bench --dtype bfloat16 --verify" in result.stdout


@pytest.mark.parametrize(
    ("num_accepted", "seconds", "sentence"),
    [
        (60, 0.4, "PARD pays at K=2, 4 at a time: 2.50x plain decoding (a step takes 1.00 times a plain one and yiel"),
        (8, 2.0, "PARD does not pay at K=2, 4 at a time: 0.50x plain decoding (a step takes 2.40 times a plain one a"),
    ],
)
def test_ends_with_whether_it_pays(num_accepted: int, seconds: float, sentence: str) -> None:
    stats = AcceptanceStats(
        num_drafts=40, num_draft_tokens=80, num_accepted_tokens=num_accepted,
        accepted_per_position=(num_accepted // 2, num_accepted // 2),
    )  # fmt: skip
    pard = run_of(seconds, a=[0] * 100)
    pard.stats = stats
    found = verdict({"batch_size": 4, "num_speculative_tokens": 2}, [run_of(1, a=[0] * 100)], [pard])
    assert found.sentence.startswith(sentence)


def test_engine_failure_is_told_with_its_log(run: Run, demo_model: Callable[[str], None]) -> None:
    demo_model("crash-at-start")
    result = run("demo")
    assert result.exit_code == 2
    assert "the last words" in result.stderr


def test_unwritable_result_is_found_before_the_work(run: Run, tmp_path: Path) -> None:
    result = run("demo", "--json", tmp_path / "missing" / "result.json")
    assert result.exit_code == 2
    assert result.stderr.startswith("vllm-pard: can't write")


def test_installation_without_the_pair(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(part: str) -> Path:
        raise FileNotFoundError(f"the demo model {part!r} should be here; train it")

    monkeypatch.setattr(vllm_pard.demo, "demo_path", missing)
    result = run("demo")
    assert result.exit_code == 2
    assert result.stderr == "vllm-pard: the demo model 'target' should be here; train it\n"


def test_prompts_take_the_splits_in_turn(demo_model: Callable[[str], None]) -> None:
    demo_model("fine")
    assert [prompt["text"] for prompt in demo_prompts(3)] == ["word_problems 0", "code 0", "word_problems 1"]
    assert len({prompt["id"] for prompt in demo_prompts(100)}) == 6


def run_of(seconds: float, **outputs: list[int]) -> Measurement:
    return Measurement(num_tokens=sum(map(len, outputs.values())), seconds=seconds, outputs=outputs)


def test_every_run_is_compared_with_the_first_plain_one() -> None:
    plain = [run_of(1, a=[1, 2], b=[3]), run_of(1, a=[1, 2], b=[3])]
    assert identical_in_words(plain, [run_of(1, a=[1, 2], b=[3])]) == "yes"
    assert identical_in_words(plain, [run_of(1, a=[1, 2], b=[3]), run_of(1, a=[1], b=[3])]) == "no: 1 of 2 differ"
    assert identical_in_words(plain, [run_of(1, a=[1, 2])]) == "no: 1 of 2 differ"


def shown_answers(events: list[dict[str, Any]]) -> str:
    from rich.console import Console

    console = Console(highlight=False, width=80)
    with console.capture() as capture:
        show_answers(console, [{"id": "1", "question": "how?"}, {"id": "2", "question": "why?"}], iter(events))
    return capture.get()


def test_answers_that_stream_are_shown_once() -> None:
    text = [{"event": "text", "id": "1", "text": part} for part in ("a", "b")]
    events = [*text, {"event": "finished", "id": "1", "text": "ab"}, {"event": "done"}]
    assert shown_answers(events) == "\nhow?\nab\n"


def test_answers_that_do_not_stream_are_shown_when_they_finish() -> None:
    events = [{"event": "finished", "id": name, "text": f"[{name}]"} for name in ("2", "1")]
    assert shown_answers(events) == "\nwhy?\n[2]\n\nhow?\n[1]\n"


def test_speed_is_a_median() -> None:
    assert median_speed([run_of(1, a=[0] * 10), run_of(2, a=[0] * 10), run_of(100, a=[0] * 10)]) == 5
