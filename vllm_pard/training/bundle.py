"""What the package ships: three bf16 models, held-out prompts, one receipt and the model card."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, evaluation_samples
from vllm_pard.demo.text.sample import Sample
from vllm_pard.training.evaluate import count_acceptance, score_answers
from vllm_pard.training.model_card import model_card
from vllm_pard.training.models import load_model, save_model
from vllm_pard.training.receipt import write_json
from vllm_pard.training.recipe import EvaluationConfig

__all__ = ["evaluate_bundle", "export_model", "held_out", "install", "write_receipt"]


def export_model(
    stage: Path, folder: Path, tokenizer: PreTrainedTokenizerFast, extra_config: dict[str, int | str]
) -> None:
    """Round a stage's fp32 model to bf16 and save it as an engine reads it."""
    save_model(load_model(stage), tokenizer, folder, dtype=torch.bfloat16, extra_config=extra_config)


def held_out(config: EvaluationConfig) -> dict[str, list[Sample]]:
    """The evaluation prompts of each split."""
    return {split: evaluation_samples(split, config.num_prompts, config.seed) for split in EVALUATION_SPLITS}


def write_prompts(samples: dict[str, list[Sample]], folder: Path) -> None:
    """One JSONL file per split."""
    folder.mkdir(exist_ok=True)
    for split, chosen in samples.items():
        rows = [{"prompt": s.prompt, "question": s.question, "answer": s.answer, "family": s.family} for s in chosen]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def evaluate_bundle(config: EvaluationConfig, folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Answer the held-out prompts with the shipped target and replay them with the shipped drafts, in fp32."""
    samples = held_out(config)
    write_prompts(samples, folder / "prompts")
    target, draft, draft_ar = (load_model(folder / name) for name in ("target", "draft", "draft_ar"))
    splits = {}
    for split, chosen in samples.items():
        answers, answered = score_answers(target, tokenizer, chosen, config.max_new_tokens)
        acceptance = count_acceptance(draft, answered, tokenizer.mask_token_id, config.num_speculative_tokens)
        # One token a step needs no mask token: how often the draft agrees before and after parallel training.
        one = count_acceptance(draft, answered, tokenizer.mask_token_id, 1)
        one_ar = count_acceptance(draft_ar, answered, tokenizer.mask_token_id, 1)
        splits[split] = {
            **asdict(answers),
            **asdict(acceptance),
            "mean_acceptance_length": round(acceptance.mean_acceptance_length, 3),
            "num_answer_tokens": sum(len(answer) for _, answer in answered),
            "first_token_acceptance": round(one.mean_acceptance_length - 1, 3),
            "first_token_acceptance_ar": round(one_ar.mean_acceptance_length - 1, 3),
        }
    return {"num_speculative_tokens": config.num_speculative_tokens, "temperature": 0, "splits": splits}


def write_receipt(stages: list[Path], folder: Path) -> None:
    """Join the run.json of all stages and write the model card from them."""
    receipts = [json.loads((stage / "run.json").read_text()) for stage in stages]
    write_json(folder / "receipt.json", receipts)
    (folder / "README.md").write_text(model_card(receipts), encoding="utf-8")


def install(folder: Path, package: Path) -> None:
    """Copy a finished bundle over the one in the package."""
    shutil.copytree(folder, package, dirs_exist_ok=True)
