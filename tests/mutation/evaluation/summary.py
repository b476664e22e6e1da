"""Mutants of the arms that are compared, and of what summary and report say of them."""

from tests.mutation.mutant import Mutant

SUMMARY, ARMS, VERDICT = "services/run/summary.py", "services/run/arms.py", "services/advise/verdict.py"

_SUMMARY = (
    ('("last", "control_last")', '("last", "control")'),
    ('f"{name}_last": paths.arm(name).last', 'f"{name}_last": paths.arm(name).best'),
    ("values[1][name] - values[0][name]", "values[0][name] - values[1][name]"),
    (
        "coverage_change(before.top_items, after.top_items",
        "coverage_change(after.top_items, before.top_items",
    ),
    ("(on_validation, of_ranker.on_validation)", '(results["start"], results["ranker"])'),
    ("except SluiceError as error:", "except KeyError as error:"),
    ('config, places[name], "test")', 'config, places[name], "valid")'),
    ('sorted(place.glob("*.safetensors"))', 'sorted(place.glob("*.safetensors"))[:1]'),
    ("{name: results[of] for name, of in decoded_as.items()}", "{name: results[name] for name in results}"),
    (
        'judge_scores(dataset, dataset.examples("test"), score, width, _BATCH)',
        'judge_scores(dataset, dataset.examples("test"), score, 50, _BATCH)',
    ),
)

_ARMS = (
    ('exclude={"type", "gate"}', 'exclude={"type", "gate", "weight"}'),
    ("random_rate=gate_rate)", "random_rate=0.5)"),
    ('if objective.gate.mode != "random":', "if True:"),
    ("stamp.is_file() and stamp.read_text() == inputs", "stamp.is_file()"),
    ('"learner": config.learner.model_dump(mode="json"),', ""),
    ('"objective": shown,', ""),
    (', exclude=None if trust else {"gate": {"trust"}}', ""),
    ("exclude=None if trust else", "exclude="),
    ('config.compare == "full" and', ""),
    ("and not has_sft_on_all_logs(dataset)", ""),
)

_VERDICT = (
    ("all(low > 0 for _, _, low, _ in compared)", "any(low > 0 for _, _, low, _ in compared)"),
    ("len(compared) == 2 and", ""),
    ("any(high < 0 for *_, high in compared)", "all(high < 0 for *_, high in compared)"),
    (
        "metrics[first][metric] - metrics[second][metric]",
        "metrics[second][metric] - metrics[first][metric]",
    ),
)

_OTHERS = (
    (
        "services/run/metrics_file.py",
        "total, last = total + last, 0.0",
        "total, last = total, last",
        ("services/run/test_arms.py",),
    ),
    (
        "services/report/report.py",
        "metrics[first][metric] - metrics[second][metric]",
        "metrics[second][metric] - metrics[first][metric]",
        ("services/report/test_report.py",),
    ),
)

_AREAS = (
    (SUMMARY, _SUMMARY, ("services/run/test_summary.py",)),
    (ARMS, _ARMS, ("services/run/test_arms.py",)),
    (VERDICT, _VERDICT, ("services/advise/test_verdict.py",)),
)

SUMMARY_MUTANTS = (
    *(Mutant(file, old, new, tests) for file, edits, tests in _AREAS for old, new in edits),
    *(Mutant(file, old, new, tests) for file, old, new, tests in _OTHERS),
)
