"""A policy behind the rollout engine of training, asked for slates: histories in, the likeliest items out."""

from collections.abc import Callable, Sequence
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
from sluice.learner.policy.policy import load_policy
from sluice.services.config import RunConfig
from sluice.services.paths import RunPaths
from sluice.services.run.engines import engine_arguments

NO_ITEM = -1


class SlateMaker:
    """Makes slates by one policy, with the tree engine and beams that are held to the catalogue."""

    def __init__(self, config: RunConfig, policy: Path, dataset: Dataset, slots: int) -> None:
        """The policy in the directory `policy`; a slate has `slots` items.

        Raises:
            PolicyError: there is no policy, or it is of another catalogue.
        """
        layout = load_policy(policy, fingerprint_catalogue(dataset.item_ids, dataset.codes)).layout
        self._vocabulary = Vocabulary.of(dataset.codes, layout)
        self._history, self._slots = dataset.settings.max_history, slots
        beams = max(slots, config.evaluation.beam_width)
        arguments = engine_arguments(config, RunPaths.of(config), self._vocabulary, config.seed)
        arguments["policy_dir"] = policy
        arguments["decoding"] = Decoding(kind="beam", candidates=beams, constrained=True)
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

        Args:
            histories: [n] item rows, oldest first, at least one.
            excluded: [n] item rows that may not be shown.
            done: told how many prompts each step did.

        Raises:
            DataError: so much is excluded that fewer items are left than beams.
        """
        slates = np.full((len(histories), self._slots), NO_ITEM, dtype=np.int32)
        order = np.argsort([-len(history) for history in histories], kind="stable")  # like lengths together
        self._engine.submit([self._request(row, histories[row], excluded[row]) for row in order.tolist()])
        while self._engine.in_flight:
            generations = self._engine.step()
            for generation in generations:
                items = self._vocabulary.trie.lookup(generation.tokens)
                items[~np.isfinite(generation.log_probs.sum(axis=1))] = NO_ITEM
                slates[int(generation.request_id)] = items[: self._slots]
            done(len(generations))
        return slates

    def _request(self, row: int, history: np.ndarray, excluded: np.ndarray) -> GenerateRequest:
        prompt = self._vocabulary.layout.prompt(self._vocabulary.item_tokens, history[-self._history :])
        return GenerateRequest(request_id=str(row), prompt=prompt, excluded=excluded.astype(np.int32))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.close()
