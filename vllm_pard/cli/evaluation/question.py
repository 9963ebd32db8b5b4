"""What `vllm-pard evaluate` is asked, and the models that it is about."""

from dataclasses import dataclass
from typing import Any

from vllm_pard.catalog import choose_draft
from vllm_pard.checkpoint import PardCheckpoint, check_tokenizers, load_config
from vllm_pard.config import check_num_speculative_tokens
from vllm_pard.target_proj import TargetProj, target_proj_for


@dataclass(frozen=True, kw_only=True)
class Question:
    """The options of the command."""

    target: str
    draft: str | None
    tasks: tuple[str, ...]
    num_prompts: int | None
    lengths: tuple[int, ...] | None
    mode: str
    reference: bool
    options: dict[str, Any]
    dtype: str
    max_tokens: int
    seed: int
    verbose: bool


@dataclass(frozen=True)
class Models:
    """What is asked about, by name; nothing is loaded."""

    question: Question
    checkpoint: PardCheckpoint
    lengths: tuple[int, ...]
    target_proj: TargetProj | None  # of dependent mode
    why: str  # this mode

    @property
    def modes(self) -> tuple[str, ...]:
        if self.target_proj is None:
            return ("independent",)
        return ("dependent", "independent") if self.question.mode == "both" else ("dependent",)


def find_models(question: Question) -> Models:
    """Check them by their configs; only target_proj is read."""
    target_config = load_config(question.target)
    checkpoint, trained = choose_draft(question.target, target_config, draft=question.draft)
    check_tokenizers(question.target, checkpoint.path)
    lengths = question.lengths or (trained,)
    for length in lengths:
        check_num_speculative_tokens(length)
    hidden_size = load_config(checkpoint.path)["hidden_size"]
    wanted: Any = {"auto": None, "both": "dependent"}.get(question.mode, question.mode)
    target_proj, why = target_proj_for(checkpoint, hidden_size, question.target, target_config, wanted=wanted)
    return Models(question, checkpoint, lengths, target_proj, why)
