"""Load on a server, by the machinery of `vllm bench serve`."""

import asyncio
import contextlib
import io
from dataclasses import dataclass
from typing import Any

from vllm_pard.bench.measurement import Measurement
from vllm_pard.bench.server import SERVED_NAME, Server
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.silence import without_warnings


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt as token ids, so that every engine reads the same."""

    id: str
    token_ids: list[int]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Request number n is seeded with seed + n."""

    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    ignore_eos: bool = False

    def body(self, number: int) -> dict[str, Any]:
        """Fields of an OpenAI completion request."""
        body: dict[str, Any] = {"temperature": self.temperature, "ignore_eos": self.ignore_eos}
        return body | ({"seed": self.seed + number} if self.temperature > 0 else {})


def measure_server(
    server: Server, tokenizer: Any, requests: list[Request], sampling: Sampling, concurrency: int, *, verbose: bool
) -> Measurement:
    """Send all requests, `concurrency` at a time, and measure the streams.

    The first one is sent once more before, and not measured: while other servers answer, an idle one's memory may be
    paged out. With `verbose`, what vLLM's client logs is shown.
    """
    if verbose:
        import vllm.benchmarks.serve  # noqa: F401 - its log goes to the stdout that it finds
    try:
        with contextlib.nullcontext() if verbose else without_warnings(), contextlib.redirect_stdout(io.StringIO()):
            result = asyncio.run(_benchmark(server, tokenizer, requests, sampling, concurrency))
    except OSError as error:
        raise server.lost(error) from error
    if result["failed"]:
        reason = next(error for error in result["errors"] if error).strip().splitlines()[-1]
        raise server.lost(f"{result['failed']} of {len(requests)} requests failed: {reason}")
    return Measurement(
        num_requests=len(requests),
        num_tokens=result["total_output_tokens"],
        seconds=result["duration"],
        ttft_p50_ms=float(result["median_ttft_ms"]),
        ttft_p99_ms=float(result["p99_ttft_ms"]),
        itl_p50_ms=float(result["median_itl_ms"]),
        itl_p99_ms=float(result["p99_itl_ms"]),
        tpot_p50_ms=float(result["median_tpot_ms"]),
        stats=acceptance(result),
    )


def acceptance(result: dict[str, Any]) -> AcceptanceStats:
    """Counts, from the shares by position that vLLM reports."""
    num_drafts = result.get("spec_decode_num_drafts", 0)
    shares = result.get("spec_decode_per_position_acceptance_rates", [])
    return AcceptanceStats(
        num_drafts=num_drafts,
        num_draft_tokens=result.get("spec_decode_draft_tokens", 0),
        num_accepted_tokens=result.get("spec_decode_accepted_tokens", 0),
        accepted_per_position=tuple(round(share * num_drafts) for share in shares),
    )


async def _benchmark(
    server: Server, tokenizer: Any, requests: list[Request], sampling: Sampling, concurrency: int
) -> dict[str, Any]:
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    samples = [
        SampleRequest(
            prompt=request.token_ids,
            prompt_len=len(request.token_ids),
            expected_output_len=sampling.max_tokens,
            request_id=f"{request.id}-",
            request_overrides=sampling.body(number),
        )
        for number, request in enumerate(requests)
    ]
    result: dict[str, Any] = await benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai",
        api_url=f"{server.url}/v1/completions",
        base_url=server.url,
        model_id=SERVED_NAME,
        model_name=SERVED_NAME,
        tokenizer=tokenizer,
        input_requests=samples,
        logprobs=None,
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=1,
        profile=False,
        selected_percentile_metrics=["ttft", "tpot", "itl"],
        selected_percentiles=[50.0, 99.0],
        ignore_eos=sampling.ignore_eos,
        goodput_config_dict={},
        max_concurrency=concurrency,
        lora_modules=None,
        extra_headers=None,
        extra_body=None,
        ready_check_timeout_sec=0,
    )
    return result
