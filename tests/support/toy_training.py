"""Training runs that take seconds: python toy_training.py RESULT '{"name": {"batch_size": 2, ...}, ...}', or under
torchrun; RESULT.RANK.json then tells what each process saw.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, PartialState
from cod_batches import MASK, VOCAB_SIZE, pack_of, tiny_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.evaluation.held_out import HeldOut
from vllm_pard.training.loop.pard_trainer import PardTrainer, TrainingError
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.models.target import Target
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig

NUM_DEPTHS = 4


class Packs(Dataset):
    """Two documents a pack that count upwards by threes, of uneven lengths, so that processes have unequal rows; in
    some packs nothing is trained, so that a process may have none.
    """

    def __init__(self, num_packs: int, first: int = 0) -> None:
        self.num_packs, self.first = num_packs, first

    def __len__(self) -> int:
        return self.num_packs

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self.num_packs:
            raise IndexError(index)
        draw = self.first + index
        documents = []
        for start in torch.randint(MASK, (2,), generator=torch.Generator().manual_seed(draw)).tolist():
            length = 16 + start % 9
            tokens = [(start + 3 * place) % MASK for place in range(length)]
            documents.append((tokens, [place > 4 and draw % 7 != 3 for place in range(length)]))
        return pack_of(documents, draw=draw)


def toy_trainer(
    folder: Path,
    *,
    num_packs: int = 40,
    batch_size: int = 2,
    loss: dict[str, Any] | None = None,
    reads_features: bool = False,
    learning_rate: float = 3e-3,
    kind: str = "qwen3",
    arguments: dict[str, Any] | None = None,
) -> PardTrainer:
    features = FeatureConfig(layers=(-1, -3), dropout=0.3) if reads_features else None
    loss_config = LossConfig(**(loss or {}))
    target = None
    if reads_features or loss_config.needs_target:
        target = Target(tiny_model("llama", seed=1), layers=features.layers if features else ())
    torch.manual_seed(0)
    draft = ParallelDraft(
        tiny_model(kind, initializer_range=0.1),
        mask_token_id=MASK,
        loss=loss_config,
        num_depths=NUM_DEPTHS,
        features=features,
        target_dim=target.target_dim if target else 0,
    )
    options = TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": batch_size,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
            **(arguments or {}),
        }
    )
    if options.fsdp:
        shard_on_cpus(options)
    return PardTrainer(
        draft,
        options,
        packs=Packs(num_packs),
        collator=Collator(
            cod=CodConfig(num_depths=NUM_DEPTHS),
            seed=0,
            vocab_size=VOCAB_SIZE,
            feature_dropout=features.dropout if features else None,
        ),
        held_out=HeldOut(Packs(5, first=1000), num_speculative_tokens=NUM_DEPTHS, vocab_size=VOCAB_SIZE),
        target=target,
        files=NoFiles(),
    )


class NoFiles:
    """In the place of DraftFiles: nothing is written, so nothing can be read."""

    def save(self, folder: Path, weights: dict[str, Tensor], is_final: bool) -> None: ...

    def load_into(self, module: nn.Module, folder: Path) -> None: ...


def shard_on_cpus(options: TrainingArguments) -> None:
    """Accelerate 1.15 takes FSDP options on accelerators only, and else falls back to DDP without a word; torch's own
    FSDP2 runs on gloo. To be dropped when `AcceleratorState` lists MULTI_CPU beside MULTI_GPU.
    """
    assert options.device.type == "cpu"
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


class Losses(TrainerCallback):
    """The log rounds."""

    def __init__(self, trainer: PardTrainer) -> None:
        self.trainer, self.values = trainer, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.values.append(float(self.trainer._mean_loss))


def poison(trainer: PardTrainer, rank: int, step: int) -> None:
    """From this step on, the loss of one process is no number."""

    def spoil(module: nn.Module, arguments: Any, outputs: dict[str, Tensor]) -> None:
        if trainer.accelerator.process_index == rank and trainer.state.global_step >= step:
            outputs["loss"] = outputs["loss"] * torch.nan

    trainer.model.register_forward_hook(spoil)


def trained(folder: Path, *, poisoned: tuple[int, int] | None = None, **options: Any) -> dict[str, Any]:
    trainer = toy_trainer(folder, **options)
    losses = Losses(trainer)
    trainer.add_callback(losses)
    if poisoned is not None:
        poison(trainer, *poisoned)
    found: dict[str, Any] = {"losses": losses.values, "num_processes": trainer.accelerator.num_processes}
    try:
        trainer.train()
    except TrainingError as error:
        found["error"] = str(error)
    else:
        found["metrics"] = {
            name: value for name, value in trainer.evaluate().items() if name not in ("eval_runtime", "eval_seconds")
        }
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    found["weights"] = {name: tensor.double().square().sum().item() for name, tensor in weights.items()}
    found["num_sharded"] = sum(isinstance(module, FSDPModule) for module in trainer.model_wrapped.modules())
    return found


def main(result: str, runs: str) -> None:
    found = {name: trained(Path(result).parent / name, **options) for name, options in json.loads(runs).items()}
    Path(f"{result}.{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    PartialState().destroy_process_group()  # as `vllm-pard train` does


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
