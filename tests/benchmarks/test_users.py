"""Users who come and go: the arithmetic, and a loop around an engine that is made up."""

import sys
from collections import deque
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import users


class Engine:
    """Answers the oldest request in each step; its answer is its prompt's first token, twice."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[str, Any]] = deque()
        self.most = 0

    def add_request(self, name: str, prompt: Any, params: Any) -> None:
        self.waiting.append((name, prompt))
        self.most = max(self.most, len(self.waiting))

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        name, prompt = self.waiting.popleft()
        return [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=prompt["prompt_token_ids"][:1] * 2)])
        ]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """With the names that the engine's process imports."""
    vllm, sampling = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.SamplingParams, vllm.TokensPrompt = dict, dict  # type: ignore[attr-defined]
    sampling.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", sampling)
    return Engine()


def test_each_user_sends_the_next_question_when_the_answer_is_there(engine: Engine) -> None:
    llm = SimpleNamespace(
        llm_engine=engine,
        get_tokenizer=lambda: lambda text: {"input_ids": [len(text)]},
        get_metrics=lambda: [],
    )
    answer = users.closed_loop(llm)
    run = answer({"num_users": 3, "num_requests": 10, "first": 20})
    assert engine.most == 3
    assert run["num_tokens"] == 20
    assert len(run["digests"]) == 10
    assert answer({"num_users": 1, "num_requests": 10, "first": 20})["digests"] == run["digests"]
    assert engine.most == 3


def test_answers_are_compared_with_the_first_methods() -> None:
    def run(seconds: float, *digests: str) -> dict[str, Any]:
        return {"seconds": seconds, "num_tokens": 60, "digests": digests, "num_drafts": 10, "num_accepted_tokens": 25}

    plain = users.row("none", 2, [run(2.0, "a", "b"), run(1.0, "c", "d"), run(3.0, "e", "f")])
    pard = users.row("pard", 2, [run(1.0, "a", "b"), run(0.5, "c", "x"), run(1.5, "e", "f")])
    first, second = users.compared(plain, plain), users.compared(pard, plain)
    assert (first["tokens_per_second"], first["tokens_per_second_extremes"]) == (30.0, [20.0, 60.0])
    assert (second["speed_up"], second["acceptance_length"]) == (2.0, 3.5)
    assert (second["num_equal"], second["num_answers"]) == (5, 6)
    assert "digests" not in second
