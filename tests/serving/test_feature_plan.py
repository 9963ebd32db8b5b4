"""In which mode a PARD-2 draft is served, and why; on the config objects of the real vLLM, no model is loaded."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pard2_draft import HIDDEN_SIZE, LAYERS, save_pard2_draft
from public_checkpoints import PUBLIC_DRAFTS, PublicDraft, save_draft, save_target

from vllm_pard.checkpoint import CheckpointError
from vllm_pard.errors import PardError
from vllm_pard.pard2 import FeatureConfig
from vllm_pard.serving.feature_plan import EngineFacts
from vllm_pard.target_proj import SAFETENSORS_FILE, TORCH_FILE, WEIGHT

Configure = Callable[..., Any]
PARD2_DRAFTS = [draft for draft in PUBLIC_DRAFTS if draft.is_pard2]
FEATURES = FeatureConfig(target_layers=LAYERS, scale=0.02, target_dim=256, has_bias=False, target="org/target")


@pytest.fixture(scope="module")
def pard2_draft(tiny_pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pard2_draft(tmp_path_factory.mktemp("pard2") / "draft", tiny_pair[1])


@pytest.fixture
def damaged(pard2_draft: Path, tmp_path: Path) -> Callable[[Any], str]:
    """A copy of the draft with another warp_model.bin and no twin; bytes are written as they are, None is no file."""

    def damaged(content: Any) -> str:
        folder = tmp_path / "damaged"
        shutil.copytree(pard2_draft, folder)
        for name in (SAFETENSORS_FILE, TORCH_FILE):
            (folder / name).unlink()
        if isinstance(content, bytes):
            (folder / TORCH_FILE).write_bytes(content)
        elif content is not None:
            torch.save(content, folder / TORCH_FILE)
        return str(folder)

    return damaged


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What PARD warns of."""
    lines: list[str] = []
    monkeypatch.setattr(logging.getLogger("vllm.vllm_pard"), "warning", lambda text, *args: lines.append(text % args))
    return lines


def check_auto_is_independent(
    configure: Configure, draft: object, why: str, warnings: list[str], **options: Any
) -> None:
    """And says so once; dependent is refused in one sentence with the same reason."""
    warnings.clear()
    spec = configure({"model": str(draft)}, **options).speculative_config
    assert (spec.mode, spec.features, spec.reads_target_states) == ("independent", None, False)
    assert why in spec.mode_reason
    assert not hasattr(spec.draft_model_config.hf_config, "eagle_aux_hidden_state_layer_ids")
    assert [line for line in warnings if "independent" in line] == [
        f"PARD: the PARD-2 draft runs independent: {spec.mode_reason}"
    ]
    with pytest.raises(PardError) as caught:
        configure({"model": str(draft), "mode": "dependent"}, **options)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("_triton")
def test_dependent_on_its_own_target(configure: Configure, pard2_draft: Path, warnings: list[str]) -> None:
    for mode in ("auto", "dependent"):
        spec = configure({"model": str(pard2_draft), "mode": mode}).speculative_config
        assert (spec.mode, spec.features, spec.reads_target_states) == ("dependent", FEATURES, True)
        assert spec.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids == [0], "-1 is the target's output"
        assert "mode='dependent'" in repr(spec)
    there = pickle.loads(pickle.dumps(spec))
    assert (there.features, there.mode) == (FEATURES, "dependent")
    assert warnings == []


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("draft", "ids"),
    zip(PARD2_DRAFTS, ([9, 17, 25], [13, 21, 29], [17, 25, 33]), strict=True),
    ids=lambda value: getattr(value, "short_name", ""),
)
def test_the_public_drafts(
    draft: PublicDraft, ids: list[int], configure: Configure, tmp_path: Path, warnings: list[str]
) -> None:
    """They name no target, have warp_model.bin alone, and no tokenizer: the target's is theirs."""
    folder = save_draft(draft, tmp_path / draft.short_name)
    target = save_target(draft, tmp_path / draft.target.rpartition("/")[2])
    spec = configure({"model": str(folder)}, model=str(target)).speculative_config
    assert (spec.mode, spec.num_speculative_tokens, spec.mask_token_id) == ("dependent", 15, draft.mask_token_id)
    assert spec.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids == ids
    assert warnings == []


@pytest.mark.usefixtures("_triton")
def test_independent_where_asked_for(configure: Configure, pard2_draft: Path, warnings: list[str]) -> None:
    spec = configure({"model": str(pard2_draft), "mode": "independent"}).speculative_config
    assert (spec.mode, spec.features, spec.mode_reason) == ("independent", None, "asked for")
    assert warnings == []


@pytest.mark.usefixtures("_triton")
def test_compiled_targets_are_told_apart(configure: Configure, pard2_draft: Path, tmp_path: Path) -> None:
    """vLLM would take the graph of a target that hands out nothing, or other layers, from its cache."""
    shutil.copytree(pard2_draft, tmp_path / "draft")
    path = tmp_path / "draft" / "config.json"
    hashes = []
    for mode, layers in (("independent", [-1, -3]), ("auto", [-1, -3]), ("auto", [-1, -2])):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pard2_target_layers": layers}))
        hashes.append(configure({"model": str(path.parent), "mode": mode}).speculative_config.compute_hash())
    assert len(set(hashes)) == 3


@pytest.mark.usefixtures("_triton")
def test_the_output_alone_asks_for_no_layer(configure: Configure, pard2_draft: Path, tmp_path: Path) -> None:
    """As drafts of older trainers do."""
    shutil.copytree(pard2_draft, tmp_path / "draft")
    path = tmp_path / "draft" / "config.json"
    changes = {"pard2_target_layers": None, "pard2_target_dim": HIDDEN_SIZE}
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    shutil.rmtree(tmp_path / "draft" / "pard_warp_model")
    torch.save({WEIGHT: torch.zeros(HIDDEN_SIZE, HIDDEN_SIZE)}, tmp_path / "draft" / TORCH_FILE)
    spec = configure({"model": str(path.parent)}).speculative_config
    assert spec.features.target_layers == (-1,)
    assert spec.draft_model_config.hf_config.eagle_aux_hidden_state_layer_ids == []


@pytest.mark.usefixtures("_triton")
def test_a_target_of_another_name(
    configure: Configure, pard2_draft: Path, tiny_pair: tuple[Path, Path], tmp_path: Path, warnings: list[str]
) -> None:
    """To whom dependent mode is asked for, the name is no obstacle: folders are renamed."""
    (tmp_path / "other").symlink_to(tiny_pair[0])
    options = {"model": str(tmp_path / "other")}
    spec = configure({"model": str(pard2_draft)}, **options).speculative_config
    assert spec.mode == "independent"
    assert spec.mode_reason.endswith(f"takes features of 'org/target', and the target is {options['model']!r}")
    assert len(warnings) == 1
    assert configure({"model": str(pard2_draft), "mode": "dependent"}, **options).speculative_config.features


@pytest.mark.usefixtures("_triton")
def test_a_target_of_other_shapes(configure: Configure, pard2_draft: Path, tmp_path: Path, warnings: list[str]) -> None:
    shutil.copytree(pard2_draft, tmp_path / "draft")
    path = tmp_path / "draft" / "config.json"
    for changes, why in (
        ({"pard2_target_dim": 64}, "of a target with hidden size 32, and"),
        ({"pard2_target_dim": 256, "pard2_target_layers": [-1, -4]}, "takes features of layer -4, and"),
    ):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        check_auto_is_independent(configure, path.parent, why, warnings)


@pytest.mark.usefixtures("_triton")
def test_kv_connectors(configure: Configure, pard2_draft: Path, warnings: list[str]) -> None:
    from vllm.config import KVTransferConfig

    connector = KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")
    for options in ({"kv_transfer_config": connector}, {"kv_offloading_size": 1.0}):
        check_auto_is_independent(configure, pard2_draft, "with a KV connector (--kv-transfer", warnings, **options)


@pytest.mark.usefixtures("_triton")
def test_a_target_that_hands_out_no_layers(
    configure: Configure, pard2_draft: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.models.opt import OPTForCausalLM

    monkeypatch.setattr("vllm.model_executor.model_loader.utils.get_model_cls", lambda model_config: OPTForCausalLM)
    why = "vLLM's OPTForCausalLM does not hand out hidden states of its layers"
    check_auto_is_independent(configure, pard2_draft, why, warnings)


def test_what_is_foretold_of_a_target_by_its_config() -> None:
    def obstacle(*architectures: str, layers: tuple[int, ...] = LAYERS) -> str | None:
        features = FeatureConfig(target_layers=layers, scale=1, target_dim=256, has_bias=False, target=None)
        return EngineFacts.foretold({"architectures": list(architectures)}).obstacle(features, 2)

    assert obstacle("LlamaForCausalLM") is None
    assert "vLLM's OPTForCausalLM does not hand out" in str(obstacle("OPTForCausalLM"))
    assert obstacle("OPTForCausalLM", layers=(-1,)) is None, "every target has an output"
    assert obstacle("UnknownForCausalLM") is obstacle() is None, "vLLM decides"


@pytest.mark.usefixtures("_triton")
def test_a_draft_without_target_proj(configure: Configure, damaged: Callable[[Any], str], warnings: list[str]) -> None:
    check_auto_is_independent(configure, damaged(None), "and there is neither; independent mode needs none", warnings)


@pytest.mark.usefixtures("_triton")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({WEIGHT: torch.zeros(256, HIDDEN_SIZE)}, r"must be \[128, 256\], .*; it is \[256, 128\]"),
        ({WEIGHT: torch.zeros(HIDDEN_SIZE, 255)}, r"must be \[128, 256\], .*; it is \[128, 255\]"),
        ([torch.zeros(2)], "must hold a dict of tensors; it holds a list"),
        ({"weight": torch.zeros(2)}, "must hold target_proj.weight, .*; it holds weight"),
        (b"version https://git-lfs.github.com/spec/v1", "can't read target_proj from"),
    ],
    ids=["transposed", "width", "no dict", "name", "no pickle"],
)
def test_a_damaged_target_proj_is_an_error_in_every_mode_that_reads_it(
    configure: Configure, damaged: Callable[[Any], str], content: Any, message: str
) -> None:
    folder = damaged(content)
    for mode in ("auto", "dependent"):
        with pytest.raises(CheckpointError, match=message) as caught:
            configure({"model": folder, "mode": mode})
        assert "\n" not in str(caught.value)
    assert configure({"model": folder, "mode": "independent"}).speculative_config.mode == "independent"


@pytest.mark.usefixtures("_triton")
def test_a_pard_draft_has_no_other_mode(configure: Configure, warnings: list[str]) -> None:
    for mode in ("auto", "independent"):
        spec = configure({"mode": mode}).speculative_config
        assert (spec.mode, spec.features, spec.mode_reason) == ("independent", None, None)
    assert warnings == []
    with pytest.raises(PardError, match=r"dependent mode is not possible: the draft '.*' is no PARD-2 draft"):
        configure({"mode": "dependent"})
