"""Mutants of what a resumed run may change, and of former names of settings."""

RESUME, YAML = "services/config_resume.py", "services/config_yaml.py"
OPTIMIZER, MANIFEST = "learner/training/optimizer.py", "services/run/manifest.py"
IN_RESUME, IN_YAML = ("services/test_config_resume.py",), ("services/test_config_yaml.py",)
IN_STEP, IN_MANIFEST = ("learner/training/test_step.py",), ("services/run/test_manifest.py",)

CONFIG_MUTANTS = (
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
    (YAML, 'content.decode("utf-8-sig")', "content.decode()", IN_YAML),
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
