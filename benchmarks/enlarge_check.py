"""Whether an enlarged pair answers as the small one: greedy tokens of the target, acceptance of the PARD draft."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from shapes import EnlargeError
from transformers import AutoModelForCausalLM, AutoTokenizer

from vllm_pard.checkpoint import load_config, read_checkpoint
from vllm_pard.demo import SPLITS, demo_path, prompts
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.training.demo_pair.answers import greedy_answers
from vllm_pard.training.evaluation.draft_replay import Answered, DraftReplay

NUM_SPECULATIVE_TOKENS = 8


@dataclass(frozen=True)
class CheckConfig:
    """How much is compared, and how equal 16-bit weights must be; float32 weights must be equal throughout."""

    num_prompts: int = 2  # of each split
    max_new_tokens: int = 64
    # Rescaled norms and queries are rounded once more, which can turn a close call. Of 200 answers none differed, and
    # mean acceptance length at most by 0.06.
    max_different: int = 1
    acceptance_tolerance: float = 0.25


@dataclass(frozen=True)
class Answers:
    """What a pair did with the prompts."""

    token_ids: list[list[int]]
    stats: AcceptanceStats


def choose_dtype(num_parameters: int, file_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 where both models fit into memory so, else as they are in the files."""
    num_free = free_memory(device)
    for dtype in (torch.float32, file_dtype):
        # A tenth for activations and the small pair.
        if 1.1 * num_parameters * dtype.itemsize <= num_free:
            return dtype
    raise EnlargeError(
        f"--check needs {1.1e-9 * num_parameters * file_dtype.itemsize:.1f} GB of memory on {device}, "
        f"and {num_free / 1e9:.1f} GB are free; leave it out, or use a larger device"
    )


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
    return int(kilobytes) * 1024


def check_pair(
    folder: Path, file_dtype: torch.dtype, dtype: torch.dtype, device: torch.device, config: CheckConfig
) -> dict[str, Any]:
    """Compare, and refuse a pair that answers otherwise; the counts of both."""
    small = answer(demo_path("target"), demo_path("draft"), dtype, device, config)
    large = answer(folder / "target", folder / "draft", dtype, device, config)
    num_same = sum(mine == theirs for mine, theirs in zip(large.token_ids, small.token_ids, strict=True))
    is_exact = file_dtype == dtype == torch.float32
    allowed = 0 if is_exact else config.max_different
    tolerance = 0.0 if is_exact else config.acceptance_tolerance
    lengths = large.stats.mean_acceptance_length, small.stats.mean_acceptance_length
    if num_same < len(small.token_ids) - allowed or abs(lengths[0] - lengths[1]) > tolerance:
        raise EnlargeError(
            f"the enlarged pair must answer as the small one; {num_same} of {len(small.token_ids)} answers are the "
            f"same, with a mean acceptance length of {lengths[0]:.2f} for {lengths[1]:.2f}: do not use {str(folder)!r}"
        )
    return {
        "same_answers": num_same,
        "num_prompts": len(small.token_ids),
        "dtype": str(dtype).removeprefix("torch."),
        "mean_acceptance_length": lengths[0],
        "mean_acceptance_length_of_small_pair": lengths[1],
        "counts": asdict(large.stats),
        "counts_of_small_pair": asdict(small.stats),
    }


def answer(target: Path, draft: Path, dtype: torch.dtype, device: torch.device, config: CheckConfig) -> Answers:
    """Greedy answers to a few held-out prompts, and how many of their tokens the draft would have given."""
    tokenizer = AutoTokenizer.from_pretrained(target)
    texts = [record["prompt"] for split in SPLITS for record in prompts(split)[: config.num_prompts]]
    prompt_ids = tokenizer(texts)["input_ids"]
    mask_token_id = read_checkpoint(str(draft), load_config(str(draft))).mask_token_id
    target_model, draft_model = load(target, dtype, device), load(draft, dtype, device)
    with device:  # where new tensors are born
        token_ids = greedy_answers(
            target_model,
            prompt_ids,
            max_new_tokens=config.max_new_tokens,
            batch_size=len(prompt_ids),
            report=lambda line: None,
        )
    replay = DraftReplay(draft_model, mask_token_id=mask_token_id, num_speculative_tokens=NUM_SPECULATIVE_TOKENS)
    answered = [Answered(prompt, answer) for prompt, answer in zip(prompt_ids, token_ids, strict=True)]
    return Answers(token_ids, replay.acceptance(answered, (NUM_SPECULATIVE_TOKENS,))[NUM_SPECULATIVE_TOKENS])


def load(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
