"""What a rollout actor does, one move at a time: leases in, candidates out of the engine, scores from the
ranker, groups into the queue, new weights between engine steps.

`advance` makes every move that is possible now and never waits for another actor: leases, scores and pushes
are calls under way that it looks at in passing, so the engine steps whenever it has a request. It looks at
them after an engine step and makes new ones after that, so nearly all have been answered by then: asking Ray
about one that has not takes longer. Several lease batches are kept in the engine (`leases_ahead`) and one
more before it, so it does not drain while the next one is being asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sluice.actors.calls import Call
from sluice.actors.engines.engine import Engine, GenerateRequest, Generation
from sluice.actors.queue.leases import Lease, Push, PushReply
from sluice.actors.rollout.groups import Prompt, UnscoredGroups, assemble_groups, read_prompt, score_groups
from sluice.actors.rollout.protocols import Catalogues, Queue, Scorer, Weights
from sluice.actors.settings import RolloutSettings
from sluice.catalog.errors import RankerError, RankerSilentError
from sluice.catalog.gaps import NO_GAPS, Gaps
from sluice.catalog.rollout_group import encode_groups
from sluice.catalog.trie.vocabulary import Vocabulary
from sluice.learner.activity_clock import WAIT, ActivityClock
from sluice.learner.policy.packed_weights import UnverifiedWeights

_WEIGHTS_S = 1.0  # for one look at the board
_PATIENCE_S = 10.0  # with weights that should be there at once


@dataclass(frozen=True, kw_only=True)
class RolloutStats:
    """What a rollout worker has done so far."""

    batches: int = 0  # lease batches scored
    groups: int = 0  # accepted by the queue, as far as its answers have come back
    # given up: the ranker failed, the group was larger than the whole queue may be, or too few items were
    # left to choose from
    invalid: int = 0
    late: int = 0  # finished after the lease had moved on
    swaps: int = 0
    score_s: float = 0.0  # ranker requests to answers, while generating went on
    # Since the worker began, by activity: generate (engine steps), load_weights and load_catalogue (engine
    # pauses), serve (everything else that the worker does), and with an idle engine wait_prompts,
    # wait_ranker, wait_room, and for weights of a fixed order wait_weights.
    time: dict[str, float] = field(default_factory=dict)
    version: int = 0
    catalogue_version: int = 0
    in_flight: int = 0  # requests in the engine


@dataclass(kw_only=True)
class _Batch:
    prompts: list[Prompt]
    submitted_s: float
    generations: dict[str, Generation] = field(default_factory=dict)
    finished_s: dict[str, float] = field(default_factory=dict)


@dataclass(kw_only=True)
class _Scoring:
    unscored: UnscoredGroups
    call: Call[Any]


class RolloutWorker:
    """One engine at work. Belongs to one thread, the engine's."""

    def __init__(
        self,
        *,
        engine: Engine,
        queue: Queue,
        ranker: Scorer,
        weights: Weights,
        dataset: Any,
        vocabulary: Vocabulary,
        settings: RolloutSettings,
        seed: int,
        clock: Callable[[], float],
        catalogues: Catalogues | None = None,
        gaps: Gaps = NO_GAPS,
        fixed: bool = False,
    ) -> None:
        """`seed` decides the distractors, together with each lease's id. Without `catalogues` nothing ever
        changes.

        `fixed`: a batch of leases is served by itself, by the weights that they name, so that its groups are
        the same to the bit whoever serves it and when.
        """
        self._fixed = fixed
        self._held: tuple[Lease, ...] = ()  # until the engine has finished the batch before
        self._held_s = 0.0  # since when
        self._engine, self._queue, self._ranker, self._weights = engine, queue, ranker, weights
        self._dataset, self._vocabulary, self._settings, self._seed = dataset, vocabulary, settings, seed
        # of the interactions, which one draw of distractors asks for
        self._shares = dataset.item_shares("fresh") if settings.distractor_draw == "popularity" else None
        self._decoding = settings.decode.decoding(exclude_seen=dataset.settings.exclude_seen)
        self._clock, self._catalogues, self._gaps = clock, catalogues, gaps
        self._leasing: Call[tuple[Lease, ...]] | None = None
        self._generating: list[_Batch] = []
        self._generated: list[_Batch] = []  # until the end of the turn
        self._batch_of: dict[str, _Batch] = {}
        self._scoring: list[_Scoring] = []
        self._pushing: list[tuple[Sequence[Push], Call[PushReply]]] = []
        self._rejecting: list[Call[int]] = []
        self._count = dict.fromkeys(("batches", "groups", "invalid", "late", "swaps"), 0)
        self._score_s = 0.0
        self._time = ActivityClock("serve", clock)

    def advance(self) -> bool:
        """Make every move that is possible; False when there was none, so that the caller may wait.

        Raises:
            RunError: the queue or a board is gone, or the engine broke its contract.
        """
        moves = (
            self._swap,
            self._swap_catalogue,
            self._generate,
            self._collect_pushes,
            self._collect_scores,
            self._score,
            self._submit_held,
            self._lease,
        )
        return any([move() for move in moves])

    def load_weights(self, newer: UnverifiedWeights) -> None:
        """Give the engine new weights now.

        Raises:
            PolicyError: they are not the policy's, or arrived damaged: in either case the engine is to be
                discarded.
        """
        with self._time.activity("load_weights"), newer.verifying() as weights:
            self._engine.load_weights(weights)
        self._count["swaps"] += 1

    def load_catalogue(self, vocabulary: Vocabulary) -> None:
        """Let prompts leased from now on choose from a later version of the catalogue.

        Raises:
            DataError: it is no later version of the catalogue in use.
        """
        with self._time.activity("load_catalogue"):
            self._vocabulary = vocabulary.after(self._vocabulary)
            self._engine.load_catalogue(self._vocabulary)

    @contextmanager
    def waiting(self) -> Iterator[list[Any]]:
        """Around the caller's wait for a next move; gives the references whose arrival makes one possible."""
        reason = (
            "prompts"
            if self._leasing
            else "ranker"
            if self._scoring
            else "room"
            if self._pushing
            else "prompts"
        )
        with self._time.activity(WAIT + reason):
            yield self._waiting_on()

    def stats(self) -> RolloutStats:
        """Counts so far."""
        return RolloutStats(
            **self._count,
            score_s=self._score_s,
            time=self._time.seconds(),
            version=self._engine.version,
            catalogue_version=self._engine.catalogue_version,
            in_flight=self._engine.in_flight,
        )

    def _waiting_on(self) -> list[Any]:
        calls = (
            [scoring.call for scoring in self._scoring]
            + [call for _, call in self._pushing]
            + self._rejecting
        )
        return [call.reference for call in calls + ([self._leasing] if self._leasing else [])]

    def _swap(self) -> bool:
        if self._fixed:
            return False
        newer = self._weights.poll(self._engine.version)
        if newer is None:
            return False
        self.load_weights(newer)
        return True

    def _swap_catalogue(self) -> bool:
        vocabulary = self._catalogues.poll(self._vocabulary.version) if self._catalogues else None
        if vocabulary is None:
            return False
        self.load_catalogue(vocabulary)
        return True

    def _lease(self) -> bool:
        if self._leasing is None:
            # Batches behind the engine are bounded too: a slow ranker must slow the generation down, not pile
            # groups up.
            behind = len(self._scoring) + len(self._pushing)
            # One batch more than the engine takes at once: its prompts move up one by one as others end, and
            # no step is made half empty while a lease is on its way.
            ahead = len(self._generating) <= self._settings.leases_ahead and not self._held
            if ahead and behind <= self._settings.leases_ahead:
                self._leasing = self._queue.lease(self._settings.prompts_per_lease)
                return True
            return False
        if not self._leasing.ready():
            return False
        leases, self._leasing = self._leasing.result(), None
        if leases and self._fixed:
            self._held, self._held_s = leases, self._clock()
        elif leases:
            self._submit(leases)
        return True

    def _submit_held(self) -> bool:
        """Begin the next batch of a fixed order, once the engine is empty and has the weights for it."""
        if not self._held or self._engine.in_flight:
            return False
        version = self._held[0].version
        assert version is not None, "leases of a fixed order name their weights"
        if version != self._engine.version:
            with self._time.activity(WAIT + "weights"):
                weights = self._weights.at(version, _WEIGHTS_S)
            if weights is None:
                self._wait_longer(version)
                return True  # there was a wait already
            self.load_weights(weights)
        self._engine.forget()
        leases, self._held = self._held, ()
        self._submit(leases)
        return True

    def _wait_longer(self, version: int) -> None:
        """The learner is on its way to these weights, or it has gone back to a checkpoint: then the leases
        are nobody's any more, and the queue has others.
        """
        if self._clock() - self._held_s > _PATIENCE_S:
            self._held = ()
            self._rejecting.append(
                self._queue.release(f"weights {version} were not there within {_PATIENCE_S:g} s")
            )

    def _submit(self, leases: Sequence[Lease]) -> None:
        prompts = self._with_enough_items([read_prompt(lease, self._dataset, self._gaps) for lease in leases])
        if not prompts:
            return
        batch = _Batch(prompts=prompts, submitted_s=self._clock())
        requests = []
        for prompt in batch.prompts:
            tokens = self._vocabulary.layout.prompt(self._vocabulary.item_tokens, prompt.history)
            requests.append(
                GenerateRequest(
                    request_id=self._request_id(prompt.lease), prompt=tokens, excluded=prompt.excluded
                )
            )
            self._batch_of[self._request_id(prompt.lease)] = batch
        self._generating.append(batch)
        self._engine.submit(requests)

    def _with_enough_items(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts that leave K distinct candidates to choose from; the others are given up as
        invalid.
        """
        if not self._decoding.constrained:
            return prompts
        trie, needed = self._vocabulary.trie, self._decoding.distinct
        left = {prompt.lease.lease_id: trie.items_without(prompt.excluded) for prompt in prompts}
        short = [prompt.lease for prompt in prompts if left[prompt.lease.lease_id] < needed]
        if short:
            reason = (
                f"{left[short[0].lease_id]} of {trie.items} items are left for user {short[0].user}, and "
                f"{needed} distinct candidates are wanted: lower rollout.decode.candidates, or set "
                "rollout.decode.kind to sample"
            )
            self._rejecting.append(self._queue.reject(short, reason))
            self._count["invalid"] += len(short)
        return [prompt for prompt in prompts if left[prompt.lease.lease_id] >= needed]

    def _generate(self) -> bool:
        if not self._engine.in_flight:
            return False
        with self._time.activity("generate"):
            generations = self._engine.step()
        now_s = self._clock()
        for generation in generations:
            batch = self._batch_of.pop(generation.request_id)
            batch.generations[generation.request_id] = generation
            batch.finished_s[generation.request_id] = now_s
            if len(batch.generations) == len(batch.prompts):
                self._generating.remove(batch)
                self._generated.append(batch)
        return True

    def _score(self) -> bool:
        batches, self._generated = self._generated, []
        for batch in batches:
            self._submit_to_ranker(batch)
        return bool(batches)

    def _submit_to_ranker(self, batch: _Batch) -> None:
        ids = [self._request_id(prompt.lease) for prompt in batch.prompts]
        unscored = assemble_groups(
            batch.prompts,
            [batch.generations[request_id] for request_id in ids],
            [batch.finished_s[request_id] - batch.submitted_s for request_id in ids],
            vocabulary=self._vocabulary,
            distractors=self._settings.distractors,
            seed=self._seed,
            draw=self._settings.distractor_draw,
            shares=self._shares,
        )
        call = self._ranker.submit(unscored.histories, unscored.items_to_score, unscored.examples)
        self._scoring.append(_Scoring(unscored=unscored, call=call))

    def _collect_scores(self) -> bool:
        ready = [scoring for scoring in self._scoring if scoring.call.ready()]
        for scoring in ready:
            self._scoring.remove(scoring)
            leases = [prompt.lease for prompt in scoring.unscored.prompts]
            try:
                answer = scoring.call.result()
            except RankerSilentError as error:  # another time it may answer
                self._rejecting.append(self._queue.reject(leases, str(error), again=True))
                continue
            except RankerError as error:
                self._rejecting.append(self._queue.reject(leases, str(error)))
                self._count["invalid"] += len(leases)
                continue
            self._count["batches"] += 1
            self._score_s += answer.latency_s
            groups = score_groups(
                scoring.unscored, answer.output, ranker_version=answer.version, score_s=answer.latency_s
            )
            wrong = answer.output.wrong
            for lease, reason in ((leases[row], wrong[row]) for row in wrong if not leases[row].companion):
                why = f"user {lease.user} at position {lease.position}: {reason}"
                self._rejecting.append(self._queue.reject([lease], why))
                self._count["invalid"] += 1
            made = [
                (lease, group)
                for row, (lease, group) in enumerate(zip(leases, groups, strict=True))
                if not lease.companion and row not in wrong
            ]
            if not made:
                continue
            pushes = self._queue.put(
                [lease for lease, _ in made],
                encode_groups(*(group for _, group in made)),
                [(group.version_min, group.version_max) for _, group in made],
                answer.version,
            )
            self._pushing.append((pushes, self._queue.push(pushes)))
        return bool(ready)

    def _collect_pushes(self) -> bool:
        settled = [entry for entry in self._pushing if entry[1].ready()]
        for entry in settled:
            self._pushing.remove(entry)
            pushes, call = entry
            reply = call.result()
            self._count["groups"] += len(reply.accepted)
            self._count["late"] += len(reply.late)
            self._count["invalid"] += len(reply.oversized)
            full = [push for push in pushes if push.lease_id in reply.full]
            if full:  # the call has already waited for room, so asking again at once is no busy loop
                self._pushing.append((full, self._queue.push(full)))
        rejected = [rejection for rejection in self._rejecting if rejection.ready()]
        for rejection in rejected:
            self._rejecting.remove(rejection)
            rejection.result()
        return bool(settled or rejected)

    def _request_id(self, lease: Lease) -> str:
        """Decides the random numbers. Two attempts may meet in an engine, but not those of a fixed order."""
        return str(lease.lease_id) if self._fixed else f"{lease.lease_id}-{lease.attempt}"
