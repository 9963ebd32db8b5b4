"""The target's outputs on disk: the same training, its layers left alone; killed, shared, refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_world import VOCAB_SIZE, options, save_target

from vllm_pard.errors import PardError
from vllm_pard.training import run_models
from vllm_pard.training.models import target_cache
from vllm_pard.training.models.target_cache import CacheShape, TargetCache, TargetCacheError
from vllm_pard.training.options.train_config import from_mapping
from vllm_pard.training.run import train
from vllm_pard.training.top_k import TopKOutput

# At this scale the features are as loud as the embeddings, so that rounding them would show.
PARD2 = {
    "features": {"layers": [-1, -2], "scale": 1.0, "dropout": 0.3},
    "loss": {"ce": 0.1, "kl": 1.0, "weights": "cat"},
}
SHARDS = ["shard-00000.safetensors", "shard-00001.safetensors"]


def given(world: Path, name: str, **changes: Any) -> dict[str, Any]:
    """A short run with features and distillation, whose draft is no part of the target."""
    asked = options(world, output=str(world / name), **(PARD2 | changes))
    if not (world / "small").exists():
        save_target(world / "small", num_layers=1, seed=1)
    asked.pop("prune_layers")
    return asked | {"draft": str(world / "small"), "trainer": asked["trainer"] | {"max_steps": 8, "save_steps": 4}}


def run(asked: dict[str, Any]) -> tuple[list[dict[str, float]], list[str]]:
    """Losses and evaluations, and what was reported."""
    lines: list[str] = []
    folder = train(from_mapping(asked), lines.append)
    names = ("loss", "eval_acceptance_length", "eval_acceptance_length_independent")
    log = json.loads((folder / "receipt.json").read_text())["log"]
    return [{name: entry[name] for name in names if name in entry} for entry in log], lines


def loss_curve(log: list[dict[str, float]]) -> torch.Tensor:
    return torch.tensor([entry["loss"] for entry in log if "loss" in entry])


def evaluations(log: list[dict[str, float]]) -> list[dict[str, float]]:
    return [entry for entry in log if "eval_acceptance_length" in entry]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def online(world: Path) -> list[dict[str, float]]:
    return run(given(world, "online"))[0]


@pytest.fixture(scope="module")
def whole(world: Path) -> tuple[list[dict[str, float]], list[str]]:
    """With a cache that keeps everything."""
    return run(given(world, "whole", target_cache=str(world / "cache"), target_top_k=VOCAB_SIZE))


def test_with_all_tokens_the_losses_are_those_of_the_target(
    online: list[dict[str, float]], whole: tuple[list[dict[str, float]], list[str]]
) -> None:
    """Features are kept in the float32 that the target runs in; the last bits of log-probabilities differ."""
    torch.testing.assert_close(loss_curve(whole[0]), loss_curve(online), rtol=1e-5, atol=1e-6)
    assert evaluations(whole[0]) == evaluations(online)
    assert len(evaluations(online)) == 2
    assert evaluations(online)[-1]["eval_acceptance_length"] > 1


def test_its_size_is_told_before(whole: tuple[list[dict[str, float]], list[str]], world: Path) -> None:
    line = next(line for line in whole[1] if line.startswith("the target's cache"))
    # 23 packs, 3 of them held out; two layers of 64 float32, a log-probability, 264 ids with theirs.
    num_bytes = 2 * 64 * 4 + 4 + VOCAB_SIZE * 8
    assert f"{23 * 96:,} tokens x {num_bytes:,} bytes" in line
    files = [path for path in (world / "cache").iterdir() if path.suffix == ".safetensors"]
    assert sorted(path.name for path in files) == SHARDS
    headers = 2 * 1000
    assert 0 <= sum(path.stat().st_size for path in files) - 23 * 96 * num_bytes < headers


def test_features_keep_the_dtype_that_the_target_runs_in(whole: tuple[Any, Any], world: Path) -> None:
    features = load_file(world / "cache" / SHARDS[0])["features"]
    assert features.dtype == torch.float32
    assert (features != features.bfloat16()).float().mean() > 0.9


def test_few_tokens_are_close_and_more_are_closer(world: Path, online: list[dict[str, float]]) -> None:
    """This target is random, so that no few tokens have all of its probability."""
    distances = []
    for k in (16, 64, 160):
        log, _ = run(given(world, f"top-{k}", target_cache=str(world / f"cache-{k}"), target_top_k=k))
        distances.append((loss_curve(online)[0] - loss_curve(log)[0]).item())
    assert distances[0] > distances[1] > distances[2] > 0
    assert distances[2] < 0.1 * loss_curve(online)[0]


def test_a_filled_cache_leaves_the_target_alone(
    world: Path, whole: tuple[list[dict[str, float]], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(model: str, dtype: torch.dtype) -> None:
        raise AssertionError(f"{model} is loaded")

    monkeypatch.setattr(run_models, "load_model", load)
    asked = given(world, "again", target_cache=str(world / "cache"), target_top_k=VOCAB_SIZE)
    log, lines = run(asked)
    assert log == whole[0]
    assert any("0 of them to be computed" in line for line in lines)


def test_a_cache_with_features_serves_a_draft_without(
    world: Path, tmp_path: Path, whole: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PARD and PARD-2 of one target and the same data: the target reads it once."""
    changes: dict[str, Any] = {"features": None, "target_top_k": VOCAB_SIZE}
    online, _ = run(given(world, "pard-online", **changes | {"target_top_k": 64}))
    with monkeypatch.context() as patch:
        patch.setattr(run_models, "load_model", None)
        cached, _ = run(given(world, "pard-cached", target_cache=str(world / "cache"), **changes))
    torch.testing.assert_close(loss_curve(cached), loss_curve(online), rtol=1e-5, atol=1e-6)
    assert evaluations(cached) == evaluations(online)
    # What features need more of is still known.
    assert run(given(world, "after", target_cache=str(world / "cache"), target_top_k=VOCAB_SIZE))[0] == whole[0]
    shutil.copytree(world / "cache", tmp_path / "cache")
    (tmp_path / "cache" / SHARDS[1]).unlink()
    with pytest.raises(TargetCacheError, match=r"has features too, and 1 of its shards are not there yet: let the run"):
        run(given(world, "incomplete", target_cache=str(tmp_path / "cache"), **changes))


@pytest.mark.parametrize("loss", [{"kl": 1.0}, {"weights": "cat"}], ids=["distilled", "weighted"])
def test_only_what_is_asked_for_is_kept(world: Path, tmp_path: Path, loss: dict[str, Any]) -> None:
    asked = given(tmp_path, "run", features=None, loss=loss, target_cache=str(tmp_path / "cache"), target_top_k=4)
    log, _ = run(asked)
    found = {name: tensor.dtype for name, tensor in load_file(tmp_path / "cache" / SHARDS[0]).items()}
    kept = {"top_ids": torch.int32, "top_log_probs": torch.float32} if "kl" in loss else {}
    assert found == {"log_probs": torch.float32} | kept
    assert torch.isfinite(loss_curve(log)).all()


def test_a_trimmed_vocabulary(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"draft_vocab": 24, "features": None, "loss": {"kl": 1.0}}
    online, _ = run(given(tmp_path, "online", **changes))
    cached, _ = run(given(tmp_path, "run", target_cache=str(tmp_path / "cache"), target_top_k=99, **changes))
    torch.testing.assert_close(loss_curve(cached), loss_curve(online), rtol=1e-5, atol=1e-6)


KILLED = """
import os, signal, sys
from pathlib import Path
from vllm_pard.cli import main
replace = os.replace
def stop(source, target):
    if Path(target).name == "shard-00001.safetensors":
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = stop
sys.argv = ["vllm-pard", "train", sys.argv[1]]
main()
"""


def test_a_killed_computation_goes_on(world: Path, tmp_path: Path, whole: tuple[Any, Any]) -> None:
    asked = given(world, "killed", target_cache=str(tmp_path / "cache"), target_top_k=VOCAB_SIZE)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asked))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "config.yaml")], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert left == ["cache.json", SHARDS[0], "shard-00001.partial"]
    first = (tmp_path / "cache" / SHARDS[0]).stat().st_mtime_ns
    log, lines = run(asked)
    assert any("1 of them to be computed" in line for line in lines)
    assert (tmp_path / "cache" / SHARDS[0]).stat().st_mtime_ns == first
    assert log == whole[0]


SHARED = """
import atexit, os, sys
import torch.distributed
from vllm_pard.cli import main
from vllm_pard.training.models.target_cache import TargetCache, TargetCacheError
write = TargetCache.write
def told(self, shard, output):
    print(f"rank {os.environ['RANK']} has shard {shard}", flush=True)
    if os.environ["RANK"] == os.environ.get("FULL"):
        raise TargetCacheError("the disk is full")
    write(self, shard, output)
TargetCache.write = told
atexit.register(lambda: print(f"the group is there: {torch.distributed.is_initialized()}", flush=True))
sys.argv = ["vllm-pard", "train", sys.argv[1]]
main()
"""


def in_two_processes(folder: Path, asked: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "config.yaml").write_text(yaml.safe_dump(asked))
    (folder / "main.py").write_text(SHARED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*launch, str(folder / "main.py"), str(folder / "config.yaml")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_share_the_shards(world: Path, tmp_path: Path, whole: tuple[Any, Any]) -> None:
    asked = given(world, "shared", target_cache=str(tmp_path / "cache"), target_top_k=VOCAB_SIZE)
    done = in_two_processes(tmp_path, asked)
    assert done.returncode == 0, done.stderr[-3000:]
    written = sorted(line for line in done.stdout.splitlines() if " has shard " in line)
    assert written == ["rank 0 has shard 0", "rank 1 has shard 1"]
    assert done.stdout.count("the group is there: False") == 2, "its threads may outlive the interpreter"
    for name in SHARDS:
        ours, alone = load_file(tmp_path / "cache" / name), load_file(world / "cache" / name)
        assert ours.keys() == alone.keys()
        assert all(torch.equal(ours[key], alone[key]) for key in ours)


def test_a_full_disk_in_one_process_stops_both(world: Path, tmp_path: Path) -> None:
    asked = given(world, "full", target_cache=str(tmp_path / "cache"))
    done = in_two_processes(tmp_path, asked, FULL="1")
    assert done.returncode != 0
    assert done.stderr.count("vllm-pard: the disk is full") == 2
    assert not (tmp_path / "cache" / SHARDS[1]).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_top_k": 5}, "was made for target_top_k 264, and now it is 5: name another folder"),
        ({"features": {"layers": [-2, -1]}}, r"features.layers \[-1, -2\], and now it is \[-2, -1\]"),
        ({"data": {"max_length": 64}}, "data.max_length 96, and now it is 64"),
        ({"evaluation": {"num_documents": 9}}, "data with digest"),
        ({"draft_vocab": 24, "target_top_k": 24}, "target_top_k 264, and now it is 24"),
        ({"features": {"layers": [-1, -5]}}, "features.layers must be from -4 to -1"),
    ],
    ids=str,
)
def test_another_runs_cache_is_refused(
    world: Path, whole: tuple[Any, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    asked = given(world, "unused", target_cache=str(world / "cache"), target_top_k=VOCAB_SIZE)
    for name, value in changes.items():
        asked[name] = asked[name] | value if isinstance(value, dict) else value
    before = {path.name: path.read_bytes() for path in (world / "cache").iterdir()}
    with pytest.raises(PardError, match=message):
        run(asked | {"output": str(tmp_path / "run")})
    assert {path.name: path.read_bytes() for path in (world / "cache").iterdir()} == before


def test_a_cache_without_these_held_out_answers_is_refused(world: Path, tmp_path: Path) -> None:
    """What is trained is the same."""
    asked = given(world, "unused", target_cache=str(tmp_path / "cache"), target_top_k=4)
    asked["output"] = str(tmp_path / "run")
    asked["evaluation"] = {"sources": [{"path": str(world / "questions.jsonl")}], "num_documents": 4}
    run(asked)
    asked["evaluation"]["num_documents"] = 5
    with pytest.raises(TargetCacheError, match="was made for held-out data with digest"):
        run(asked | {"output": str(tmp_path / "other")})


def test_a_target_that_was_trained_on_is_another(tmp_path: Path) -> None:
    asked = given(tmp_path, "run", target_cache=str(tmp_path / "cache"), target_top_k=4)
    run(asked)
    shutil.rmtree(tmp_path / "target")
    save_target(tmp_path / "target", seed=5)
    with pytest.raises(TargetCacheError, match="was made for the target's files with digest"):
        run(asked | {"output": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"streaming": True}, "trainer": {"max_steps": 2}}, "data.streaming is true"),
        ({"features": None, "loss": {"ce": 1.0}}, "neither loss nor features ask it"),
        ({"target_top_k": 0}, "target_top_k must be a whole number from 1; got 0"),
    ],
    ids=str,
)
def test_options_that_go_not_together(world: Path, changes: dict[str, Any], message: str) -> None:
    asked = given(world, "unused", target_cache=str(world / "none"))
    asked |= changes | {"data": asked["data"] | changes.get("data", {})}
    with pytest.raises(PardError, match=message):
        from_mapping(asked)
    assert not (world / "none").exists()


SHAPE = CacheShape(num_packs=40, max_length=4, target_dim=6, top_k=2, dtype=torch.bfloat16)


def output_of(packs: range) -> TopKOutput:
    tokens = torch.tensor([[pack * 4 + place] for pack in packs for place in range(4)])  # [N, 1]
    probs = tokens.float().neg()
    return TopKOutput(tokens.repeat(1, 6).bfloat16(), probs[:, 0], tokens.repeat(1, 2), probs.repeat(1, 2))


def test_packs_come_back_in_the_order_of_the_batch(tmp_path: Path) -> None:
    cache = TargetCache(tmp_path / "cache", SHAPE)
    cache.begin({})
    for shard in cache.missing():
        cache.write(shard, output_of(cache.packs_of(shard)))
    assert [len(cache.packs_of(shard)) for shard in range(SHAPE.num_shards)] == [16, 16, 8]
    found = cache.read([39, 0, 17], torch.device("cpu"), with_features=True)
    wanted = TopKOutput(
        *map(torch.cat, zip(*(vars(output_of(range(i, i + 1))).values() for i in (39, 0, 17)), strict=True))
    )
    assert all(
        torch.equal(found_, wanted_)
        for found_, wanted_ in zip(vars(found).values(), vars(wanted).values(), strict=True)
    )


def test_shards_of_long_rows_are_small() -> None:
    """Features of an 8B target at 4096 tokens: 128 MiB a pack."""
    shape = CacheShape(num_packs=100, max_length=4096, target_dim=4 * 4096, top_k=64, dtype=torch.bfloat16)
    assert shape.bytes_per_token == 4 * 4096 * 2 + 4 + 64 * 8
    assert shape.packs_per_shard == 1
    assert (
        CacheShape(num_packs=100, max_length=4096, target_dim=4096, top_k=0, dtype=torch.bfloat16).packs_per_shard == 7
    )


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TargetCache(tmp_path / "cache", SHAPE)
    cache.begin({})
    cache.write(0, output_of(cache.packs_of(0)))

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target_cache, "save_file", full)
    with pytest.raises(TargetCacheError, match=r"No space left on device.* make room .* its 1 finished shards stay"):
        cache.write(1, output_of(cache.packs_of(1)))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["cache.json", SHARDS[0]]


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    shape = CacheShape(num_packs=10**12, max_length=4096, target_dim=16384, top_k=64, dtype=torch.bfloat16)
    cache = TargetCache(tmp_path / "cache", shape)
    cache.missing = lambda: range(shape.num_shards)  # type: ignore[method-assign] - it would look for each
    with pytest.raises(TargetCacheError, match=r"takes [\d.]+ GiB more, and .* has [\d.]+ GiB free"):
        cache.begin({})


def test_a_shard_that_is_damaged(tmp_path: Path) -> None:
    cache = TargetCache(tmp_path / "cache", SHAPE)
    cache.begin({})
    cache.write(0, output_of(cache.packs_of(0)))
    path = tmp_path / "cache" / SHARDS[0]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TargetCacheError, match=r"can't read shard-00000.safetensors .* remove that file"):
        cache.read([3], torch.device("cpu"), with_features=True)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(TargetCacheError, match="holds something else"):
        TargetCache(tmp_path, SHAPE).begin({})
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
