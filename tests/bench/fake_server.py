"""Speaks as much of vLLM's HTTP interface as a benchmark needs.

The folder name of the draft, or else of the target, says how it behaves; FAKE_BEHAVIOUR may give another for a name.

"fine"              counts up from the last prompt token
"speculates"        the same, and its metrics say that it drafts 4 tokens a step, of which 2 are accepted
"reads-its-target"  the same, and its log says that a PARD-2 draft does so
"wrong"             the same, but its third token is the runner-up, 2 nats behind
"near-tie"          the same, but its first token is the runner-up, which is as likely
"batch-dependent"   as "near-tie", but only where it is not asked for log-probabilities
"cold"              the same, a second late the first time
"crash-at-start"    ends before it answers
"out-of-memory"     ends before it answers, with a GPU's last words
"killed-worker"     ends before it answers, with what vLLM says of a worker that Linux killed, and then much else
"crash-in-the-middle"  ends at the third request
"refuses"           answers every request with an error
"""

import json
import os
import sys
import threading
import time
from argparse import ArgumentParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STEPS = {"drafts": 0}
REQUESTS = {"number": 0}


def parse() -> tuple[str, int]:
    parser = ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--speculative-config")
    known, _ = parser.parse_known_args()
    speculative = json.loads(known.speculative_config or "{}")
    name = Path(speculative.get("model", known.model)).name
    return json.loads(os.environ.get("FAKE_BEHAVIOUR", "{}")).get(name, name), known.port


BEHAVIOUR, PORT = parse()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer(metrics() if self.path == "/metrics" else "ok")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        REQUESTS["number"] += 1
        if BEHAVIOUR == "crash-in-the-middle" and REQUESTS["number"] == 3:
            print("the last words", flush=True)
            os._exit(3)
        if BEHAVIOUR == "cold" and REQUESTS["number"] == 1:
            time.sleep(1.0)
        if BEHAVIOUR == "refuses":
            self.answer("no room for this prompt", status=400)
            return
        tokens = continuation(body["prompt"], body["max_tokens"], may_part="logprobs" not in body)
        if not body.get("stream"):
            self.answer(json.dumps({"choices": [choice(tokens, body)]}))
            return
        STEPS["drafts"] += -(-len(tokens) // 3)
        pieces = (
            [tokens[i : i + 3] for i in range(0, len(tokens), 3)]
            if BEHAVIOUR == "speculates"
            else [[t] for t in tokens]
        )
        events = [{"choices": [{"text": " ".join(map(str, piece))}]} for piece in pieces]
        usage = {"usage": {"completion_tokens": len(tokens), "prompt_tokens": len(body["prompt"])}, "choices": []}
        self.answer("".join(f"data: {json.dumps(event)}\n\n" for event in [*events, usage]) + "data: [DONE]\n\n")

    def answer(self, text: str, status: int = 200) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def continuation(prompt: list[int], num_tokens: int, *, may_part: bool) -> list[int]:
    tokens = [prompt[-1] + i + 1 for i in range(num_tokens)]
    if BEHAVIOUR == "wrong":
        tokens[2] += 100
    if BEHAVIOUR == "near-tie" or (BEHAVIOUR == "batch-dependent" and may_part):
        tokens[0] += 100
    return tokens


def choice(tokens: list[int], body: dict[str, Any]) -> dict[str, Any]:
    # The runner-up of token i is i nats behind.
    tops = [{f"token_id:{t}": -0.5, f"token_id:{t + 100}": -0.5 - i} for i, t in enumerate(tokens)]
    return {"token_ids": tokens, "logprobs": {"top_logprobs": tops} if body.get("logprobs") else None}


def metrics() -> str:
    if BEHAVIOUR != "speculates":
        return ""
    drafts = STEPS["drafts"]
    lines = [
        f"vllm:spec_decode_num_drafts_total{{}} {drafts}",
        f"vllm:spec_decode_num_draft_tokens_total{{}} {4 * drafts}",
    ]
    lines += [f"vllm:spec_decode_num_accepted_tokens_total{{}} {2 * drafts}"]
    accepted = (drafts, drafts, 0, 0)
    lines += [
        f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{i}"}} {count}'
        for i, count in enumerate(accepted)
    ]
    return "\n".join(lines)


def main() -> None:
    print("a line of the log", flush=True)
    if BEHAVIOUR == "reads-its-target":
        print("INFO PARD: draft d, K=8, PARD-2, dependent: reads layers -1, -8 of the target; vLLM 0.0", flush=True)
    if BEHAVIOUR == "out-of-memory":
        print("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB", flush=True)
        sys.exit(1)
    if BEHAVIOUR == "killed-worker":
        print("ERROR Worker proc VllmWorker-0 died unexpectedly (exit code: -9), shutting down executor.", flush=True)
        print(*(f"INFO shutting down, {step}" for step in range(40)), sep="\n", flush=True)
        sys.exit(1)
    if BEHAVIOUR == "crash-at-start":
        print("the last words", flush=True)
        sys.exit(3)
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever).start()


main()
