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


def test_a_length_that_is_chosen_on_v1(configure: Configure) -> None:
    config = configure({"num_speculative_tokens": "auto"})
    assert config.speculative_config.num_speculative_tokens == 8
    assert config.speculative_config.lengths == (0, 2, 4, 8)
    assert config.scheduler_config.scheduler_cls == "vllm_pard.serving.scheduler.make_scheduler"
    assert configure({}).scheduler_config.scheduler_cls is None


@pytest.mark.usefixtures("_triton")
def test_a_length_that_is_chosen_on_v2(configure: Configure) -> None:
    """vLLM captures graphs for the lengths of a schedule, each up to the largest of its batches."""
    spec = configure({"num_speculative_tokens": "auto"}).speculative_config
    assert spec.lengths == (0, 2, 4, 8)
    schedule = [tuple(entry) for entry in spec.num_speculative_tokens_per_batch_size]
    assert schedule == [(1, 1, 0), (2, 2, 2), (3, 3, 4), (4, 2**20, 8)]
    alone = configure({"num_speculative_tokens": "auto"}, max_num_seqs=1).speculative_config
    assert [tuple(entry) for entry in alone.num_speculative_tokens_per_batch_size] == [(1, 2**20, 8)]


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"num_speculative_tokens_per_batch_size": [[1, 8, 2]]}, {}, "both choose how many drafts are verified"),
        ({"enable_adaptive_verification": True}, {}, "both choose how many drafts are verified"),
        ({"tree": {"nodes": 8}}, {}, 'chooses among chains: give a number, or "tree": "auto", or'),
        ({}, {"data_parallel_size": 2}, "is chosen by each engine alone"),
        ({}, {"scheduler_cls": "my.Scheduler"}, "needs a scheduler of its own, and scheduler_cls is 'my.Scheduler'"),
    ],
)
def test_what_a_chosen_length_does_not_go_with(
    configure: Configure, given: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PardError, match=message):
        configure({"num_speculative_tokens": "auto"} | given, **options)


@pytest.mark.usefixtures("_triton")
def test_trees_choose_their_attention(configure: Configure) -> None:
    config = configure({"tree": {"nodes": 20}})
    spec = config.speculative_config
    assert (spec.num_speculative_tokens, spec.draft_depth) == (20, 8)
    assert config.attention_config.backend.name == "CUSTOM"
    assert configure({"tree": {"nodes": 20}}, attention_backend="CUSTOM").attention_config.backend.name == "CUSTOM"
    assert configure({"tree": None}).attention_config.backend is None


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(("num_depths", "lengths"), [(8, (0, 7, 15, 31)), (1, (0, 4, 8, 16))])
def test_sizes_of_trees_that_are_chosen(configure: Configure, num_depths: int, lengths: tuple[int, ...]) -> None:
    """Sixteen nodes are all that a tree one deep has."""
    spec = configure({"tree": "auto", "num_speculative_tokens": num_depths}).speculative_config
    assert spec.lengths == lengths
    assert (spec.num_speculative_tokens, spec.draft_depth) == (lengths[-1], num_depths)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"num_speculative_tokens_per_batch_size": [[1, 8, 2]]}, {}, "both choose what is verified"),
        ({"enable_adaptive_verification": True}, {}, "both choose what is verified"),
        ({"draft_sample_method": "probabilistic"}, {}, "takes the likeliest tokens of a draft"),
        ({"rejection_sample_method": "block"}, {}, "has its own verification"),
        ({}, {"enable_lora": True}, "does not go with LoRA"),
        ({}, {"kv_offloading_size": 1.0}, "does not go with a KV connector"),
        ({}, {"attention_backend": "TRITON_ATTN"}, "needs attention backend CUSTOM, and TRITON_ATTN is asked for"),
        ({}, {"attention_config": {"backend": "FLASH_ATTN"}}, "needs attention backend CUSTOM, and FLASH_ATTN is"),
        ({"num_speculative_tokens": 1}, {}, 'a "tree" 1 deep has at most 16 nodes; got 20'),
    ],
)
def test_what_trees_do_not_go_with(
    configure: Configure, given: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PardError, match=message):
        configure({"tree": {"nodes": 20}} | given, **options)


@pytest.mark.parametrize("property_of_target", ["use_mla", "has_inner_state", "is_encoder_decoder", "uses_mrope"])
def test_targets_that_have_no_trees(property_of_target: str) -> None:
    from types import SimpleNamespace

    from vllm_pard.config import PardConfig
    from vllm_pard.serving.tree.checks import check_tree

    names = ("use_mla", "has_inner_state", "is_encoder_decoder", "uses_mrope")
    target = SimpleNamespace(**{name: name == property_of_target for name in names})
    engine = SimpleNamespace(kv_transfer_config=None, kv_offloading_size=None)
    wanted = PardConfig.from_mapping({"tree": {"nodes": 8}})
    with pytest.raises(PardError, match="does not go with a target that has "):
        check_tree(wanted, engine, target, runner="v2")


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
