"""The demo pair's recipe: one frozen config per stage, and the only home of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm_pard.training.autoregressive import Phase
from vllm_pard.training.cod import CodConfig
from vllm_pard.training.models import ModelConfig
from vllm_pard.training.trainer import ScheduleConfig

__all__ = [
    "AnswersConfig",
    "ArConfig",
    "CodStageConfig",
    "DemoPairConfig",
    "EvaluationConfig",
    "TextConfig",
    "smoke_config",
]


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Documents and tokenizer."""

    num_documents: int = 42_000
    num_tokenizer_documents: int = 20_000
    vocab_size: int = 2048
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class ArConfig:
    """Next-token training of one model."""

    model: ModelConfig
    phases: tuple[Phase, ...]
    schedule: ScheduleConfig
    seed: int

    def __post_init__(self) -> None:
        num_steps = sum(phase.num_steps for phase in self.phases)
        if num_steps != self.schedule.num_steps:
            raise ValueError(f"the phases must sum to num_steps={self.schedule.num_steps}; they sum to {num_steps}")


@dataclass(frozen=True, kw_only=True)
class CodStageConfig:
    """Parallel training of the draft on one set of documents."""

    schedule: ScheduleConfig
    seed: int
    cod: CodConfig = field(default_factory=CodConfig)
    answers_only: bool = True
    batch_size: int = 4
    # Two documents a row (93% full). Dense attention grows with the square of the row, so short rows are cheap.
    length: int = 208


@dataclass(frozen=True, kw_only=True)
class AnswersConfig:
    """The target's greedy answers, on which the draft is trained at the end."""

    num_questions: int = 3072
    max_new_tokens: int = 128
    batch_size: int = 256
    seed: int = 5


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out prompts per split, shipped with the pair, and how they are decoded."""

    num_prompts: int = 104
    num_speculative_tokens: int = 8
    max_new_tokens: int = 200
    seed: int = 7


def _target() -> ArConfig:
    return ArConfig(
        model=ModelConfig(hidden_size=256, num_layers=6, intermediate_size=768),
        # Rows of 320 pack documents of about 100 tokens best (96% full); the last steps see longer rows, for chats.
        phases=(
            Phase(num_steps=800, batch_size=8, length=320),
            Phase(num_steps=2350, batch_size=4, length=320),
            Phase(num_steps=200, batch_size=2, length=512),
        ),
        schedule=ScheduleConfig(num_steps=3350, learning_rate=2e-3),
        seed=2,
    )


def _draft_ar() -> ArConfig:
    return ArConfig(
        model=ModelConfig(hidden_size=192, num_layers=3, intermediate_size=384),
        phases=(
            Phase(num_steps=2000, batch_size=4, length=320),
            Phase(num_steps=200, batch_size=2, length=512),
        ),
        schedule=ScheduleConfig(num_steps=2200, learning_rate=3e-3),
        seed=3,
    )


@dataclass(frozen=True, kw_only=True)
class DemoPairConfig:
    """All stages in their order."""

    text: TextConfig = field(default_factory=TextConfig)
    target: ArConfig = field(default_factory=_target)
    draft_ar: ArConfig = field(default_factory=_draft_ar)
    draft_text: CodStageConfig = field(
        default_factory=lambda: CodStageConfig(schedule=ScheduleConfig(num_steps=900, learning_rate=3e-3), seed=4)
    )
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    draft: CodStageConfig = field(
        default_factory=lambda: CodStageConfig(schedule=ScheduleConfig(num_steps=1000, learning_rate=2e-3), seed=6)
    )
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def smoke_config() -> DemoPairConfig:
    """Every stage at a size that takes a minute in all; what comes out answers nothing."""
    few = ScheduleConfig(num_steps=4, learning_rate=1e-3, warmup_steps=1, checkpoint_every=2, log_every=2)
    phases = (Phase(num_steps=3, batch_size=2, length=160), Phase(num_steps=1, batch_size=1, length=320))
    tiny = ModelConfig(hidden_size=64, num_layers=1, intermediate_size=64)
    return DemoPairConfig(
        text=TextConfig(num_documents=12_000, num_tokenizer_documents=12_000),
        target=ArConfig(model=tiny, phases=phases, schedule=few, seed=2),
        draft_ar=ArConfig(model=tiny, phases=phases, schedule=few, seed=3),
        draft_text=CodStageConfig(schedule=few, seed=4, batch_size=2, length=160),
        answers=AnswersConfig(num_questions=16, max_new_tokens=24, batch_size=16),
        draft=CodStageConfig(schedule=few, seed=6, batch_size=2, length=160),
        evaluation=EvaluationConfig(num_prompts=4, max_new_tokens=24),
    )
