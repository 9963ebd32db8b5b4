"""What `vllm-pard evaluate` is asked: checked, and found without loading a model."""

from dataclasses import dataclass
from typing import Any, Literal

from vllm_pard.bench.prompt_sets import PromptSet, load_prompts
from vllm_pard.checkpoint import PardCheckpoint, check_exists, check_tokenizers, load_config
from vllm_pard.cli.arguments import UsageError
from vllm_pard.config import check_num_speculative_tokens
from vllm_pard.pard2 import Mode
from vllm_pard.reference.drafting import ParallelDrafting
from vllm_pard.target_proj import TargetProj

Wanted = Literal["auto", "dependent", "independent", "both"]

# Arguments of vLLM that have a place of their own on our command line.
PLACES = {"model": "TARGET", "speculative_config": "DRAFT and --k", "dtype": "--dtype"}
# And those after which the target would not be what Transformers reads for the replay.
OTHER_TARGET = (
    *("config_format", "hf_config_path", "hf_overrides", "revision", "skip_tokenizer_init", "tokenizer"),
    *("tokenizer_mode", "tokenizer_revision", "trust_remote_code"),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """The options of the command."""

    target: str
    draft: str | None
    tasks: tuple[str, ...]
    num_prompts: int | None
    lengths: tuple[int, ...] | None  # K
    mode: Wanted
    reference: bool
    options: dict[str, Any]  # more of vLLM's LLM arguments
    dtype: str
    max_tokens: int
    seed: int
    verbose: bool


@dataclass(frozen=True)
class Models:
    """What is asked about, by name; of its weights, only target_proj is there."""

    question: Question
    drafting: ParallelDrafting
    lengths: tuple[int, ...]

    @property
    def checkpoint(self) -> PardCheckpoint:
        return self.drafting.checkpoint

    @property
    def target_proj(self) -> TargetProj | None:
        """Of dependent mode."""
        return self.drafting.target_proj

    @property
    def modes(self) -> tuple[Mode, ...]:
        if self.target_proj is None:
            return ("independent",)
        return ("dependent", "independent") if self.question.mode == "both" else ("dependent",)

    @property
    def max_length(self) -> int:
        """The longest draft, which an engine decodes with."""
        return max(self.lengths)


def find_tasks(question: Question) -> list[PromptSet]:
    """The prompts of each task. Raises PardError where a task is unknown, or two have one name."""
    tasks = [load_prompts(name, num_prompts=question.num_prompts, seed=question.seed) for name in question.tasks]
    names = [task.name for task in tasks]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        raise UsageError(f"every task needs a name of its own; {twice!r} is given twice: leave one out, or rename it")
    return tasks


def find_models(question: Question) -> Models:
    """Raises PardError where the draft can't be evaluated for the target as asked."""
    _check_options(question)
    for length in question.lengths or ():
        check_num_speculative_tokens(length)
    check_exists(question.target)
    wanted = "dependent" if question.mode == "both" else question.mode
    config = load_config(question.target)
    drafting = ParallelDrafting.find(question.target, config, draft=question.draft, wanted=wanted)
    check_tokenizers(question.target, drafting.checkpoint.path)
    return Models(question, drafting, question.lengths or (drafting.num_speculative_tokens,))


def _check_options(question: Question) -> None:
    if question.reference and question.options:
        raise UsageError(
            f"--engine-args are for vLLM, and --engine reference was given with {sorted(question.options)[0]!r}: "
            "leave one of the two out"
        )
    for key, place in PLACES.items():
        if key in question.options:
            raise UsageError(f"{key!r} does not go into --engine-args; give it as {place}")
    for key in OTHER_TARGET:
        if key in question.options:
            raise UsageError(
                f"{key!r} can't be among --engine-args: answers are replayed on Transformers, which would read another "
                "target; name a folder in which the target is as you want it"
            )
