"""Every knob and every mistake of `{"method": "pard"}`, on the config objects of the real vLLM; no model is loaded."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import MASK_TOKEN_ID, edit_config, save_llama, save_tokenizer

from vllm_pard.errors import PardError
from vllm_pard.serving import compat, hooks
from vllm_pard.serving.speculative_config import WORKER_CLS, PardSpeculativeConfig

Configure = Callable[..., Any]


def test_defaults(configure: Configure) -> None:
    config = configure({})
    spec = config.speculative_config
    assert type(spec) is PardSpeculativeConfig
    assert (spec.num_speculative_tokens, spec.mask_token_id, spec.runner) == (8, MASK_TOKEN_ID, "v1")
    assert config.parallel_config.worker_cls == WORKER_CLS
    assert "pard" in repr(config)
    assert str(spec.model) in repr(config)
    assert "num_speculative_tokens=8" in repr(config)


def test_every_knob(configure: Configure) -> None:
    spec = configure(
        {
            "num-speculative-tokens": 5,
            "mask_token_id": 7,
            "mode": "independent",
            "draft_tensor_parallel_size": 1,
            "draft_sample_method": "probabilistic",
            "rejection_sample_method": "standard",
            "max_model_len": 64,
        }
    ).speculative_config
    assert (spec.num_speculative_tokens, spec.mask_token_id) == (5, 7)
    assert (spec.draft_sample_method, spec.max_model_len) == ("probabilistic", 64)
    assert spec.draft_model_config.hf_config.mask_token_id == 7, "V1 reads it from there"


def test_spec_flags(configure: Configure) -> None:
    assert configure({}, spec_tokens=3).speculative_config.num_speculative_tokens == 3
    with pytest.raises(PardError, match="--spec-tokens"):
        configure({"num_speculative_tokens": 4}, spec_tokens=3)


@pytest.mark.usefixtures("_triton")
def test_v2_is_planned_where_triton_runs(configure: Configure) -> None:
    schedule = {"num_speculative_tokens_per_batch_size": [[1, 4, 8], [5, 256, 0]]}
    config = configure(schedule)
    assert config.use_v2_model_runner
    assert config.speculative_config.runner == "v2"
    assert not config.speculative_config.parallel_drafting, "vLLM would fall back to V1"
    assert config.num_lookahead_tokens == config.speculative_config.max_num_new_slots_for_drafting == 8
    with pytest.raises(PardError, match='the draft reads as far as the target: leave "max_model_len" out'):
        configure({"max_model_len": 64})
    with pytest.raises(PardError, match="both choose how many drafts are verified: leave one of them out"):
        configure(schedule | {"enable_adaptive_verification": True})
    with pytest.raises(PardError, match="adapters of the lm_head are placed by the host: leave it out"):
        configure({"enable_adaptive_verification": True}, enable_lora=True)


ROPE = {"rope_theta": 10000.0, "original_max_position_embeddings": 64, "factor": 8.0}
LLAMA3 = ROPE | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize("rope", [None, LLAMA3], ids=["plain", "llama3"])
def test_draft_reads_as_far_as_the_target_on_v2(
    configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path, rope: Any
) -> None:
    """By itself vLLM 0.33 serves the target with the draft's positions only, and 0.32 reads beyond its table."""
    short = edit_config(tiny_pair[1], tmp_path / "short", max_position_embeddings=64, rope_parameters=rope)
    config = configure({"model": short})
    draft = config.speculative_config.draft_model_config
    assert (config.model_config.max_model_len, draft.max_model_len) == (128, 128)
    assert draft.hf_config.max_position_embeddings == 128
    assert configure({"model": short}, max_model_len=64).model_config.max_model_len == 64


@pytest.mark.usefixtures("_triton")
def test_rotary_table_that_depends_on_its_length(
    configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    yarn = ROPE | {"rope_type": "yarn"}
    short = edit_config(tiny_pair[1], tmp_path / "short", max_position_embeddings=64, rope_parameters=yarn)
    with pytest.raises(
        PardError, match="has positions for 64 tokens, and the target serves up to 128: add --max-model"
    ):
        configure({"model": short})


def test_survives_pickling_without_plugins(configure: Configure) -> None:
    """Engine and worker processes unpickle the config before any plugin is loaded."""
    pickled = pickle.dumps(configure({}).speculative_config)
    program = (
        "import sys, pickle; spec = pickle.loads(sys.stdin.buffer.read());"
        "from vllm.engine.arg_utils import EngineArgs;"
        "print(type(spec).__name__, spec.mask_token_id, hasattr(EngineArgs.create_speculative_config, '_vllm_pard'))"
    )
    out = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True).stdout
    assert out.decode().split() == ["PardSpeculativeConfig", str(MASK_TOKEN_ID), "False"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_speculative_tokens": 0}, "integer from 1 to 127; got 0"),
        ({"num_speculative_tokens": 128}, "integer from 1 to 127; got 128"),
        ({"num_speculative_tokens": "8"}, "integer from 1 to 127; got '8'"),
        ({"num_speculative_tokens": True}, "integer from 1 to 127; got True"),
        ({"num_speculativ_tokens": 8}, 'unknown key "num_speculativ_tokens".*did you mean "num_speculative_tokens"'),
        ({"foo": 1}, 'unknown key "foo".*known keys: '),
        ({"mask_token_id": -1}, "an integer from 0; got -1"),
        ({"mask_token_id": 320}, "a token id from 0 to 319; the given mask_token_id is 320"),
        ({"mode": "target-independent"}, "must be one of auto, dependent, independent; got 'target-independent'"),
        ({"tree": True}, r'"tree" must be \{"nodes": N\} or "auto"; got True'),
        ({"tree": {"nodes": 8, "depth": 2}}, r'"tree" must be \{"nodes": N\} or "auto"; got '),
        ({"tree": {"nodes": 0}}, '"nodes" of "tree" must be an integer from 1 to 63; got 0'),
        ({"tree": {"nodes": 64}}, '"nodes" of "tree" must be an integer from 1 to 63; got 64'),
        ({"tree": {"nodes": 8}}, '"tree" needs model runner V2: install Triton'),
        ({"target_layers": [-1]}, "is read from the draft's config.json .*; leave it out"),
        ({"target_proj": "x"}, "is read from the draft's warp_model.bin, or .*; leave it out"),
        ({"parallel_drafting": False}, "always drafts in parallel"),
        ({"tensor_parallel_size": 1}, '"draft_tensor_parallel_size"'),
        ({"model": "/no/such/folder"}, "there is no model folder '/no/such/folder'"),
        ({"model": 3}, "must be a draft folder or a hub name; got 3"),
        ({"draft_vocab": ["ids.json"]}, r"must be a file with a JSON list of token ids; got \['ids.json'\]"),
        ({"draft_vocab": "/no/such/ids.json"}, "can't read the draft vocabulary '/no/such/ids.json': No such file"),
        ({"num_speculative_tokens_per_batch_size": [[1, 8, 2]]}, "needs model runner V2, which needs Triton"),
    ],
)
def test_wrong_option(configure: Configure, given: dict[str, Any], message: str) -> None:
    with pytest.raises(PardError, match=message):
        configure(given)


def test_draft_vocab(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ids.json").write_text("[1, 319]")
    spec = configure({"draft_vocab": "ids.json"}).speculative_config
    assert spec.draft_vocab == str(tmp_path / "ids.json"), "workers may have another working directory"
    with pytest.raises(PardError, match="under tensor parallelism needs model runner V2 and greedy drafts"):
        configure({"draft_vocab": "ids.json"}, tensor_parallel_size=2)
    Path("ids.json").write_text("[1, 320]")
    with pytest.raises(PardError, match="has the token 320, but draft and target share 320 tokens only"):
        configure({"draft_vocab": "ids.json"})


def test_a_draft_names_its_own_vocabulary(configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    shutil.copytree(tiny_pair[1], draft)
    (draft / "ids.json").write_text("[1, 319]")
    (tmp_path / "others.json").write_text("[2]")
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"draft_vocab": "ids.json"}))
    given = {"model": str(draft)}
    assert configure(given).speculative_config.draft_vocab == str(draft / "ids.json")
    assert configure(given, tensor_parallel_size=2).speculative_config.draft_vocab is None, "a warning, and no error"
    other = str(tmp_path / "others.json")
    assert configure(given | {"draft_vocab": other}).speculative_config.draft_vocab == other
    (draft / "ids.json").unlink()
    with pytest.raises(PardError, match=r"names 'ids.json'.* no such file"):
        configure(given)


@pytest.mark.parametrize(("quantization", "is_int8"), [(None, False), ("fp8", True)])
def test_quantized_draft_reads_its_lm_head_in_8_bits(
    configure: Configure, quantization: str | None, is_int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU has no fp8; what a GPU's config would be is asked for here."""
    monkeypatch.setattr("vllm.platforms.cpu.CpuPlatform.supported_quantization", ["fp8"])
    assert configure({"quantization": quantization}).speculative_config.draft_head_int8 is is_int8


def test_hub_name_that_cannot_be_had(configure: Configure) -> None:
    with pytest.raises(PardError, match="can't read the config of 'nobody/nothing'"):
        configure({"model": "nobody/nothing"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pard_token": None}, "needs a mask token.*use a PARD draft, or, if you know it, give"),
        ({"pard_token": 320}, "from 0 to 319; pard_token is 320"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "use a causal language model"),
    ],
)
def test_wrong_draft(
    configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PardError, match=message):
        configure({"model": edit_config(tiny_pair[1], tmp_path / "draft", **changes)})


def test_draft_with_another_tokenizer(configure: Configure, tmp_path: Path) -> None:
    draft = save_llama(tmp_path / "draft", seed=3, config={"pard_token": MASK_TOKEN_ID})
    save_tokenizer(draft, rename={65: "<other>"})
    with pytest.raises(PardError, match="use a draft of the target's own family"):
        configure({"model": str(draft)})


def test_no_draft_in_the_catalog(configure: Configure) -> None:
    with pytest.raises(PardError, match=r"no PARD draft is known.*Known pairs:.*PARD-Qwen3-0.6B.*Name another draft"):
        configure({"model": None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"worker_cls": "some.other.Worker"}, "worker_cls is already 'some.other.Worker'"),
        ({"given": {"draft_tensor_parallel_size": 3}, "tensor_parallel_size": 2}, "must be 1 or the target's 2; got 3"),
        ({"given": {"draft_tensor_parallel_size": 1}, "tensor_parallel_size": 2}, "on model runner V1"),
        ({"pipeline_parallel_size": 2}, "does not support pipeline parallelism; got pipeline_parallel_size=2"),
    ],
)
def test_engine_option_that_does_not_go_with_pard(configure: Configure, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PardError, match=message):
        configure(options.pop("given", {}), **options)


def test_a_name_that_vllm_takes_for_another_method(
    configure: Configure, tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(PardError, match="method 'eagle' because of its name"):
        configure({"model": edit_config(tiny_pair[1], tmp_path / "my-eagle-draft")})


def test_unsupported_vllm(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.__version__", "0.35.1")
    with pytest.raises(PardError, match=r"supports vLLM .*<0.34.* and found 0.35.1; set VLLM_PARD_ALLOW_UNTESTED=1"):
        configure({})
    monkeypatch.setenv(compat.ALLOW_UNTESTED, "1")
    assert compat.unsupported_reason() is None


def test_changed_upstream_hook(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = hooks.Hook(module="vllm.logger", name="init_logger", parameters=("name", "colour"))
    monkeypatch.setattr(hooks, "CONFIG_HOOKS", (hook,))
    with pytest.raises(PardError, match=r"vllm.logger.init_logger.*no longer takes colour; update vllm_pard"):
        configure({})


def test_uncaught_mistake_is_one_sentence(tiny_pair: tuple[Path, Path]) -> None:
    target, draft = tiny_pair
    program = (
        "from vllm import LLM; import sys;"
        "LLM(sys.argv[1], speculative_config={'method': 'pard', 'model': sys.argv[2], 'num_speculative_tokens': 0})"
    )
    done = subprocess.run([sys.executable, "-c", program, target, draft], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith('vllm_pard: "num_speculative_tokens" must be an integer')
