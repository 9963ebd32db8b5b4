"""Are the outputs plain greedy decoding's? Equal, or where they part, and how close the choice was there."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from vllm_pard.bench.load import Request, Sampling
from vllm_pard.bench.server import Server

NUM_LIKELIEST = 10  # tokens at each position whose log-probability is known; vLLM gives 20 at most


@dataclass(frozen=True, kw_only=True)
class Output:
    """Greedy tokens of one request, its end token included.

    `likeliest[i]`: log-probabilities, in nats, of the likeliest tokens at position i, by token id.
    """

    token_ids: list[int]
    likeliest: list[dict[int, float]] | None = None  # of plain decoding only


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first token that differs. `gap` near 0: a tie that rounding may break either way; a wide one: an error."""

    request: str
    position: int
    expected: int | None  # None: plain decoding had ended
    got: int | None  # None: this output had ended
    gap: float | None  # plain decoding's log-probability of `expected` above that of `got`, in nats; None: not known


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
    def widest_gap(self) -> float | None:
        """Of those that are known."""
        return max((divergence.gap for divergence in self.divergences if divergence.gap is not None), default=None)

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


def first_difference(request: str, plain: Output, output: Output) -> Divergence | None:
    """Where two outputs part, None if they don't.

    An output that ends before any difference has no gap: engines keep the end token, so that an end which is chosen
    differs as a token does. An output without one was cut off.
    """
    if output.token_ids == plain.token_ids:
        return None
    pairs = zip(plain.token_ids, output.token_ids, strict=False)
    position = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(plain.token_ids), len(output.token_ids))
    )  # fmt: skip
    expected, got = (dict(enumerate(ids)).get(position) for ids in (plain.token_ids, output.token_ids))
    gap = None
    if plain.likeliest and expected is not None and got is not None:
        gap = gap_between(plain.likeliest[position], expected, got)
    return Divergence(request=request, position=position, expected=expected, got=got, gap=gap)


def gap_between(likeliest: dict[int, float], expected: int, got: int) -> float | None:
    """In nats; None where one of them is not among the likeliest."""
    known = [likeliest[token_id] for token_id in (expected, got) if token_id in likeliest]
    return abs(known[0] - known[1]) if len(known) == 2 else None


def collect_outputs(
    server: Server, requests: Sequence[Request], sampling: Sampling, concurrency: int, *, with_likeliest: bool
) -> list[Output]:
    """Greedy outputs of all requests, `concurrency` at a time."""
    body: dict[str, Any] = {"max_tokens": sampling.max_tokens, "return_token_ids": True}
    if with_likeliest:
        # By id: the texts of two tokens may be equal.
        body |= {"logprobs": NUM_LIKELIEST, "return_tokens_as_token_ids": True}

    def ask(number: int) -> Output:
        own = {"prompt": requests[number].token_ids} | sampling.body(number)
        (choice,) = server.complete(body | own)["choices"]
        tops = choice["logprobs"]["top_logprobs"] if with_likeliest else None
        return Output(token_ids=choice["token_ids"], likeliest=tops and [by_token_id(top) for top in tops])

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(ask, range(len(requests))))


def by_token_id(top: dict[str, float]) -> dict[int, float]:
    """`{"token_id:7": -0.1}` as `{7: -0.1}`."""
    return {int(name.removeprefix("token_id:")): logprob for name, logprob in top.items()}
