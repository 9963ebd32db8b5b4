"""Enlarge the bundled demo pair to the sizes of a real one without changing what it computes.

python benchmarks/enlarge.py --shape llama-3.1-8b --output DIR [--dtype bfloat16] [--device cuda] [--check]

Writes DIR/target, DIR/draft (PARD) and DIR/draft_ar (for vanilla speculation): a step costs what the real model's
costs, and acceptance is the demo pair's. Prompts must be demo prompts: the enlarged pair knows no other text, and new
token ids must not be fed to it.

Every model is a LlamaForCausalLM. Of Qwen3 only the sizes are taken: its per-head norms of q and k would change the
demo pair's function, and cost nothing to speak of. Half and more of each o_proj and down_proj is zero. That saves no
bandwidth and no arithmetic, but a little power, so a GPU held back by its power limit may clock somewhat higher.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from enlarge_check import CheckConfig, check_pair, choose_dtype
from enlarge_features import feature_keys, write_features
from enlarge_output import check_output
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import load_file, save_file
from shapes import EnlargeError, ModelShape, check_fits, find_shape, num_kv_copies, shape_of
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vllm_pard.catalog import DEMO_MARKER
from vllm_pard.checkpoint import load_config
from vllm_pard.demo import MODELS, demo_path
from vllm_pard.errors import PardError
from vllm_pard.files import write_whole
from vllm_pard.pard2 import is_pard2

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MAX_SHARD_BYTES = 2 * 10**9  # a shard is held in memory whole
RANDOM_STD = 0.02

# New ids are kept out by one hidden dimension, which nothing but the embedding writes and nothing but the head reads.
# There each known token has GUARD, so small that it vanishes in the norms (a squared sum of 0.4 or more), and each new
# id's row NEW_ID_GUARD. Times the final norm's weight their product is -2**16 / rms(hidden), and the rms is 4 to 60:
# a thousand and more below any known token's logit. All three are exact in fp16; GUARD is its smallest normal number.
GUARD, NEW_ID_GUARD, GUARD_NORM_WEIGHT = 2.0**-14, -(2.0**15), 2.0**15


@dataclass
class Enlarger:
    """Makes the tensors of one enlarged model, one at a time."""

    weights: Mapping[str, Tensor]
    old: ModelShape
    new: ModelShape
    dtype: torch.dtype
    generator: torch.Generator

    def tensor(self, name: str, size: torch.Size) -> Tensor:
        """The tensor `name` of the enlarged model."""
        kind = name.split(".")[-2]
        if kind in ("embed_tokens", "lm_head"):
            # A source without a head of its own ties it to the embedding.
            return self._vocabulary(self.weights.get(name, self.weights["model.embed_tokens.weight"]), size)
        old = self.weights.get(name)
        if kind.endswith("norm"):
            return self._norm(old, size, is_final=name == "model.norm.weight")
        # New layers come last, so that old ones keep their number: they add zero, wherever they are.
        if kind in ("o_proj", "down_proj"):
            weight = torch.zeros(size, dtype=self.dtype, device=self.generator.device)
        else:
            weight = self._random(size)
        if old is not None:
            self._place_projection(kind, old.to(weight.device, torch.float32), weight)
        return weight

    def _vocabulary(self, old: Tensor, size: torch.Size) -> Tensor:
        num_old, hidden_size = old.shape
        weight = self._random(size)
        weight[:num_old] = 0
        weight[:num_old, :hidden_size] = old.to(weight)
        if size[0] > num_old:
            weight[:num_old, hidden_size] = GUARD
            weight[num_old:, hidden_size] = NEW_ID_GUARD
        return weight

    def _norm(self, old: Tensor | None, size: torch.Size, *, is_final: bool) -> Tensor:
        """The mean square is taken over more dimensions, all but `hidden_size` of them zero."""
        hidden_size = self.old.hidden_size
        scale = math.sqrt(hidden_size / size[0])
        weight = torch.zeros(size, device=self.generator.device)
        weight[:hidden_size] = scale if old is None else old.to(weight) * scale
        if is_final and self.new.vocab_size > self.old.vocab_size:
            weight[hidden_size] = GUARD_NORM_WEIGHT * scale
        return weight.to(self.dtype)

    def _place_projection(self, kind: str, old: Tensor, weight: Tensor) -> None:
        num_out, num_in = old.shape
        if kind == "q_proj":
            # Attention divides by sqrt(head_dim). Zero query dimensions do not see the random key dimensions.
            old = old * math.sqrt(self.new.head_dim / self.old.head_dim)
            weight.view(-1, self.new.head_dim, weight.shape[1])[self._heads()] = 0
            weight[self._query_rows(), :num_in] = old.to(self.dtype)
        elif kind in ("k_proj", "v_proj"):
            for copy in range(num_kv_copies(self.old, self.new)):
                weight[self._kv_rows(copy), :num_in] = old.to(self.dtype)
        elif kind == "o_proj":
            weight[:num_out, self._query_rows()] = old.to(self.dtype)
        else:
            weight[:num_out, :num_in] = old.to(self.dtype)

    def _heads(self) -> list[int]:
        """Where each old query head goes: to a key/value head that holds a copy of its own."""
        copies, group = num_kv_copies(self.old, self.new), self.new.group_size
        heads = []
        for head in range(self.old.num_attention_heads):
            kv_head, member = divmod(head, self.old.group_size)
            heads.append((kv_head * copies + member // group) * group + member % group)
        return heads

    def _query_rows(self) -> Tensor:
        return self._rows(self._heads())

    def _kv_rows(self, copy: int) -> Tensor:
        copies = num_kv_copies(self.old, self.new)
        return self._rows([head * copies + copy for head in range(self.old.num_key_value_heads)])

    def _rows(self, heads: list[int]) -> Tensor:
        """Rows of all old dimensions of these new heads.

        Rotary pair j is (j, j + head_dim / 2) and turns by theta ** (-2j / head_dim): in a head `factor` times as wide,
        pair factor * j turns by the same angle.
        """
        factor = self.new.head_dim // self.old.head_dim
        pairs = torch.arange(self.old.head_dim // 2) * factor
        dims = torch.cat([pairs, pairs + self.new.head_dim // 2])
        rows = torch.tensor(heads)[:, None] * self.new.head_dim + dims
        return rows.flatten().to(self.generator.device)

    def _random(self, size: torch.Size) -> Tensor:
        weight = torch.empty(size, dtype=self.dtype, device=self.generator.device)
        return weight.normal_(0, RANDOM_STD, generator=self.generator)


@dataclass(frozen=True)
class ModelPlan:
    """One model to be written."""

    source: Path
    folder: Path
    config: dict[str, Any]
    old: ModelShape
    new: ModelShape
    dtype: torch.dtype
    sizes: dict[str, torch.Size]
    shards: StateDictSplit

    @property
    def num_bytes(self) -> int:
        return int(self.shards.metadata["total_size"])

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(size) for size in self.sizes.values())


def plan_model(
    source: Path,
    folder: Path,
    new: ModelShape,
    dtype: torch.dtype,
    note: Mapping[str, Any],
    target: tuple[ModelShape, ModelShape] | None = None,
) -> ModelPlan:
    """Check that the shape holds the model, and lay out its files. A PARD-2 draft's target had and has `target`."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    old = shape_of(config)
    check_fits(source.name, old, new)
    config |= asdict(new) | {
        "dtype": str(dtype).removeprefix("torch."),
        "rms_norm_eps": config["rms_norm_eps"] * old.hidden_size / new.hidden_size,
        "vllm_pard_enlarged": dict(note),
    }
    if target is not None and is_pard2(config):
        config |= feature_keys(source, config, *target)
    # With the marker the small bundled draft would be found for the enlarged target.
    config.pop(DEMO_MARKER, None)
    with torch.device("meta"):
        state = LlamaForCausalLM(LlamaConfig.from_dict(config)).to(dtype).state_dict()
    if new.tie_word_embeddings:
        del state["lm_head.weight"]
    sizes = {name: tensor.shape for name, tensor in state.items()}
    shards = split_torch_state_dict_into_shards(state, max_shard_size=MAX_SHARD_BYTES)
    return ModelPlan(source, folder, config, old, new, dtype, sizes, shards)


def write_model(plan: ModelPlan, device: torch.device, seed: int) -> None:
    """Write shard by shard; config.json comes last, so that an unfinished folder is no model."""
    plan.folder.mkdir(parents=True)
    for path in plan.source.iterdir():
        if path.is_file() and path.suffix not in (".safetensors", ".bin") and path.name != "config.json":
            shutil.copy(path, plan.folder)
    if is_pard2(plan.config):
        write_features(plan.source, plan.folder, plan.config, plan.dtype)
    generator = torch.Generator(device).manual_seed(seed)
    weights = load_file(plan.source / "model.safetensors")
    enlarger = Enlarger(weights, plan.old, plan.new, plan.dtype, generator)
    for filename, names in plan.shards.filename_to_tensors.items():
        shard = {name: enlarger.tensor(name, plan.sizes[name]).cpu() for name in names}
        save_file(shard, plan.folder / filename, metadata={"format": "pt"})
    if plan.shards.is_sharded:
        index = {"metadata": plan.shards.metadata, "weight_map": plan.shards.tensor_to_filename}
        write_whole(plan.folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    write_whole(plan.folder / "config.json", json.dumps(plan.config, indent=2) + "\n")


def enlarge_pair(arguments: argparse.Namespace) -> None:
    """Write all models, saying what each is, and compare them if asked to."""
    dtype, device, output = DTYPES[arguments.dtype], find_device(arguments.device), arguments.output
    pair = find_shape(arguments.shape)
    note = {"shape": arguments.shape, "seed": arguments.seed, "device": device.type}
    target = shape_of(load_config(str(demo_path("target")))), pair.target
    plans = [
        plan_model(demo_path(name), output / name, pair.target if name == "target" else pair.draft, dtype, note, target)
        for name in MODELS
    ]
    check_output(output, sum(plan.num_bytes for plan in plans))
    if arguments.check:
        # Before the work, not after it.
        check_dtype = choose_dtype(sum(plan.num_parameters for plan in plans[:2]), dtype, device)
    for number, plan in enumerate(plans):
        start = time.monotonic()
        write_model(plan, device, arguments.seed + number)
        print(
            f"{plan.folder.name}: {plan.num_parameters / 1e6:,.1f}M parameters, {plan.num_bytes / 1e9:.2f} GB, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    if arguments.check:
        print(json.dumps(check_pair(output, dtype, check_dtype, device, CheckConfig())))


def find_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise EnlargeError("--device cuda needs a GPU, and torch sees none; give --device cpu")
    return torch.device(name)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="compare answers and acceptance with the small pair's")
    arguments = parser.parse_args(argv)
    try:
        enlarge_pair(arguments)
    except PardError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: can't write {str(arguments.output)!r}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"error: stopped; {str(arguments.output)!r} is unfinished: remove it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
