"""What the package ships: four bf16 models, held-out prompts, one receipt and the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from vllm_pard.checkpoint import load_config
from vllm_pard.demo.text.corpus import EVALUATION_SPLITS, evaluation_samples
from vllm_pard.demo.text.sample import Sample
from vllm_pard.files import write_whole
from vllm_pard.pard2 import Mode, is_pard2, pard_config_keys, read_features
from vllm_pard.target_proj import TargetProj, read_target_proj, write_target_proj
from vllm_pard.training.demo_pair.answers import greedy_answers
from vllm_pard.training.demo_pair.card import model_card
from vllm_pard.training.demo_pair.recipe import BundleConfig
from vllm_pard.training.evaluation.draft_replay import Answered, DraftReplay
from vllm_pard.training.models.starting_points import load_model
from vllm_pard.training.output.receipt import write_json

__all__ = ["evaluate", "export", "install", "score", "shipped_receipt", "write_receipts"]


def export(run: Path, folder: Path, *, is_pard: bool = False, keys: Mapping[str, Any] | None = None) -> None:
    """Round the model of a run to bf16 and save it as engines read it, as a PARD or PARD-2 draft only if it is one."""
    tokenizer = AutoTokenizer.from_pretrained(run)
    model = load_model(str(run), torch.bfloat16)
    if not is_pard:
        for key in pard_config_keys(mask_token_id=tokenizer.mask_token_id, num_speculative_tokens=1):
            delattr(model.config, key)
    for key, value in (keys or {}).items():
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
    if target_proj := _target_proj(run, model):
        write_target_proj(folder, target_proj.weight.bfloat16())


def evaluate(config: BundleConfig, folder: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Answer the held-out prompts with the shipped target and replay them with the shipped drafts, in fp32."""
    target, num_tokens = load_model(str(folder / "target"), torch.float32), config.num_speculative_tokens
    reference = load_model(str(folder / "target"), torch.float32)  # a replay changes its own in place
    draft, draft_ar, draft_pard2 = (
        _replay(folder / name, tokenizer, k, reference)
        for name, k in (("draft", num_tokens), ("draft_ar", 1), ("draft_pard2", num_tokens))
    )
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
        accepted = draft.acceptance(answered, (1, num_tokens))
        accepted_ar = draft_ar.acceptance(answered, (1,))
        modes: tuple[Mode, ...] = ("independent", "dependent")
        of_pard2 = {mode: draft_pard2.acceptance(answered, (num_tokens,), mode=mode)[num_tokens] for mode in modes}
        splits[split] = {
            **score(samples, tokenizer.batch_decode(answers, skip_special_tokens=True)),
            **asdict(accepted[num_tokens]),
            "mean_acceptance_length": round(accepted[num_tokens].mean_acceptance_length, 3),
            **{f"mean_acceptance_length_{mode}": round(of_pard2[mode].mean_acceptance_length, 3) for mode in modes},
            "num_answer_tokens": sum(map(len, answers)),
            "first_token_acceptance": round(accepted[1].mean_acceptance_length - 1, 3),
            "first_token_acceptance_ar": round(accepted_ar[1].mean_acceptance_length - 1, 3),
        }
    return {"num_speculative_tokens": num_tokens, "temperature": 0, "splits": splits}


def _replay(folder: Path, tokenizer: PreTrainedTokenizerFast, k: int, target: PreTrainedModel) -> DraftReplay:
    draft = load_model(str(folder), torch.float32)
    return DraftReplay(
        draft,
        mask_token_id=int(tokenizer.mask_token_id),
        num_speculative_tokens=k,
        vocab_size=len(tokenizer),
        target=target,
        target_proj=_target_proj(folder, draft),
    )


def _target_proj(folder: Path, model: PreTrainedModel) -> TargetProj | None:
    """What a PARD-2 draft has beside its model; None for others."""
    name, config = str(folder), load_config(str(folder))
    return read_target_proj(name, read_features(name, config), model.config.hidden_size) if is_pard2(config) else None


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
