from typing import Any

from vllm_pard.cli.engine.process import _tokenize


class Tokenizer:
    """Knows texts, and has no chat template."""

    def __call__(self, text: str) -> Any:
        return type("Encoding", (), {"input_ids": [len(text)]})

    def apply_chat_template(self, messages: Any, **options: Any) -> None:
        raise ValueError("there is no chat template")


def test_chat_without_a_template_disturbs_no_other_prompt() -> None:
    events: list[dict[str, Any]] = []
    chat = [{"role": "user", "content": "hi"}]
    prompts = [{"id": "a", "text": None, "messages": chat}, {"id": "b", "text": "hello", "messages": None}]
    assert _tokenize(Tokenizer(), prompts, events.append) == {"b": [5]}
    assert events == [{"event": "refused", "id": "a", "message": "there is no chat template"}]
