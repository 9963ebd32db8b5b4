"""The README of the demo pair, written from its receipts."""

from __future__ import annotations

from typing import Any

__all__ = ["model_card"]

_CARD = """\
---
license: apache-2.0
---

# vllm-pard demo pair

A target of {target_millions:.1f}M parameters and a PARD draft of {draft_millions:.1f}M, small enough to ship with the
package and to run on a CPU. They show the method and serve as test fixtures; they are no use as assistants: a toy
trained on templates, whose wrong answers are its own, with and without PARD.

| folder | model |
|---|---|
| `target/` | Llama, next-token training |
| `draft_ar/` | Llama, next-token training: where the draft starts from |
| `draft/` | `draft_ar` after COD training (PARD, arXiv 2504.18583), {num_depths} depths |
| `draft_pard2/` | the same, with features of the target (PARD-2, arXiv 2605.08632) |

All four share one tokenizer: byte-level BPE, {vocab_size} tokens, each digit a token. Weights are bf16.
The drafts' `config.json` holds `pard_token`, the mask token.

## Format

`Question: ...\\nAnswer:` (the tokenizer puts `<|begin|>` in front); the answer ends with `<|end|>`. The chat template
writes the same format, so chat completions work.

## Data

Written by the generators in `vllm_pard/demo/text`, no other text: word problems and sums with worked answers, and
small documented Python functions, with answers computed by the program. How an answer puts things depends on numbers
that stand before, so that a draft cannot always see ahead. `prompts/` has held-out questions: none of
them is in the training text, and the families of the two `unseen` splits were never trained on at all.

## Recipe

`make demo-pair`; `receipt.json` has every config, loss curve and package. Without a GPU the target takes hours.

| stage | steps | last loss | minutes | on |
|---|--:|--:|--:|---|
{stages}

The last stage of both drafts is trained on {num_answers} greedy answers of the target to questions of the training
split.
{notes}
## Evaluation

{num_prompts} held-out prompts per split, greedy, fp32, K = {num_speculative_tokens}. `mean_acceptance_length` is
1 + accepted tokens / drafts: the bonus token is counted. PARD-2's draft has two, without features and with them.

| split | PARD | PARD-2, independent | dependent | exact answers | right last line |
|---|--:|--:|--:|--:|--:|
{splits}

An answer is exact if its whole text is the computed one; the last line of a worked answer is its result.

## Limits

The pair knows its templates and little else: on other prompts the target writes nonsense, and on the unseen
templates it is wrong. The text follows templates: use the pair to measure an engine's overhead and to check its counts,
not to predict a speed-up. Contexts up to {max_length} tokens were trained, some of them chats.

## Licence

Apache-2.0, text and weights.
"""


def model_card(receipts: list[dict[str, Any]]) -> str:
    """Fill in the card from the receipts of all stages."""
    by_name = {receipt["stage"]: receipt for receipt in receipts}
    evaluation = by_name["evaluation"]["result"]
    return _CARD.format(
        target_millions=by_name["target"]["result"]["num_parameters"] / 1e6,
        draft_millions=by_name["draft"]["result"]["num_parameters"] / 1e6,
        num_depths=by_name["draft"]["config"]["cod"]["num_depths"],
        vocab_size=by_name["text"]["result"]["vocab_size"],
        max_length=by_name["target"]["config"]["data"]["max_length"],
        stages="\n".join(_stage_row(receipt) for receipt in receipts if "loss_curve" in receipt["result"]),
        notes="".join(f"\n{receipt['note']}\n" for receipt in receipts if "note" in receipt),
        num_answers=by_name["answers"]["result"]["num_questions"],
        num_prompts=by_name["evaluation"]["config"]["num_prompts"],
        num_speculative_tokens=evaluation["num_speculative_tokens"],
        splits="\n".join(_split_row(name, split) for name, split in evaluation["splits"].items()),
    )


def _stage_row(receipt: dict[str, Any]) -> str:
    result = receipt["result"]
    last_loss, minutes = result["loss_curve"][-1][1], receipt["wall_time_s"] / 60
    return f"| `{receipt['stage']}` | {result['num_steps']} | {last_loss:.3f} | {minutes:.1f} | {_where(receipt)} |"


def _where(receipt: dict[str, Any]) -> str:
    environment = receipt["environment"]
    gpus, num_threads = environment["devices"], environment["num_threads"]
    return gpus[0] if gpus else f"{num_threads} thread{'s' * (num_threads > 1)} of {environment['cpu']}"


def _split_row(name: str, split: dict[str, Any]) -> str:
    exact = split["num_exact"] / split["num_prompts"]
    last_line = split["num_final_line"] / split["num_prompts"]
    lengths = [split[f"mean_acceptance_length{suffix}"] for suffix in ("", "_independent", "_dependent")]
    return f"| {name} | {' | '.join(f'{each:.2f}' for each in lengths)} | {exact:.0%} | {last_line:.0%} |"
