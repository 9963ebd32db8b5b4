"""The replay of known answers against speculative decoding done literally, one request and one token at a time."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from vllm_pard.demo.text.sample import Sample
from vllm_pard.training.evaluate import count_acceptance, score_answers
from vllm_pard.training.generate import greedy_answers

MASK_ID = 3
PROMPTS = ([0, 7, 9, 4], [0, 12], [0, 5, 5, 21, 30, 8])


@pytest.fixture
def target(tiny_llama):
    return tiny_llama


@pytest.fixture
def draft(tiny_llama):
    """The target with some noise: it agrees now and then."""
    torch.manual_seed(1)
    model = deepcopy(tiny_llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    return model


def greedy(model, tokens):
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].argmax(dim=-1).tolist()


def literal_answer(model, prompt, num_tokens):
    tokens = list(prompt)
    while len(tokens) < len(prompt) + num_tokens:
        tokens.append(greedy(model, tokens)[-1])
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens[len(prompt) :]


def literal_counts(target, draft, prompt, answer, k):
    tokens, stop = [*prompt, greedy(target, prompt)[-1]], len(prompt) + len(answer)
    num_drafts = num_accepted = 0
    while len(tokens) < stop:
        drafts = greedy(draft, [*tokens, *[MASK_ID] * (k - 1)])[-k:]
        wanted = greedy(target, [*tokens, *drafts])[-(k + 1) :]
        accepted = 0
        while accepted < min(k, stop - len(tokens)) and drafts[accepted] == wanted[accepted]:
            accepted += 1
        tokens += [*drafts[:accepted], wanted[accepted]]
        num_drafts, num_accepted = num_drafts + 1, num_accepted + accepted
    return num_drafts, num_accepted


def test_batched_answers_are_those_of_each_prompt_alone(target):
    answers = greedy_answers(target, PROMPTS, max_new_tokens=12, batch_size=2, report=lambda line: None)
    assert answers == [literal_answer(target, prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize("k", [1, 4])
def test_replay_counts_what_speculative_decoding_counts(target, draft, k):
    answered = [(prompt, literal_answer(target, prompt, 20)) for prompt in PROMPTS]
    counts = count_acceptance(draft, answered, MASK_ID, k)
    literal = [literal_counts(target, draft, prompt, answer, k) for prompt, answer in answered]
    assert counts.num_drafts == sum(drafts for drafts, _ in literal)
    assert counts.num_accepted_tokens == sum(accepted for _, accepted in literal)
    assert counts.num_draft_tokens == k * counts.num_drafts
    assert 0 < counts.num_accepted_tokens < counts.num_draft_tokens


def test_a_draft_equal_to_the_target_is_always_accepted_at_one_token(target):
    answered = [(prompt, literal_answer(target, prompt, 21)) for prompt in PROMPTS]
    counts = count_acceptance(target, answered, MASK_ID, 1)
    # The last step of an answer may have nothing left to accept.
    assert counts.num_accepted_tokens >= counts.num_drafts - len(PROMPTS)


class Recorder(nn.Module):
    """Answers every prompt with the same tokens."""

    def __init__(self, model, answer):
        super().__init__()
        self.config, self.generation_config, self.answer = model.config, model.generation_config, answer

    def generate(self, input_ids, **options):
        return torch.cat([input_ids, torch.tensor([self.answer] * len(input_ids))], dim=1)


def test_answers_are_scored_as_a_whole_and_by_their_last_line(target, tokenizer):
    said = tokenizer(" 1. 2 + 2 = 4.\nThe answer is 4.", add_special_tokens=False)["input_ids"]
    samples = [
        Sample("a", "1. 2 + 2 = 4.\nThe answer is 4.", "x"),
        Sample("b", "1. 1 + 3 = 4.\nThe answer is 4.", "x"),
        Sample("c", "The answer is 5.", "x"),
    ]
    model = Recorder(target, [*said, tokenizer.eos_token_id, tokenizer.pad_token_id])
    counts, answered = score_answers(model, tokenizer, samples, max_new_tokens=64)
    assert (counts.num_prompts, counts.num_exact, counts.num_final_line) == (3, 1, 2)
    assert answered[0][1] == [*said, tokenizer.eos_token_id]
