"""Speaks the engine process's protocol without vLLM. The model's name says how it behaves."""

import json
import sys
import time

ACCEPTED = {"num_drafts": 4, "num_draft_tokens": 8, "num_accepted_tokens": 6, "accepted_per_position": [4, 2]}
# A draft of which next to nothing is kept, and steps for which it costs too much.
POOR = {"num_drafts": 400, "num_draft_tokens": 800, "num_accepted_tokens": 44, "accepted_per_position": [40, 4]}
COSTS = {"batch_size": 3, "plain_ms": 10.0, "step_ms": 30.0, "draft_ms": 5.0}
MAX_PROMPT_TOKENS = 400
NOTHING = {"num_drafts": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0, "accepted_per_position": []}


def send(**event: object) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    options = json.loads(sys.stdin.readline())["options"]
    behaviour = options["model"].rpartition("/")[2]
    speculative = options.get("speculative_config")
    print("a line of the log", file=sys.stderr)
    if speculative:
        print(f"INFO PARD: draft {speculative.get('model')}, K=2 draft tokens in one forward", file=sys.stderr)
    if behaviour == "wrong-config":
        send(event="failed", kind="ConfigError", message="the draft has another tokenizer", ours=True)
        sys.exit(1)
    if behaviour == "unexpected":
        send(event="failed", kind="RuntimeError", message="out of memory", ours=False)
        sys.exit(1)
    if behaviour == "crash-at-start":
        print("the last words", file=sys.stderr)
        sys.exit(3)
    k = speculative.get("num_speculative_tokens", 2) if speculative else 0
    draft = speculative and speculative.get("model")
    send(event="ready", vllm="0.0", device="fake", options=options, num_speculative_tokens=k, draft=draft)
    for line in sys.stdin:
        command = json.loads(line)
        if command["op"] == "stop":
            return
        if command["stream"] and options.get("max_num_seqs", 1) > 1:
            send(event="text", id=command["prompts"][-1]["id"], text="out of turn")
        for number, prompt in enumerate(command["prompts"]):
            if behaviour == "crash-in-the-middle" and number == 2:
                print("the last words", file=sys.stderr)
                sys.exit(3)
            if behaviour == "hang-in-the-middle" and number == 2:
                time.sleep(600)
            if prompt.get("text") == "too long" or len(prompt.get("token_ids", ())) > MAX_PROMPT_TOKENS:
                send(event="refused", id=prompt["id"], message="the prompt is too long")
                continue
            answer(prompt, command, different=behaviour == "differs" and speculative is not None)
            if behaviour == "tells-all" and speculative and command["find_costs"]:
                send(event="costs", **COSTS | {"batch_size": len(command["prompts"])})
            if behaviour == "loses" and speculative and command["find_costs"]:
                send(event="costs", **COSTS)
                send(event="progress", num_tokens=30, seconds=0.1, stats=POOR, batch_size=3)
        stats = POOR if behaviour in ("loses", "unmeasured") else ACCEPTED
        send(
            event="done",
            seconds=0.25 if speculative else 1.0,
            steps=steps(len(command["prompts"]), speculative, short=behaviour == "short-answers"),
            stats=stats if speculative else NOTHING,
            batch_size=len(command["prompts"]),
        )


def steps(batch_size: int, speculative: dict | None, *, short: bool) -> dict[int, dict[str, float]]:
    """Of the full batch, and of what is left of it in the end; each draft of each request costs a millisecond."""
    num_drafts = speculative["num_speculative_tokens"] if speculative and "num_speculative_tokens" in speculative else 0
    found = {size: {"ms": 10.0 + num_drafts * size, "num_steps": 9} for size in {1, batch_size}}
    return {1: found[1]} if short else found


def answer(prompt: dict, command: dict, different: bool) -> None:
    token_ids = list(range(3 + different))[: command["sampling"]["max_tokens"]]
    for token_id in token_ids if command["stream"] else ():
        send(event="text", id=prompt["id"], text=f"<{token_id}>")
    text = "".join(f"<{token_id}>" for token_id in token_ids)
    send(event="finished", id=prompt["id"], text=text, token_ids=token_ids, finish_reason="length")


if __name__ == "__main__":
    main()
