"""A policy behind the rollout engine of training, asked for slates: histories in, the likeliest items out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from sluice.actors.engines.engine import GenerateRequest
from sluice.actors.engines.tree import TreeEngine
from sluice.actors.settings import TreeEngineSettings
from sluice.catalog.data.dataset import Dataset
from sluice.catalog.decoding import Decoding
from sluice.catalog.fingerprint import fingerprint_catalogue
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.policy.policy import Policy, load_policy
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_arguments

NO_ITEM = -1


def load_for(policy: Path, dataset: Dataset) -> Policy:
    """The policy in a directory, which must be of the data set's catalogue.

    Raises:
        PolicyError: there is none, or it is of another catalogue.
    """
    return load_policy(policy, fingerprint_catalogue(dataset.item_ids, dataset.codes))


class SlateMaker:
    """Makes slates by one policy, with the tree engine and beams that are held to the catalogue."""

    def __init__(self, config: RunConfig, policy: Path, dataset: Dataset, slots: int) -> None:
        """The policy in the directory `policy`; a slate has `slots` items.

        Raises:
            PolicyError: there is no policy, or it is of another catalogue.
        """
        self._vocabulary = Vocabulary.of(dataset.codes, load_for(policy, dataset).layout)
        self._history, self._slots = dataset.settings.max_history, slots
        beams = max(slots, config.evaluation.beam_width)
        arguments = engine_arguments(config, RunPaths.of(config), self._vocabulary, config.seed)
        arguments["policy_dir"] = policy
        self._decoding = Decoding(kind="beam", candidates=beams, constrained=True)
        arguments["decoding"] = self._decoding
        given = config.rollout.engine
        settings = given if isinstance(given, TreeEngineSettings) else TreeEngineSettings()
        self._engine = TreeEngine(**arguments, engine=settings)

    def make(
        self,
        histories: Sequence[np.ndarray],
        excluded: Sequence[np.ndarray],
        done: Callable[[int], None] = lambda _count: None,
    ) -> np.ndarray:
        """Slates of item rows, int32 [n, S], best first; NO_ITEM where there are no more.

        Where fewer items are left than beams, there are as many beams as items.

        Args:
            histories: [n] item rows, oldest first, at least one.
            excluded: [n] item rows that may not be shown.
            done: told how many prompts each step did.
        """
        slates = np.full((len(histories), self._slots), NO_ITEM, dtype=np.int32)
        order = np.argsort([-len(history) for history in histories], kind="stable")  # like lengths together
        by_beams: defaultdict[int, list[GenerateRequest]] = defaultdict(list)
        for row in order.tolist():
            left = self._vocabulary.trie.items_without(excluded[row])
            beams = min(self._decoding.candidates, left)
            by_beams[beams].append(self._request(row, histories[row], excluded[row]))
        done(len(by_beams.pop(0, [])))  # nothing is left to show
        for beams, requests in by_beams.items():
            self._engine.submit(requests, replace(self._decoding, candidates=beams))
        while self._engine.in_flight:
            generations = self._engine.step()
            for generation in generations:
                items = self._vocabulary.trie.lookup(generation.tokens)
                items[~np.isfinite(generation.log_probs.sum(axis=1))] = NO_ITEM
                items = items[: self._slots]
                slates[int(generation.request_id), : len(items)] = items
            done(len(generations))
        return slates

    def _request(self, row: int, history: np.ndarray, excluded: np.ndarray) -> GenerateRequest:
        prompt = self._vocabulary.layout.prompt(self._vocabulary.item_tokens, history[-self._history :])
        return GenerateRequest(request_id=str(row), prompt=prompt, excluded=excluded.astype(np.int32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
