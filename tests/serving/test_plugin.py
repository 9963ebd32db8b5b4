"""What vLLM users get who have vllm_pard installed and never ask for it: nothing."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine import run_scenario
from vllm.platforms.cpu import CpuPlatform

from vllm_pard.serving import patches
from vllm_pard.serving.plugin import register
from vllm_pard.serving.speculative_config import PardSpeculativeConfig


def test_register_is_idempotent_and_can_be_undone() -> None:
    from vllm.engine.arg_utils import EngineArgs

    register()
    once = EngineArgs.create_speculative_config
    register()
    assert EngineArgs.create_speculative_config is once
    patches.PATCHES[0].undo()
    assert not hasattr(EngineArgs.create_speculative_config, "_vllm_pard")
    register()
    assert EngineArgs.create_speculative_config is not once


def test_register_never_raises(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(scope: str) -> None:
        raise RuntimeError("vLLM has moved on")

    monkeypatch.setattr(patches, "apply_patches", fail)
    register()
    assert "vllm_pard is off" in caplog.text


@pytest.mark.parametrize("given", [None, {"method": "ngram", "num_speculative_tokens": 3}, {"model": "pard"}])
def test_other_configs_go_to_the_original(given: Any) -> None:
    def original(self: Any, target: Any, parallel: Any) -> Any:
        return ("original", self.speculative_config, target, parallel)

    class Arguments:
        speculative_config = given

    wrapped = patches.PATCHES[0].wrap(original)
    assert wrapped(Arguments(), 1, 2) == ("original", given, 1, 2)


def test_biased_requests_pass_where_pard_serves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """min_p and logit_bias: any other engine's requests meet vLLM's own check."""
    asked: list[Any] = []
    wrapped = patches.PATCHES[1].wrap(lambda self, config: asked.append(config))
    serves = PardSpeculativeConfig.serves_every_sampling_param.fget
    on_v1, on_v2 = (
        SimpleNamespace(serves_every_sampling_param=serves(SimpleNamespace(runner=r))) for r in ("v1", "v2")
    )
    monkeypatch.setattr(CpuPlatform, "is_cpu", lambda self: False)
    elsewhere = SimpleNamespace(serves_every_sampling_param=serves(SimpleNamespace(runner="v1")))
    others = [None, SimpleNamespace(method="ngram"), elsewhere]
    for config in (*others, on_v1, on_v2):
        wrapped(None, config)
    assert asked == others


def test_request_values_are_repeated_for_their_tokens() -> None:
    """What vLLM's CPU kernel loses: a float for each request, repeated for each of its tokens, zeros replaced."""
    wrapped = patches.PATCHES[2].wrap(lambda: None)
    got = wrapped(torch.tensor([0.7, 0.0, 1.5]), torch.tensor([2, 2, 5]), 5, replace_from=0, replace_to=1)
    assert got.tolist() == pytest.approx([0.7, 0.7, 1.5, 1.5, 1.5])
    got = wrapped(torch.tensor([0.5, 0.0]), torch.tensor([1, 3]), 3, replace_from=0, replace_to=1)
    assert got.tolist() == [0.5, 1.0, 1.0]


@pytest.mark.engine
def test_no_difference_without_pard(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Same engine config, same compile hash, same tokens with the plugin as with plugins switched off."""
    target, _ = tiny_pair
    with_plugin = run_scenario("scenarios_v1:without_the_package", runner="v1", target=target)
    monkeypatch.setenv("VLLM_PLUGINS", "")
    without = run_scenario("scenarios_v1:without_the_package", runner="v1", target=target)
    assert with_plugin == without


FUNCTIONS_OF_OURS = """
import importlib, os, sys, types, vllm_pard
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm_pard.serving.patches import PATCHES
for patch in PATCHES:
    importlib.import_module(patch.target.partition(":")[0])
found = set()
for module in [module for name, module in list(sys.modules.items()) if name.partition(".")[0] == "vllm"]:
    for owner in [module, *(value for value in list(vars(module).values()) if isinstance(value, type))]:
        for function in list(vars(owner).values()):
            if not isinstance(function, types.FunctionType):
                continue
            if function.__code__.co_filename.startswith(os.path.dirname(vllm_pard.__file__) + os.sep):
                found.add(f"{function.__module__}:{function.__qualname__}")
print(*sorted(found))
"""


def test_vllm_changes_by_the_ledger_alone() -> None:
    """Loaded from the entry point, as every process of every user does; then each function of vLLM is looked at."""
    out = subprocess.run([sys.executable, "-c", FUNCTIONS_OF_OURS], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1].split() == sorted(
        patch.target for patch in patches.PATCHES if patch.scope == "every process"
    )
