"""`vllm-pard serve` with PARD, used as clients use it: the OpenAI client against a real server on this machine."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine import ENVIRONMENT
from openai import OpenAI

from vllm_pard.demo import demo_path, prompts

pytestmark = pytest.mark.engine

README = (Path(__file__).parents[2] / "README.md").read_text()
K = 8
PROMPTS = [sample["prompt"] for sample in prompts("word_problems")][:16]
OPTIONS = {
    "--dtype": "float32",
    "--max-num-seqs": "16",
    "--max-num-batched-tokens": "1024",
    "--served-model-name": "demo",
    "--host": "127.0.0.1",
}


class Server:
    """A running server: its client, its counters, its log."""

    def __init__(self, port: int, log: Path) -> None:
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
    """What the README tells to run, on another port and with room for this machine."""
    [line] = re.findall(r"^    (vllm-pard serve demo (?:.*\\\n)*.*)$", README, re.MULTILINE)
    options = [word for pair in OPTIONS.items() for word in pair]
    return [
        sys.executable,
        "-m",
        "vllm_pard.cli",
        *shlex.split(line.replace("\\\n", ""))[1:],
        "--port",
        str(port),
        *options,
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log.txt"
    port = free_port()
    with log.open("w") as out:
        process = subprocess.Popen(
            command(port),
            env={**os.environ, **ENVIRONMENT},
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


def test_request_of_the_readme(server: Server) -> None:
    """It names no model: there is one."""
    [body] = re.findall(r"^      -d '(.*)'$", README, re.MULTILINE)
    request = urllib.request.Request(
        f"{server.url}/v1/completions", data=body.encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        [choice] = json.load(response)["choices"]
    assert "17 + 25" in json.loads(body)["prompt"]
    assert "42" in choice["text"]


def test_greedy_equals_plain_vllm(server: Server, expected: list[str]) -> None:
    program = (
        "import sys, json; from vllm import LLM, SamplingParams;"
        "llm = LLM(sys.argv[1], dtype='float32', max_model_len=512, enforce_eager=True, gpu_memory_utilization=0.3,"
        " distributed_executor_backend='uni');"
        "outs = llm.generate(json.loads(sys.argv[2]), SamplingParams(temperature=0, max_tokens=64), use_tqdm=False);"
        "print('RESULT ' + json.dumps([o.outputs[0].text for o in outs]))"
    )
    arguments = [sys.executable, "-c", program, str(demo_path("target")), json.dumps(PROMPTS)]
    done = subprocess.run(arguments, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=300)
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    assert json.loads(result.removeprefix("RESULT ")) == expected


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


def test_port_in_use(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    done = subprocess.run(command(port), env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "Address already in use" in done.stdout + done.stderr
