"""A brute-force model of a server for `DraftKV`: requests, blocks, a prefix cache, and what the draft wrote where.

Keys and values of a position are stood for by the text up to it, so that a stale one is seen.
"""

import random
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_pard.serving.draft.kv import DraftKV, StepRequests

BLOCK_SIZE, MAX_MODEL_LEN, NUM_SLOTS, MAX_NUM_ROWS = 4, 48, 5, 32
Text = tuple[int, ...]


@dataclass
class Block:
    """Shared by all requests whose text reaches it through the prefix cache."""

    written: list[Text | None] = field(default_factory=lambda: [None] * BLOCK_SIZE)


@dataclass
class Request:
    text: list[int]
    slot: int
    prefill_len: int
    num_computed: int = 0
    num_drafted: int = 0  # drafts that the next step verifies
    blocks: list[Block] = field(default_factory=list)

    def block(self, position: int) -> Block:
        while len(self.blocks) <= position // BLOCK_SIZE:
            self.blocks.append(Block())
        return self.blocks[position // BLOCK_SIZE]

    def holds(self, position: int) -> bool:
        return self.block(position).written[position % BLOCK_SIZE] == tuple(self.text[: position + 1])


class World:
    """Each `step` is one of the engine; AssertionError where the draft would read what is not there."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.kv = DraftKV(NUM_SLOTS, torch.device("cpu"))
        self.running: list[Request] = []
        self.cached: dict[Text, Block] = {}
        self.free_slots = list(range(NUM_SLOTS))
        self.seen: dict[str, int] = {}

    def step(self) -> None:
        self._come_and_go()
        batch = [request for request in self.running if self.random.random() < 0.9]
        if not batch:
            return
        num_drafts = self.random.choice([0, 0, 1, 3, 4])
        query_lens = [self._query_len(request) for request in batch]
        order = sorted(range(len(batch)), key=lambda i: (batch[i].num_drafted == 0, query_lens[i]))
        batch, query_lens = [batch[i] for i in order], [query_lens[i] for i in order]
        requests = self._as_the_host_knows_them(batch, query_lens)
        self.kv.enter(requests)
        kept, num_tokens = zip(*map(self._verify, batch, query_lens), strict=True)
        self._check_the_bound(batch, query_lens, kept)
        first = 0
        if num_drafts == 0:
            first = int(requests.is_prefill.argmax()) if requests.is_prefill.any() else len(batch)
            self.kv.skip(requests, slice(0, first))
            self._count("skipped decodes", first)
        if first < len(batch):
            forwards = list(
                self.kv.plan(
                    requests, slice(first, None), num_drafts=num_drafts,
                    max_num_rows=MAX_NUM_ROWS, max_model_len=MAX_MODEL_LEN,
                )
            )  # fmt: skip
            self._count("catch-up forwards", len(forwards) - 1)
            for spans in forwards:
                assert spans.sum() <= MAX_NUM_ROWS
                for request, span, num in zip(batch[first:], spans.tolist(), num_tokens[first:], strict=True):
                    self._forward(request, span, num, num_drafts, is_last=spans is forwards[-1])
        for request, num_kept, will_sample in zip(batch, kept, requests.will_sample, strict=True):
            request.num_computed = num_kept
            room = MAX_MODEL_LEN - len(request.text)
            request.num_drafted = min(num_drafts, max(room, 0)) if will_sample else 0
            self._cache_prompt_blocks(request)

    def _query_len(self, request: Request) -> int:
        left = request.prefill_len - request.num_computed
        return min(left, self.random.randint(1, 9)) if left > 0 else 1 + request.num_drafted

    def _as_the_host_knows_them(self, batch: list[Request], query_lens: list[int]) -> StepRequests:
        is_prefill = np.array([request.num_computed < request.prefill_len for request in batch])
        computed = np.array([request.num_computed for request in batch])
        drafted = np.array([0 if prefill else r.num_drafted for r, prefill in zip(batch, is_prefill, strict=True)])
        prefill_len = np.array([request.prefill_len for request in batch])
        return StepRequests(
            slots=np.array([request.slot for request in batch]),
            query_lens=np.array(query_lens),
            num_computed=computed + np.where(is_prefill, 0, self.random.randint(0, 4)),  # not yet known rejections
            is_prefill=is_prefill,
            will_sample=computed + np.array(query_lens) - drafted >= prefill_len,
        )

    def _verify(self, request: Request, query_len: int) -> tuple[int, int]:
        """The target accepts some drafts and adds a token. Returns tokens kept, without and with the bonus."""
        if request.num_computed + query_len < request.prefill_len:
            return request.num_computed + query_len, request.num_computed + query_len
        num_accepted = 0 if request.num_computed < request.prefill_len else self.random.randint(0, query_len - 1)
        request.text += [self.random.randint(0, 9) for _ in range(num_accepted + 1)]
        return len(request.text) - 1, len(request.text)

    def _check_the_bound(self, batch: list[Request], query_lens: list[int], kept: tuple[int, ...]) -> None:
        for request, query_len, num_kept in zip(batch, query_lens, kept, strict=True):
            missing = num_kept - min(int(self.kv.num_tokens[request.slot]), num_kept)
            assert missing <= max(self.kv._missing[request.slot] + query_len, 0)

    def _forward(self, request: Request, span: int, num_tokens: int, num_drafts: int, is_last: bool) -> None:
        """What `prepare_draft_inputs` lays out."""
        start = max(min(int(self.kv.num_tokens[request.slot]), num_tokens - 1, MAX_MODEL_LEN - span), 0)
        for position in range(start):
            assert request.holds(position), f"a hole at {position} of {num_tokens}"
        has_bonus = num_tokens == len(request.text)
        if is_last and has_bonus and num_drafts > 0:
            assert start + span >= min(num_tokens + num_drafts - 1, MAX_MODEL_LEN), "no row for the last mask"
            self._count("drafts", 1)
        end = min(start + span, num_tokens)
        for position in range(start, end):
            request.block(position).written[position % BLOCK_SIZE] = tuple(request.text[: position + 1])
        self.kv.num_tokens[request.slot] = end

    def _cache_prompt_blocks(self, request: Request) -> None:
        for i in range(min(request.num_computed, request.prefill_len) // BLOCK_SIZE):
            self.cached.setdefault(tuple(request.text[: (i + 1) * BLOCK_SIZE]), request.block(i * BLOCK_SIZE))

    def _come_and_go(self) -> None:
        for request in list(self.running):
            is_full = len(request.text) + 5 > MAX_MODEL_LEN
            if is_full or self.random.random() < 0.03:
                self._leave(request, "finished or aborted")
            elif self.random.random() < 0.03:
                self._leave(request, "preempted")
                self._start(list(request.text))
        while self.free_slots and self.random.random() < 0.3:
            prompt = [self.random.choice([1, 2])] * self.random.randint(1, 30)
            self._start(prompt + [self.random.randint(0, 9) for _ in range(self.random.randint(0, 4))])

    def _leave(self, request: Request, why: str) -> None:
        self.running.remove(request)
        self.free_slots.append(request.slot)
        self._count(why, 1)

    def _start(self, text: list[int]) -> None:
        """With what the prefix cache holds of the text, all but its last token at most."""
        request = Request(text, self.free_slots.pop(self.random.randrange(len(self.free_slots))), len(text))
        while (end := request.num_computed + BLOCK_SIZE) < len(text) and tuple(text[:end]) in self.cached:
            request.blocks.append(self.cached[tuple(text[:end])])
            request.num_computed = end
        self._count("prefix hits", request.num_computed > 0)
        self.running.append(request)

    def _count(self, what: str, number: int) -> None:
        self.seen[what] = self.seen.get(what, 0) + int(number)
