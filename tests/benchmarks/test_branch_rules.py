"""Both ways to verify several drafts: their chances by hand, and by what the rule does, draw for draw."""

import json
import sys
from pathlib import Path

import branch_rules
import pytest
import torch
import trees
from torch import Tensor

P = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.1, 0.4, 0.2, 0.3]], dtype=torch.float64)


def test_descent_takes_the_likeliest_tokens() -> None:
    assert branch_rules.descent(P, Q, 1).item() == pytest.approx(0.3)
    assert branch_rules.descent(P, Q, 2).item() == pytest.approx(0.3 + 0.0)
    assert branch_rules.descent(P, Q, 3).item() == pytest.approx(0.3 + 0.0 + 0.2)


def test_one_draw_is_accepted_as_in_rejection_sampling() -> None:
    chance = branch_rules.without_replacement(P, Q, 1, torch.Generator().manual_seed(0))
    assert chance.item() == pytest.approx(0.1 + 0.3 + 0.2 + 0.0)


def accepts(p: Tensor, q: Tensor, branches: int) -> tuple[bool, int]:
    """The rule itself, once: whether a draft is accepted, and the token that comes out. [V], [V]"""
    for _ in range(branches):
        token = int(q.multinomial(1))
        if torch.rand(()) * q[token] < p[token]:
            return True, token
        p, q = (p - q).clamp(min=0), q.index_fill(0, torch.tensor(token), 0)
        p, q = p / p.sum(), q / q.sum()
    return False, int(p.multinomial(1))


@pytest.mark.parametrize("branches", [2, 3])
def test_more_draws_are_accepted_as_the_rule_does(branches: int) -> None:
    torch.manual_seed(0)
    drawn = [accepts(P[0], Q[0], branches) for _ in range(4000)]
    rate = sum(accepted for accepted, _ in drawn) / len(drawn)
    chances = branch_rules.without_replacement(
        P.repeat(4000, 1), Q.repeat(4000, 1), branches, torch.Generator().manual_seed(1)
    )
    assert chances.mean().item() == pytest.approx(rate, abs=0.02)
    assert chances.mean() > branch_rules.without_replacement(P, Q, 1, torch.Generator()).item()
    shares = torch.bincount(torch.tensor([token for _, token in drawn]), minlength=4) / len(drawn)
    assert shares.tolist() == pytest.approx(P[0].tolist(), abs=0.03)


def test_a_perfect_draft_is_always_accepted() -> None:
    assert branch_rules.without_replacement(P, P, 1, torch.Generator()).item() == pytest.approx(1)
    assert branch_rules.without_replacement(P, P, 3, torch.Generator()).item() == pytest.approx(1)


def test_a_row_for_each_depth_and_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trees, "questions", lambda *_: [branch_rules.Question("demo", "demo", "demo/draft", "demo")])
    monkeypatch.setattr(branch_rules, "TEMPERATURES", (1.0,))
    words = ["--num-prompts", "2", "--max-tokens", "12", "--json", str(tmp_path / "result.json")]
    monkeypatch.setattr(sys, "argv", ["branch_rules.py", *words])
    branch_rules.main()
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [(row["depth"], row["branches"]) for row in rows] == [(d, b) for d in (1, 2, 4, 8) for b in (1, 2, 4, 8)]
    for rule in ("descent", "without_replacement"):
        by_number = [row[rule] for row in rows if row["depth"] == 1]
        assert 0.3 < by_number[0] <= by_number[-1] <= 1
        assert by_number == sorted(by_number)
