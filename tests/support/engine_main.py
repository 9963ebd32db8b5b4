"""The process of `engine.run_scenario`: RUNNER MODULE:FUNCTION ARGUMENTS.

A file of its own, since vLLM's spawned workers import it again, and on V2 each of them needs the interpreter.
"""

import importlib
import json
import sys

runner, scenario, arguments = sys.argv[1:4]
if runner == "v2":
    import v2_interpreter

if __name__ == "__main__":
    if runner == "v2":
        v2_interpreter.keep_asynchronous_scheduling()
    module, function = scenario.split(":")
    result = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print("RESULT " + json.dumps(result))
