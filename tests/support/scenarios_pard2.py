"""What a PARD-2 draft reads on model runner V2, row by row, against Transformers' models of the same weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pard2_draft import MASK_TOKEN_ID
from scenarios import generate, greedy, make_llm, metric, model_runner, prompts, spec_counts, speculator
from torch import Tensor
from transformers import AutoModelForCausalLM
from vllm import LLM

from vllm_pard.target_proj import read_target_proj


@dataclass
class Rows:
    """A request's rows of one draft forward."""

    request: str
    positions: Tensor  # [D]
    inputs: Tensor  # [D, H]
    outputs: Tensor  # [D, H]
    sampled: list[int]  # the row of each draft token


@contextmanager
def recorded_rows(llm: LLM) -> Iterator[list[Rows]]:
    """What the draft's eager forwards read and gave."""
    drafting, records, inputs = speculator(llm), [], []
    run, embed = drafting.forward.run, drafting.target_features.embed

    def embedding(*args: Any) -> Tensor:
        embeddings = embed(*args)
        inputs.append(embeddings.clone())  # the model writes into it
        return embeddings

    def running(step: Any, spans: Any, first: int) -> Tensor:
        hidden_states = run(step, spans, first)
        sample_rows = drafting.rows.sample_rows(len(spans), step.num_drafts)
        start = 0
        for i, span in enumerate(spans.tolist()):
            rows = slice(start, start + span)
            is_sampled = step.num_sampled[first + i] > 0
            records.append(
                Rows(
                    request=step.batch.req_ids[first + i].split("-")[0],
                    positions=drafting.rows.buffers.positions[rows].clone(),
                    inputs=inputs[-1][rows],
                    outputs=hidden_states[rows].clone(),
                    sampled=(sample_rows[i] - start).tolist() if is_sampled else [],
                )
            )
            start += span
        return hidden_states

    drafting.forward.run, drafting.target_features.embed = running, embedding
    yield records
    del drafting.forward.run, drafting.target_features.embed


@contextmanager
def recorded_rows_on_v1(llm: LLM) -> Iterator[list[Rows]]:
    """The same on model runner V1, but for what the draft gives."""
    runner, records, newest = model_runner(llm), [], []
    drafter = runner.drafter
    lay_out, build, carry_on = drafter.set_inputs_first_pass, drafter.build_model_inputs_first_pass, drafter._carry_on
    starts: list[list[int]] = []

    def laying_out(*args: Any, **kwargs: Any) -> Any:
        found = lay_out(*args, **kwargs)
        starts.append(found[2].query_start_loc.tolist())
        return found

    def carrying_on(num_kept: list[int], *args: Any) -> None:
        newest.append(num_kept)
        carry_on(num_kept, *args)

    def building(num_tokens: int, *args: Any) -> Any:
        found = build(num_tokens, *args)
        for i, request in enumerate(runner.input_batch.req_ids):
            rows = torch.arange(starts[-1][i], starts[-1][i + 1])
            rows = rows[~drafter.is_rejected_token_mask[rows]]
            if is_chunk := bool(runner.discard_request_mask.np[i]):
                rows = rows[drafter.positions[rows] < newest[-1][i]]  # what comes behind it is drafted for nobody
            positions, inputs = drafter.positions[rows], drafter.inputs_embeds[rows]
            sampled = (positions >= newest[-1][i]).nonzero()[:, 0].tolist()[: drafter.num_speculative_tokens]
            records.append(Rows(request.split("-")[0], positions, inputs, inputs[:0], [] if is_chunk else sampled))
        return found

    drafter.set_inputs_first_pass, drafter.build_model_inputs_first_pass = laying_out, building
    drafter._carry_on = carrying_on
    yield records


class Definition:
    """PARD-2's input and output of a text, by Transformers' models: the oracle."""

    @torch.no_grad()
    def __init__(self, target: str, draft: str, features: Any) -> None:
        self.target = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
        self.draft = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32)
        hidden_size = self.draft.config.hidden_size
        self.target_proj, self.features = read_target_proj(draft, features, hidden_size), features

    @torch.no_grad()
    def features_of(self, text: list[int]) -> Tensor:
        """What each token reads: the projected states of the one before it, the first nothing. [L, H]"""
        states = self.target(torch.tensor([text]), output_hidden_states=True).hidden_states
        joined = torch.cat([states[layer][0] for layer in self.features.target_layers], dim=1)
        projected = self.features.scale * F.linear(joined, self.target_proj.weight.float())
        return torch.cat([torch.zeros_like(projected[:1]), projected[:-1]])

    @torch.no_grad()
    def inputs(self, tokens: list[int], features: Tensor) -> Tensor:
        return self.draft.get_input_embeddings()(torch.tensor(tokens)) + features

    @torch.no_grad()
    def outputs(self, inputs: Tensor) -> Tensor:
        """Final hidden states [L, H]."""
        states: Tensor = self.draft.base_model(inputs_embeds=inputs[None]).last_hidden_state[0]
        return states


def differences(definition: Definition, records: list[Rows], texts: dict[str, list[int]]) -> dict[str, float]:
    """The largest ones: of inputs of tokens, of inputs of masks, of what draft tokens are read from."""
    found = {"tokens": 0.0, "masks": 0.0, "outputs": 0.0, "num_tokens": 0, "num_masks": 0}
    features = {name: definition.features_of(text) for name, text in texts.items()}
    for rows in records:
        newest = int(rows.positions[rows.sampled[0]]) if rows.sampled else int(rows.positions[-1])
        if newest >= len(texts[rows.request]):
            continue  # beyond max_tokens, where the answer was cut
        text, read = texts[rows.request][: newest + 1], features[rows.request][: newest + 1]
        masks = len(rows.sampled) - 1 if rows.sampled else 0
        inputs = definition.inputs([*text, *[MASK_TOKEN_ID] * masks], torch.cat([read, read[-1:].expand(masks, -1)]))
        real = rows.positions <= newest
        masked = (rows.positions > newest) & (rows.positions <= newest + masks)
        for name, chosen in (("tokens", real), ("masks", masked)):
            if chosen.any():
                difference = rows.inputs[chosen] - inputs[rows.positions[chosen]]
                found[name] = max(found[name], float(difference.abs().max()))
                found[f"num_{name}"] += int(chosen.sum())
        if rows.sampled and len(rows.outputs):
            wanted = definition.outputs(inputs)[newest:]
            found["outputs"] = max(found["outputs"], float((rows.outputs[rows.sampled] - wanted).abs().max()))
    return found


def texts_of(llm: LLM, requests: list[Any], params: Any, prefix: str = "") -> dict[str, list[int]]:
    """Run all requests; prompt and answer of each by its name."""
    engine, texts = llm.llm_engine, {}
    for i, request in enumerate(requests):
        engine.add_request(f"{prefix}{i}", request, params[i] if isinstance(params, list) else params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            name = output.request_id.split("-")[0]
            texts[name] = [*output.prompt_token_ids, *output.outputs[0].token_ids]
    return texts


def eagles_shift(llm: LLM) -> None:
    """Each token reads its own feature."""
    rows = speculator(llm).rows
    lay_out = rows.lay_out

    def shifted(*args: Any, **kwargs: Any) -> None:
        lay_out(*args, **kwargs)
        found = rows.features.rows
        found[found < rows.features.first_carried - 1] += 1

    rows.lay_out = shifted


def stale_carry(llm: LLM) -> None:
    """What a slot carries is never renewed."""
    rows = speculator(llm).rows
    lay_out = rows.lay_out

    def without_carries(*args: Any, **kwargs: Any) -> None:
        lay_out(*args, **kwargs)
        rows.features.carries.fill_(rows.features.nothing)

    rows.lay_out = without_carries


def before_the_norm(llm: LLM) -> None:
    """The last state as it goes into the final norm."""
    features, unnormed = speculator(llm).target_features, []
    norm = model_runner(llm).model.model.norm
    norm.register_forward_pre_hook(lambda _, args: unnormed.append(sum(args)))
    take = features.take
    features.take = lambda states, aux: take(unnormed[-1], aux)


def order_of_layers(llm: LLM) -> None:
    """Columns of the states in vLLM's order."""
    features = speculator(llm).target_features
    features._order = tuple(sorted(features._order, reverse=True))


FAULTS: dict[str, Callable[[LLM], None]] = {
    "none": lambda llm: None,
    "eagles_shift": eagles_shift,
    "stale_carry": stale_carry,
    "before_the_norm": before_the_norm,
    "order_of_layers": order_of_layers,
}


def rows_of_mixed_batches(target: str, draft: str, fault: str, spec: dict[str, Any] | None = None) -> Any:
    """Prompts in chunks beside decodes: whatever the draft reads and gives, against the definition."""
    llm = make_llm(target, draft, spec=spec, max_num_batched_tokens=48, enable_prefix_caching=False)
    FAULTS[fault](llm)
    requests = prompts((1, 33, 70, 15, 90, 2))
    with recorded_rows(llm) as records:
        texts = texts_of(llm, requests, [greedy(6 + 4 * i) for i in range(len(requests))])
    definition = Definition(target, draft, speculator(llm).target_features.features)
    return differences(definition, records, texts)


def rows_on_v1(target: str, draft: str, forgets: bool) -> Any:
    """The same batches on model runner V1; if it forgets, no step goes on with the feature of the one before."""
    llm = make_llm(target, draft, max_num_batched_tokens=48, enable_prefix_caching=False)
    if forgets:
        model_runner(llm).drafter._carry_on = lambda *_: None
    requests = prompts((1, 33, 70, 15, 90, 2))
    with recorded_rows_on_v1(llm) as records:
        texts = texts_of(llm, requests, [greedy(6 + 4 * i) for i in range(len(requests))])
    features = llm.llm_engine.vllm_config.speculative_config.features
    return differences(Definition(target, draft, features), records, texts)


def rows_after_prefix_hits(target: str, draft: str, forgets: bool) -> Any:
    """A prompt whose first 96 tokens come out of the prefix cache, in a slot that carries the feature of a 96th token.

    The first row that is read has nothing to read, and the feature that the slot carries is another request's.
    """
    llm = make_llm(target, draft, enable_prefix_caching=True, max_num_seqs=1)
    drafting = speculator(llm)
    long_prompt, other = prompts((110, 60))
    texts_of(llm, [long_prompt], greedy(2), "first")
    before = metric(llm, "prefix_cache_hits")
    while int(drafting.draft_kv.num_carried[0]) != 96:
        other = {"prompt_token_ids": [(token + 1) % 256 for token in other["prompt_token_ids"]]}
        texts_of(llm, [other], greedy(97 - 60), "other")
    if not forgets:
        drafting.draft_kv.num_carried = _NeverZeroed(drafting.draft_kv.num_carried)
    with recorded_rows(llm) as records:
        texts = texts_of(llm, [long_prompt], greedy(12), "again")
    definition = Definition(target, draft, drafting.target_features.features)
    first = records[0]
    embeddings = definition.inputs(texts["again0"], torch.zeros(()))
    return {
        "hits": metric(llm, "prefix_cache_hits") - before,
        "first_position": int(first.positions[0]),
        "first_row": float((first.inputs[0] - embeddings[first.positions[0]]).abs().max()),
        "others": differences(definition, [_without_first(records[0]), *records[1:]], texts)["tokens"],
    }


class _NeverZeroed:
    """Stands in for a tensor that is written to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setitem__(self, index: Any, value: Any) -> None:
        pass


def _without_first(rows: Rows) -> Rows:
    return Rows(rows.request, rows.positions[1:], rows.inputs[1:], rows.outputs[1:], [row - 1 for row in rows.sampled])


def look_alike(target: str, draft: str, mode: str) -> Any:
    """A pair without tokenizers, in a mode; K is 15, as for all PARD-2 drafts."""
    requests, params = prompts((3, 40)), greedy(12)
    kw = {"skip_tokenizer_init": True, "max_num_batched_tokens": 128}
    plain = generate(make_llm(target, None, **kw), requests, params)
    llm = make_llm(target, draft, num_drafts=15, spec={"mode": mode}, **kw)
    result = {"plain": plain, "pard": generate(llm, requests, params), "counts": spec_counts(llm)}
    return result | {"mode": llm.llm_engine.vllm_config.speculative_config.mode}


def states_against_transformers(target: str, draft: str) -> Any:
    """What the runner hands over for one prompt, against Transformers' hidden_states of those layers."""
    llm = make_llm(target, draft, max_num_batched_tokens=128)
    features, taken = speculator(llm).target_features, []
    take = features.take

    def taking(*args: Any) -> None:
        take(*args)
        taken.append(features.states.clone())

    features.take = taking
    (prompt,) = prompts((50,))
    generate(llm, [prompt], greedy(2))
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([prompt["prompt_token_ids"]])
        states = model(ids, output_hidden_states=True).hidden_states
    wanted = torch.cat([states[layer][0] for layer in features.features.target_layers], dim=1)
    return {"difference": float((taken[0][:50] - wanted).abs().max()), "scale": float(wanted.abs().mean())}
