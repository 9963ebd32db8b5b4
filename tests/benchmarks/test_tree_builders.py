"""What might make better trees: the builders by hand, and the replay against true decoding."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import tree_builders
import trees
from tree_builders import (
    BUILDERS,
    Answer,
    Drafted,
    accepted_lengths,
    likeliest_paths,
    ngrams,
    product,
    siblings,
    temperature,
)

CANDIDATES = [[(math.log(0.6), 1), (math.log(0.4), 2)], [(math.log(0.9), 3), (math.log(0.1), 4)]]
DRAFTED = Drafted([7, 8, 5, 7, 8], CANDIDATES)


def test_the_likeliest_paths() -> None:
    found = [likeliest_paths(product, DRAFTED, number) for number in (1, 2, 3, 4)]
    assert found == [{(1,)}, {(1,), (1, 3)}, {(1,), (1, 3), (2,)}, {(1,), (1, 3), (2,), (2, 3)}]
    assert likeliest_paths(product, DRAFTED, 99) == {(1,), (2,), (1, 3), (1, 4), (2, 3), (2, 4)}
    nothing_before = DRAFTED._replace(tokens=[7])
    assert BUILDERS["built"](nothing_before, 4) == found[3]
    assert (5,) in BUILDERS["built"](DRAFTED, 4), "5 has followed 7 8 before"


def test_a_token_below_a_likelier_one_counts_half() -> None:
    assert [round(math.exp(logprob), 6) for logprob, _ in siblings(DRAFTED)(())] == [0.6, 0.2]


def test_temperature_of_a_depth() -> None:
    """Nothing changes at the first; deeper ones get flatter, and keep their sum."""
    tempered = temperature(DRAFTED, slope=1.0)
    first, second = ([math.exp(logprob) for logprob, _ in tempered(path)] for path in ((), (1,)))
    assert first == pytest.approx([0.6, 0.4])
    assert second == pytest.approx([0.75, 0.25])


def test_what_followed_is_mixed_in() -> None:
    children = ngrams(DRAFTED, order=1, share=0.5)
    assert {token: round(math.exp(logprob), 6) for logprob, token in children(())} == {5: 0.5, 1: 0.3, 2: 0.2}
    assert children((5,))[0][1] == 7
    assert children((9,)) == CANDIDATES[1]
    assert ngrams(DRAFTED, order=2, share=0.5)(())[0][1] == 5


def test_a_path_is_followed_as_far_as_the_answer() -> None:
    answered = Answer([0], [9, 1, 3, 6, 2], [CANDIDATES] * 5)
    assert list(accepted_lengths(answered, BUILDERS["product"], 3)) == [2, 1], (
        "1 3 and then 6; 2, which ends the answer"
    )
    assert list(accepted_lengths(answered, BUILDERS["product"], 1)) == [1, 0, 0]


def test_the_replay_is_what_decoding_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trees, "DEMO_TASKS", ("demo:unseen_code",))
    for name, value in {"CHAINS": (), "TREES": (16,), "TEMPERATURES": (0.0,)}.items():
        monkeypatch.setattr(trees, name, value)
    monkeypatch.setattr(tree_builders, "TEMPERATURES", (0.0,))
    monkeypatch.setattr(tree_builders, "NUM_NODES", (16,))

    def rows(program: Any) -> list[dict[str, Any]]:
        words = ["--num-prompts", "3", "--max-tokens", "40", "--json", str(tmp_path / "result.json")]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        program.main()
        found: list[dict[str, Any]] = json.loads((tmp_path / "result.json").read_text())["rows"]
        return found

    replayed = {row["builder"]: row["acceptance_length"] for row in rows(tree_builders)}
    assert list(replayed) == list(BUILDERS)
    (decoded,) = rows(trees)
    assert replayed["built"] == pytest.approx(decoded["acceptance_length"], rel=0.1), "but for an answer's last step"
