"""Are the outputs plain greedy decoding's? Equal, or where they part, and how close the choice was there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.server import Server


@dataclass(frozen=True, kw_only=True)
class Output:
    """Greedy tokens of one request. `gaps[i]`: log-probability of token i above that of the runner-up, in nats."""

    token_ids: list[int]
    gaps: list[float] | None = None  # of plain decoding only


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first token that differs. A gap near 0 is a tie that rounding may break either way, a wide one an error."""

    request: str
    position: int
    expected: int | None  # None: plain decoding had ended
    got: int | None  # None: this output had ended
    gap: float | None


@dataclass(frozen=True, kw_only=True)
class Verification:
    """One method's outputs against plain decoding's."""

    label: str
    concurrency: int
    num_requests: int
    divergences: list[Divergence]

    @property
    def num_equal(self) -> int:
        return self.num_requests - len(self.divergences)

    @property
    def in_words(self) -> str:
        if not self.divergences:
            return f"all {self.num_requests} outputs equal"
        gaps = [divergence.gap for divergence in self.divergences if divergence.gap is not None]
        widest = f", widest gap at a first difference {max(gaps):.2g} nats" if gaps else ""
        return f"{self.num_equal} of {self.num_requests} outputs equal{widest}"

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"num_equal": self.num_equal}


def compare(
    label: str, concurrency: int, requests: Sequence[Request], plain: Sequence[Output], outputs: Sequence[Output]
) -> Verification:
    divergences = [
        found
        for request, expected, output in zip(requests, plain, outputs, strict=True)
        if (found := first_difference(request.id, expected, output))
    ]
    return Verification(
        label=label, concurrency=concurrency, num_requests=len(requests), divergences=divergences
    )  # fmt: skip


def first_difference(request: str, expected: Output, output: Output) -> Divergence | None:
    mine, plain = output.token_ids, expected.token_ids
    if mine == plain:
        return None
    position = next(
        (i for i, (a, b) in enumerate(zip(plain, mine, strict=False)) if a != b), min(len(plain), len(mine))
    )
    return Divergence(
        request=request,
        position=position,
        expected=plain[position] if position < len(plain) else None,
        got=mine[position] if position < len(mine) else None,
        gap=expected.gaps[position] if expected.gaps and position < len(expected.gaps) else None,
    )


def collect_outputs(
    server: Server, requests: Sequence[Request], sampling: Sampling, concurrency: int, *, with_gaps: bool
) -> list[Output]:
    """Greedy outputs of all requests, `concurrency` at a time."""
    body = {"max_tokens": sampling.max_tokens, "return_token_ids": True, "logprobs": 2 if with_gaps else None}

    def ask(number: int) -> Output:
        own = {"prompt": requests[number].token_ids} | sampling.body(number)
        (choice,) = server.complete(body | own)["choices"]
        tops = choice["logprobs"]["top_logprobs"] if with_gaps else None
        return Output(token_ids=choice["token_ids"], gaps=tops and [gap(top) for top in tops])

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(ask, range(len(requests))))


def gap(top: dict[str, float]) -> float:
    """Between the two most likely tokens."""
    first, second = sorted(top.values(), reverse=True)[:2]
    return first - second
