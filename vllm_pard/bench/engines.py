"""The engines that a session measures."""

import re
from typing import Any, cast

from vllm_pard.bench.load import Request, Sampling, measure_server
from vllm_pard.bench.measurement import Measurement
from vllm_pard.bench.methods import Contender, Models
from vllm_pard.bench.server import Server
from vllm_pard.bench.verify import Output, collect_outputs
from vllm_pard.pard2 import Mode
from vllm_pard.process import PARD_LOG_LINE


class ServedEngine:
    """vLLM behind its own server. `options` are vLLM's engine arguments."""

    def __init__(
        self,
        contender: Contender,
        models: Models,
        options: dict[str, Any],
        *,
        tokenizer: Any,
        port: int | None,
        verbose: bool,
    ) -> None:
        speculative = {"speculative_config": contender.speculative_config(models)}
        self._tokenizer, self._verbose = tokenizer, verbose
        self._server = Server(models.target, options | speculative, port=port, verbose=verbose)
        self.mode: Mode | None = None
        try:
            self._server.wait_until_ready()
            self.mode = _mode(self._server.log_lines(PARD_LOG_LINE))
        except BaseException as error:
            self._server.close(keep_log=isinstance(error, Exception))
            raise

    def measure(self, requests: list[Request], sampling: Sampling, concurrency: int) -> Measurement:
        return measure_server(self._server, self._tokenizer, requests, sampling, concurrency, verbose=self._verbose)

    def outputs(
        self, requests: list[Request], sampling: Sampling, concurrency: int, *, with_likeliest: bool
    ) -> list[Output]:
        return collect_outputs(self._server, requests, sampling, concurrency, with_likeliest=with_likeliest)

    def close(self, *, keep_log: bool) -> None:
        self._server.close(keep_log=keep_log)


def _mode(lines: list[str]) -> Mode | None:
    """Of a PARD-2 draft, as the server's log tells it; None for any other, and where the log went to the terminal."""
    found = re.search(r"PARD-2, (dependent|independent)", "\n".join(lines))
    return cast(Mode, found[1]) if found else None
