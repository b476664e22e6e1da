"""The mutants of the studies."""

from tests.mutation.mutant import Mutant

_RUN = ("services/study/test_run.py",)
_ANALYSIS = ("services/study/test_analysis.py",)
_TRUTH = ("services/study/judges/test_truth.py",)
_SETTINGS = ("services/study/test_settings.py",)

STUDY_MUTANTS = (
    *(
        Mutant("services/study/analysis.py", old, new, _ANALYSIS)
        for old, new in (
            (
                "change = (a.values[metric] - b.values[metric])[chosen]",
                "change = (b.values[metric] - a.values[metric])[chosen]",
            ),
            ('multipletests(p_values, method="holm")[1].tolist()', "list(p_values)"),
            ("self.pooled(of_set, arm, VALID)", "self.pooled(of_set, arm)"),
            ("(TRUE_CTR, WEIGHTED_HR, LOGGED[0])", "(LOGGED[0],)"),
            ("chosen = a.of_group(group)", "chosen = a.of_group(None)"),
            ("cell.examples(study.checkpoint, split)", 'cell.examples("last", split)'),
            ("second_mean=b.mean(metric, group)", "second_mean=a.mean(metric, group)"),
        )
    ),
    *(
        Mutant("services/study/run.py", old, new, _RUN)
        for old, new in (
            (
                "    except SluiceError as error:\n        return str(error)",
                "    except SluiceError:\n        return None",
            ),
            (
                "places = {LAST: directory / LAST, BEST: directory / BEST}",
                "places = {LAST: paths.policy, BEST: directory / BEST}",
            ),
            (
                "json.loads(arm_inputs(config, config.objective)) | evaluation",
                '{"seed": config.seed} | evaluation',
            ),
        )
    ),
    *(
        Mutant("services/study/arm.py", old, new, _RUN)
        for old, new in (
            (
                "self.engine.load_weights(pack_one_by_one(weights.shapes(), weights.tensors(), step))",
                "_ = weights",
            ),
        )
    ),
    Mutant(
        "services/study/judges/truth.py",
        "self._truth.steps_of(times)",
        "self._truth.steps_of(times) - 1",
        _TRUTH,
    ),
    Mutant("services/study/judges/truth.py", "results.items[:, :TOP]", "results.items", _TRUTH),
    Mutant("services/study/settings.py", "changes = (*like, ", "changes = (", _SETTINGS),
    Mutant(
        "services/study/settings.py",
        '[*changed, f"data.source.users={users}"]',
        "changed",
        _SETTINGS,
    ),
)
