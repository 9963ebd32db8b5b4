import json
from pathlib import Path
from typing import Any

import pytest

import vllm_pard.demo
from vllm_pard.catalog import CATALOG, CatalogError, choose_draft, find_draft, known_pairs, model_folder
from vllm_pard.checkpoint import CheckpointError
from vllm_pard.pard2 import PUBLIC_DRAFTS

LLAMA = "amd/PARD-Llama-3.2-1B"
QWEN2 = "amd/PARD-Qwen2.5-0.5B"
QWEN3 = "amd/PARD-Qwen3-0.6B"
LLAMA_PARD2, QWEN3_8B, QWEN3_14B = "amd/PARD2-Llama-3.1-8B", "amd/PARD2-Qwen3-8B", "amd/PARD2-Qwen3-14B"
R1_QWEN = "amd/PARD-DeepSeek-R1-Distill-Qwen-1.5B"


def config(model_type: str, architecture: str, vocab_size: int, **extra: object) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [architecture], "vocab_size": vocab_size, **extra}


def qwen2(vocab_size: int = 152064, **extra: object) -> dict[str, Any]:
    return config("qwen2", "Qwen2ForCausalLM", vocab_size, **extra)


def llama(vocab_size: int = 128256, **extra: object) -> dict[str, Any]:
    return config("llama", "LlamaForCausalLM", vocab_size, **extra)


def qwen3(num_layers: int, hidden_size: int, **extra: object) -> dict[str, Any]:
    shapes = {"num_hidden_layers": num_layers, "hidden_size": hidden_size}
    return config("qwen3", "Qwen3ForCausalLM", 151936, **shapes, **extra)


LLAMA_8B = llama(num_hidden_layers=32, hidden_size=4096)


@pytest.fixture(autouse=True)
def demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(vllm_pard.demo, "demo_path", lambda part: tmp_path / part)


@pytest.mark.parametrize(
    ("model", "target_config", "draft"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", llama(), LLAMA),
        ("meta-llama/Llama-3.3-70B-Instruct", llama(), LLAMA),
        ("/models/my-fine-tune", llama(), LLAMA),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", llama(), LLAMA),
        ("Qwen/Qwen2.5-1.5B-Instruct", qwen2(151936), QWEN2),
        ("Qwen/Qwen2.5-7B-Instruct", qwen2(), QWEN2),
        ("/models/my-fine-tune", qwen2(), QWEN2),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", qwen2(151936), R1_QWEN),
        ("/models/deepseek-r1-distill-qwen-14b-awq/", qwen2(), R1_QWEN),
        ("/cache/models--deepseek-ai--DeepSeek-R1-Distill-Qwen-7B/snapshots/0f1e", qwen2(), R1_QWEN),
        ("/models/t", qwen2(_name_or_path="deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"), R1_QWEN),
        ("Qwen/Qwen3-8B", config("qwen3", "Qwen3ForCausalLM", 151936), QWEN3),
        ("Qwen/Qwen3-235B-A22B", config("qwen3_moe", "Qwen3MoeForCausalLM", 151936), QWEN3),
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", config("qwen3", "Qwen3ForCausalLM", 151936), QWEN3),
    ],
)
def test_known_target(model: str, target_config: dict[str, Any], draft: str) -> None:
    assert find_draft(model, target_config).draft == draft


@pytest.mark.parametrize(
    ("model", "target_config", "draft"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", LLAMA_8B, LLAMA_PARD2),
        ("unsloth/Llama-3.1-8B-Instruct", LLAMA_8B, LLAMA_PARD2),
        ("Qwen/Qwen3-8B", qwen3(36, 4096), QWEN3_8B),
        ("Qwen/Qwen3-14B", qwen3(40, 5120), QWEN3_14B),
        ("/models/Qwen3-14B/", qwen3(40, 5120), QWEN3_14B),
        ("/cache/models--Qwen--Qwen3-8B/snapshots/0f1e", qwen3(36, 4096), QWEN3_8B),
        ("/models/t", qwen3(36, 4096, _name_or_path="Qwen/Qwen3-8B"), QWEN3_8B),
        # the shapes, and not the name
        ("meta-llama/Llama-3.1-8B", LLAMA_8B, LLAMA),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", LLAMA_8B, LLAMA),
        ("Qwen/Qwen3-8B-Base", qwen3(36, 4096), QWEN3),
        ("Qwen/Qwen3-8B-AWQ", qwen3(36, 4096), QWEN3),
        ("/models/t", qwen3(36, 4096), QWEN3),
        # the name, and not the shapes
        ("/models/Qwen3-8B", qwen3(28, 4096), QWEN3),
        ("/models/Qwen3-8B", qwen3(36, 2560), QWEN3),
        ("/models/Qwen3-14B", qwen3(36, 4096), QWEN3),
        ("/models/Llama-3.1-8B-Instruct", qwen3(32, 4096), QWEN3),
        # neither
        ("Qwen/Qwen3-4B", qwen3(36, 2560), QWEN3),
        ("Qwen/Qwen3-32B", qwen3(64, 5120), QWEN3),
    ],
)
def test_a_pard2_draft_is_for_its_very_target(model: str, target_config: dict[str, Any], draft: str) -> None:
    assert find_draft(model, target_config).draft == draft


@pytest.mark.parametrize(
    ("model", "target_config"),
    [
        ("meta-llama/Llama-2-7b-hf", llama(32000)),
        ("NousResearch/Hermes-2-Pro-Llama-3-8B", llama(128288)),
        ("Qwen/Qwen2.5-VL-7B-Instruct", config("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", 152064)),
        ("Qwen/Qwen2.5-Math-RM-72B", config("qwen2", "Qwen2ForRewardModel", 152064)),
        ("meta-llama/Llama-3.2-11B-Vision", config("mllama", "MllamaForConditionalGeneration", 128256)),
        ("Qwen/Qwen3-Next-80B-A3B", config("qwen3_next", "Qwen3NextForCausalLM", 151936)),
        ("nothing", {}),
    ],
)
def test_unknown_target_lists_the_known_pairs(model: str, target_config: dict[str, Any]) -> None:
    with pytest.raises(CatalogError) as caught:
        find_draft(model, target_config)
    message = str(caught.value)
    assert repr(model) in message
    assert all(entry.draft in message for entry in known_pairs())
    assert 'with --draft (vllm-pard doctor: after the target), or as "model" in the speculative config.' in message
    assert message.endswith(
        "vllm-pard train makes one, from a smaller model of the family or from layers of the target"
    )


def test_demo_is_known_by_its_marker(tmp_path: Path) -> None:
    assert find_draft("/any/name", llama(4096) | {"vllm_pard_demo": True}).draft == str(tmp_path / "draft")


def test_bundled_models_have_short_names(tmp_path: Path) -> None:
    assert model_folder("demo") == model_folder("demo/target") == str(tmp_path / "target")
    for name in vllm_pard.demo.MODELS:
        assert model_folder(f"demo/{name}") == str(tmp_path / name)
    for name in ("demo/teacher", "draft", "org/draft", "./demo/draft", "demo/draft/"):
        assert model_folder(name) == name


def test_every_entry_is_the_draft_of_its_own_family() -> None:
    for entry in CATALOG:
        for model_type in entry.model_types:
            for vocab_size in entry.vocab_sizes:
                target_config = config(model_type, "XForCausalLM", vocab_size)
                name = f"{entry.name_pattern}-7B"
                if entry.single is not None:
                    name, shapes = entry.single.name, (entry.single.num_layers, entry.single.hidden_size)
                    target_config |= dict(zip(("num_hidden_layers", "hidden_size"), shapes, strict=True))
                assert find_draft(f"org/{name}", target_config) is entry


def test_the_catalog_and_the_drafts_name_the_same_targets() -> None:
    named = {entry.draft.removeprefix("amd/"): entry.single.name for entry in CATALOG if entry.single is not None}
    assert named == PUBLIC_DRAFTS


def test_known_pairs_end_with_the_demo(tmp_path: Path) -> None:
    drafts = [LLAMA_PARD2, QWEN3_8B, QWEN3_14B, LLAMA, R1_QWEN, QWEN2, QWEN3]
    assert [entry.draft for entry in known_pairs()] == [*drafts, str(tmp_path / "draft")]


def test_an_installation_without_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(part: str) -> Path:
        raise FileNotFoundError("the demo model should be here")

    monkeypatch.setattr(vllm_pard.demo, "demo_path", missing)
    assert known_pairs() == list(CATALOG)
    with pytest.raises(CatalogError, match="should be here"):
        find_draft("demo", llama(4096) | {"vllm_pard_demo": True})


DEMO_TARGET = llama(512) | {"vllm_pard_demo": True}


@pytest.fixture
def demo_draft(tmp_path: Path) -> Path:
    folder = tmp_path / "draft"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(llama(512) | {"pard_token": 3}))
    return folder


def test_choose_draft_asks_the_catalog(demo_draft: Path) -> None:
    checkpoint, num_speculative_tokens = choose_draft("demo", DEMO_TARGET)
    assert (checkpoint.path, checkpoint.mask_token_id, num_speculative_tokens) == (str(demo_draft), 3, 8)


def test_choose_draft_knows_the_bundled_drafts(demo_draft: Path) -> None:
    assert choose_draft("any", {}, draft="demo/draft")[0].path == str(demo_draft)


def test_choose_draft_takes_what_is_given(demo_draft: Path) -> None:
    checkpoint, num_speculative_tokens = choose_draft(
        "any", {}, draft=str(demo_draft), num_speculative_tokens=5, mask_token_id=9
    )
    assert (checkpoint.mask_token_id, num_speculative_tokens) == (9, 5)


def test_choose_draft_takes_the_trained_length(demo_draft: Path) -> None:
    config_path = demo_draft / "config.json"
    trained = json.loads(config_path.read_text()) | {"num_speculative_tokens_trained": 12}
    config_path.write_text(json.dumps(trained))
    assert choose_draft("demo", DEMO_TARGET)[1] == 12
    assert choose_draft("demo", DEMO_TARGET, num_speculative_tokens=5)[1] == 5


def test_a_pard2_draft_without_a_record_drafts_15(demo_draft: Path) -> None:
    config_path = demo_draft / "config.json"
    pard2 = json.loads(config_path.read_text()) | {"spd_type": "pard2", "pard2_target_dim": 64}
    config_path.write_text(json.dumps(pard2))
    for given in (None, str(demo_draft)):
        assert choose_draft("demo", DEMO_TARGET, draft=given)[1] == 15
    config_path.write_text(json.dumps(pard2 | {"num_speculative_tokens_trained": 12}))
    assert choose_draft("demo", DEMO_TARGET)[1] == 12


def test_the_catalogs_mask_token_fills_in_for_a_silent_config(
    monkeypatch: pytest.MonkeyPatch, demo_draft: Path
) -> None:
    (demo_draft / "config.json").write_text(json.dumps(llama()))
    monkeypatch.setattr("vllm_pard.catalog.load_config", lambda model, loading: llama())
    assert choose_draft("meta-llama/Llama-3.1-8B", llama())[0].mask_token_id == 128020
    with pytest.raises(CheckpointError, match="needs a mask token"):
        choose_draft("meta-llama/Llama-3.1-8B", llama(), draft=LLAMA)
