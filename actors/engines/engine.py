"""What a rollout engine is: requests in, groups of K candidates out, new weights between steps.

The rollout worker knows nothing of an engine but `Engine`. One engine belongs to one thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.packed_weights import PackedWeights


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """One prompt to draw K candidates for."""

    request_id: str
    prompt: np.ndarray  # [T] int64 token ids, BOS first
    # [E] int32 item rows that constrained decoding must not produce; free decoding ignores them
    excluded: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The K candidates of one request."""

    request_id: str
    tokens: np.ndarray  # [K, L] int64 token ids
    log_probs: np.ndarray  # [K, L] float32 nats, of the distribution drawn from (temperature, trie mask)
    version_min: int  # oldest weights that produced a token of it
    version_max: int  # newest
    catalogue_version: int = (
        0  # of the catalogue that constrained decoding chose from and that names the items
    )
    # [K] float32 nats, log of each candidate's chance of being in the group (stochastic beams); None for
    # samples, which are independent, and for exact beams, which are not drawn.
    inclusion_log_probs: np.ndarray | None = None


class Engine(Protocol):
    """A generation engine with its own queue of running requests."""

    @property
    def version(self) -> int:
        """Version of the weights that the next step uses."""

    @property
    def catalogue_version(self) -> int:
        """Version of the catalogue that the next request uses."""

    @property
    def in_flight(self) -> int:
        """Requests submitted and not yet returned by `step`."""

    def submit(self, requests: Sequence[GenerateRequest]) -> None:
        """Queue requests; returns at once."""

    def step(self) -> list[Generation]:
        """Advance the running requests by one engine step; returns the groups that it finished."""

    def load_weights(self, weights: PackedWeights) -> float:
        """Swap in new weights between two steps, keeping every running request; returns the pause in
        seconds.
        """

    def forget(self) -> None:
        """Drop what is remembered of earlier prompts, so that the next ones are computed from nothing."""

    def load_catalogue(self, vocabulary: Vocabulary) -> float:
        """Let requests submitted from now on choose from a later version of the catalogue; returns the pause
        in s.

        Requests under way finish with the version that they were submitted under.
        """

    def close(self) -> None:
        """Free the engine."""
