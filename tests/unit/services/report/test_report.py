"""The report: numbers and verdicts on the page, missing parts, one self-contained file."""

import json
import math
import random
import re
from pathlib import Path

import pytest

from sluice.catalog.errors import RunError
from sluice.services.report import ranker_view, report
from sluice.services.report.charts import running_mean

SUMMARY = {
    "objective": "adagrpo",
    "dataset": "ml100k",
    "seed": 0,
    "decode": {
        "kind": "stochastic_beam",
        "candidates": 16,
        "temperature": 0.7,
        "top_p": 1.0,
        "constrained": True,
    },
    "metrics": {
        "start": {
            "hr@1": 0.031,
            "hr@5": 0.12,
            "hr@10": 0.2078,
            "hr@50": 0.5012,
            "coverage": 0.41,
            "head_share": 0.62,
            "entropy": 5.1,
            "duplicates": 0.0,
            "examples": 943.0,
            "users": 943.0,
            "ndcg@10": 0.1051,
            "mrr": 0.075,
            "hallucination": 0.0412,
        },
        "control": {
            "hr@1": 0.032,
            "hr@5": 0.123,
            "hr@10": 0.2121,
            "ndcg@10": 0.1077,
            "mrr": 0.0766,
            "hallucination": 0.031,
        },
        "best": {
            "hr@1": 0.036,
            "hr@5": 0.131,
            "hr@10": 0.2248,
            "hr@50": 0.4987,
            "coverage": 0.325,
            "head_share": 0.7125,
            "entropy": 4.8125,
            "duplicates": 0.0,
            "ndcg@10": 0.1146,
            "mrr": 0.0811,
            "hallucination": 0.0087,
        },
        "last": {
            "hr@1": 0.034,
            "hr@5": 0.129,
            "hr@10": 0.2195,
            "ndcg@10": 0.1123,
            "mrr": 0.0799,
            "hallucination": 0.0071,
        },
        "popularity": {"hr@10": 0.0859, "ndcg@10": 0.0449, "mrr": 0.033, "hallucination": 0.0},
        "itemknn": {"hr@10": 0.1898, "ndcg@10": 0.1072, "mrr": 0.081, "hallucination": 0.0},
    },
    "intervals": {
        "hr@10": {
            "start": [0.1824, 0.2333],
            "best": [0.1983, 0.2513],
            "best-control": [0.0021, 0.0233],
            "best-start": [-0.0011, 0.0351],
            "last-start": [-0.05, -0.001],
        }
    },
    "breadth": {
        "changes": {
            "hr@1": [0.005, 0.001, 0.009],
            "hr@50": [-0.0025, -0.01, 0.005],
            "coverage": [-0.085, -0.1, -0.07],
        },
        "narrower": True,
    },
    "cost_s": {"start": 182.0, "best": 340.0, "control": 75.0},
    "stratified": [
        {
            "policy_rank": policy,
            "ranker_rank": ranker,
            "users": users // 2,
            "examples": users,
            "best-control_interval": [0.01, 0.05] if users == 300 else None,
            "admitted": admitted,
            "start_hr@10": start,
            "control_hr@10": control,
            "best_hr@10": best,
            "control_rank_gain": control_gain,
            "best_rank_gain": best_gain,
        }
        for policy, ranker, users, admitted, start, control, best, control_gain, best_gain in (
            ("1-10", "1-10", 120, 0.45, 1.0, 0.98, 0.95, -0.05, -0.25),
            ("11-20", "1-10", 60, 0.9, 0.0, 0.1, 0.2, 0.25, 0.5),
            ("11-20", ">50", 300, 0.0, 0.0, 0.0, 0.03, 0.125, -0.0625),
            ("not in 20", ">50", 463, 0.0, 0.0, 0.0, 0.01, 0.01, 0.02),
        )
    ],
    "ranker": {
        "auc": 0.9312,
        "ndcg@10": 0.1288,
        "hr@10": 0.2344,
        "by_exposure": [
            {"decile": 1, "exposure": 3.25, "examples": 12, "auc": 0.6125, "hr@10": 0.0833},
            {"decile": 10, "exposure": 1412.5, "examples": 931, "auc": 0.9413, "hr@10": 0.2412},
        ],
        "relevance": {
            "ece": 0.0123,
            "events": 9430,
            "curve": {
                "predicted": [0.004, 0.02, 0.08],
                "observed": [0.005, 0.018, 0.06],
                "events": [4000, 4000, 1430],
            },
        },
        "heads": {
            "rating": {
                "rmse": {"ranker": 1.0586, "user_mean": 1.1215, "item_mean": 1.0641},
                "ece": 0.0917,
                "events": 943,
                "curve": {
                    "predicted": [2.8, 3.5, 4.2],
                    "observed": [2.9, 3.4, 4.1],
                    "events": [300, 320, 323],
                },
            },
            "click": {
                "rmse": {"ranker": 0.41, "user_mean": 0.44, "item_mean": 0.43},
                "ece": 0.031,
                "events": 943,
                "curve": {"predicted": [0.1, 0.4], "observed": [0.12, 0.37], "events": [500, 443]},
            },
        },
    },
    "accounting": {"issued": 6480, "trained": 6400, "stale": 32, "invalid": 8, "in_flight": 40},
    "gate": {"rate": 0.21, "difficulty": 0.83, "discriminability": 0.26},
    "throughput": {"groups_per_s": 18.4, "learner_steps": 200, "weight_versions": 50},
    "time": {
        "learner-0": {"other": 9.0, "update": 300.0, "publish": 4.0, "wait_batch": 35.2},
        "ranker-0": {"score": 80.0, "wait_company": 60.0, "wait_requests": 200.0},
        "rollout-0": {"generate": 290.0, "load_weights": 6.0, "serve": 22.0, "wait_prompts": 20.0},
    },
    "wall_s": {
        "prepare": 4.2,
        "pretrain": 182.0,
        "fit-ranker": 61.3,
        "control": 75.1,
        "engines": 31.0,
        "train": 348.2,
        "judge": 44.0,
    },
}


def make_run(directory: Path) -> Path:
    """A run directory as a finished run leaves it, with made-up numbers."""
    noise = random.Random(0)
    directory.mkdir(parents=True)
    for name, control in (("metrics.jsonl", False), ("metrics-control.jsonl", True)):
        rows = []
        for step in range(201):
            grown = 1 - math.exp(-step / 70)
            if step % 25 == 0:
                hr = 0.205 + (0.006 if control else 0.019) * grown + noise.gauss(0, 0.0012)
                hallucination = 0.041 - (0.009 if control else 0.033) * grown
                rows.append(
                    {
                        "kind": "eval",
                        "step": step,
                        "split": "valid",
                        "hr@10": hr,
                        "hr@1": hr / 6,
                        "hr@50": 2 * hr,
                        "coverage": 0.4 - 0.1 * grown,
                        "hallucination": hallucination,
                    }
                )
            if step:
                row = {"kind": "step", "step": step, "nll": 5.9 - 0.2 * grown + noise.gauss(0, 0.08)}
                if not control:
                    row |= {
                        "grpo": noise.gauss(-0.02, 0.02),
                        "kl": 0.03 * grown + abs(noise.gauss(0, 0.002)),
                        "gate_rate": min(1, max(0, noise.gauss(0.21, 0.06))),
                        "difficulty": min(1, noise.gauss(0.83, 0.05)),
                        "discriminability": noise.gauss(0.26, 0.06),
                        "staleness": noise.choice([0, 1, 1, 2]),
                        "ratio_mean": noise.gauss(1, 0.01),
                        "clip_share": abs(noise.gauss(0.03, 0.01)),
                        "reward_admitted": noise.gauss(0.6 + 0.3 * grown, 0.1),
                        "reward_refused": noise.gauss(0.2, 0.1),
                        "hit_share": abs(noise.gauss(0.05, 0.01)),
                        "invalid_share": max(0, 0.2 - 0.15 * grown + noise.gauss(0, 0.02)),
                        "entropy": 1.6 - 0.3 * grown,
                    }
                rows.append(row)
        (directory / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "summary.json").write_text(json.dumps(SUMMARY))
    (directory / "config.yaml").write_text("name: ml100k\nseed: 0\nlearner:\n  lr: 0.0001\n")
    (directory / "manifest.json").write_text(
        json.dumps({"packages": {"ray": "2.60.0"}, "git": {"commit": "abc"}})
    )
    return directory


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.write_report(make_run(tmp_path_factory.mktemp("runs") / "ml100k-seed0")).read_text()


def text_of(html: str) -> str:
    return re.sub(
        r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r"<(style|svg).*?</\1>", "", html, flags=re.DOTALL))
    )


def test_headline_numbers_are_on_the_page(page: str):
    text = text_of(page)
    assert "best checkpoint 0.0360 0.1310 0.2248 0.198" in text
    assert "0.87%" in text  # hallucination of best
    assert "ItemKNN - - 0.1898 - 0.1072 0.0810 -" in text  # a baseline cannot hallucinate
    assert "Result on 943 test examples of 943 users" in text and "test users" not in text


def test_the_page_begins_with_what_the_run_came_to(page: str):
    header = text_of(re.findall(r"<header>.*?</header>", page, flags=re.DOTALL)[0])
    first = "ml100k-seed0 Nothing shows that the run pays: HR@10 of the best checkpoint is +0.0127"
    assert header.strip().startswith(first)
    assert "The lists got narrower from the start to the best checkpoint: HR@1 +0.0050" in header
    assert "Training took: pretraining 182 s, post-training 340 s, control 75 s." in header


def test_breadth_of_every_row_is_on_the_page(page: str):
    text = text_of(page)
    assert "start 41.00% 62.00% 5.100 0.00%" in text
    assert "best checkpoint 32.50% 71.25% 4.812 0.00%" in text


def test_the_page_says_what_a_group_was(page: str):
    what = (
        "16 sequences sampled without replacement (stochastic beams), constrained to the catalogue, "
        "temperature 0.7"
    )
    assert f"adagrpo on ml100k, seed 0; a group is {what} " in text_of(page)
    exact = SUMMARY["decode"] | {"kind": "beam", "constrained": False, "temperature": 1.0}
    assert (
        report.group_rows({"decode": exact})
        == "the 16 likeliest sequences (beams, not samples), free, temperature 1"
    )
    assert report.group_rows({}) is None


def test_verdicts_follow_the_interval():
    verdicts = {
        row["pair"]: (row["verdict"], round(row["difference"], 4)) for row in report.difference_rows(SUMMARY)
    }
    assert verdicts == {
        "best - control best": ("better", 0.0127),
        "best - start": ("not distinguishable", 0.017),
        "last - start": ("worse", 0.0117),
    }


def test_accounting_identity():
    assert report.accounting_rows(SUMMARY)["holds"]
    broken = {"accounting": SUMMARY["accounting"] | {"stale": 31}}
    assert report.accounting_rows(broken) == {
        "counts": {"issued": 6480, "trained": 6400, "stale": 31, "invalid": 8, "in_flight": 40},
        "total": 6479,
        "holds": False,
    }


def test_a_broken_identity_is_said_on_the_page(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(
        json.dumps(SUMMARY | {"accounting": SUMMARY["accounting"] | {"stale": 31}})
    )
    text = text_of(report.write_report(run).read_text())
    assert "issued 6,480 ≠ trained + stale + invalid + in flight 6,479 does not hold" in text


def test_every_chart_is_drawn_and_nothing_is_fetched(page: str):
    # 7 curves and planes, 10 of the training, time, wall time, 3 calibration curves, 5 heat maps
    assert page.count("<svg") == 27
    assert "not measured" not in text_of(page)
    assert not re.findall(r"(?:src|href)=\"(?!#)[^\"]*\"|@import|url\((?!#)[^)]*\)", page)
    assert "var(--ink)" in page and "#010203" not in page


def test_the_page_says_where_the_time_went(page: str):
    (bars,) = re.findall(
        r"<h3>Where the time of the post-training went</h3>.*?</section>", page, flags=re.DOTALL
    )
    for name in ("learner-0", "ranker-0", "rollout-0", "wait company", "load weights", "generate"):
        assert f">{name}<" in bars


def test_ids_are_unique_within_the_page(page: str):
    ids = re.findall(r'id="([^"]*)"', page)
    assert ids and len(ids) == len(set(ids))


def test_the_ranker_s_quality_is_on_the_page(page: str):
    text = text_of(page)
    assert "rating 1.0586 1.1215 1.0641 0.0917" in text and "click 0.4100 0.4400 0.4300 0.0310" in text
    assert "0.9312 AUC" in text and "0.0123 calibration error, next item" in text
    assert "Expected calibration error 0.0917 over 943 events." in text


def test_heat_maps_hold_every_cell(page: str):
    (examples,) = re.findall(r"<h3>Test examples</h3>.*?</section>", page, flags=re.DOTALL)
    assert "90% admitted" in examples and "463" in examples and "943 in all" in examples
    (control,) = re.findall(r"<h3>Start to control: HR@10</h3>.*?</section>", page, flags=re.DOTALL)
    assert "-0.020" in control.replace("\u2212", "-") and "+0.100" in control
    (gain,) = re.findall(
        r"<h3>Start to best checkpoint: rank of the target</h3>.*?</section>", page, flags=re.DOTALL
    )
    assert "+0.500" in gain and "-0.062" in gain.replace("\u2212", "-")


def test_heat_maps_without_a_gate():
    cells = [
        {key: value for key, value in cell.items() if key != "admitted"} for cell in SUMMARY["stratified"]
    ]
    charts = ranker_view.heat_maps(cells)
    assert len(charts) == 5 and "admitted" not in charts[0]["svg"] + charts[0]["note"]
    assert ranker_view.heat_maps([]) == []


def test_cells_have_intervals_where_there_are_users_enough(page: str):
    text = text_of(page)
    assert "11-20 >50 150 300 0.000 0.000 0.030 +0.030 +0.010 to +0.050" in text.replace("&gt;", ">")
    assert "11-20 1-10 30 60 0.000 0.100 0.200 +0.100 too few users" in text


def test_a_run_with_a_ranker_of_the_user_s(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"ranker": None}))
    assert "only the built-in ranker is judged when it is fitted" in text_of(
        report.write_report(run).read_text()
    )


def without_deciles():
    """The quality of a ranker of the release before."""
    return {name: value for name, value in SUMMARY["ranker"].items() if name != "by_exposure"}


def test_the_page_shows_the_ranker_by_exposure_where_it_is_known(page: str, tmp_path: Path):
    assert "1 3.2 12 0.6125 0.0833 10 1,412.5 931 0.9413 0.2412" in text_of(page)
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps(SUMMARY | {"ranker": without_deciles()}))
    assert "decile" not in text_of(report.write_report(run).read_text())


def test_quality_lines():
    assert ranker_view.quality_lines(SUMMARY["ranker"])[:3] == [
        "ranker on validation: AUC 0.9312, NDCG@10 0.1288, HR@10 0.2344, calibration error 0.0123",
        "AUC by decile of items, the least shown first: 0.613, 0.941",
        "rating: RMSE 1.0586 (user's mean 1.1215, item's mean 1.0641), calibration error 0.0917",
    ]
    assert not any("decile" in line for line in ranker_view.quality_lines(without_deciles()))
    assert ranker_view.quality_lines(None) == []


def test_missing_parts_are_said(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"kind":"step","step":1,"nll":5.0}\n{"kind":"step","st')
    text = text_of(report.write_report(run).read_text())
    assert "not measured: the run has not been judged yet" in text
    assert "Rollout groups not measured" in text


def test_no_run_directory(tmp_path: Path):
    with pytest.raises(RunError, match=r"no summary\.json and no metrics"):
        report.write_report(tmp_path)


def test_user_text_is_escaped(tmp_path: Path):
    run = make_run(tmp_path / "run")
    (run / "config.yaml").write_text("name: <script>alert(1)</script>")
    assert "<script>" not in report.write_report(run).read_text()


def test_terminal_lines_hold_the_table():
    lines = "\n".join(report.terminal_lines(SUMMARY))
    figures = ("0.0360", "0.1310", "0.2248", "0.4987", "0.1146", "0.0811", "0.87%")
    assert re.search(r"\W+".join(["best checkpoint", *map(re.escape, figures)]), lines)
    assert "HR@10 best - control best: +0.0127 [+0.0021, +0.0233] better" in lines
    assert "943 test examples of 943 users" in lines
    assert re.search(r"best checkpoint\W+32\.50%\W+71\.25%\W+4\.812\W+0\.00%", lines)
    assert re.search(r"11-20\W+1-10\W+30\W+60\W+90%\W+0\.000\W+\+0\.100\W+\+0\.200\W+\+0\.100\W+\n", lines)
    assert re.search(r"150\W+300\W+0%.*\+0\.030 \[\+0\.010, \+0\.050\]", lines)


def test_weighted_metrics_have_columns_where_the_log_has_propensities(tmp_path: Path):
    assert "weighted" not in " ".join(report.shown_columns(SUMMARY).values())
    summary = json.loads(json.dumps(SUMMARY))
    summary["metrics"]["best"] |= {"ips_hr@10": 0.0321, "ips_ndcg@10": 0.0123, "effective_examples": 77.0}
    summary["metrics"]["best"]["ips_examples"] = 90.0
    summary["metrics"]["start"] |= {"ips_hr@10": 0.03, "effective_examples": 77.0, "ips_examples": 90.0}
    summary["intervals"]["ips_hr@10"] = {"best": [0.0311, 0.0333], "best-start": [0.0011, 0.0031]}
    summary["weighting"] = {"clip": 500.0, "examination": "none"}
    assert list(report.shown_columns(summary).values())[-2:] == ["weighted HR@10", "weighted NDCG@10"]
    rows = {row["key"]: row for row in report.headline_rows(summary)}
    assert rows["best"]["cells"]["ips_hr@10"] == "0.0321" and rows["start"]["cells"]["ips_ndcg@10"] == "-"
    assert rows["best"]["intervals"]["ips_hr@10"] == [0.0311, 0.0333]
    assert "weighted HR@10 best checkpoint - start" not in "\n".join(report.terminal_lines(SUMMARY))
    assert "weighted HR@10 best - start: +0.0021 [+0.0011, +0.0031] better" in "\n".join(
        report.terminal_lines(summary, width=160)
    )
    run = make_run(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps(summary))
    page = report.write_report(run).read_text()
    assert "weighted HR@10" in page and re.search("0.031.0.033", page)
    assert "77 equally weighted examples, of 90 with a propensity" in page
    assert "Weighted HR@10 on validation" not in page  # no validation of this run has it
    validation = json.dumps({"kind": "eval", "step": 5, "hr@10": 0.2, "ips_hr@10": 0.03, "hallucination": 0})
    with (run / "metrics.jsonl").open("a") as file:
        file.write(validation + "\n")
    assert "Weighted HR@10 on validation" in report.write_report(run).read_text()


def test_without_propensities_the_page_says_what_that_means(page: str):
    assert "biased to what the logger liked to show" in page


def test_running_mean():
    assert running_mean([1, 3, 5, 7], 2) == [1, 2, 4, 6]
