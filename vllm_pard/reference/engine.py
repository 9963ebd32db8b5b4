"""Decoding with a parallel draft (PARD, arXiv 2504.18583; PARD-2, arXiv 2605.08632), an autoregressive one (VSD), or
plain (AR+, AR).

Clear before fast: what PARD is, and the oracle for the vLLM plugin. A step:

    draft   one forward of the draft, over the newest tokens and K - 1 mask tokens, guesses K tokens (tree.py: a tree)
    score   one forward of the target, over the newest token and the K guesses, says what comes after each
    verify  guesses count as far as they agree with the target, and the target adds one bonus token
    commit  these tokens are kept

The target alone decides: greedy, all methods give the same tokens; sampled, all draw from the same distribution. The
shapes of a step never change, so that it can be compiled and replayed as a CUDA graph.

B requests · K draft tokens · L tokens of the longest prompt · V vocabulary of the target · H hidden size of the draft
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from vllm_pard.metrics import AcceptanceStats
from vllm_pard.reference.cache import CachedModel
from vllm_pard.reference.drafters import Drafts, Method, check_method, make_drafter, parallel_logits
from vllm_pard.reference.features import Features, check_target_proj
from vllm_pard.reference.plain import plain_answers
from vllm_pard.reference.requests import Generation, GenerationError, Prompts, Requests, check_call
from vllm_pard.reference.sampling import Sampler
from vllm_pard.reference.tree import check_tree, tree_step
from vllm_pard.target_proj import TargetProj

__all__ = ["Generation", "GenerationError", "Method", "ReferenceEngine", "generate"]


class ReferenceEngine:
    """A target, its draft and their caches, for `batch_size` requests at a time of up to `max_length` tokens each.

    "ar" is the `generate` of Transformers. "ar+" is this engine without a draft, always compiled; `compiled` does the
    same for the others. Repeated calls compile once. "pard2" is dependent with a `target_proj`, and without one
    independent, which is "pard". A draft proposes the tokens of `draft_vocab` only; None: all. A parallel draft may
    propose a tree of `num_tree_nodes` in place of a chain.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel | None = None,
        *,
        method: Method,
        num_speculative_tokens: int = 0,
        mask_token_id: int | None = None,
        target_proj: TargetProj | None = None,
        draft_vocab: Sequence[int] | None = None,
        batch_size: int = 1,
        max_length: int,
        compiled: bool = False,
        num_tree_nodes: int = 0,
    ) -> None:
        check_method(
            method,
            has_draft=draft is not None,
            has_target_proj=target_proj is not None,
            num_speculative_tokens=num_speculative_tokens,
            compiled=compiled,
        )
        is_parallel = method in ("pard", "pard2")
        check_tree(num_tree_nodes, num_speculative_tokens, target.config.vocab_size, is_parallel=is_parallel)
        if method in ("ar", "ar+"):
            draft, num_speculative_tokens = None, 0
        compiled = compiled or method == "ar+"
        num_positions = max_length + num_speculative_tokens  # the last step may draft past the end of an answer
        self.features = None
        if draft is not None and target_proj is not None:
            check_target_proj(target_proj, target, draft)
            num_slots = num_positions + num_tree_nodes
            self.features = Features(target_proj, draft=draft, batch_size=batch_size, max_length=num_slots)
        self.target = CachedModel(
            target,
            max_length=num_positions,
            compiled=compiled,
            features=self.features,
            num_spare_slots=num_tree_nodes,
        )
        self.draft = None
        if draft is not None:
            self.draft = CachedModel(draft, max_length=num_positions, compiled=compiled, vocabulary=draft_vocab)
        self.method, self.num_speculative_tokens, self.num_tree_nodes = method, num_speculative_tokens, num_tree_nodes
        self._mask_token_id = mask_token_id
        self.batch_size, self.max_length = batch_size, max_length
        self._draft_tokens = make_drafter(
            self.draft,
            method=method,
            num_speculative_tokens=num_speculative_tokens,
            mask_token_id=mask_token_id,
            vocab_size=self.target.vocab_size,
            features=self.features,
        )

    @torch.no_grad()
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        eos_token_ids: Sequence[int] = (),
    ) -> list[Generation]:
        """Continue each prompt by up to `max_new_tokens`, up to and with the first end-of-sequence token."""
        check_call(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            max_length=self.max_length,
            context=self.target.context,
            vocab_size=self.target.vocab_size,
        )
        device = self.target.model.device
        generations: list[Generation] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            # Another seed for each batch: equal prompts are to get different answers.
            sampler = Sampler(temperature=temperature, seed=seed + start, device=device)
            if self.method == "ar":
                answers = plain_answers(self.target.model, batch, max_new_tokens, eos_token_ids, sampler)
                generations += [Generation(token_ids, AcceptanceStats()) for token_ids in answers]
                continue
            requests = Requests(
                batch,
                batch_size=self.batch_size,
                max_length=self.max_length,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos_token_ids,
                device=device,
            )
            self._answer(requests, sampler)
            generations += requests.generations()
        return generations

    def _answer(self, requests: Requests, sampler: Sampler) -> None:
        models = [self.target] if self.draft is None else [self.target, self.draft]
        # Past the context of either model there is no position for a draft token: plain steps from there.
        max_length = min(model.max_length for model in models)
        prefill(self.target, requests)
        if self.draft is not None:
            prefill(self.draft, requests, self.features)
        while not requests.finished.all():
            num_draft_tokens = (max_length - requests.lengths).clamp(0, self.num_speculative_tokens)  # [B]
            if self.num_tree_nodes:
                self._tree_step(requests, sampler, num_draft_tokens)
                continue
            drafts = self._draft_tokens(requests, sampler)
            logits = score(self.target, requests, drafts.token_ids)  # [B, K + 1, V]
            num_accepted, bonus_ids = verify(drafts, num_draft_tokens, sampler.probs(logits), sampler)  # [B], [B]
            requests.count(num_draft_tokens, num_accepted)
            commit(requests, drafts.token_ids, num_accepted, bonus_ids)

    def _tree_step(self, requests: Requests, sampler: Sampler, max_depths: Tensor) -> None:
        assert self.draft is not None
        assert self._mask_token_id is not None
        logits = parallel_logits(
            self.draft, requests, self.num_speculative_tokens, self._mask_token_id, self.features
        )  # [B, K, V of the draft]
        tree_step(
            self.target,
            logits[..., : self.target.vocab_size],
            requests,
            sampler,
            num_nodes=self.num_tree_nodes,
            max_depths=max_depths,
        )


def generate(
    target: PreTrainedModel,
    draft: PreTrainedModel | None,
    prompts: Prompts,
    *,
    method: Method,
    num_speculative_tokens: int,
    max_new_tokens: int,
    mask_token_id: int | None = None,
    target_proj: TargetProj | None = None,
    draft_vocab: Sequence[int] | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    eos_token_ids: Sequence[int] = (),
    num_tree_nodes: int = 0,
) -> list[Generation]:
    """One call of a ReferenceEngine that takes these prompts in one batch."""
    engine = ReferenceEngine(
        target,
        draft,
        method=method,
        num_speculative_tokens=num_speculative_tokens,
        mask_token_id=mask_token_id,
        target_proj=target_proj,
        draft_vocab=draft_vocab,
        batch_size=max(1, len(prompts)),
        max_length=max(map(len, prompts), default=0) + max_new_tokens,
        num_tree_nodes=num_tree_nodes,
    )
    return engine.generate(
        prompts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, eos_token_ids=eos_token_ids
    )


def prefill(model: CachedModel, requests: Requests, features: Features | None = None) -> None:
    """Read the prompts. What stands behind a shorter one is written over, as rejected tokens are."""
    positions = torch.arange(int(requests.lengths.max()), device=requests.lengths.device)  # [L]
    positions = positions.expand(len(requests.lengths), -1)  # [B, L]
    added = None if features is None else features.at(positions, requests.lengths[:, None] - 1)  # [B, L, H]
    model.forward(requests.at(positions), positions, num_logits=1, added=added)


def score(target: CachedModel, requests: Requests, draft_ids: Tensor) -> Tensor:
    """One target forward over the newest token and the draft tokens. [B, K + 1, V]"""
    newest = requests.lengths[:, None] - 1  # [B, 1]
    token_ids = torch.cat([requests.at(newest), draft_ids], dim=1)  # [B, K + 1]
    index = torch.arange(token_ids.shape[1], device=token_ids.device)  # [K + 1]
    return target.step(token_ids, newest + index, num_logits=len(index))


def verify(drafts: Drafts, num_draft_tokens: Tensor, target_probs: Tensor, sampler: Sampler) -> tuple[Tensor, Tensor]:
    """How many draft tokens to keep, and the bonus token that follows them. [B], [B]

    Rejection sampling: whatever the draft's distribution, what is kept has the target's (arXiv 2211.17192, 2302.01318).
    Greedy distributions are one token each: a draft token stays if it is the target's. Of a draft, num_draft_tokens
    [B] count; target_probs is [B, K + 1, V].
    """
    index = torch.arange(target_probs.shape[1], device=target_probs.device)  # [K + 1]
    is_drafted = index < num_draft_tokens[:, None]  # [B, K + 1]
    chosen = drafts.token_ids[:, :, None]  # [B, K, 1]
    ratio = (target_probs[:, :-1].gather(2, chosen) / drafts.probs.gather(2, chosen))[:, :, 0]  # [B, K]
    is_accepted = is_drafted[:, :-1] & (sampler.uniform(like=ratio) < ratio)
    num_accepted = is_accepted.int().cumprod(dim=1).sum(dim=1)  # [B]

    # After a rejected token, the bonus token makes up for it: it comes from what the target has more of than the draft.
    # After the whole draft, it comes from all that the target has.
    draft_probs = F.pad(drafts.probs, (0, 0, 0, 1)) * is_drafted[:, :, None]  # [B, K + 1, V]
    row = num_accepted[:, None, None].expand(-1, 1, target_probs.shape[2])  # [B, 1, V]
    target_row, draft_row = target_probs.gather(1, row)[:, 0], draft_probs.gather(1, row)[:, 0]  # [B, V]
    surplus = (target_row - draft_row).clamp(min=0)
    # Where the two are equal but for rounding, nothing may be left.
    surplus = torch.where(surplus.sum(dim=1, keepdim=True) > 0, surplus, target_row)
    return num_accepted, sampler.sample(surplus)


def commit(requests: Requests, draft_ids: Tensor, num_accepted: Tensor, bonus_ids: Tensor) -> None:
    """Append the accepted tokens and the bonus token. The caches need nothing: see cache.py."""
    kept_ids = F.pad(draft_ids, (0, 1)).scatter(1, num_accepted[:, None], bonus_ids[:, None])  # [B, K + 1]
    requests.append(kept_ids, num_accepted + 1)
