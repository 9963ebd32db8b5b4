"""Stands in for `vllm-pard bench` where a program runs it: its own parser reads the command, the result is made up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import doc_parse

COUNTS = {"num_drafts": 4, "num_draft_tokens": 8, "num_accepted_tokens": 4, "accepted_per_position": [3, 1]}
NOTHING = {"num_drafts": 0, "num_draft_tokens": 0, "num_accepted_tokens": 0, "accepted_per_position": []}


def fake_bench(tokens_per_second: Callable[[int, str], int]) -> Callable[..., None]:
    """In the place of `subprocess.run`; the speed is that of a method by its place and label, plain decoding first."""

    def run(command: list[str], **_: Any) -> None:
        asked = command[command.index("bench") :]
        doc_parse.check_vllm_pard(asked)
        labels = asked[asked.index("--methods") + 1].split(",")
        concurrencies = (
            map(int, asked[asked.index("--concurrency") + 1].split(",")) if "--concurrency" in asked else [1]
        )
        cells = [(concurrency, *cell) for concurrency in concurrencies for cell in enumerate(labels)]
        results = [
            {
                "method": label,
                "concurrency": concurrency,
                "runs": [
                    {
                        "num_tokens": tokens_per_second(place, label),
                        "seconds": 1.0,
                        "stats": NOTHING if place == 0 else COUNTS,
                    }
                ],
            }
            for concurrency, place, label in cells
        ]
        checks = [
            {"label": label, "concurrency": concurrency, "num_requests": 16, "num_equal": 16}
            for concurrency, place, label in cells
            if place
        ]
        result = {"conditions": {"commit": "made up"}, "results": results, "verification": checks}
        Path(asked[asked.index("--json") + 1]).write_text(json.dumps(result))

    return run
