"""The process of `engine.Launcher`: RUNNER. Each line of stdin is a scenario; its exit status goes to stdout.

RUNNER is "v1" or "v2"; "v2-triton" and "v2-flash" are the second with attention as on GPUs instead of vLLM's C++ one.
Where there is a GPU, V2 runs on it as it is, whichever of its names is given.

A file of its own, since vLLM's spawned workers import it again, and on V2 each of them needs the interpreter.
"""

import gc
import importlib
import json
import multiprocessing
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from engine import ON_GPU

runner = "v2" if ON_GPU else sys.argv[1]
is_interpreted = runner != "v1" and not ON_GPU
if is_interpreted:
    import v2_interpreter


def run(scenario: str, arguments: dict[str, Any], folder: str) -> None:
    module, function = scenario.split(":")
    result = getattr(importlib.import_module(module), function)(**arguments)
    (Path(folder) / "result.json").write_text(json.dumps(result))


def run_and_exit(request: dict[str, Any]) -> None:
    """In the forked process: no teardown of an engine that nobody needs any more."""
    log = os.open(Path(request["folder"]) / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        run(**request)
        status = 0
    except BaseException:
        traceback.print_exc()
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join(10)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def prepare() -> None:
    """What the runner needs of vLLM, which this imports."""
    if is_interpreted:
        v2_interpreter.keep_asynchronous_scheduling()
        v2_interpreter.use_torch_top_k_top_p()
    if runner == "v2-triton":
        v2_interpreter.use_triton_attention()
    if runner == "v2-flash":
        importlib.import_module("flash_on_cpu").use_flash_attention()


def main() -> None:
    prepare()
    for module in ("scenarios", "scenarios_v1" if runner == "v1" else "scenarios_v2"):
        importlib.import_module(module)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.collect = lambda *_: 0  # type: ignore[assignment]  # a fifth of a short scenario, in a process that ends with it
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_and_exit(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


if __name__ == "__mp_main__":
    prepare()
if __name__ == "__main__":
    main()
