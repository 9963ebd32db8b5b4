"""What an engine drafts with, in one line: logged when it is ready, foretold by `vllm-pard doctor`."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

from vllm_pard.checkpoint import PardCheckpoint
from vllm_pard.pard2 import FeatureConfig
from vllm_pard.serving.feature_plan import FeaturePlan
from vllm_pard.serving.patches import PATCHES, scopes_of_worker

MAX_SIZES_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The facts of one engine; None is what only a loaded one knows."""

    draft: str
    num_speculative_tokens: int
    mask_token_id: int
    mode: str
    vllm: str
    runner: str
    patches: tuple[str, ...]
    target_attention: str | None = None
    draft_attention: str | None = None
    graphs: str | None = None
    head: str | None = None
    num_tree_nodes: int | None = None  # None: a chain

    @property
    def line(self) -> str:
        """All of it; `process.PARD_LOG_LINE` finds it in a log."""
        facts = [
            f"draft {self.draft}, K={self.num_speculative_tokens} draft tokens in one forward{self._tree}, mask token "
            f"{self.mask_token_id}, {self.mode}",
            f"vLLM {self.vllm}, model runner {self.runner.upper()}, patched: {', '.join(self.patches) or 'nothing'}",
        ]
        if self.target_attention is None:
            facts.append("attention, graphs and head are chosen when the models are loaded")
        else:
            facts.append(f"attention of the target {self.target_attention}, of the draft {self.draft_attention}")
            facts.append(f"draft graphs: {self.graphs}")
            facts.append(f"draft tokens from {self.head}")
        return f"PARD: {'; '.join(facts)}"

    @property
    def _tree(self) -> str:
        return "" if self.num_tree_nodes is None else f" as trees of {self.num_tree_nodes} nodes"


def planned(checkpoint: PardCheckpoint, num_speculative_tokens: int, plan: FeaturePlan) -> Summary:
    """What is known of an engine before a model is loaded."""
    import vllm
    from vllm.platforms import current_platform

    from vllm_pard.serving.speculative_config import planned_runner

    runner = planned_runner()
    scopes = ("every process", *scopes_of_worker(runner, is_cpu=current_platform.is_cpu()))
    return Summary(
        draft=checkpoint.path,
        num_speculative_tokens=num_speculative_tokens,
        mask_token_id=checkpoint.mask_token_id,
        mode=_mode(plan.features, None if checkpoint.features is None else plan.reason),
        vllm=vllm.__version__,
        runner=runner,
        patches=tuple(patch.function for patch in PATCHES if patch.scope in scopes),
    )


def of_engine(vllm_config: Any, model_runner: Any) -> Summary:
    """What a loaded and captured engine turned out to be."""
    import vllm

    spec, mode = vllm_config.speculative_config, vllm_config.compilation_config.cudagraph_mode
    is_v2 = spec.runner == "v2"
    drafting = _of_speculator(model_runner.speculator, mode) if is_v2 else _of_proposer(model_runner.drafter, mode)
    is_eager = vllm_config.model_config.enforce_eager or spec.enforce_eager
    return Summary(
        draft=spec.model,
        num_speculative_tokens=spec.draft_depth,
        num_tree_nodes=spec.num_speculative_tokens if spec.tree_depth is not None else None,
        mask_token_id=spec.mask_token_id,
        mode=_mode(spec.features, spec.mode_reason),
        vllm=vllm.__version__,
        runner=spec.runner,
        patches=tuple(patch.function for patch in PATCHES if patch.is_applied),
        target_attention=_attention(vllm_config, lambda name: name not in drafting.layer_names),
        draft_attention=_attention(vllm_config, lambda name: name in drafting.layer_names),
        graphs=_graphs(drafting, is_eager=is_eager),
        head=f"{drafting.head}{f' trimmed by {spec.draft_vocab}' if spec.draft_vocab else ''}",
    )


@dataclass(frozen=True, kw_only=True)
class _Drafting:
    """What is read off the object that drafts, which others may build otherwise one day."""

    layer_names: set[str]  # of attention
    whole_steps: list[int]  # requests that each graph of a whole step is for
    pieces: list[int]  # rows that each piecewise graph is for
    why_no_graphs: str  # where there are none, though nobody has switched them off
    head: str


def _of_speculator(speculator: Any, mode: Any) -> _Drafting:
    from vllm.config.compilation import CUDAGraphMode

    forward = speculator.forward
    why = forward.attention.why_no_graph(2 * speculator.depth)
    if mode.decode_mode() != CUDAGraphMode.FULL:
        why = f"cudagraph_mode is {mode.name}"
    return _Drafting(
        layer_names=speculator.draft_attn_layer_names,
        whole_steps=[shape.num_reqs for shape in forward.graphs.graphs] if forward.graphs is not None else [],
        pieces=[shape.num_tokens for shape in forward.graphs.piecewise] if forward.graphs is not None else [],
        why_no_graphs=why or "no size in cudagraph_capture_sizes has room for a step of the draft",
        head=_head(speculator.head),
    )


def _of_proposer(proposer: Any, mode: Any) -> _Drafting:
    shapes = chain.from_iterable(proposer.cudagraph_dispatcher.cudagraph_keys.values())
    return _Drafting(
        layer_names=proposer._draft_attn_layer_names,
        whole_steps=[],
        pieces=[shape.num_tokens for shape in shapes],
        why_no_graphs=f"cudagraph_mode is {mode.name}",
        head="logits",
    )


def _mode(features: FeatureConfig | None, reason: str | None) -> str:
    """`reason` is that of a PARD-2 draft."""
    if features is not None:
        return f"PARD-2, dependent: reads layers {', '.join(map(str, features.target_layers))} of the target"
    return "target-independent" if reason is None else f"PARD-2, independent: {reason}"


def _head(head: Any) -> str:
    if head is None:
        return "logits"
    if head.is_needed:
        return "the fused lm_head" if head.fused.weight_scale is None else "the fused lm_head in 8 bits"
    return "logits or the fused lm_head, as measured" if head.fused.weight.is_cuda else "logits"


def _attention(vllm_config: Any, is_wanted: Callable[[str], bool]) -> str:
    """The backends of some of the layers, by vLLM's names."""
    from vllm.config.vllm import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    return " and ".join(sorted({layer.get_attn_backend().get_name() for n, layer in layers.items() if is_wanted(n)}))


def _graphs(drafting: _Drafting, *, is_eager: bool) -> str:
    """How many, of which sizes; or why there are none."""
    kinds = ((drafting.whole_steps, "of whole steps", "requests"), (drafting.pieces, "in pieces", "rows"))
    found = [f"{len(sizes)} {kind}, for {_short(sizes)} {unit}" for sizes, kind, unit in kinds if sizes]
    if found:
        return " and ".join(found)
    return f"none, {'enforce_eager is set' if is_eager else drafting.why_no_graphs}"


def _short(sizes: list[int]) -> str:
    shown = [str(size) for size in sorted(set(sizes))]
    return ", ".join(shown if len(shown) <= MAX_SIZES_SHOWN else [*shown[:3], "...", shown[-1]])
