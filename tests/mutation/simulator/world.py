"""Mutants of the simulated world: what is shown, clicked and logged, its propensities, files and truth."""

from tests.mutation.mutant import Mutant

_ROOM = "catalog/simulator"
_IN = {
    name: (f"{_ROOM}/test_{name}.py",)
    for name in ("settings", "items", "slates", "sessions", "truth", "live")
}
_IN_STAGE = ("services/stages/test_simulate.py",)

_SETTINGS = (
    ("if self.items.count < most:", "if self.items.count <= most:"),
    ("if self.truth_from >= self.steps:", "if self.truth_from > self.steps:"),
    ("self.items.categories > self.items.count", "self.items.categories >= self.items.count"),
    ('exclude={"name", "output", "chunk_users"}', 'exclude={"name", "output"}'),
    ('exclude={"name", "output", "chunk_users"}', 'exclude={"name", "output", "chunk_users", "seed"}'),
)

_ITEMS = (
    ("if degrees == 0:  # to the bit", "if False:"),
    ("cosine * vectors + sine * vectors[dealt]", "sine * vectors + cosine * vectors[dealt]"),
    ("cosine * quality + sine * quality[dealt]", "quality"),
    ("(step <= self.last_step)", "(step < self.last_step)"),
    ("np.where(late, comes, 0)", "np.where(late, 0, comes)"),
    ("first + np.floor(life)", "np.floor(life)"),
    ("length / np.sqrt(dims)", "length"),
    ("if alive < world.logger.slate:", "if alive < 1:"),
    ("np.where(odd, stream", "np.where(~odd, stream"),
)

_SLATES = (
    ('side="right")', 'side="right") + 1'),
    ("np.where(available, weights, np.float32(0))", "weights"),
    ("np.subtract.at(self._weight_left, rows", "np.subtract.at(0 * self._weight_left, rows"),
    ("np.subtract.at(self._items_left, rows, 1)", "pass"),
    ("self._available[rows, items] = False", "pass"),
    ("(1 - exploration) * share + exploration * uniform", "share"),
    ("(1 - exploration) * share + exploration * uniform", "(1 - exploration) * share"),
    (
        "(1 - exploration) * share + exploration * uniform",
        "exploration * share + (1 - exploration) * uniform",
    ),
    ("allowed & ~(same & earlier)", "allowed & ~(same & ~earlier)"),
    ("good = allowed & ~", "good = ~"),
    ("np.arange(pool.shape[1]) < np.arange", "np.arange(pool.shape[1]) <= np.arange"),
    ("slates[explored] = EMPTY", "pass"),
    ("keys = log_weights(rows[row]) + self", "keys = 0 * log_weights(rows[row]) + self"),
    ("keys[slates[row][slates[row] != EMPTY]] = -np.inf", "pass"),
    ("& (slates != EMPTY)\n        slates[explored]", "\n        slates[explored]"),
)

_SESSIONS = (
    ("(segment == 0) | leaked", "(segment == 1) | leaked"),
    ("(segment == 0) | leaked", "leaked"),
    ("shown & (clicked | (segment == 0) | leaked)", "clicked | (segment == 0) | leaked"),
    ("np.flatnonzero(users.first_step <= step)", "np.flatnonzero(users.first_step <= self._world.steps)"),
    ("known = self._users.first_step <= step", "known = self._users.first_step >= 0"),
    ("or not np.array_equal(lives, alive)", ""),
    ("alive & ~self._consumed", "np.tile(alive, (len(self._consumed), 1))"),
    (
        "stream.integers(STEP_SECONDS - world.logger.slate",
        "stream.integers(2 * STEP_SECONDS - world.logger.slate",
    ),
    (
        "self._stream = random_stream(world.seed, USER_STREAM, number)",
        "self._stream = random_stream(world.seed)",
    ),
    ("logger.take_out(rows[row], items[row, slot])", "pass"),
)

_CLICKED = (
    ("clicks", " * examination(click, logits.shape[1])", ""),
    ("clicks", "np.float32(click.offset) + ", ""),
    ("sessions", "slate_logits(world.click, moods,", "slate_logits(world.click, users.taste[rows],"),
    ("truth", "kept, segment = steps - self.world.truth_from,", "kept, segment = steps,"),
    (
        "truth",
        "np.where(chosen >= 0, to_probability(logits)",
        "np.where(chosen >= -1, to_probability(logits)",
    ),
    ("truth", "(values < low) | (values > high)", "values > high"),
    ("truth", "- START) // STEP_SECONDS", "- START + STEP_SECONDS // 2) // STEP_SECONDS"),
    ("clicks", "rows = segment == number", "rows = segment <= number"),
    ("clicks", "click.dwell_slope * logits", "click.dwell_slope * 0 * logits"),
)

_USERS = (
    ("memory * state.session[rows[some]] + (1 - memory) * mean", "mean"),
    ("state.taste = to_unit(moved)", "state.taste = moved"),
    ("jumps = stream.random(count) < dials.jump_chance", "jumps = stream.random(count) > dials.jump_chance"),
    ("np.float32(dials.jump_keep) * state.taste[jumps]", "state.taste[jumps]"),
    ("stream.random(count) < world.segment_b.share", "stream.random(count) < 0"),
)

_LIVE = (
    ("        self._follow(items, clicked)\n", ""),
    ("        move_tastes(world.users, self._state, self._centres, stream)\n", ""),
    ("self._seed, self._day)", "self._seed)"),
    ("self.consumed[row, items[row, slot]] = True", "pass"),
    (
        "np.where(clicked, draw_dwell(world.click, logits, stream), 0)",
        "draw_dwell(world.click, logits, stream)",
    ),
    ("np.where(shown, to_probability(logits), 0)", "to_probability(logits)"),
    ("(steps == last)", "(steps <= last)"),
)

_FILES = (
    ("parts", "            if before is not None:\n                continue\n", ""),
    ("parts", "tally += block_tally", "tally = block_tally"),
    ("parts", "_check_same(json", "print(json"),
    ("parts", "range(chunk * per_chunk,", "range(chunk,"),
    ("tables", "log.timestamps[users, steps] + slots", "log.timestamps[users, steps]"),
    ("tables", "(slots + 1).astype(np.int8)", "slots.astype(np.int8)"),
    ("tables", "mask=~clicked", "mask=clicked"),
    ("tables", "log.explored[logged].astype", "(~log.explored[logged]).astype"),
    ("tables", "logged = log.logged\n", "logged = log.items >= 0\n"),
)

_STAGE = (
    ('manifest.get("fingerprint") == world.fingerprint', "manifest"),
    ("    with hold_run(aside):", "    aside.mkdir(exist_ok=True)\n    (aside / LOCK).touch()\n    if True:"),
    ("(aside / LOCK).unlink()", "pass"),
)

SIMULATOR_MUTANTS = (
    *(Mutant(f"{_ROOM}/settings.py", old, new, _IN["settings"]) for old, new in _SETTINGS),
    *(Mutant(f"{_ROOM}/items.py", old, new, _IN["items"]) for old, new in _ITEMS),
    *(Mutant(f"{_ROOM}/slates.py", old, new, _IN["slates"]) for old, new in _SLATES),
    *(Mutant(f"{_ROOM}/sessions.py", old, new, _IN["sessions"]) for old, new in _SESSIONS),
    *(Mutant(f"{_ROOM}/{name}.py", old, new, _IN["truth"]) for name, old, new in _CLICKED),
    *(Mutant(f"{_ROOM}/users.py", old, new, _IN["sessions"]) for old, new in _USERS),
    *(Mutant(f"{_ROOM}/live.py", old, new, _IN["live"]) for old, new in _LIVE),
    *(Mutant(f"{_ROOM}/{name}.py", old, new, _IN_STAGE) for name, old, new in _FILES),
    *(Mutant("services/stages/simulate.py", old, new, _IN_STAGE) for old, new in _STAGE),
)
