"""The far end of `Server`: vLLM's API server, which does not outlive the benchmark that started it."""

import os
import runpy
import signal
import sys
import threading

# A module rather than the `vllm` command, which does not start in the CPU wheel.
API_SERVER = "vllm.entrypoints.openai.api_server"


def main() -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    runpy.run_module(API_SERVER, run_name="__main__", alter_sys=True)


def end_with_parent() -> None:
    """Wait until the other end of stdin is gone, however it went; then end, with the engine's processes."""
    while sys.stdin.buffer.read(1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
