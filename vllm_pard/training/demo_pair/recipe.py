"""The demo pair's recipe, and the only home of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_pard.training.data.config import DataConfig, SourceConfig
from vllm_pard.training.options.config import CodConfig, FeatureConfig, LossConfig
from vllm_pard.training.options.train_config import EvaluationConfig, TrainConfig

__all__ = ["AnswersConfig", "BundleConfig", "DemoPairConfig", "ModelSize", "RunConfig", "TextConfig", "smoke_config"]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Documents and tokenizer."""

    num_documents: int = 90_000
    chat_share: float = 0.1  # documents of several questions, so that the models are used to a past
    max_exchanges: int = 3  # of a chat
    num_tokenizer_questions: int = 20_000
    vocab_size: int = 2048
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A Llama with heads of 64, which all of vLLM's attention back ends take, and tied embeddings."""

    hidden_size: int
    num_layers: int
    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of `vllm-pard train`: what differs from stage to stage."""

    num_steps: int
    learning_rate: float
    seed: int
    num_depths: int = 1
    batch_size: int = 2
    max_length: int = 512
    warmup_steps: int = 100
    save_steps: int = 1000
    logging_steps: int = 50
    loss: LossConfig = field(default_factory=LossConfig)
    features: FeatureConfig | None = None

    def train_config(
        self,
        output: Path,
        documents: Path,
        *,
        draft: str | None = None,
        new_model: str | None = None,
        target: str | None = None,
    ) -> TrainConfig:
        """The run, on these documents, from `draft` or from random weights of `new_model`."""
        trainer: dict[str, Any] = {
            "max_steps": self.num_steps,
            "per_device_train_batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "lr_scheduler_type": "linear",
            "warmup_steps": self.warmup_steps,
            "weight_decay": 0.05,
            "adam_beta2": 0.95,
            "bf16": False,  # the same on every CPU; where bfloat16 is fast it would save a fifth of the time
            "save_steps": self.save_steps,
            "logging_steps": self.logging_steps,
            "report_to": [],
        }
        return TrainConfig(
            output=str(output),
            data=DataConfig(sources=(SourceConfig(path=str(documents)),), max_length=self.max_length, too_long="drop"),
            mask_token_id=MASK_TOKEN_ID,
            cod=CodConfig(num_depths=self.num_depths),
            evaluation=EvaluationConfig(num_documents=64),
            dtype="float32",  # the next stage goes on from it
            seed=self.seed,
            trainer=trainer,
            draft=draft,
            new_model=new_model,
            target=target,
            loss=self.loss,
            features=self.features,
        )


MASK_TOKEN_ID = 3  # the last of demo/text's SPECIAL_TOKENS
PARD2_LOSS = LossConfig(ce=0.1, kl=1.0, weights="cat")
FEATURES = FeatureConfig(layers=(-1, -3, -5))  # of a target of six layers


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """The target's greedy answers to new questions, on which the draft is trained at the end."""

    num_questions: int = 4096
    max_new_tokens: int = 200
    batch_size: int = 256
    seed: int = 5


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """Held-out prompts of each split, shipped with the pair, and how they are decoded."""

    num_prompts: int = 104
    num_speculative_tokens: int = 8
    max_new_tokens: int = 200
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class DemoPairConfig:
    """All stages in their order."""

    text: TextConfig = field(default_factory=TextConfig)
    target_size: ModelSize = field(
        default_factory=lambda: ModelSize(hidden_size=256, num_layers=6, intermediate_size=768)
    )
    # So small that its features help, and that not all it drafts is accepted.
    draft_size: ModelSize = field(
        default_factory=lambda: ModelSize(hidden_size=192, num_layers=1, intermediate_size=384)
    )
    target: RunConfig = field(
        default_factory=lambda: RunConfig(num_steps=4000, learning_rate=2e-3, seed=2, batch_size=16, save_steps=500)
    )
    draft_ar: RunConfig = field(
        default_factory=lambda: RunConfig(num_steps=1200, learning_rate=3e-3, seed=3, batch_size=4, save_steps=1200)
    )
    draft_text: RunConfig = field(
        default_factory=lambda: RunConfig(num_steps=1000, learning_rate=3e-3, seed=4, num_depths=8)
    )
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    draft: RunConfig = field(
        default_factory=lambda: RunConfig(num_steps=1000, learning_rate=2e-3, seed=6, num_depths=8)
    )
    # PARD-2, with the steps and the text of the draft.
    draft_pard2: RunConfig = field(
        default_factory=lambda: RunConfig(
            num_steps=1000, learning_rate=2e-3, seed=8, num_depths=8, loss=PARD2_LOSS, features=FEATURES
        )
    )
    evaluation: BundleConfig = field(default_factory=BundleConfig)


def smoke_config() -> DemoPairConfig:
    """Every stage at a size that takes seconds; what comes out answers nothing."""
    tiny = ModelSize(hidden_size=64, num_layers=1, intermediate_size=64)
    few: dict[str, Any] = {
        "num_steps": 4,
        "learning_rate": 1e-3,
        "batch_size": 1,
        "warmup_steps": 1,
        "save_steps": 2,
        "logging_steps": 2,
    }
    return DemoPairConfig(
        text=TextConfig(num_documents=2000, num_tokenizer_questions=12_000),
        target_size=tiny,
        draft_size=tiny,
        target=RunConfig(**few, seed=2),
        draft_ar=RunConfig(**few, seed=3),
        draft_text=RunConfig(**few, seed=4, num_depths=8),
        answers=AnswersConfig(num_questions=128, max_new_tokens=24, batch_size=128),
        draft=RunConfig(**few, seed=6, num_depths=8),
        draft_pard2=RunConfig(**few, seed=8, num_depths=8, loss=PARD2_LOSS, features=FeatureConfig(layers=(-1, -2))),
        evaluation=BundleConfig(num_prompts=4, max_new_tokens=24),
    )
