"""Token trees on model runner V2: the scenarios of chains once more, and the target's cache after a path."""

import importlib
from typing import Any

import torch
from pard_kernels.place_tree_rows.reference import causal_masks
from scenarios import greedy, make_llm, prompts, spec_counts, speculator
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams


def with_trees(
    target: str, draft: str, chain: str, num_nodes: int | str, mistake: str | None = None, **arguments: Any
) -> Any:
    """`module:function` of another file, in which every engine with a draft has trees, of a number or "auto"."""
    name, function = chain.split(":")
    module = importlib.import_module(name)

    def make(target: str, draft: str | None, *, spec: dict[str, Any] | None = None, **options: Any) -> LLM:
        tree = {"tree": num_nodes if num_nodes == "auto" else {"nodes": num_nodes}}
        return make_llm(target, draft, spec=(spec or {}) | tree if draft is not None else spec, **options)

    module.make_llm = make
    if mistake is not None:
        make_mistake(mistake)
    return getattr(module, function)(target, draft, **arguments)


def make_mistake(kind: str) -> None:
    """What tests must be able to tell."""
    from vllm_pard.serving.tree import model_state, rejection_sampler, trees

    if kind == "kept rows stay where they are":
        model_state.compact_tree_kv = lambda **_: None
    elif kind == "rows see their siblings":
        draft = trees.Trees.draft

        def draft_and_forget(self: Any, candidates: Any, slots: Any) -> Any:
            token_ids = draft(self, candidates, slots)
            self.ancestors[:] = causal_masks(torch.arange(self.num_nodes + 1))
            return token_ids

        trees.Trees.draft = draft_and_forget
    elif kind == "positions by row":
        place = trees.place_tree_rows
        trees.place_tree_rows = lambda **given: place(**given | {"positions": given["positions"].clone()})
    elif kind == "drafts are accepted blindly":
        follow = rejection_sampler.TreeRejectionSampler._follow

        def follow_first(self: Any, drawn: Any, draft_sampled: Any, cu_num_logits: Any, slots: Any) -> Any:
            has_drafts = cu_num_logits[1:] - cu_num_logits[:-1] > 1
            roots = cu_num_logits[:-1][has_drafts].long()
            return follow(
                self,
                drawn.index_copy(0, roots, draft_sampled[roots + 1].to(drawn.dtype)),
                draft_sampled,
                cu_num_logits,
                slots,
            )

        rejection_sampler.TreeRejectionSampler._follow = follow_first
    else:
        raise ValueError(kind)


def other_wishes(target: str, draft: str, num_drafts: int, num_nodes: int) -> Any:
    """What looks at a request's own tokens, and what looks at its text, beside requests that want nothing."""
    requests = prompts((5, 9, 33, 12, 20, 17, 8, 30))
    kw = {"max_num_seqs": 8, "max_num_batched_tokens": 256}
    plain = make_llm(target, None, **kw)
    usual = {"temperature": 0, "max_tokens": 18, "ignore_eos": True}
    free = [output.outputs[0] for output in plain.generate(requests, SamplingParams(**usual), use_tqdm=False)]
    words = [chr(code) for code in range(33, 127)]
    stop = next(character for character in free[4].text[2:] if character in words)
    asked: list[dict[str, Any]] = [
        {"presence_penalty": 1.5},
        {"bad_words": words},
        {"structured_outputs": StructuredOutputsParams(regex="(ab|cd|ef){4,9}")},
        {"repetition_penalty": 1.3},
        {"stop": [stop]},
        {"n": 2, "temperature": 0.9, "seed": 5},
        {"prompt_logprobs": 1},
        {},
    ]
    params = [SamplingParams(**(usual | given)) for given in asked]

    def answers(llm: LLM) -> list[Any]:
        return [
            [list(one.token_ids) for one in found.outputs] for found in llm.generate(requests, params, use_tqdm=False)
        ]

    llm = make_llm(target, draft, num_drafts=num_drafts, spec={"tree": {"nodes": num_nodes}}, **kw)
    return {
        "free": [[list(output.token_ids)] for output in free],
        "plain": answers(plain),
        "trees": answers(llm),
        "counts": spec_counts(llm),
    }


def known_texts(target: str, draft: str, num_drafts: int, num_nodes: int) -> Any:
    """What is known of a request's text whenever its tree is built, and what the texts came to be."""
    from vllm_pard.serving.tree import trees

    build, known = trees.build_draft_tree, []

    def noting(**given: Any) -> Any:
        token_ids, lengths = given["history"]
        known.extend(token_ids[slot, : lengths[slot]].tolist() for slot in given["request_slots"].tolist() if slot >= 0)
        return build(**given)

    trees.build_draft_tree = noting
    llm = make_llm(target, draft, num_drafts=num_drafts, spec={"tree": {"nodes": num_nodes}}, max_num_batched_tokens=64)
    outputs = llm.generate(prompts((40, 9, 21)), [greedy(18), greedy(24), greedy(12)], use_tqdm=False)
    return {
        "known": known,
        "texts": [[*(output.prompt_token_ids or ()), *output.outputs[0].token_ids] for output in outputs],
        "prompts": [len(output.prompt_token_ids or ()) for output in outputs],
    }


def target_kv(target: str, draft: str, num_drafts: int, num_nodes: int, mistake: str | None = None) -> Any:
    """Largest difference of the target's keys and values from those of a plain run over the same text, by token."""
    if mistake is not None:
        make_mistake(mistake)
    kw = {"enable_prefix_caching": False, "max_num_batched_tokens": 192}
    requests, params = prompts((30, 20, 41)), [greedy(40), greedy(25), greedy(30)]
    llm = make_llm(target, draft, num_drafts=num_drafts, spec={"tree": {"nodes": num_nodes}}, **kw)
    caches, text = last_cache(llm, requests, params)
    fresh, _ = last_cache(
        make_llm(target, draft, attention_backend="CUSTOM", **kw), [{"prompt_token_ids": text}], [greedy(2)]
    )
    num_tokens = len(text) - 1
    return {"differences": (caches - fresh[:, :num_tokens]).abs().amax(dim=(0, 2, 3)).tolist()}


def last_cache(llm: LLM, requests: list[Any], params: list[Any]) -> tuple[torch.Tensor, list[int]]:
    """Keys and values of the target [L, T, ...], and tokens, of the first request just before it finishes."""
    engine, drafting = llm.llm_engine, speculator(llm)
    for i, request in reversed(list(enumerate(requests))):
        engine.add_request(str(i), request, params[i])
    context = drafting.vllm_config.compilation_config.static_forward_context
    layers = [context[name].kv_cache for name in sorted(set(context) - drafting.draft_attn_layer_names)]
    state, table = drafting.request_state, drafting.block_tables.block_tables[0]
    found, text = torch.empty(0), []
    while engine.has_unfinished_requests():
        engine.step()
        slot = next((i for name, i in state.req_id_to_index.items() if name.split("-")[0] == "0"), None)
        if slot is None:
            break
        total = int(state.total_len.gpu[slot])
        text = state.all_token_ids.gpu[slot, :total].tolist()
        blocks = table.gpu[slot, : -(-total // 32)].long()
        # [blocks, heads, N, 2 * size] -> [tokens, heads, 2 * size]
        found = torch.stack([layer[blocks].transpose(1, 2).flatten(0, 1)[: total - 1].float() for layer in layers])
    while engine.has_unfinished_requests():
        engine.step()
    return found, text
