"""Answers many at a time, against each prompt decoded alone without a cache."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import training_samples
from vllm_pard.training.demo_pair.answers import answer_records, greedy_answers
from vllm_pard.training.demo_pair.recipe import AnswersConfig

PROMPTS = ([0, 7, 9, 4], [0, 12], [0, 5, 5, 21, 30, 8])


def literal_answer(model: LlamaForCausalLM, prompt: list[int], num_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        with torch.inference_mode():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens[len(prompt) :]


@pytest.mark.parametrize("end", [1, 3])
def test_batched_answers_are_those_of_each_prompt_alone(tiny_llama: LlamaForCausalLM, end: int) -> None:
    literal = [literal_answer(tiny_llama, prompt, 12) for prompt in PROMPTS]
    # A token that is somewhere in an answer, so that one ends early.
    tiny_llama.config.eos_token_id = literal[0][end]
    literal = [literal_answer(tiny_llama, prompt, 12) for prompt in PROMPTS]
    lines: list[str] = []
    answers = greedy_answers(tiny_llama, PROMPTS, max_new_tokens=12, batch_size=2, report=lines.append)
    assert answers == literal
    assert min(map(len, answers)) < 12
    assert lines == ["2 of 3 answers", "3 of 3 answers"]


class Parrot(torch.nn.Module):
    """Gives every prompt the same tokens."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: PreTrainedTokenizerFast, answer: list[int]) -> None:
        super().__init__()
        self.config, self.answer = LlamaForCausalLM.config_class(bos_token_id=0, eos_token_id=1, pad_token_id=2), answer

    def generate(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat([input_ids, torch.tensor([self.answer] * len(input_ids))], dim=1)


@pytest.mark.parametrize(("tail", "reason"), [([1, 2, 2], "stop"), ([], "length")])
def test_answers_become_records_that_training_reads(
    tokenizer: PreTrainedTokenizerFast, tail: list[int], reason: str
) -> None:
    said = tokenizer(" We see.\nThe answer is 4.", add_special_tokens=False)["input_ids"]
    config = AnswersConfig(num_questions=5, batch_size=2, seed=8)
    records = answer_records(config, Parrot(tokenizer, [*said, *tail]), tokenizer, lambda line: None)  # type: ignore[arg-type]
    prompts = [sample.prompt for sample in training_samples(5, 8)]
    text = " We see.\nThe answer is 4."
    assert records == [{"prompt": prompt, "text": text, "finish_reason": reason} for prompt in prompts]
