"""Options that can't be had together, each told in one sentence before a model is loaded."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import edit_config, save_llama, save_tokenizer

from vllm_pard.errors import PardError

Configure = Callable[..., Any]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PARD warns of. (vLLM sets its loggers up again with its first config: a handler would be lost.)"""
    lines: list[str] = []
    logger = logging.getLogger("vllm.vllm_pard")
    monkeypatch.setattr(logger, "warning", lambda text, *args: lines.append(text % args))
    return lines


def test_a_step_without_room_for_drafts(configure: Configure, warnings: list[str]) -> None:
    room = {"max_num_seqs": 4}
    with pytest.raises(PardError, match=r"127 draft tokens need a step of more than 127 tokens, and it has 64: give "):
        configure({"num_speculative_tokens": 127}, max_num_batched_tokens=64, **room)
    with pytest.raises(PardError, match=r"255 \(2K \+ 1\) or more .* or at most 31 draft tokens"):
        configure({"num_speculative_tokens": 127}, max_num_batched_tokens=64, **room)
    with pytest.raises(PardError, match="more than 127 tokens, and it has 64"):
        configure({"num_speculative_tokens": 127}, max_num_seqs=1, max_model_len=64)
    configure({"num_speculative_tokens": 8}, max_num_batched_tokens=9, **room)
    assert "a step of 9 tokens verifies 0 of 8 drafts: give --max-num-batched-tokens 17" in " ".join(warnings)
    warnings.clear()
    configure({"num_speculative_tokens": 8}, max_num_batched_tokens=17, **room)
    assert "verifies" not in " ".join(warnings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"draft_sample_method": "x"}, r'"draft_sample_method" .* must be \'greedy\' or \'probabilistic\'; got \'x\'$'),
        ({"attention_backend": "FOO"}, r'^"attention_backend" .* Unknown attention backend: .* CUSTOM; got \'FOO\'$'),
        ({"rejection_sample_method": "x"}, r'^"rejection_sample_method" .* must be \'standard\''),
        ({"kv_cache_dtype": 3}, r'^"kv_cache_dtype" .*; got 3$'),
        ({"quantization": "foo"}, r"^vLLM refuses the speculative config: Unknown quantization method: foo\."),
        ({"rejection_sample_method": "synthetic"}, r"^vLLM refuses the speculative config: .* requires exactly one of"),
        ({"enable_adaptive_verification": True}, r'^"enable_adaptive_verification" needs model runner V2, which needs'),
    ],
)
def test_value_that_vllm_refuses(configure: Configure, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PardError, match=message) as caught:
        configure(given)
    assert "\n" not in str(caught.value)


def test_prompt_embeddings_on_v1(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first such request would end the engine: vLLM's V1 drafter has no token ids to read."""
    with pytest.raises(
        PardError, match=r"^--enable-prompt-embeds with drafts needs model runner V2, which needs Triton"
    ):
        configure({}, enable_prompt_embeds=True)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")
    with pytest.raises(PardError, match="V2, and VLLM_USE_V2_MODEL_RUNNER is '0': leave it out here"):
        configure({}, enable_prompt_embeds=True)


@pytest.mark.parametrize("runner", ["0", "1"])
def test_states_on_a_cpu(configure: Configure, monkeypatch: pytest.MonkeyPatch, runner: str) -> None:
    """LFM2 with any draft: V1 ends with its first step, V2 gives other tokens than plain decoding."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", runner)
    monkeypatch.setattr("vllm.config.model.ModelConfig.has_inner_state", property(lambda self: True))
    with pytest.raises(PardError, match=r"^the target '.*' keeps states .*: leave the draft out on this machine$"):
        configure({})


@pytest.mark.usefixtures("_triton")
def test_prompt_embeddings_on_v2(configure: Configure) -> None:
    assert configure({}, enable_prompt_embeds=True).speculative_config.runner == "v2"


def test_pooling_ignores_the_draft(configure: Configure, warnings: list[str]) -> None:
    config = configure({}, runner="pooling")
    assert config.speculative_config is None
    assert "is served for pooling and generates no tokens: no draft" in " ".join(warnings)


def parse(*arguments: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    options = ["--dtype", "float32", "--max-model-len", "128", "--enforce-eager"]
    return EngineArgs.from_cli_args(parser.parse_args([*arguments, *options]))


def test_spec_method(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    target, draft = map(str, tiny_pair)
    flags = ["--model", target, "--spec-method", "pard", "--spec-model", draft, "--spec-tokens", "3"]
    spec = parse(*flags).create_engine_config().speculative_config
    assert (type(spec).__name__, spec.model, spec.num_speculative_tokens) == ("PardSpeculativeConfig", draft, 3)
    with pytest.raises(PardError, match='--spec-method and "method" in the speculative config say the same thing'):
        parse(*flags, "--speculative-config", json.dumps({"method": "pard"})).create_engine_config()


def test_engine_without_tokenizers(
    configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path, warnings: list[str]
) -> None:
    """A target's folder without tokenizer files, and a draft with another tokenizer: the engine reads neither."""
    target = Path(edit_config(tiny_pair[0], tmp_path / "target"))
    for path in target.glob("tokenizer*"):
        path.unlink()
    draft = save_llama(tmp_path / "draft", seed=3, config={"pard_token": 300})
    save_tokenizer(draft, rename={65: "<other>"})
    configure({"model": str(draft)}, model=str(target), skip_tokenizer_init=True)
    assert "tokenizers are not compared: the engine loads none (skip_tokenizer_init)" in " ".join(warnings)


def test_checks_read_models_as_the_engine_does(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_pard.serving import speculative_config

    seen: dict[str, Any] = {}
    choose = speculative_config.choose_draft

    def remember_draft(*args: Any, loading: Any, **kwargs: Any) -> Any:
        seen["draft"] = loading
        return choose(*args, loading=loading, **kwargs)

    monkeypatch.setattr(speculative_config, "choose_draft", remember_draft)
    monkeypatch.setattr(speculative_config, "check_tokenizers", lambda *args, **kwargs: seen.update(kwargs))
    configure({"revision": "draft's"}, hf_token="secret", trust_remote_code=True, tokenizer_revision="target's")
    assert (seen["draft"].revision, seen["target_loading"].revision) == ("draft's", "target's")
    for loading in (seen["draft"], seen["draft_loading"], seen["target_loading"]):
        assert (loading.token, loading.trust_remote_code, loading.skip_tokenizer) == ("secret", True, False)
