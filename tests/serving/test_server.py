"""The README's server, used as its clients and others use it: the OpenAI client against a real server here."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from doc_blocks import README_PORT, Block, blocks, environment, run_block
from doc_metrics import named_metrics
from doc_parse import commands
from engine import ENVIRONMENT
from openai import OpenAI

from vllm_pard.demo import demo_path, prompts

pytestmark = pytest.mark.engine

K = 8
PROMPTS = [sample["prompt"] for sample in prompts("word_problems")][:16]
SCHEMA = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


class Server:
    """A running server: its client, its counters, its log."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.client = OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=120, max_retries=0)

    def counters(self) -> dict[str, float]:
        """Sum of each `vllm:` metric over its labels, and accepted tokens by position."""
        text = urllib.request.urlopen(f"{self.url}/metrics", timeout=10).read().decode()
        counters: dict[str, float] = {}
        for name, labels, value in re.findall(r"^vllm:(\w+)\{(.*?)\} ([0-9.e+-]+)$", text, re.MULTILINE):
            position = re.search(r'position="(\d+)"', labels)
            key = f"{name}[{position[1]}]" if position else name
            counters[key] = counters.get(key, 0) + float(value)
        return counters

    def complete(self, prompt: str, **options: object) -> str:
        """Greedy text of one completion."""
        options = {"temperature": 0, "max_tokens": 64} | options
        return self.client.completions.create(model="demo", prompt=prompt, **options).choices[0].text


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(port: int) -> list[str]:
    """What the README tells to run, on another port."""
    [block] = blocks("server")
    [words] = commands(block.text.replace(README_PORT, str(port)))
    return words


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            command(port),
            env=environment(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until_ready(process, port, log)
            yield Server(port, log)
        finally:
            process.terminate()  # the server itself: `vllm-pard serve` has become it
            process.wait(timeout=60)
        assert "Application shutdown complete" in log.read_text()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-4000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"no server after 400 s:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def expected(server: Server) -> list[str]:
    """One client at a time."""
    return [server.complete(prompt) for prompt in PROMPTS]


def test_log_names_pard_draft_and_k(server: Server) -> None:
    log = server.log.read_text()
    assert re.search(rf"PARD: draft \S*demo/draft, K={K} draft tokens", log)


@pytest.mark.parametrize("block", blocks("client"), ids=str)
def test_clients_of_the_readme(block: Block, server: Server, tmp_path: Path) -> None:
    run_block(block, tmp_path, port=server.port, timeout=60)


@pytest.fixture(scope="module")
def plain() -> dict[str, list[str]]:
    """Texts of vLLM without drafts: of the prompts, and of the first of them held to a schema."""
    program = (
        "import sys, json; from vllm import LLM, SamplingParams;"
        "from vllm.sampling_params import StructuredOutputsParams;"
        "llm = LLM(sys.argv[1], dtype='float32', max_model_len=512, enforce_eager=True, gpu_memory_utilization=0.3,"
        " distributed_executor_backend='uni');"
        "ask = lambda prompts, **options: [o.outputs[0].text for o in llm.generate(prompts,"
        " SamplingParams(temperature=0, max_tokens=64, **options), use_tqdm=False)];"
        "prompts, schema = json.loads(sys.argv[2]);"
        "held = ask(prompts[:1], structured_outputs=StructuredOutputsParams(json=schema));"
        "print('RESULT ' + json.dumps({'free': ask(prompts), 'held': held}))"
    )
    arguments = [sys.executable, "-c", program, str(demo_path("target")), json.dumps([PROMPTS, SCHEMA])]
    done = subprocess.run(arguments, env=environment(**ENVIRONMENT), capture_output=True, text=True, timeout=300)
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(result.removeprefix("RESULT "))


def test_greedy_equals_plain_vllm(expected: list[str], plain: dict[str, list[str]]) -> None:
    assert plain["free"] == expected


def test_white_space_for_json_is_plain_vllms_too(server: Server, plain: dict[str, list[str]]) -> None:
    """The README says so of a model that never read JSON."""
    text = server.complete(PROMPTS[0], extra_body={"structured_outputs": {"json": SCHEMA}})
    assert [text] == plain["held"]
    assert len(text) - len("".join(text.split())) > 32


def test_sixteen_concurrent_clients(server: Server, expected: list[str]) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(server.complete, PROMPTS)) == expected


def test_streaming(server: Server, expected: list[str]) -> None:
    stream = server.client.completions.create(
        model="demo", prompt=PROMPTS[0], temperature=0, max_tokens=64, stream=True
    )
    chunks = [chunk.choices[0].text for chunk in stream if chunk.choices]
    assert len(chunks) > 3
    assert "".join(chunks) == expected[0]


def test_chat(server: Server) -> None:
    reply = server.client.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "What is 3 + 4?"}], temperature=0, max_tokens=32
    )
    assert reply.choices[0].message.content
    assert reply.usage is not None
    assert reply.usage.completion_tokens > 1


def test_two_choices_and_seeds(server: Server) -> None:
    def draw() -> list[str]:
        reply = server.client.completions.create(
            model="demo", prompt="Question:", temperature=1.5, max_tokens=24, n=2, seed=5
        )
        return [choice.text for choice in reply.choices]

    first = draw()
    assert first[0] != first[1]
    assert draw() == first


def test_logprobs(server: Server, expected: list[str]) -> None:
    reply = server.client.completions.create(
        model="demo", prompt=PROMPTS[2], temperature=0, max_tokens=64, logprobs=3
    ).choices[0]
    assert reply.text == expected[2]
    assert reply.logprobs is not None
    assert "".join(reply.logprobs.tokens) == expected[2]
    for chosen, top in zip(reply.logprobs.token_logprobs, reply.logprobs.top_logprobs, strict=True):
        assert chosen == pytest.approx(max(top.values()), abs=1e-4), "greedy takes the most likely token"


def test_stop_string(server: Server, expected: list[str]) -> None:
    stop = expected[3][10:14]
    assert server.complete(PROMPTS[3], stop=[stop]) == expected[3][: expected[3].index(stop)]


def test_json_schema(server: Server) -> None:
    schema = {"type": "string", "enum": ["apples", "oranges"]}
    reply = server.client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Apples or oranges?"}],
        temperature=0,
        max_tokens=32,
        response_format={"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema}},
    )
    assert json.loads(str(reply.choices[0].message.content)) in schema["enum"]


def test_regex_of_the_readme(server: Server) -> None:
    """One sentence, where the answer has five without it."""
    prompt, held = "Question: What is 17 + 25?\nAnswer:", {"structured_outputs": {"regex": r"[^.]+\."}}
    free = server.complete(prompt, max_tokens=128)
    assert server.complete(prompt, max_tokens=128, extra_body=held) == free[: free.index(".") + 1]


def test_client_that_disconnects(server: Server, expected: list[str]) -> None:
    stream = server.client.completions.create(
        model="demo", prompt=PROMPTS[4], temperature=0, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while server.counters()["num_requests_running"] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.counters()["num_requests_running"] == 0
    assert server.complete(PROMPTS[4]) == expected[4]


def test_metrics_of_the_guide_and_the_dashboard(server: Server) -> None:
    """All are there; a histogram's own name stands above its samples only."""
    text = urllib.request.urlopen(f"{server.url}/metrics", timeout=10).read().decode()
    stored = set(re.findall(r"^(vllm:\w+)\{", text, re.MULTILINE))
    histograms = set(re.findall(r"^# TYPE (vllm:\w+) histogram$", text, re.MULTILINE))
    assert named_metrics() <= stored | histograms
    assert len(named_metrics() & stored) >= 10


def test_metrics_are_right(server: Server) -> None:
    before = server.counters()
    requests = PROMPTS[:4]
    for prompt in requests:
        server.complete(prompt, max_tokens=33, extra_body={"ignore_eos": True})
    after = server.counters()
    delta = {name: after[name] - before.get(name, 0) for name in after}
    drafts, accepted = delta["spec_decode_num_drafts_total"], delta["spec_decode_num_accepted_tokens_total"]
    by_position = [delta[f"spec_decode_num_accepted_tokens_per_pos_total[{i}]"] for i in range(K)]
    assert delta["generation_tokens_total"] == 33 * len(requests)
    assert delta["spec_decode_num_draft_tokens_total"] <= K * drafts
    assert sum(by_position) == accepted
    assert by_position == sorted(by_position, reverse=True)
    # One token comes from the prefill, one bonus and the accepted tokens from each draft; only the last is cut short.
    emitted = len(requests) + drafts + accepted
    assert delta["generation_tokens_total"] <= emitted <= delta["generation_tokens_total"] + K * len(requests)
    assert accepted / drafts > 1.5, "the demo draft is a good one"
    # The guide's tokens a step: a latency is counted for each step of a request but its first, which has no drafts.
    assert delta["time_to_first_token_seconds_count"] == len(requests)
    assert drafts <= delta["inter_token_latency_seconds_count"] <= drafts + len(requests)


def test_port_in_use(server: Server) -> None:
    done = subprocess.run(command(server.port), env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Address already in use" in done.stdout + done.stderr
