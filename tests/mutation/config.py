"""Mutants of what a resumed run may change, of former names of settings, of what is checked before a run."""

RESUME, YAML = "services/config_resume.py", "services/config_yaml.py"
OPTIMIZER, MANIFEST = "learner/training/optimizer.py", "services/run/manifest.py"
IN_RESUME, IN_YAML = ("services/test_config_resume.py",), ("services/test_config_yaml.py",)
IN_STEP, IN_MANIFEST = ("learner/training/test_step.py",), ("services/run/test_manifest.py",)

IN_SUBMIT = ("services/submit/test_submit.py",)
_PREFLIGHT = "services/preflight"
_TESTED_IN = {"finding": "preflight"}
_OF_PREFLIGHT = (
    ("logs", "for path in getattr(source, name):", "for path in getattr(source, name)[:1]:"),
    (
        "logs",
        "        if late():\n            return\n    if source.catalogue",
        "        return\n    if source.catalogue",
    ),
    (
        "logs",
        "bad > settings.max_bad_share * max(rows, estimated_rows)",
        "bad >= settings.max_bad_share * max(rows, estimated_rows) and bad",
    ),
    ("logs", "bad > settings.max_bad_share * max(rows, estimated_rows)", "False"),
    ("logs", "None if known is None else lambda column: _contains(known, column)", "None"),
    ("logs", "return _Log(rejections=rejections, items=None)", "pass"),
    ("logs", "items=log.items if ids is None else len(ids)", "items=log.items"),
    ("logs", "estimate_rows(source.catalogue) > _CATALOGUE_ROWS", "False"),
    ("sizes", "if candidates <= items:", "if candidates < items:"),
    (
        "sizes",
        "decoding.constrained and decoding.distinct > items",
        "decoding.distinct > items",
    ),
    ("sizes", "decoding.constrained and decoding.distinct > items", "decoding.constrained"),
    ("sizes", "if places < items:", "if places <= items:"),
    ("sizes", "elif max(sizes) > items:", "elif max(sizes) >= items:"),
    ("sizes", "if width > items:", "if width >= items:"),
    ("sizes", "if items <= _CUT_OFF:", "if items < _CUT_OFF:"),
    ("base_policy", "size in CPU_HEAD_SIZES if on_cpu else", "size in CPU_HEAD_SIZES or"),
    ("base_policy", "size % _GPU_HEAD_STEP == 0", "True"),
    ("base_policy", 'model["hidden_size"] // heads', 'model["hidden_size"]'),
    ("base_policy", "adapted[: len(fitted)] != fitted", "adapted != fitted"),
    ("output", "len(part.encode()) > longest", "len(part.encode()) > LONGEST_NAME"),
    ("output", "if free < needed:", "if free <= needed:"),
    ("output", "checkpoints * 3 * policy", "checkpoints * policy"),
    ("output", "if length > LONGEST_SOCKET:", "if length >= LONGEST_SOCKET:"),
    ("output", "    if not place.is_dir():", "    if False:"),
    ("resources", "plan.bundles + plan.learners", "plan.bundles"),
    ("resources", "machines.most(name) + _ROUNDING", "machines.total(name) + _ROUNDING"),
    ("resources", "amount > machines.total(name) + _ROUNDING", "False"),
    ("ranker", "took_s > TELL_S and stage != told", "took_s > TELL_S"),
    ("preflight", "if shortages and not has_rollouts(config.objective):", "if False:"),
    ("preflight", "if machines.name == THIS_MACHINE:", "if True:"),
    ("preflight", "key=lambda finding: finding.exit_code == 0", "key=lambda finding: finding.exit_code"),
    ("preflight", 'baseline.type == "value_head"', "False"),
    ("finding", "MISTAKE if MISTAKE in codes else max(codes, default=0)", "max(codes, default=0)"),
)

CONFIG_MUTANTS = (
    *(
        (f"{_PREFLIGHT}/{name}.py", old, new, (f"{_PREFLIGHT}/test_{_TESTED_IN.get(name, name)}.py",))
        for name, old, new in _OF_PREFLIGHT
    ),
    ("services/submit/submit.py", "if code:\n        return code", "pass", IN_SUBMIT),
    ("services/submit/submit.py", "        check_idle(paths.root)\n", "", IN_SUBMIT),
    ("services/submit/submit.py", "    bypass_proxies(head.url)\n", "", IN_SUBMIT),
    (
        "services/submit/submit.py",
        "str(file if local else file.relative_to(root))",
        "str(file.relative_to(root))",
        IN_SUBMIT,
    ),
    ("services/submit/submit.py", "[] if local else [file]", "[]", IN_SUBMIT),
    ("services/submit/shipped.py", "_get_excludes(working_directory, list(excludes)),", "", IN_SUBMIT),
    ("services/submit/head.py", "[*hosts, host]", "[host]", IN_SUBMIT),
    (
        "services/run_lock.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        ("services/test_run_lock.py",),
    ),
    ("services/run_lock.py", "    file.seek(0)\n", "", ("services/test_run_lock.py",)),
    (
        "services/run/supervisor.py",
        "if isinstance(broken, RankerError):",
        "if False:",
        ("services/run/test_supervisor.py",),
    ),
    (
        "services/cli/commands.py",
        "    if code:\n        return code\n    with hold_run",
        "    with hold_run",
        ("services/cli/test_before_train.py",),
    ),
    (RESUME, '    "evaluation": "', '    "evaluation_": "', IN_RESUME),
    (RESUME, "FIXED.get(max(names, key=len))", "FIXED.get(min(names, key=len))", IN_RESUME),
    (RESUME, 'field.startswith(f"{name}.")', "field.startswith(name)", IN_RESUME),
    (RESUME, "dict.fromkeys([*new, *old])", "dict.fromkeys(new)", IN_RESUME),
    (RESUME, "if change.reason]", "if not change.reason]", IN_RESUME),
    (RESUME, "if old.is_absolute() == new.is_absolute():", "if True:", IN_RESUME),
    (RESUME, "longer.parts[-len(shorter.parts) :] == shorter.parts", "True", IN_RESUME),
    (RESUME, "len(old) == len(new) and all(", "all(", IN_RESUME),
    (YAML, "if key.value in lines:", "if False:", IN_YAML),
    (YAML, '_LEADING_ZERO.match(text) and node.tag.endswith(":int")', "False", IN_YAML),
    (YAML, '_LEADING_ZERO.match(text) and node.tag.endswith(":int")', "_LEADING_ZERO.match(text)", IN_YAML),
    (YAML, 'if ":" in text:', "if False:", IN_YAML),
    (YAML, "if (comment := _comment(value)) is not None:", "if (comment := None):", IN_YAML),
    (YAML, "error.problem_mark.line + 1}", "error.problem_mark.line}", IN_YAML),
    (YAML, "lines[key.value] = key.start_mark.line + 1", "lines[key.value] = key.start_mark.line", IN_YAML),
    (YAML, 'bad = content.find(b"\\0")', "bad = -1", IN_YAML),
    (YAML, 'content.count(b"\\n", 0, bad) + 1', 'content.count(b"\\n") + 1', IN_YAML),
    (YAML, "target[new_leaf] = node.pop(leaf)", "target[new_leaf] = node[leaf]", IN_YAML),
    (YAML, "if new_leaf in target:", "if False:", IN_YAML),
    (YAML, 'current_name(key, "--set").split(".")', 'key.split(".")', IN_YAML),
    (YAML, 'rename_settings(raw, "--set")', "pass", IN_YAML),
    (YAML, "name + key.removeprefix(former)", "name", IN_YAML),
    (YAML, 'key.startswith(f"{former}.")', "key.startswith(former)", IN_YAML),
    (OPTIMIZER, '{**state, "base_lrs": rates}', "state", IN_STEP),
    (OPTIMIZER, "rate * factor(schedule.last_epoch)", "rate", IN_STEP),
    (OPTIMIZER, 'group["weight_decay"] = decay', "pass", IN_STEP),
    (MANIFEST, "if former is not None and not find_changes(former, config):", "if False:", IN_MANIFEST),
    (MANIFEST, "        number += 1\n", "        break\n", IN_MANIFEST),
    (MANIFEST, "write_atomically(kept, record.read_bytes())", "pass", IN_MANIFEST),
)
