"""What a training step of real size costs on a GPU: memory, and the share of the chip's arithmetic that it uses (MFU).

python benchmarks/training_mfu.py [--length 4096] [--depths 16] [--steps 10] [--json FILE]

A PARD-2 draft of Llama-3.2-1B's shape learns from a target of Llama-3.1-8B's, both with random weights: one document of
`length` tokens, all trained; features of four layers; 0.1 CE + KL with CAT weights; weights in float32, products in
bfloat16, AdamW; the target in bfloat16 in the same process. A step is all of it: rows laid out, both models, optimizer.

FLOPs are those of the products that can't be left out: 2 a weight and row for the target's forward and its lm_head, 6 a
weight and row for the draft, where its lm_head reads labelled rows alone and the teacher's each position once;
attention is left out, and so is what is computed twice to save memory. MFU is over the chip's dense bfloat16 peak.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from shapes import LLAMA_3_1_8B, LLAMA_3_2_1B, ModelShape, PairShape
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from vllm_pard.conditions import conditions, gpu_names  # noqa: E402
from vllm_pard.files import write_whole  # noqa: E402
from vllm_pard.training.cod.block_mask import BLOCK  # noqa: E402
from vllm_pard.training.cod.collator import Collator  # noqa: E402
from vllm_pard.training.cod.rows import Rows  # noqa: E402
from vllm_pard.training.models.parallel_draft import ParallelDraft  # noqa: E402
from vllm_pard.training.models.target import Target  # noqa: E402
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig  # noqa: E402

FEATURES = FeatureConfig(layers=(-1, -8, -16, -24))
LOSS = LossConfig(ce=0.1, kl=1.0, weights="cat")
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "MI300X": 1307e12}  # dense bfloat16, of the makers
WARM_UPS = 3


def model_of(shape: ModelShape, dtype: torch.dtype, length: int, device: str) -> LlamaForCausalLM:
    sizes = asdict(shape)
    with torch.device(device):
        model: LlamaForCausalLM = LlamaForCausalLM._from_config(
            LlamaConfig(**sizes, max_position_embeddings=length), dtype=dtype
        )
    return model


def num_weights(model: PreTrainedModel) -> int:
    """Of the layers: what every row is multiplied with."""
    return sum(parameter.numel() for parameter in model.base_model.layers.parameters())


def num_in_head(model: PreTrainedModel) -> int:
    return int(model.get_output_embeddings().weight.numel())


def flops(draft: ParallelDraft, target: Target, batch: dict[str, Any]) -> float:
    """Of a step; see above."""
    num_tokens, num_rows = len(batch["tokens"]), len(batch["rows"]["anchors"])
    num_labelled, num_positions = len(batch["labels"]), len(batch["positions"])
    of_target = num_tokens * num_weights(target.model)
    # CAT asks how likely the text is, and KL how likely all tokens are.
    of_target += (num_tokens + num_positions) * num_in_head(target.model)
    of_draft = num_rows * num_weights(draft.draft) + num_labelled * num_in_head(draft.draft)
    return 2.0 * of_target + 6.0 * of_draft


def moved(value: Any, device: str) -> Any:
    if isinstance(value, dict):
        return {name: moved(each, device) for name, each in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def measure(
    pair: PairShape, length: int, num_depths: int, num_steps: int, *, saves_memory: bool = False, device: str = "cuda"
) -> dict[str, Any]:
    torch.manual_seed(0)
    target = Target(model_of(pair.target, torch.bfloat16, length, device), layers=FEATURES.layers)
    model = model_of(pair.draft, torch.float32, length, device)
    draft = ParallelDraft(
        model, mask_token_id=0, loss=LOSS, num_depths=num_depths, features=FEATURES, target_dim=target.target_dim
    ).to(device)
    if saves_memory:
        draft.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    draft.train()
    optimizer = torch.optim.AdamW(draft.parameters(), lr=1e-5, fused=True)
    cod = CodConfig(num_depths=num_depths, retention=0.7, min_retention=0.1)
    collator = Collator(cod=cod, seed=0, vocab_size=pair.draft.vocab_size, multiple=BLOCK, feature_dropout=0.1)
    seconds, needed, batch = [], 0.0, {}
    for step in range(-WARM_UPS, num_steps):
        tokens = torch.randint(1, pair.draft.vocab_size, (length,))
        torch.accelerator.synchronize()
        started = time.perf_counter()
        pack = {"tokens": tokens, "documents": torch.zeros_like(tokens), "is_trained": tokens > 0, "draw": step + 99}
        batch = moved(collator([pack]), device)
        with torch.autocast(device, torch.bfloat16):
            said = target(Rows(**batch["rows"]), batch["tokens"])
            outputs = draft(**batch, target=said)
        (outputs["loss"] / outputs["weight"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.accelerator.synchronize()
        needed = flops(draft, target, batch)
        if step >= 0:
            seconds.append(time.perf_counter() - started)
    peak = next((each for chip, each in PEAK_FLOPS.items() if chip in " ".join(gpu_names())), None)
    return {
        "length": length,
        "num_depths": num_depths,
        "checkpointing": saves_memory,
        "rows": len(batch["rows"]["anchors"]),
        "labelled_rows": len(batch["labels"]),
        "seconds": round(median(seconds), 4),
        "tokens_per_second": round(length / median(seconds), 1),
        "tflops": round(needed / median(seconds) / 1e12, 1),
        "mfu": None if peak is None else round(needed / median(seconds) / peak, 4),
        "peak_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--depths", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true", help="of the draft's layers")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("training_mfu.py needs a GPU, and torch sees none; training_step.py is for CPUs")
    row = measure(
        PairShape(LLAMA_3_1_8B, LLAMA_3_2_1B), given.length, given.depths, given.steps, saves_memory=given.checkpointing
    )
    print(json.dumps(row), flush=True)
    if given.json is not None:
        write_whole(given.json, json.dumps({"conditions": conditions(), "rows": [row]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
