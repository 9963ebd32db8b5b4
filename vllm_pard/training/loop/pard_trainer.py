"""Transformers' Trainer over COD rows: its loop, its processes and its checkpoints; our batches, loss and selection."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput

from vllm_pard.errors import PardError, first_sentence
from vllm_pard.training.cod.collator import Collator
from vllm_pard.training.cod.rows import Rows
from vllm_pard.training.evaluation.held_out import HeldOut
from vllm_pard.training.loop.pace import spent_as_log
from vllm_pard.training.loop.watch import Watch
from vllm_pard.training.models.parallel_draft import ParallelDraft
from vllm_pard.training.models.target import Target, TargetOutput
from vllm_pard.training.models.target_cache import CachedTarget
from vllm_pard.training.output.draft_checkpoint import DraftFiles
from vllm_pard.training.output.hub import asking_the_hub, upload_draft
from vllm_pard.training.output.run_folder import mark_complete
from vllm_pard.training.top_k import TopKOutput

__all__ = ["PardTrainer", "TrainingError"]


class TrainingError(PardError):
    """Training can't go on; what was saved before stays."""


class PardTrainer(Trainer):
    """Trains a `ParallelDraft` on packs; `evaluate` gives acceptance on held-out answers.

    Args:
        draft: the model.
        arguments: of Transformers; the learning rate, the batch size and so on.
        packs: a PackedDataset or a stream of the same items, in the order in which they are to be trained.
        collator: lays out a batch.
        held_out: for the evaluation; None: there is none.
        target: None where neither the loss nor the draft reads one. A cached one needs batches that name their packs.
        files: write and read checkpoints.
        watch: is told what happens; None: nobody is.
    """

    def __init__(
        self,
        draft: ParallelDraft,
        arguments: TrainingArguments,
        *,
        packs: Dataset[dict[str, Any]],
        collator: Collator,
        files: DraftFiles,
        watch: Watch | None = None,
        held_out: HeldOut | None = None,
        target: Target | CachedTarget | None = None,
    ) -> None:
        arguments.remove_unused_columns = False  # the collator reads them
        arguments._n_gpu = min(arguments.n_gpu, 1)  # one process trains on one GPU: a batch can't be cut in pieces
        arguments.ddp_find_unused_parameters = False  # there are none, and looking takes time in each step
        super().__init__(
            model=draft,
            args=arguments,
            train_dataset=packs,
            eval_dataset=None if held_out is None else held_out.packs,
            data_collator=collator,
        )
        self.held_out, self.target = held_out, target
        self.files, self.watch = files, watch or Watch(lambda line: None)
        self.add_callback(self.watch)
        self._mean_loss: Tensor  # of all processes, of the last batch

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> TrainOutput:
        """A checkpoint whose record is damaged is named before anything is trained."""
        if isinstance(resume_from_checkpoint, str):
            with _reading(resume_from_checkpoint):
                TrainerState.load_from_json(str(Path(resume_from_checkpoint) / TRAINER_STATE_NAME))
        output: TrainOutput = super().train(resume_from_checkpoint, **options)
        return output

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The weighted mean over the rows of all processes: two processes learn what one with both batches would."""
        target = self._read_target(inputs)
        outputs = model(**inputs, target=target)
        sums = torch.stack([outputs["loss"].detach(), outputs["weight"]])
        total, weight = self.accelerator.reduce(sums, reduction="sum")
        weight = weight.clamp(min=1e-6)
        self._mean_loss = total / weight
        # Gradients are averaged over the processes, so the share of each is multiplied by their number.
        loss = outputs["loss"] * self.accelerator.num_processes / weight
        self.watch.pace.count(len(inputs["tokens"]), len(inputs["rows"]["anchors"]))
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """A loss that is no number, in any process, stops the run in all of them before it reaches the weights."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(self._mean_loss):
            raise TrainingError(
                f"the loss must stay finite; it is {self._mean_loss.item()} in step {self.state.global_step + 1}: "
                "lower trainer.learning_rate, or look for broken samples; the last checkpoint is whole"
            )
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Acceptance on the held-out answers, as a draft with the target's features and, if it has any, without."""
        if self.held_out is None:
            raise TrainingError("there are no held-out documents to evaluate on: set evaluation.num_documents")
        spent = self.watch.pace.meet(self.accelerator)
        started = time.monotonic()
        self.model.eval()
        metrics: dict[str, float] = {}
        for suffix, reads_features in self._modes():
            result = self.held_out.measure(lambda inputs: self._predict(inputs, reads_features), self.accelerator)  # noqa: B023
            metrics[f"acceptance_length{suffix}"] = result.replayed.mean_acceptance_length
            metrics[f"acceptance_length_everywhere{suffix}"] = result.everywhere.mean_acceptance_length
            metrics[f"accuracy{suffix}"] = result.num_matches / max(result.num_labels, 1)
        metrics = {f"{metric_key_prefix}_{name}": round(value, 4) for name, value in metrics.items()}
        metrics |= spent_as_log(spent, f"{metric_key_prefix}_")
        metrics[f"{metric_key_prefix}_runtime"] = round(time.monotonic() - started, 1)
        self.watch.pace.pause(time.monotonic() - started)
        self.log(metrics)
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self.watch.pace.as_log(self.accelerator)
        super().log(logs, start_time)

    def _modes(self) -> list[tuple[str, bool]]:
        return [("", False)] if self.target is None or not self.target.layers else [("", True), ("_independent", False)]

    def _predict(self, inputs: dict[str, Any], reads_features: bool) -> Tensor:
        inputs = self._prepare_inputs(inputs)
        target = self._read_target(inputs, is_needed=reads_features)
        with self.compute_loss_context_manager():
            predictions: Tensor = self.model_wrapped(**inputs, target=target, predicts=True)["predictions"]
        return predictions

    def _read_target(self, inputs: dict[str, Any], is_needed: bool = True) -> TargetOutput | TopKOutput | None:
        packs = inputs.pop("packs", None)  # the draft has no use for them
        if self.target is None or not is_needed:
            return None
        if isinstance(self.target, CachedTarget):
            return self.target(packs, self.args.device)
        return self.target(Rows(**inputs["rows"]), inputs["tokens"])

    def init_hf_repo(self, token: str | None = None) -> None:
        """Before training, so that an upload that can't succeed costs none."""
        with asking_the_hub("trainer.push_to_hub needs a repository on the hub, and it can't be made"):
            super().init_hf_repo(token)

    def push_to_hub(self, commit_message: str | None = None, *_: Any, **__: Any) -> str | None:
        """Upload the finished draft from the output folder; `hub_model_id`, `hub_revision` and so on as in Trainer."""
        if not self.is_world_process_zero():
            return None
        message = commit_message or f"Draft after {self.state.global_step} steps"
        return upload_draft(Path(self.args.output_dir), str(self.hub_model_id), message, self.args.hub_revision)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """The packs are in their order already, so that a run that is resumed needs no state of a sampler."""
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Some schedules want more than their name."""
        try:
            return super().create_scheduler(num_training_steps, optimizer)
        except (TypeError, ValueError) as error:
            name = self.args.lr_scheduler_type.value
            raise TrainingError(
                f"trainer.lr_scheduler_type {name!r} can't be had with trainer.lr_scheduler_kwargs "
                f"{self.args.lr_scheduler_kwargs or {}!r}: {first_sentence(error)}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        weights = self.model.state_dict() if state_dict is None else state_dict
        self.files.save(folder, weights, folder == Path(self.args.output_dir))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.watch.pace.meet(self.accelerator)
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                mark_complete(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"the checkpoint of step {self.state.global_step} can't be written ({first_sentence(error)}): make "
                "room and run the same command again, it goes on from the checkpoint before"
            ) from error

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load(Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _reading(checkpoint):
            super()._load_rng_state(checkpoint)

    def _load(self, checkpoint: Path) -> None:
        with _reading(checkpoint):
            self.files.load_into(self.model, checkpoint)


@contextmanager
def _reading(checkpoint: str | Path | None) -> Iterator[None]:
    """From None nothing is read."""
    try:
        yield
    except (
        EOFError,
        KeyError,
        OSError,
        RuntimeError,
        SafetensorError,
        TypeError,
        UnpicklingError,
        ValueError,
    ) as error:
        raise TrainingError(
            f"the checkpoint {str(checkpoint)!r} can't be read ({first_sentence(error)}): remove that folder and run "
            "the same command again, it goes on from the one before"
        ) from error
