"""What is compiled gives the same tokens, and is compiled once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from vllm_pard.reference import cache
from vllm_pard.reference.engine import ReferenceEngine
from vllm_pard.target_proj import TargetProj

Prompts = list[list[int]]
MakeLlama = Callable[..., LlamaForCausalLM]
AsDraft = Callable[[LlamaForCausalLM], LlamaForCausalLM]
MakeTargetProj = Callable[..., TargetProj]


@pytest.fixture(autouse=True)
def from_nothing() -> None:
    torch._dynamo.reset()


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of torch.compile but Inductor, which takes seconds for each shape."""
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **options: compile(*a, **(options | {"backend": "eager"})))


def check_compiled(reference: ReferenceEngine, eager: ReferenceEngine, prompts: Prompts) -> None:
    expected = eager.generate(prompts, max_new_tokens=12)
    assert reference.generate(prompts[:1], max_new_tokens=12) == expected[:1]
    with torch.compiler.set_stance("fail_on_recompile"):
        assert reference.generate(prompts, max_new_tokens=12) == expected
        sampled = reference.generate(prompts, max_new_tokens=12, temperature=1.0)
        assert sampled == eager.generate(prompts, max_new_tokens=12, temperature=1.0)
    assert reference.target.cache.slots is None  # it would be memory of a CUDA graph


def engines(
    method: Any, target: Any, draft: Any, target_proj: TargetProj | None = None
) -> tuple[ReferenceEngine, ReferenceEngine]:
    """Compiled, and not."""
    options: dict[str, Any] = {"num_speculative_tokens": 3, "mask_token_id": 10, "batch_size": 3, "max_length": 40}
    options["target_proj"] = target_proj
    if method == "ar+":
        compiled = ReferenceEngine(target, method="ar+", batch_size=3, max_length=40)
        eager = ReferenceEngine(target, method="ar+", batch_size=3, max_length=40)
        eager.target._compiled_forward = None
        return compiled, eager
    return (
        ReferenceEngine(target, draft, method=method, compiled=True, **options),
        ReferenceEngine(target, draft, method=method, **options),
    )


@pytest.mark.parametrize("method", ["pard", "pard2"])
def test_compiled_is_eager(
    method: str, tiny_llama: MakeLlama, as_draft: AsDraft, target_proj_of: MakeTargetProj, prompts: Prompts
) -> None:
    target = tiny_llama(seed=0, num_hidden_layers=1)
    draft = as_draft(target)
    target_proj = target_proj_of(target, draft) if method == "pard2" else None
    check_compiled(*engines(method, target, draft, target_proj), prompts)


@pytest.mark.usefixtures("traced_only")
@pytest.mark.parametrize("method", ["ar+", "vsd", "pard", "pard2"])
def test_each_shape_is_traced_once(
    method: str,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    target_proj_of: MakeTargetProj,
    prompts: Prompts,
) -> None:
    torch._dynamo.utils.counters.clear()
    target_proj = target_proj_of(target, draft) if method == "pard2" else None
    check_compiled(*engines(method, target, draft, target_proj), prompts)
    num_shapes = {"ar+": 1, "vsd": 3, "pard": 2, "pard2": 2}[method]  # the first draft row of VSD comes with another
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_shapes


@pytest.mark.usefixtures("traced_only")
def test_many_engines(tiny_llama: MakeLlama) -> None:
    """More shapes than Dynamo keeps by default."""
    target = tiny_llama(seed=0, num_hidden_layers=1)
    references = [ReferenceEngine(target, method="ar+", max_length=16 + 8 * i) for i in range(10)]
    answers = [reference.generate([[1, 2, 3]], max_new_tokens=10)[0].token_ids for reference in references]
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize(("device", "mode"), [("cpu", None), ("cuda", "reduce-overhead")])
def test_cuda_graphs_on_a_gpu(device: str, mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(torch, "compile", lambda _, **options: seen.update(options))
    cache.compile_forward(None, torch.device(device))
    assert seen == {"fullgraph": True, "dynamic": False, "mode": mode}
