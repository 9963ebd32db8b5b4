"""What the package ships: three bf16 models, held-out prompts, one receipt and the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, evaluation_samples
from vllm_pard.demo.text.sample import Sample
from vllm_pard.files import write_whole
from vllm_pard.pard2 import pard_config_keys
from vllm_pard.training.demo_pair.answers import greedy_answers
from vllm_pard.training.demo_pair.card import model_card
from vllm_pard.training.demo_pair.recipe import BundleConfig
from vllm_pard.training.draft_replay import Answered, DraftReplay
from vllm_pard.training.receipt import write_json
from vllm_pard.training.starting_points import load_model

__all__ = ["evaluate", "export", "install", "score", "shipped_receipt", "write_receipts"]


def export(run: Path, folder: Path, *, num_depths: int | None = None, keys: Mapping[str, Any] | None = None) -> None:
    """Round the model of a run to bf16 and save it as engines read it: as a PARD draft only if it has `num_depths`."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    model = load_model(str(run), torch.bfloat16)
    pard = pard_config_keys(mask_token_id=tokenizer.mask_token_id, num_speculative_tokens=num_depths or 1)
    for key in pard:
        delattr(model.config, key)
    for key, value in {**(pard if num_depths else {}), **(keys or {})}.items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
    )
    model.save_pretrained(folder)
    # safetensors makes files that only their owner can read; these get packaged.
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def evaluate(config: BundleConfig, folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Answer the held-out prompts with the shipped target and replay them with the shipped drafts, in fp32."""
    target, draft, draft_ar = (
        load_model(str(folder / name), torch.float32) for name in ("target", "draft", "draft_ar")
    )
    num_tokens = config.num_speculative_tokens
    replays = [
        DraftReplay(model, mask_token_id=tokenizer.mask_token_id, num_speculative_tokens=k, vocab_size=len(tokenizer))
        for model, k in ((draft, num_tokens), (draft_ar, 1))
    ]
    splits = {}
    for split in EVALUATION_SPLITS:
        samples = evaluation_samples(split, config.num_prompts, config.seed)
        write_prompts(samples, folder / "prompts" / f"{split}.jsonl")
        prompts = tokenizer([sample.prompt for sample in samples])["input_ids"]
        answers = greedy_answers(
            target,
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=len(prompts),
            report=lambda line: None,
        )
        answered = [Answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        # One token a step needs no mask token: how often the draft agrees before and after parallel training.
        accepted = replays[0].acceptance(answered, (1, num_tokens), mode="independent")
        accepted_ar = replays[1].acceptance(answered, (1,), mode="independent")
        splits[split] = {
            **score(samples, tokenizer.batch_decode(answers, skip_special_tokens=True)),
            **asdict(accepted[num_tokens]),
            "mean_acceptance_length": round(accepted[num_tokens].mean_acceptance_length, 3),
            "num_answer_tokens": sum(map(len, answers)),
            "first_token_acceptance": round(accepted[1].mean_acceptance_length - 1, 3),
            "first_token_acceptance_ar": round(accepted_ar[1].mean_acceptance_length - 1, 3),
        }
    return {"num_speculative_tokens": num_tokens, "temperature": 0, "splits": splits}


def score(samples: Sequence[Sample], texts: Sequence[str]) -> dict[str, int]:
    """Answers against the computed ones: as a whole, and by their last line, the result of a worked answer."""
    pairs = [(text, sample.completion) for text, sample in zip(texts, samples, strict=True)]
    return {
        "num_prompts": len(pairs),
        "num_exact": sum(got == wanted for got, wanted in pairs),
        "num_final_line": sum(got.split("\n")[-1] == wanted.split("\n")[-1] for got, wanted in pairs),
    }


def write_prompts(samples: Sequence[Sample], path: Path) -> None:
    """A JSON object a line."""
    path.parent.mkdir(exist_ok=True)
    rows = [{"prompt": s.prompt, "question": s.question, "answer": s.answer, "family": s.family} for s in samples]
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def shipped_receipt(root: Path, stage: str, command: str) -> dict[str, Any]:
    """A stage's receipt as the package ships it: a log is a curve."""
    receipt: dict[str, Any] = json.loads((root / stage / "receipt.json").read_text(encoding="utf-8"))
    if "stage" in receipt:
        return receipt
    return {
        "stage": stage,
        "config": receipt["config"],
        "environment": receipt["environment"] | {"argv": command.split()},
        "wall_time_s": receipt["training_seconds"],
        "result": {
            **{name: receipt[name] for name in ("num_parameters", "num_steps", "best_step", "acceptance_length")},
            "data": receipt["data"],
            "loss_curve": [[entry["step"], round(entry["loss"], 5)] for entry in receipt["log"] if "loss" in entry],
        },
    }


def write_receipts(receipts: list[dict[str, Any]], folder: Path) -> None:
    """One file with the receipts of all stages, and the model card made from them."""
    write_json(folder / "receipt.json", receipts)
    write_whole(folder / "README.md", model_card(receipts))


def install(folder: Path, package: Path) -> None:
    """Copy a finished bundle over the one in the package."""
    shutil.copytree(folder, package, dirs_exist_ok=True)
