"""The reference engine, measured: AR, AR+, VSD, PARD and PARD-2 on Transformers."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.measurement import Measurement
from vllm_pard.bench.methods import Contender, Models
from vllm_pard.bench.options import BenchmarkError
from vllm_pard.bench.verify import NUM_LIKELIEST, Output
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.pard2 import Mode
from vllm_pard.reference.drafting import ParallelDrafting
from vllm_pard.reference.engine import Generation, ReferenceEngine
from vllm_pard.reference.models import best_device, eos_token_ids, load_model
from vllm_pard.silence import without_progress_bars


class ReferenceRunner:
    """All but AR run on static caches and are compiled, as they are in the PARD paper's "Transformers+" figures."""

    def __init__(
        self, contender: Contender, models: Models, dtype: str, max_length: int, num_threads: int | None
    ) -> None:
        drafting = _parallel(contender, models)
        self.mode: Mode | None = None if drafting is None else drafting.mode
        device = best_device()
        if num_threads:
            torch.set_num_threads(num_threads)
        with readable_memory_errors(), without_progress_bars():
            self._target = load_model(models.target, dtype, device)
            name = contender.draft(models)
            draft = name and load_model(name, dtype, device)
        self._options: dict[str, Any] = {
            "draft": draft,
            "num_speculative_tokens": contender.num_speculative_tokens,
            **(drafting.options if drafting else {"method": contender.name}),
            "num_tree_nodes": num_tree_nodes(contender, models),
            "max_length": max_length,
            "compiled": contender.name != "ar",
        }
        self._engines: dict[int, ReferenceEngine] = {}

    def measure(self, requests: list[Request], sampling: Sampling, concurrency: int) -> Measurement:
        engine = self._engine(concurrency)
        started = time.perf_counter()
        generations = self._generate(engine, requests, sampling)
        return Measurement(
            num_requests=len(requests),
            num_tokens=sum(len(generation.token_ids) for generation in generations),
            seconds=time.perf_counter() - started,
            stats=sum((generation.stats for generation in generations), AcceptanceStats()),
        )

    def outputs(
        self, requests: list[Request], sampling: Sampling, concurrency: int, *, with_likeliest: bool
    ) -> list[Output]:
        generations = self._generate(self._engine(concurrency), requests, sampling)
        return [
            Output(
                token_ids=generation.token_ids,
                likeliest=self._likeliest(request.token_ids, generation.token_ids) if with_likeliest else None,
            )
            for request, generation in zip(requests, generations, strict=True)
        ]

    def close(self, *, keep_log: bool) -> None:
        self._engines.clear()
        del self._target
        self._options.clear()

    def _engine(self, concurrency: int) -> ReferenceEngine:
        """Built once for each batch size, so that it is compiled once."""
        if concurrency not in self._engines:
            with readable_memory_errors():
                self._engines[concurrency] = ReferenceEngine(self._target, batch_size=concurrency, **self._options)
        return self._engines[concurrency]

    def _generate(self, engine: ReferenceEngine, requests: list[Request], sampling: Sampling) -> list[Generation]:
        with readable_memory_errors():
            return engine.generate(
                [request.token_ids for request in requests],
                max_new_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed,
                eos_token_ids=() if sampling.ignore_eos else eos_token_ids(self._target),
            )

    @torch.no_grad()
    def _likeliest(self, prompt_ids: list[int], token_ids: list[int]) -> list[dict[int, float]]:
        input_ids = torch.tensor([prompt_ids + token_ids[:-1]], device=self._target.device)  # [1, T]
        logits = self._target(input_ids, logits_to_keep=len(token_ids)).logits[0].float()  # [len(token_ids), V]
        top = logits.log_softmax(dim=-1).topk(min(NUM_LIKELIEST, logits.shape[-1]))  # [len(token_ids), at most 10]
        rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [dict(zip(ids, logprobs, strict=True)) for ids, logprobs in rows]


def _parallel(contender: Contender, models: Models) -> ParallelDrafting | None:
    """How the PARD or PARD-2 draft is run, in the words of what vLLM would be told."""
    told = contender.speculative_config(models) or {}
    if told.get("method") != "pard":
        return None
    wanted = told.get("mode", "auto")
    return ParallelDrafting.find(
        models.target, models.target_config, draft=contender.models(models).draft, wanted=wanted
    )


def num_tree_nodes(contender: Contender, models: Models) -> int:
    """0: drafts are chains."""
    told = contender.speculative_config(models) or {}
    return int(told.get("tree", {}).get("nodes", 0))


@contextmanager
def readable_memory_errors() -> Iterator[None]:
    """One contender's lack of memory is no reason to stop the others."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise BenchmarkError(f"out of memory: {error}") from error


def max_length(requests: list[Request], sampling: Sampling) -> int:
    """What the longest request needs."""
    return max(len(request.token_ids) for request in requests) + sampling.max_tokens
