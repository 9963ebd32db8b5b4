from pathlib import Path
from typing import Any

import pytest

from vllm_pard.cli.known_costs import cost_file, recall, remember
from vllm_pard.verdict import StepCosts

ABOUT = {"vllm": "0.33.0", "device": "H100", "dtype": "bfloat16", "num_threads": 8, "draft": "amd/draft", "torch": "2"}
COSTS = [
    StepCosts(batch_size=16, plain_ms=12.0, step_ms={2: 14.0, 8: 20.0}),
    StepCosts(batch_size=1, plain_ms=8.0, step_ms={8: 10.0}, draft_ms=1.5),
]


def test_what_is_remembered_is_recalled(tmp_path: Path) -> None:
    path = tmp_path / "new" / "costs.json"
    assert recall(path) == []
    remember(path, COSTS)
    assert recall(path) == COSTS[::-1]
    remember(path, COSTS[:1])
    assert recall(path) == COSTS[:1]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"batch_size": 1}]', '[{"step_ms": {"x": 1}}]', '{"a": 1}'])
def test_other_files_are_nothing_known(text: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(text)
    assert recall(path) == []


@pytest.mark.parametrize(
    ("about", "options", "is_same"),
    [
        ({}, {"max_num_seqs": 7, "max_model_len": 99, "dtype": "auto", "model": "x"}, True),
        ({"torch": "3"}, {}, True),
        ({"vllm": "0.32.0"}, {}, False),
        ({"device": "H200"}, {}, False),
        ({"dtype": "float32"}, {}, False),
        ({"draft": "other"}, {}, False),
        ({}, {"tensor_parallel_size": 2}, False),
    ],
)
def test_costs_are_of_one_pair_on_one_machine(about: dict[str, Any], options: dict[str, Any], is_same: bool) -> None:
    assert (cost_file("T", ABOUT | about, options) == cost_file("T", ABOUT, {})) is is_same


def test_a_folder_is_the_same_by_each_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "target").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cost_file("./target", ABOUT, {}) == cost_file(str(tmp_path / "target"), ABOUT, {})
    assert cost_file("org/target", ABOUT, {}) != cost_file(str(tmp_path / "target"), ABOUT, {})


def test_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cost_file("T", ABOUT, {})).startswith("/somewhere/vllm_pard/step_costs/")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cost_file("T", ABOUT, {}).is_relative_to(Path.home() / ".cache")
