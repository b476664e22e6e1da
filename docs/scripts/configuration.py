"""Write docs/configuration.md, and the settings of a study into its page, from the settings: `make docs`."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sluice.catalog.settings import Settings
from sluice.services.config_reference import SettingEntry, SettingGroup, describe_settings, groups_below
from sluice.services.config_resume import FIXED
from sluice.services.study.settings import StudyConfig

DOCS = Path(__file__).parents[1]
CONFIGURATION, STUDIES = DOCS / "configuration.md", DOCS / "studies" / "studies.md"
STUDY_PLACE = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- end of the settings -->)", re.DOTALL)

HEAD = """# Configuration

One YAML file describes a run. Every setting is listed here with its default. A file only needs what differs,
and an unknown name is an error.

    sluice config check FILE                    the resolved config, or every error with its field path
    sluice config check --deep FILE             all that a run needs, in seconds: files, sizes, places, ranker
    sluice config explain learner.lr            one setting; with --config FILE also its value there
    sluice submit --config FILE --set learner.lr=1e-5          override a setting; the value is YAML

A relative path is relative to the directory in which the command is run. `sluice submit` makes such paths
absolute before it sends the job to a cluster on the same machine. In a job submitted by hand
(`ray job submit`) a relative `output` goes to `~/sluice/` on the node where the job's driver runs.

A setting that got a new name keeps working under its former one for one release, with a warning that names
the new one.

This page is made from the settings classes by `make docs`.

## What may change when a run is resumed

A run records its config as `config.yaml` in its directory. With `--resume` these settings must be as they
were, since what is in the directory was made with them:

{fixed}
All others may change, such as `learner.steps`, `learner.lr`, `rollout.decode`, `queue` and `cluster`. The
config that was in force before is kept as `config-1.yaml`, `config-2.yaml` and so on.

## Going on with a run

- `--resume` goes on from the last checkpoint that is whole.
- `--resume best` goes on from the checkpoint with the best validation. The later ones are dropped.
- `--resume auto` goes on as `--resume` where there is a checkpoint. Else the run begins, so that a job that
  is tried again needs no other command.
- `--fork RUN_DIR[@STEP]` begins a new run with a checkpoint of another one: the last, or that of a step.

`sluice train` and `sluice submit` take all four. A run that has ended is not trained again: no fleet is
started, and its policies are judged. Which it is, the last step or the end of `learner.patience` says.

`manifest.json` keeps a fingerprint of the data, the catalogue (items and their semantic IDs), the starting
policy, the ranker and the settings above. A run that goes on must have what it began with. Else it is refused
before anything is written, with the name of what is another. Of a ranker of your own the module that
`ranker.use` names is compared. The log's files may have moved, and nothing is built again for that. `sluice
prepare`, `pretrain`, `fit-ranker` and `audit` of a run that has checkpoints build nothing again either.

Without checkpoints a start uses what was built from the same inputs and is whole, and builds the rest anew.
What an earlier post-training left goes: policies, curves, figures, and a control of other settings. Changes
of the catalogue that were pushed for other data are set aside as `catalogue-1` and so on.

At last every worker writes the sha256 of its files into a checkpoint, in `sums-<rank>.json`. One that is half
written or damaged is named with the file, and the one before is used: the last, the one before, and at last
the best one. Checkpoints of earlier releases have no sums and are taken as they are.

A fork must have the data, the policy's model, the objective's type and the number of learner workers of the
run that it comes from: what is fixed above but for `name`, `seed` and `ranker`.

- Kept: data and start; policy, optimizer, random states, averages and reference; the count of steps and the
  curves so far; what was pushed to the catalogue.
- Kept where the settings are the same: the ranker. With the same `seed`: the place in the order of the
  prompts, the prompts under way and the counts of groups.
- Anew: the best checkpoint, which is the forked one at first; the control and other arms.

`learner.steps` counts from the beginning of the run that was forked. A deterministic run is forked with its
own seed.
"""
TABLE = ["| setting | type | default | unit | meaning |", "|---|---|---|---|---|"]


def render() -> str:
    """The whole page."""
    fixed = "".join(f"- `{path}`: {reason}\n" for path, reason in FIXED.items())
    return HEAD.format(fixed=fixed) + "".join(_section(describe_settings(), {}))


def _section(group: SettingGroup, seen: dict[type[Settings], str]) -> list[str]:
    """The section of a group and of what is below it; a class that was listed before is only referred to."""
    title = _title(group)
    seen[group.model] = title
    rows, below = [], []
    for entry in group.entries:
        if len(entry.groups) == 1 and entry.groups[0].model in seen:
            rows.append(f"| `{entry.path}` | as {seen[entry.groups[0].model]} | | | {entry.description} |")
        elif not entry.is_plain_group:
            rows.append(_row(entry))
        for child in entry.groups:
            if child.model not in seen:
                below += _section(child, seen)
    table = [*TABLE, *rows] if rows else []
    return [
        "\n",
        f"## {title}\n\n{group.text}\n",
        "\n" if table else "",
        *(f"{line}\n" for line in table),
        *below,
    ]


def _title(group: SettingGroup) -> str:
    if not group.path:
        return "The run"
    if group.type:
        return f"`{group.path}` of type `{group.type}`"
    above = [kind for path, kind in group.types if group.path.startswith(path.removesuffix("type"))]
    return f"`{group.path}`" + (f" for type `{above[-1]}`" if above else "")


def _row(entry: SettingEntry) -> str:
    path = f"{entry.path}.type" if entry.groups and entry.choices else entry.path
    choices = ", ".join(f"`{choice}`" for choice in entry.choices)
    kind = choices or f"{entry.type} {entry.bounds}".strip()
    default = "(required)" if entry.default is None else f"`{entry.default}`"
    return (
        f"| `{path}` | {kind} | {default} | {entry.unit} | {entry.description.replace('|', chr(92) + '|')} |"
    )


def render_studies(page: str) -> str:
    """docs/studies/studies.md with today's settings of a study."""
    rows = [
        _row(entry)
        for group in groups_below(describe_settings(StudyConfig))
        for entry in group.entries
        if not entry.is_plain_group
    ]
    return STUDY_PLACE.sub(lambda _: "\n".join([*TABLE, *rows]) + "\n", page)


if __name__ == "__main__":
    CONFIGURATION.write_text(render())
    STUDIES.write_text(render_studies(STUDIES.read_text()))
