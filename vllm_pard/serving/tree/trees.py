"""The trees that requests draft in one step and the target verifies in the next, in tensors of fixed places.

B requests · R request slots · N nodes of a tree · T rows of the target's step
"""

from collections.abc import Iterable
from typing import Any

import torch
from pard_kernels import DraftTree, History, TopK, accept_tree_path, build_draft_tree, keep_tree_rows, place_tree_rows
from torch import Tensor

from vllm_pard.config import NUM_CANDIDATES


class Trees:
    """Of each request slot: its tree, which of its rows the target has accepted, and whether it may branch."""

    @classmethod
    def of(cls, speculator: Any) -> "Trees | None":
        """What a speculator needs; None if its drafts are chains."""
        if speculator.speculative_config.tree_depth is None:
            return None
        return cls(
            speculator.max_num_reqs,
            speculator.num_speculative_steps,
            speculator.max_num_tokens,
            speculator.device,
            speculator.request_state,
        )

    def __init__(self, num_slots: int, num_nodes: int, num_rows: int, device: torch.device, requests: Any) -> None:
        self.num_nodes = num_nodes
        # What each request has read and written, the newest token too once a step is over. [R, positions], [R]
        self.history = History(requests.all_token_ids.gpu, requests.total_len.gpu)
        chain = torch.arange(num_nodes + 1, dtype=torch.int32, device=device).repeat(num_slots, 1)
        self.depths = chain.clone()  # [R, N + 1]
        self.parents = (chain - 1).clamp_(min=0)  # [R, N + 1]
        self.ancestors = torch.ones_like(chain, dtype=torch.int64)  # [R, N + 1]
        self.accepted_rows = chain  # [R, N + 1]
        self.is_chain_only = torch.zeros(num_slots, dtype=torch.bool, device=device)  # [R]
        self.row_masks = torch.zeros(num_rows, dtype=torch.int64, device=device)  # [T], which new rows each row sees
        self.kept_rows = torch.zeros(num_rows, dtype=torch.int32, device=device)  # [T]
        self.target_layers: Iterable[str] = ()  # known once the target is
        self.caches: Any = None  # the target's, once there are any

    def draft(self, candidates: TopK, slots: Tensor) -> Tensor:
        """Build the trees of requests in these slots [B] from candidates of B * K rows. Returns tokens [B, N] int64."""
        logprobs = candidates.logits - candidates.log_sum_exps[:, None]
        shape = len(slots), -1, candidates.ids.shape[-1]
        return self._build(candidates.ids.view(shape), logprobs.view(shape), slots)

    def _build(self, ids: Tensor, logprobs: Tensor, slots: Tensor) -> Tensor:
        of_requests = DraftTree.empty(len(slots), self.num_nodes, ids.device)
        out = of_requests._replace(depths=self.depths, parents=self.parents, ancestors=self.ancestors)
        build_draft_tree(
            candidate_ids=ids,
            candidate_logprobs=logprobs,
            num_nodes=self.num_nodes,
            history=self.history,
            out=out,
            request_slots=slots,
        )
        return out.token_ids

    @property
    def handed_on(self) -> tuple[Tensor, ...]:
        """What ranks have to agree on beside the tokens."""
        return self.depths, self.parents, self.ancestors

    def place(self, batch: Any) -> None:
        """Put a step's rows at their places: a node's position is its depth, and it sees its ancestors.

        Slots stay those of consecutive positions, so each node has one of its own.
        """
        self._place(batch.positions, batch.query_start_loc, batch.cu_num_logits, batch.idx_mapping, self.row_masks)

    def straighten(self, batch: Any) -> None:
        """Put the rows back to consecutive positions, as whatever comes after the forward takes them to be."""
        self._place(batch.positions, batch.query_start_loc, batch.cu_num_logits, batch.idx_mapping, sign=-1)

    def place_logits(self, positions: Tensor, starts: Tensor, slots: Tensor) -> None:
        """Move positions of the rows of logits, those of request b from `starts[b]` on, from rows to depths."""
        self._place(positions, starts, starts, slots)

    def _place(
        self,
        positions: Tensor,
        row_starts: Tensor,
        logit_starts: Tensor,
        slots: Tensor,
        row_masks: Tensor | None = None,
        sign: int = 1,
    ) -> None:
        num_reqs = len(slots)
        place_tree_rows(
            positions=positions,
            row_masks=row_masks,
            row_starts=row_starts[: num_reqs + 1],
            logit_starts=logit_starts[: num_reqs + 1],
            request_slots=slots,
            depths=self.depths,
            ancestors=self.ancestors,
            sign=sign,
        )

    def kept(self, batch: Any, num_sampled: Tensor, *, dummy_run: bool) -> Tensor:
        """The target rows that each request keeps, for `prepare_draft_inputs`. [T] int32"""
        if not dummy_run:
            num_reqs = batch.num_reqs
            keep_tree_rows(
                kept_rows=self.kept_rows,
                row_starts=batch.query_start_loc[: num_reqs + 1],
                logit_starts=batch.cu_num_logits[: num_reqs + 1],
                request_slots=batch.idx_mapping[:num_reqs],
                accepted_rows=self.accepted_rows,
                num_sampled=num_sampled,
            )
        return self.kept_rows

    def warm_up(self) -> dict[str, Tensor]:
        """Compile what trees need, by a request that has no rows and keeps none.

        Returns the masks that attention gets, by layer of the target.
        """
        nobody = torch.full((1,), -1, dtype=torch.int64, device=self.depths.device)
        nothing = torch.zeros_like(nobody, dtype=torch.int32)
        starts = nothing.repeat(2)
        ids = nothing.new_zeros(1, 3, NUM_CANDIDATES, dtype=torch.int64)
        token_ids = self._build(ids, ids.float(), nobody)
        accept_tree_path(
            target_token_ids=nothing.long(),
            draft_token_ids=nothing,
            row_starts=starts,
            parents=self.parents,
            is_chain_only=self.is_chain_only,
            request_slots=nobody,
            token_ids=token_ids,
            accepted_rows=self.accepted_rows,
            num_sampled=nothing.clone(),
        )
        self._place(ids.flatten(), starts, starts, nobody)
        keep_tree_rows(
            kept_rows=self.kept_rows,
            row_starts=starts,
            logit_starts=starts,
            request_slots=nobody,
            accepted_rows=self.accepted_rows,
            num_sampled=nothing,
        )
        self.caches.compact(self, nobody, nothing, nothing.new_zeros(len(self.depths)))
        return dict.fromkeys(self.target_layers, self.row_masks)
