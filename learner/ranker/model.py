"""The built-in ranker (`sluice.learner.ranker.contract.Ranker`): an ensemble of sequential encoders,

    score(u, history, i) = <W h, v_i> + b_i,  h = gru(history) + e_u,  v_i = embedding_i + attributes_i A

e_u is the mean of the embeddings of the user's attributes, and one more embedding for users of whom nothing
is known. It is 0 where the data set has no user attributes.

trained on logged interactions by `sluice.learner.ranker.fit`, and so with their exposure bias. Further heads
(`sluice.learner.ranker.heads`) predict the rating, click and dwell time of the next interaction where the
logs have them.

Definition: docs/algorithms.md, Built-in ranker.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sluice.catalog.data.dataset import Dataset
from sluice.catalog.data.settings import OUTCOMES
from sluice.catalog.errors import RankerError
from sluice.catalog.files import write_atomically
from sluice.learner.ranker.heads import HEADS, OutcomeHead
from sluice.learner.ranker.known_logs import KnownLogs
from sluice.learner.ranker.output import RankerOutput
from sluice.learner.ranker.settings import RankerSettings, ScoreOf


class SequenceRanker(nn.Module):
    """One member of the ensemble."""

    attributes: torch.Tensor  # float32 [N + 1, A], the padding row last
    user_codes: torch.Tensor  # int64 [U + 1, M], see `code_users`

    def __init__(
        self,
        attributes_NA: torch.Tensor,
        hidden_size: int,
        dropout: float,
        heads: Sequence[str] = (),
        user_codes: torch.Tensor | None = None,
    ) -> None:
        """A member with random weights.

        Args:
            attributes_NA: multi-hot attribute matrix of the N items; row N of the tables is padding.
            hidden_size: D.
            dropout: rate, on item vectors and on states.
            heads: the outcomes to predict, of `sluice.catalog.data.settings.OUTCOMES`.
            user_codes: int64 `[U + 1, M]` (`code_users`); None: nothing is known of users.
        """
        super().__init__()
        self.items = attributes_NA.shape[0]
        padded = torch.cat([attributes_NA, attributes_NA.new_zeros(1, attributes_NA.shape[1])])
        self.register_buffer("attributes", padded, persistent=False)
        self.embedding = nn.Embedding(self.items + 1, hidden_size, padding_idx=self.items)
        self.attribute_projection = nn.Linear(attributes_NA.shape[1], hidden_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.items + 1))
        self.encoder = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.heads = nn.ModuleDict({column: HEADS[column](self.items, hidden_size) for column in heads})
        self.input_dropout, self.output_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.attribute_projection.weight, std=0.03)
        self.user_embedding: nn.EmbeddingBag | None = None
        if user_codes is not None:
            self.register_buffer("user_codes", user_codes, persistent=False)
            kinds = int(user_codes.max()) + 1
            self.user_embedding = nn.EmbeddingBag(kinds, hidden_size, mode="mean", padding_idx=0)
            # One that no user of the logs has, such as that of strangers, is never learned and stays 0.
            nn.init.zeros_(self.user_embedding.weight)

    def item_vectors(self) -> torch.Tensor:
        """`[N + 1, D]`, the padding row last."""
        projected_ND: torch.Tensor = self.attribute_projection(self.attributes)
        return self.embedding.weight + projected_ND

    @torch.no_grad()
    def fill_padding(self) -> None:
        """Make row N, which only pads histories, stand for an item that the ranker does not know.

        It becomes the mean of all items that the ranker knows.
        """
        self.embedding.weight[self.items] = self.item_vectors()[:-1].mean(0)
        for terms in (self.bias, *(self.head(column).item for column in self.heads)):
            terms[self.items] = terms[:-1].mean()

    def head(self, column: str) -> OutcomeHead:
        """The head that predicts this outcome."""
        return cast(OutcomeHead, self.heads[column])

    def encode(
        self, history_BT: torch.Tensor, vectors_ND: torch.Tensor, users_B: torch.Tensor | None = None
    ) -> torch.Tensor:
        """States `[B, T, D]` after each item of right-padded histories of item rows.

        `users_B` int64 are whose they are, -1 and None: not known.
        """
        states, _ = self.encoder(self.input_dropout(vectors_ND[history_BT]))
        if self.user_embedding is not None:
            strangers_B = torch.full((len(history_BT),), -1, device=history_BT.device)
            # Row -1 is the last one, that of users who are not known.
            codes_BM = self.user_codes[strangers_B if users_B is None else users_B]
            states = states + self.user_embedding(codes_BM)[:, None]
        dropped_BTD: torch.Tensor = self.output_dropout(states)
        return dropped_BTD

    def relevance(self, states: torch.Tensor, vectors_CD: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
        """Scores `[..., C]` of items given by their vectors and biases."""
        queries: torch.Tensor = self.query(states)
        return queries @ vectors_CD.T + bias_C

    @torch.no_grad()
    def last_states(
        self, histories: Sequence[np.ndarray], limit: int, users_B: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[B, D]` after the last `limit` items of each history, and the item vectors."""
        longest = max(1, min(limit, max(len(history) for history in histories)))
        padded = torch.full((len(histories), longest), self.items)
        for row, history in enumerate(histories):
            recent = np.array(history[-limit:], dtype=np.int64)
            padded[row, : len(recent)] = torch.from_numpy(recent)
        padded = padded.to(self.bias.device)
        vectors = self.item_vectors()
        last = ((padded != self.items).sum(1) - 1).clamp(min=0)
        states = self.encode(padded, vectors, users_B)
        return states[torch.arange(len(histories), device=states.device), last], vectors

    @torch.no_grad()
    def score_candidates(
        self,
        histories: Sequence[np.ndarray],
        candidates_BC: torch.Tensor,
        limit: int,
        head: str | None = None,
        scores: ScoreOf = "next_item",
        users_B: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores `[B, C]` of candidates (padding as row N), and the outcome that `head` predicts of them.

        The outcome is `[B, C]` in the unit of the log; None without a head.
        """
        states, vectors = self.last_states(histories, limit, users_B)
        if scores == "click":
            scores_BC = self.head("click")(states[:, None], candidates_BC, vectors)
        else:
            relevance_BC = torch.einsum("bd,bcd->bc", self.query(states), vectors[candidates_BC])
            scores_BC = relevance_BC + self.bias[candidates_BC]
        if head is None:
            return scores_BC, None
        outcome = self.head(head)
        return scores_BC, outcome.value(outcome(states[:, None], candidates_BC, vectors))

    @torch.no_grad()
    def expected_outcomes(
        self,
        histories: Sequence[np.ndarray],
        items_B: torch.Tensor,
        limit: int,
        users_B: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """By head, the prediction `[B]` of one item under each history, on the head's own scale."""
        states, vectors = self.last_states(histories, limit, users_B)
        heads = {column: self.head(column) for column in self.heads}
        return {column: head.expected(head(states, items_B, vectors)) for column, head in heads.items()}


class EnsembleRanker:
    """The mean score of n members."""

    def __init__(
        self,
        members: list[SequenceRanker],
        version: str,
        max_history: int,
        reward: str | None = None,
        scores: ScoreOf = "next_item",
        user_attributes: Sequence[str] = (),
    ) -> None:
        """An ensemble in evaluation mode.

        Args:
            members: fitted members, at least one.
            version: names the fitted weights; it travels with every score.
            max_history: how many items of a history the members read.
            reward: the column of the logged reward; None: there is none.
            scores: what a score is, see `RankerSettings.scores`.
            user_attributes: what it knows users by (`name_user_attributes`).
        """
        self.members = [member.eval() for member in members]
        for member in self.members:
            member.fill_padding()
        self.version = version
        self._max_history, self._scores = max_history, scores
        self._user_attributes = list(user_attributes)
        self._value_head = reward if reward is not None and reward in members[0].heads else None

    @property
    def heads(self) -> list[str]:
        """The outcomes that it predicts."""
        return list(self.members[0].heads)

    @property
    def needs_users(self) -> bool:
        """Whether it knows users by their attributes, and so has to be told whose a history is."""
        return self.members[0].user_embedding is not None

    def score(
        self, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
    ) -> np.ndarray:
        """See `UserRanker.score`."""
        return self._predict(histories, candidates, None, users).scores

    def predict(
        self, histories: list[np.ndarray], candidates: np.ndarray, users: np.ndarray | None = None
    ) -> RankerOutput:
        """The members' mean score, the deviation of their scores (ddof 1) and their mean predicted reward.

        One member has no spread; without a head for the logged reward there are no values. Items that have
        come to the catalogue since the ranker was fitted are all judged as the mean item.
        """
        return self._predict(histories, candidates, self._value_head, users)

    def _on_device(self, users: np.ndarray | None) -> torch.Tensor | None:
        """The users int64 `[B]`; None where they make no difference, or nobody is known."""
        if users is None or not self.needs_users:
            return None
        return torch.from_numpy(users.astype(np.int64)).to(self.members[0].bias.device)

    def _predict(
        self,
        histories: list[np.ndarray],
        candidates: np.ndarray,
        head: str | None,
        users: np.ndarray | None,
    ) -> RankerOutput:
        padding = candidates < 0
        device = self.members[0].bias.device
        items = self.members[0].items
        rows = np.where(padding | (candidates >= items), items, candidates)
        rows_BC = torch.from_numpy(rows.astype(np.int64)).to(device)
        users_B = self._on_device(users)
        parts = [
            member.score_candidates(histories, rows_BC, self._max_history, head, self._scores, users_B)
            for member in self.members
        ]
        scores_nBC = torch.stack([scores for scores, _ in parts])
        outputs = {"scores": scores_nBC.mean(0)}
        if len(parts) > 1:
            outputs["spread"] = scores_nBC.std(0, correction=1)
        if head is not None:
            outputs["values"] = torch.stack([values for _, values in parts if values is not None]).mean(0)
        nan = np.float32(np.nan)
        return RankerOutput.of(
            **{name: np.where(padding, nan, value.cpu().numpy()) for name, value in outputs.items()}
        )

    def expected_outcomes(
        self, histories: list[np.ndarray], items: np.ndarray, users: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """By head, the members' mean prediction of one item each, float64 `[B]`, on the head's own scale."""
        users_B = self._on_device(users)
        rows = torch.from_numpy(items.astype(np.int64)).to(self.members[0].bias.device)
        parts = [
            member.expected_outcomes(histories, rows, self._max_history, users_B) for member in self.members
        ]
        return {
            head: np.mean([part[head].double().cpu().numpy() for part in parts], axis=0)
            for head in self.heads
        }

    def save(self, directory: Path) -> None:
        """Write the members and what is needed to load them."""
        directory.mkdir(parents=True, exist_ok=True)
        for index, member in enumerate(self.members):
            save_file(member.state_dict(), directory / f"member-{index}.safetensors")
        facts = {
            "version": self.version,
            "members": len(self.members),
            "hidden_size": self.members[0].embedding.embedding_dim,
            "items": self.members[0].items,
            "heads": self.heads,
            "max_history": self._max_history,
            "scores": self._scores,
            "user_attributes": self._user_attributes,
        }
        write_atomically(directory / "ranker.json", json.dumps(facts, indent=1))

    @classmethod
    def load(cls, directory: str | Path, dataset: Dataset) -> "EnsembleRanker":
        """The ranker that `save` wrote.

        Raises:
            RankerError: the directory holds no ranker, or one for another catalogue or other users.
        """
        try:
            facts = json.loads((Path(directory) / "ranker.json").read_text())
        except (OSError, ValueError) as error:
            raise RankerError(
                f"{directory} holds no fitted ranker ({error}); run `sluice fit-ranker`"
            ) from None
        if facts["items"] != dataset.items:
            raise RankerError(
                f"the ranker in {directory} knows {facts['items']} items, the catalogue has {dataset.items}; "
                "run `sluice fit-ranker` again"
            )
        if "heads" not in facts:
            raise RankerError(
                f"the ranker in {directory} was fitted by another version; run `sluice fit-ranker` again"
            )
        known = name_user_attributes(dataset)
        fitted = facts.get("user_attributes", known)  # earlier releases did not write them down
        if fitted != known:
            apart = sorted(set(fitted) ^ set(known))
            raise RankerError(
                f"the ranker in {directory} knows users by {len(fitted)} attributes, the data set has "
                f"{len(known)}, and one alone of them has {apart[0]!r}; run `sluice fit-ranker` again"
            )
        members = []
        for index in range(facts["members"]):
            member = SequenceRanker(
                dense_attributes(dataset), facts["hidden_size"], 0.0, facts["heads"], code_users(dataset)
            )
            member.load_state_dict(load_file(Path(directory) / f"member-{index}.safetensors"))
            members.append(member)
        scores = facts.get("scores", "next_item")  # earlier releases had no other
        limit = facts["max_history"]
        return cls(members, facts["version"], limit, dataset.reward_column, scores, known)


def dense_attributes(dataset: Dataset) -> torch.Tensor:
    """The multi-hot attributes, float32 `[N, A]`, at least one column wide."""
    dense = np.asarray(dataset.attributes.todense(), dtype=np.float32)
    return torch.from_numpy(dense if dense.shape[1] else np.zeros((dataset.items, 1), dtype=np.float32))


def name_user_attributes(dataset: Dataset) -> list[str]:
    """The names of all attributes of users, in alphabetical order; none where nothing is known of users."""
    return [] if dataset.user_attributes is None else dataset.user_attributes[1]


def code_users(dataset: Dataset) -> torch.Tensor | None:
    """The attributes of each user as numbers, int64 `[U + 1, M]`; None where nothing is known of users.

    M is the most that a user has. 0 is padding, and 1 stands in the place of attributes where a user has
    none. So does the last row, of users who are not in the data set.
    """
    if dataset.user_attributes is None:
        return None
    matrix = dataset.user_attributes[0]
    counts = np.append(np.diff(matrix.indptr), 0)
    codes = np.zeros((dataset.users + 1, max(1, int(counts.max()))), dtype=np.int64)
    codes[np.arange(codes.shape[1]) < counts[:, None]] = matrix.indices + 2
    codes[counts == 0, 0] = 1
    return torch.from_numpy(codes)


def build_member(logs: KnownLogs, settings: RankerSettings) -> SequenceRanker:
    """A fresh member.

    It has a head for every outcome that the logs it learns from have and whose weight is above 0.

    Raises:
        RankerError: its scores are to be of clicks, and it has no head for them.
    """
    dataset = logs.dataset
    logged = {
        column: torch.from_numpy(values[logs.rows & ~np.isnan(values)])
        for column in OUTCOMES
        if settings.head_weights[column] > 0 and (values := dataset.outcome(column)) is not None
    }
    if "click" in logged:
        logged["click"] = torch.cat([logged["click"], torch.zeros(len(logs.impressions))])
    outcomes = {column: known for column, known in logged.items() if len(known)}
    if settings.scores == "click" and "click" not in outcomes:
        raise RankerError(
            "ranker.scores is click, and the logs that the ranker learns from have no clicks, or "
            "ranker.click_weight is 0: set it to next_item, or name the column in data.source.columns.click"
        )
    member = SequenceRanker(
        dense_attributes(dataset),
        settings.hidden_size,
        settings.dropout,
        list(outcomes),
        code_users(dataset),
    )
    for column, known in outcomes.items():
        member.head(column).fit_scale(known)
    return member
