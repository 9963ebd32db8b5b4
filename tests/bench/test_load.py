"""vLLM's own benchmark client against a server that is not one."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from vllm_pard.bench.load import Request, Sampling, measure_server
from vllm_pard.bench.measurement import Cell, Measurement
from vllm_pard.bench.server import Server
from vllm_pard.demo import demo_path
from vllm_pard.metrics import AcceptanceStats
from vllm_pard.process import ProcessError, has_cpu_engine

pytestmark = pytest.mark.usefixtures("fake_server")

SAMPLING = Sampling(max_tokens=6)


def measure(model: str, requests: list[Request], concurrency: int = 2) -> Measurement:
    tokenizer = AutoTokenizer.from_pretrained(demo_path("target"))
    with Server(model, {}) as server:
        server.wait_until_ready()
        return measure_server(server, tokenizer, requests, SAMPLING, concurrency, verbose=False)


def test_counts_tokens_and_times(requests: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    run = measure("fine", requests)
    assert (run.num_requests, run.num_tokens) == (4, 24)
    assert run.tokens_per_second == 24 / run.seconds
    assert run.ttft_p99_ms is not None
    assert run.ttft_p50_ms is not None
    assert 0 < run.ttft_p50_ms <= run.ttft_p99_ms
    assert run.stats == AcceptanceStats()
    assert capsys.readouterr() == ("", "")  # vLLM's table is not ours


def test_acceptance_is_that_of_the_run(requests: list[Request]) -> None:
    stats = measure("speculates", requests).stats
    assert stats == AcceptanceStats(
        num_drafts=8, num_draft_tokens=32, num_accepted_tokens=16, accepted_per_position=(8, 8, 0, 0)
    )  # fmt: skip
    assert stats.mean_acceptance_length == 3


def test_a_server_is_awake_when_it_is_measured(requests: list[Request]) -> None:
    """One that waits for others to be measured may be paged out."""
    run = measure("cold", requests)
    assert run.num_requests == 4
    assert run.ttft_p99_ms is not None
    assert run.ttft_p99_ms < 900
    assert run.seconds < 0.9


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("crash-in-the-middle", r"the server ended with exit code 3; (?s:.*)the last words"),
        ("refuses", "the server did not answer: 4 of 4 requests failed: Bad Request"),
    ],
)
def test_failed_requests_are_no_result(
    model: str, message: str, requests: list[Request], recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(ProcessError, match=message):
        measure(model, requests, concurrency=1)
    assert [warning for warning in recwarn if "requests" in str(warning.message)] == []  # the error says it


def test_medians_and_spread() -> None:
    runs = [
        Measurement(num_requests=1, num_tokens=100, seconds=seconds, itl_p50_ms=10 * seconds, tpot_p50_ms=4.0)
        for seconds in (1.0, 2.0, 4.0)
    ]
    cell = Cell(label="pard", concurrency=2, runs=runs)
    assert cell.tokens_per_second == 50
    assert cell.spread == (25, 100)
    assert cell.median_of("itl_p50_ms") == 20
    assert cell.median_of("ttft_p50_ms") is None
    assert cell.tokens_per_second_per_user == 250
    record = cell.as_record()
    assert record["step_ms"] == 20
    assert len(record["runs"]) == 3


def test_what_the_client_logs_is_not_ours(requests: list[Request]) -> None:
    """Its import logs a warning where a part is missing; in a process of its own, where it is not imported yet."""
    with Server("fine", {}) as server:
        server.wait_until_ready()
        shown = {verbose: client_says(server, requests, verbose) for verbose in (False, True)}
    assert shown[False] == ""
    assert "Triton" in shown[True] or not has_cpu_engine()


def client_says(server: Server, requests: list[Request], verbose: bool) -> str:
    script = (
        "from types import SimpleNamespace\n"
        "from transformers import AutoTokenizer\n"
        "from vllm_pard.bench.load import Request, Sampling, measure_server\n"
        f"server = SimpleNamespace(url={server.url!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({str(demo_path('target'))!r})\n"
        f"requests = [Request(id='1', token_ids={requests[0].token_ids})]\n"
        f"measure_server(server, tokenizer, requests, Sampling(max_tokens=3), 1, verbose={verbose})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr
