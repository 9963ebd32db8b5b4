"""What is wrong with a command is said before an engine starts; and in which mode a draft is run."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_pard.cli.evaluation.question import Models, Question, find_models

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_pard.cli.evaluation import measure

    def fail(*_: Any) -> None:
        raise AssertionError("the mistake was not found")

    monkeypatch.setattr(measure, "measure", fail)


@pytest.fixture
def refused(run: Run, tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The sentence that `vllm-pard evaluate` ends with, and nothing else."""
    monkeypatch.chdir(tmp_path)

    def refused(*options: object, target: object = tiny_pair[0], draft: object = tiny_pair[1]) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = run("evaluate", target, draft, *options)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
        assert sorted(tmp_path.rglob("*")) == before
        return str(result.stderr)

    return refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompts", "gsm9k"], "there is no prompt set 'gsm9k'; did you mean 'gsm8k'?"),
        (["--prompts", "none.txt"], "can't read the prompt file 'none.txt'"),
        (["--prompts", "demo", "--prompts", "demo"], "every task needs a name of its own; 'demo' is given twice"),
        (["--k", "1,x"], "--k must be numbers from 1 on, such as 1,4,16; got '1,x'"),
        (["--k", "0"], "--k must be numbers from 1 on"),
        (["--k", ""], "--k must be numbers from 1 on"),
        (["--k", "3,128"], '"num_speculative_tokens" must be an integer from 1 to 127; got 128'),
        (["--mode", "dependent"], "dependent mode is not possible: the draft"),
        (["--mode", "both"], "dependent mode is not possible: the draft"),
        (["--dtype", "float23"], "--dtype must be auto, float32, bfloat16 or float16; got 'float23'"),
        (["--output", "x.txt"], "--output needs a .json file; got 'x.txt'"),
        (["--output", "missing/x.json"], "can't write 'missing/x.json': it needs a folder that exists"),
        (["--plot", "x.pdf"], "--plot needs a .png file; got 'x.pdf'"),
        (["--plot", "missing/x.png"], "can't write 'missing/x.png': it needs a folder that exists"),
        (["--engine-args", "{bad"], "--engine-args is not valid JSON"),
        (["--engine-args", '{"model": "x"}'], "'model' does not go into --engine-args; give it as TARGET"),
        (["--engine-args", '{"dtype": "half"}'], "'dtype' does not go into --engine-args; give it as --dtype"),
        (["--engine-args", '{"speculative_config": {}}'], "'speculative_config' does not go into --engine-args"),
        (["--engine-args", '{"revision": "x"}'], "'revision' can't be among --engine-args"),
        (["--engine", "reference", "--engine-args", '{"a": 1}'], "--engine-args are for vLLM"),
    ],
)
def test_mistakes(options: list[str], message: str, refused: Run) -> None:
    assert refused(*options).startswith(f"vllm-pard: {message}")


def test_models_that_are_not_there(refused: Run, tiny_pair: tuple[Path, Path]) -> None:
    assert "there is no model folder './missing'" in refused(target="./missing")
    assert "there is no model folder './missing'" in refused(draft="./missing")
    assert "needs a mask token" in refused(draft=tiny_pair[0])


def test_a_picture_needs_matplotlib(refused: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "plots need matplotlib: pip install 'vllm-pard[bench]'" in refused("--plot", "x.png")


def test_files_of_one_name(refused: Run, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "task.txt").write_text("one\n")
    assert "'task.txt' is given twice" in refused("--prompts", "a/task.txt", "--prompts", "b/task.txt")


def test_dependent_with_a_target_of_another_shape(refused: Run, pard2_draft: Path, tmp_path: Path) -> None:
    folder = tmp_path / "draft"
    shutil.copytree(pard2_draft, folder)
    config = json.loads((folder / "config.json").read_text()) | {"pard2_target_dim": 64}
    (folder / "config.json").write_text(json.dumps(config))
    told = refused("--mode", "dependent", draft=folder)
    assert "takes features of a target with hidden size 32, and" in told
    assert "has 128; use independent mode, or another draft" in told


def test_a_draft_with_another_tokenizer(refused: Run, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    from tiny_models import save_tokenizer

    draft = tmp_path / "draft"
    shutil.copytree(tiny_pair[1], draft)
    save_tokenizer(draft, rename={5: "five"})
    assert "token 5 is" in refused(draft=draft)


@pytest.fixture
def question(tiny_pair: tuple[Path, Path], pard2_draft: Path) -> Question:
    return Question(
        target=str(tiny_pair[0]),
        draft=str(pard2_draft),
        tasks=("demo",),
        num_prompts=None,
        lengths=None,
        mode="auto",
        reference=False,
        options={},
        dtype="auto",
        max_tokens=8,
        seed=0,
        verbose=False,
    )


@pytest.mark.parametrize(
    ("mode", "modes"),
    [
        ("auto", ("dependent",)),
        ("dependent", ("dependent",)),
        ("independent", ("independent",)),
        ("both", ("dependent", "independent")),
    ],
)
def test_modes_of_a_pard2_draft(mode: Any, modes: tuple[str, ...], question: Question) -> None:
    models = find_models(replace(question, mode=mode))
    assert models.modes == modes
    assert (models.target_proj is None) == (mode == "independent")
    assert models.lengths == (4,), "what it was trained for"


def test_a_target_of_another_name(question: Question, target_named: Callable[[str], Path]) -> None:
    other = replace(question, target=str(target_named("other")))

    def found(mode: Any) -> Models:
        return find_models(replace(other, mode=mode))

    assert found("auto").modes == ("independent",)
    assert f"takes features of 'org/target', and the target is {other.target!r}" in str(found("auto").drafting.reason)
    assert found("both").modes == ("dependent", "independent")


def test_a_pard_draft_is_independent(question: Question, tiny_pair: tuple[Path, Path]) -> None:
    for mode in ("auto", "independent"):
        models = find_models(replace(question, draft=str(tiny_pair[1]), mode=mode, lengths=(5, 2)))
        assert (models.modes, models.max_length) == (("independent",), 5)
