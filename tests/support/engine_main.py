"""The process of `engine.run_scenario`: RUNNER MODULE:FUNCTION ARGUMENTS.

RUNNER is "v1", "v2", or "v2-triton": the second with Triton attention instead of vLLM's C++ one for CPUs.

A file of its own, since vLLM's spawned workers import it again, and on V2 each of them needs the interpreter.
"""

import importlib
import json
import sys

runner, scenario, arguments = sys.argv[1:4]
if runner != "v1":
    import v2_interpreter

if __name__ == "__main__":
    if runner != "v1":
        v2_interpreter.keep_asynchronous_scheduling()
    if runner == "v2-triton":
        v2_interpreter.use_triton_attention()
    module, function = scenario.split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print("RESULT " + json.dumps(result))
