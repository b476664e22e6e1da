"""The reward model: a ranker that scores candidate items under a history.

`Ranker` is what the ranker service needs of any scorer. The built-in one is an ensemble of sequential encoders,

    score(history, i) = <W gru(history), v_i> + b_i,      v_i = embedding_i + attributes_i A

trained on logged interactions by `ranker_fit`, and so with their exposure bias. A second head predicts the rating of
the next interaction where the logs have ratings.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from catalog.dataset import Dataset
from catalog.errors import RankerError
from learner.settings import RankerSettings


class Ranker(Protocol):
    """Anything that scores candidates."""

    version: str

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """float32 `[B, C]` scores, higher is better, NaN at padding.

        Args:
            histories: B arrays of item rows (int32), oldest first.
            candidates: int32 `[B, C]` item rows, -1 is padding.
        """


class SequenceRanker(nn.Module):
    """One member of the ensemble."""

    def __init__(self, attributes_NA: torch.Tensor, hidden_size: int, dropout: float) -> None:
        """`attributes_NA` is the multi-hot attribute matrix of the N items; row N of the tables is padding."""
        super().__init__()
        self.items = attributes_NA.shape[0]
        padded = torch.cat([attributes_NA, attributes_NA.new_zeros(1, attributes_NA.shape[1])])
        self.register_buffer("attributes", padded, persistent=False)
        self.embedding = nn.Embedding(self.items + 1, hidden_size, padding_idx=self.items)
        self.attribute_projection = nn.Linear(attributes_NA.shape[1], hidden_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(self.items + 1))
        self.encoder = nn.GRU(hidden_size, hidden_size, batch_first=True)
        self.query = nn.Linear(hidden_size, hidden_size)
        self.rating_query = nn.Linear(hidden_size, hidden_size)
        self.rating_user = nn.Linear(hidden_size, 1)
        self.rating_item = nn.Parameter(torch.zeros(self.items + 1))
        self.input_dropout, self.output_dropout = nn.Dropout(dropout), nn.Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.attribute_projection.weight, std=0.03)

    def item_vectors(self) -> torch.Tensor:
        """`[N + 1, D]`, the padding row last."""
        return self.embedding.weight + self.attribute_projection(self.attributes)

    def encode(self, history_BT: torch.Tensor, vectors_ND: torch.Tensor) -> torch.Tensor:
        """States `[B, T, D]` after each item of right-padded histories of item rows."""
        states, _ = self.encoder(self.input_dropout(vectors_ND[history_BT]))
        return self.output_dropout(states)

    def relevance(self, states: torch.Tensor, vectors_CD: torch.Tensor, bias_C: torch.Tensor) -> torch.Tensor:
        """Scores `[..., C]` of items given by their vectors and biases."""
        return self.query(states) @ vectors_CD.T + bias_C

    def rating(self, states: torch.Tensor, items: torch.Tensor, vectors_ND: torch.Tensor) -> torch.Tensor:
        """Predicted deviation of the rating of `items` `[...]` from the training mean."""
        match = (self.rating_query(states) * vectors_ND[items]).sum(-1)
        return match + self.rating_user(states)[..., 0] + self.rating_item[items]

    @torch.no_grad()
    def last_states(self, histories: Sequence[np.ndarray], limit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """States `[B, D]` at the end of each history, and the item vectors."""
        longest = max(1, min(limit, max(len(history) for history in histories)))
        padded = torch.full((len(histories), longest), self.items)
        for row, history in enumerate(histories):
            recent = np.array(history[-limit:], dtype=np.int64)
            padded[row, : len(recent)] = torch.from_numpy(recent)
        padded = padded.to(self.bias.device)
        vectors = self.item_vectors()
        last = ((padded != self.items).sum(1) - 1).clamp(min=0)
        states = self.encode(padded, vectors)
        return states[torch.arange(len(histories), device=states.device), last], vectors

    @torch.no_grad()
    def score(self, histories: Sequence[np.ndarray], candidates_BC: torch.Tensor, limit: int) -> torch.Tensor:
        """Scores of candidates (padding as row N)."""
        states, vectors = self.last_states(histories, limit)
        query = self.query(states)
        return torch.einsum("bd,bcd->bc", query, vectors[candidates_BC]) + self.bias[candidates_BC]


class EnsembleRanker:
    """The mean score of n members."""

    def __init__(self, members: list[SequenceRanker], version: str, max_history: int) -> None:
        """`version` names the fitted weights; it travels with every score."""
        self.members = [member.eval() for member in members]
        self.version = version
        self._max_history = max_history

    def score(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """See `Ranker.score`."""
        return self.member_scores(histories, candidates).mean(axis=0)

    def member_scores(self, histories: list[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """float32 `[n, B, C]`, each member's own scores; their spread says how sure the ensemble is."""
        padding = candidates < 0
        device = self.members[0].bias.device
        rows = torch.from_numpy(np.where(padding, self.members[0].items, candidates).astype(np.int64)).to(device)
        scores = [member.score(histories, rows, self._max_history).cpu().numpy() for member in self.members]
        return np.where(padding[None], np.float32(np.nan), np.stack(scores)).astype(np.float32)

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
            "max_history": self._max_history,
        }
        (directory / "ranker.json").write_text(json.dumps(facts, indent=1))

    @classmethod
    def load(cls, directory: Path, dataset: Dataset) -> "EnsembleRanker":
        """Raises RankerError when the directory holds no ranker or one for another catalogue."""
        try:
            facts = json.loads((Path(directory) / "ranker.json").read_text())
        except (OSError, ValueError) as error:
            raise RankerError(f"{directory} holds no fitted ranker ({error}); run `sluice fit-ranker`") from None
        if facts["items"] != dataset.items:
            raise RankerError(
                f"the ranker in {directory} knows {facts['items']} items, the catalogue has {dataset.items}; "
                "run `sluice fit-ranker` again"
            )
        members = []
        for index in range(facts["members"]):
            member = SequenceRanker(dense_attributes(dataset), facts["hidden_size"], dropout=0.0)
            member.load_state_dict(load_file(Path(directory) / f"member-{index}.safetensors"))
            members.append(member)
        return cls(members, facts["version"], facts["max_history"])


def dense_attributes(dataset: Dataset) -> torch.Tensor:
    """Multi-hot `[N, A]`, at least one column wide."""
    dense = np.asarray(dataset.attributes.todense(), dtype=np.float32)
    return torch.from_numpy(dense if dense.shape[1] else np.zeros((dataset.items, 1), dtype=np.float32))


def build_member(dataset: Dataset, settings: RankerSettings) -> SequenceRanker:
    """A fresh member."""
    return SequenceRanker(dense_attributes(dataset), settings.hidden_size, settings.dropout)
