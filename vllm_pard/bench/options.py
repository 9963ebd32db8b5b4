"""What the command line asks for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_pard.bench.load import Sampling
from vllm_pard.errors import PardError
from vllm_pard.pard2 import WantedMode
from vllm_pard.process import has_cpu_engine


class BenchmarkError(PardError):
    """What was asked for can't be measured."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line's, parsed."""

    target: str
    methods: str | None
    prompts: str
    category: str | None
    num_prompts: int | None
    concurrencies: list[int]
    runs: int
    warmup: int
    requests_per_user: int | None
    sampling: Sampling
    draft: str | None
    mode: WantedMode
    ar_draft: str | None
    eagle3_head: str | None
    num_speculative_tokens: int | None
    dtype: str
    reference: bool
    engine_args: dict[str, Any]
    together: bool | None  # None: on a CPU, where all fit
    port: int | None
    verify: bool
    json_file: Path | None
    plots: Path | None
    verbose: bool


def engine_options(options: Options, max_concurrency: int) -> dict[str, Any]:
    """vLLM's engine arguments, the same for all methods; the user's own win."""
    chosen = {
        "dtype": options.dtype,
        "seed": options.sampling.seed,
        "enable_prefix_caching": False,  # or every run but the first would skip the prompts
    }
    if has_cpu_engine():
        chosen["max_num_seqs"] = max_concurrency  # it warms up with as many
    return chosen | options.engine_args
