"""The mutants of A/B tests: the interval, the split and its size, off-policy estimates, the bandit."""

from tests.mutation.mutant import Mutant

_ROOM = "services/ab"
_IN = {
    name: (f"{_ROOM}/test_{name}.py",)
    for name in ("sequences", "split", "estimates", "bandit", "experiment", "serve", "logs", "command")
}

_SEQUENCES = (
    ("np.sqrt(2 * grown / (times * rho2)", "np.sqrt(grown / (times * rho2)"),
    ("np.log(np.sqrt(grown) / alpha)", "np.log(grown / alpha)"),
    ("np.log(np.sqrt(grown) / alpha)", "np.log(np.sqrt(grown))"),
    ("grown = times * rho2 + 1", "grown = times * rho2"),
    ("-lambertw(-(alpha**2) / np.e, -1).real - 1", "-lambertw(-(alpha**2) / np.e, -1).real"),
    ("-(alpha**2) / np.e", "-alpha / np.e"),
    ("norm.isf(alpha / 2)", "norm.isf(alpha)"),
    ("difference=mean1 - mean0", "difference=mean0 - mean1"),
    ("error=np.sqrt(variance1 + variance0)", "error=np.sqrt(variance1)"),
    ("np.divide(spread_xy, spread_x,", "np.divide(spread_x, spread_xy,"),
    ("- 2 * theta * arm", "- theta * arm"),
    ('arm["n"] * (arm["n"] - 1)', 'arm["n"] * arm["n"]'),
    ('arm["y"] - theta * arm["x"]', 'arm["y"]'),
    ("yy - sum_y**2 / n", "yy"),
    ("xy - sum_x * sum_y / n", "xy"),
)

_SPLIT = (
    ('f"arm/{seed}"', '"arm"'),
    ('f"order/{seed}"', 'f"arm/{seed}"'),
    (
        "(_quantiles(alpha, power) * deviation / (effect * mean)) ** 2",
        "(_quantiles(alpha, power) / effect) ** 2",
    ),
    ("norm.isf(alpha / 2) + norm.ppf(power)", "norm.isf(alpha) + norm.ppf(power)"),
    ("2 * (deviation * (margin", "(deviation * (margin"),
    (" + float(norm.ppf(power)))", ")"),
    ("np.sqrt(2 / users) * deviation / mean", "np.sqrt(2 / users) * deviation"),
)

_ESTIMATES = (
    ("self.action] / self.propensity", "self.action] * self.propensity"),
    ("effective_size(weights) if weights.any() else 0.0", "float(len(weights))"),
    ("snips - snips.mean() * weights / weights.mean()", "snips - snips.mean()"),
    ("theirs[name][0] - ours[name][0]", "ours[name][0] - theirs[name][0]"),
    ("theirs[name][1] - ours[name][1]", "theirs[name][1]"),
    ("np.bincount(rows, weights=influence)", "influence"),
    ("clusters / max(1, clusters - 1)", "1"),
    ("DR: (float(dr.mean()), dr - dr.mean())", "DR: (float(ips.mean()), dr - dr.mean())"),
)

_BANDIT = (
    ("np.sqrt(np.maximum(spread, 0) / count)", "np.sqrt(np.maximum(spread, 0))"),
    ("squares - count * mean**2", "squares"),
    (".argmax(axis=1)\n        reward", ".argmin(axis=1)\n        reward"),
    ("outcomes[orders[:, step], chosen]", "outcomes[step, chosen]"),
    ("(means.max() - means)", "(means - means.min())"),
    ("if step >= first * policies:", "if step >= policies:"),
    ("count[rows, chosen] += 1", "count[rows, 0] += 1"),
)

_EXPERIMENT = (
    ("alpha = plan.alpha / (len(names) - 1)", "alpha = plan.alpha"),
    ("values[arms, np.arange(len(arms))]", "values[0]"),
    ("adjusted if plan.cuped else plain", "adjusted"),
    ("float(shown.difference[-1]) / mean", "float(plain.difference[-1]) / mean"),
    ("BETTER if low[outside[0]] > 0", "BETTER if low[-1] > 0"),
    ("own.std(ddof=1)", "own.var(ddof=1)"),
    ("stream.random(order.shape) < 0.5", "order < order.shape[1] / 2"),
    ("replays.regret * impressions", "replays.regret"),
    ("(low > 0) | (high < 0)).any(axis=1)", "(low > 0)).any(axis=1)"),
)

_SERVED = (
    ("serve", "barred |= world.consumed", "pass"),
    ("serve", "np.append(history, slate[clicked])", "history"),
    ("serve", "LiveWorld(directory, ids.users[users], seed)", "LiveWorld(directory, users, seed)"),
    ("serve", " * examination(truth.world.click, slates.shape[1])", ""),
    ("serve", "np.where(slates == NO_ITEM, NO_ITEM, self.items[slates])", "self.items[slates]"),
    ("slates", "slates[int(generation.request_id), :", "slates[len(slates) - 1, :"),
    ("logs", "if truth.world.segment_b.leak < 1:", "if truth.world.segment_b.leak == 0:"),
    ("logs", "known = np.isin(owners, served)", "known = owners >= 0"),
    ("logs", "if days > whole_days:", "if days > whole_days + 1:"),
    ("logs", "if begins < world.truth_from:", "if begins < 0:"),
    ("serve", "if not world.consumed[row, ids.items[history]].all():", "if False:"),
    ("slates", "beams = min(self._decoding.candidates, left)", "beams = self._decoding.candidates"),
    ("logs", "START + step * STEP_SECONDS", "START + (step + 1) * STEP_SECONDS"),
    ("logs", "same.argmax(axis=1), slates.shape[1])", "same.argmax(axis=1), 0)"),
    ("logs", "(mean[visits.visit] * looked_at).mean()", "mean[visits.visit].mean()"),
    ("logs", "visit=number[self.visit[kept]]", "visit=self.visit[kept]"),
    (
        "click_model",
        "fitted, asked = fold != half, fold == half",
        "fitted, asked = fold == half, fold == half",
    ),
    ("click_model", "np.where(items >= 0, predicted, 0.0)", "predicted"),
    ("click_model", "np.log(place)", "0 * place"),
)
_TESTED = {"serve": "serve", "slates": "serve", "logs": "logs", "click_model": "logs"}

AB_MUTANTS = (
    *(Mutant(f"{_ROOM}/sequences.py", old, new, _IN["sequences"]) for old, new in _SEQUENCES),
    *(Mutant(f"{_ROOM}/split.py", old, new, _IN["split"]) for old, new in _SPLIT),
    *(Mutant(f"{_ROOM}/estimates.py", old, new, _IN["estimates"]) for old, new in _ESTIMATES),
    *(Mutant(f"{_ROOM}/bandit.py", old, new, _IN["bandit"]) for old, new in _BANDIT),
    *(Mutant(f"{_ROOM}/experiment.py", old, new, _IN["experiment"]) for old, new in _EXPERIMENT),
    *(Mutant(f"{_ROOM}/{name}.py", old, new, _IN[_TESTED[name]]) for name, old, new in _SERVED),
    Mutant(f"{_ROOM}/command.py", "- true_first", "", _IN["command"]),
    Mutant(f"{_ROOM}/command.py", "load_for(policy, dataset)", "pass", _IN["command"]),
    Mutant(f"{_ROOM}/plan.py", "users < least", "users <= least - 1000", _IN["experiment"]),
)
