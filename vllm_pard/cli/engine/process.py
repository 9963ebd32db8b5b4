"""The far end of `EngineProcess`: a vLLM engine that reads commands and writes events, one JSON object a line.

Commands: {"op": "start", "options": LLM's arguments} once, then any number of {"op": "generate", ...}, then
{"op": "stop"}. If the commands end without "stop", our parent has died, and so do we.
"""

import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from vllm_pard.cli.engine.meter import EngineMeter, num_speculative_tokens
from vllm_pard.errors import PardError
from vllm_pard.process import CPU_OPTIONS
from vllm_pard.prompts import prompt_token_ids

Send = Callable[[dict[str, Any]], None]


def main() -> int:
    send = _take_stdout()
    engine: Any = None
    try:
        for command in _commands():
            match command["op"]:
                case "start":
                    engine = start(command["options"])
                    send({"event": "ready", **describe(engine)})
                case "generate":
                    generate(engine, command, send)
                case "stop":
                    break
    except Exception as error:
        send(
            {
                "event": "failed",
                "kind": type(error).__name__,
                "message": str(error),
                "ours": isinstance(error, PardError),
            }
        )
        raise
    return 0


def start(options: dict[str, Any]) -> Any:
    from vllm import LLM
    from vllm.platforms import current_platform

    platform_options = CPU_OPTIONS if current_platform.is_cpu() else {}
    return LLM(**(platform_options | {"disable_log_stats": False} | options))


def describe(engine: Any) -> dict[str, Any]:
    """The conditions of everything this engine will measure."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    config = engine.llm_engine.vllm_config
    return {
        "vllm": vllm.__version__,
        "torch": torch.__version__,
        "device": current_platform.get_device_name(),
        "num_threads": torch.get_num_threads(),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "max_model_len": config.model_config.max_model_len,
        "num_speculative_tokens": num_speculative_tokens(engine),
        "draft": config.speculative_config and config.speculative_config.model,
        "mode": getattr(config.speculative_config, "mode", None),  # PARD's
    }


def generate(engine: Any, command: dict[str, Any], send: Send) -> None:
    """Answer all prompts; a prompt that the engine refuses gets an event of its own and disturbs no other."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError
    from vllm.sampling_params import RequestOutputKind

    # A request may have a seed of its own.
    seeds = {prompt["id"]: {"seed": prompt["seed"]} for prompt in command["prompts"] if "seed" in prompt}
    requests = _tokenize(engine.get_tokenizer(), command["prompts"], send)
    meter = EngineMeter(engine, send, find_costs=command["find_costs"])
    answers: dict[str, Answer] = {}
    for request_id, prompt_ids in requests.items():
        try:
            sampling = command["sampling"] | seeds.get(request_id, {})
            params = SamplingParams(**sampling, output_kind=RequestOutputKind.DELTA)
            (request,) = engine.renderer.render_cmpl([{"prompt_token_ids": prompt_ids}])
            engine.llm_engine.add_request(request_id, request, params)
            answers[request_id] = Answer()
        except (ValueError, VLLMClientError) as error:
            send({"event": "refused", "id": request_id, "message": str(error)})
    while engine.llm_engine.has_unfinished_requests():
        outputs = engine.llm_engine.step()
        meter.after_step(outputs)
        for output in outputs:
            _pass_on(output, answers[output.request_id], command["stream"], send)
    meter.done()


@dataclass
class Answer:
    """What has come of an answer so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)


def _pass_on(output: Any, answer: Answer, stream: bool, send: Send) -> None:
    (completion,) = output.outputs
    answer.texts.append(completion.text)
    answer.token_ids.extend(completion.token_ids)
    if stream and completion.text:
        send({"event": "text", "id": output.request_id, "text": completion.text})
    if output.finished:
        send(
            {
                "event": "finished",
                "id": output.request_id,
                "text": "".join(answer.texts),
                "token_ids": answer.token_ids,
                "finish_reason": completion.finish_reason,
            }
        )


def _tokenize(tokenizer: Any, prompts: list[dict[str, Any]], send: Send) -> dict[str, list[int]]:
    """Token ids by request, where they are not given; a chat without a chat template is refused like a prompt that is
    too long.
    """
    requests = {}
    for prompt in prompts:
        if "token_ids" in prompt:
            requests[prompt["id"]] = prompt["token_ids"]
            continue
        try:
            requests[prompt["id"]] = prompt_token_ids(tokenizer, prompt["text"], prompt["messages"])
        except ValueError as error:
            send({"event": "refused", "id": prompt["id"], "message": str(error)})
    return requests


def _take_stdout() -> Send:
    """Keep stdout for events; what libraries print goes to stderr, which is the log."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(event: dict[str, Any]) -> None:
        stream.write(json.dumps(event) + "\n")
        stream.flush()

    return send


def _commands() -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


if __name__ == "__main__":
    sys.exit(main())
