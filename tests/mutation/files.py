"""Mutants of writing, reading and comparing files, and of checkpoints, as (file, old, new, tests)."""

_FILES = (
    ("stream.flush()\n            os.fsync(stream.fileno())", "stream.flush()"),
    (
        "    finally:\n        aside.unlink(missing_ok=True)\n    _sync(path.parent)",
        "    finally:\n        aside.unlink(missing_ok=True)",
    ),
    ("        aside.unlink(missing_ok=True)", "        pass"),
    ("        if overwrite:\n", "        if True:\n"),
    ('aside.open("xb")', 'path.open("wb")'),
    (".encode() if", '.encode("latin-1") if'),
    ("        for name in files:\n            _sync(Path(folder, name))\n", ""),
    ("        _sync(Path(folder))\n", ""),
    (
        "    if directory.exists():\n        os.rename(directory, old)\n",
        "    if directory.exists():\n        shutil.rmtree(directory)\n",
    ),
    ("            os.rename(old, directory)\n", "            pass\n"),
    ("        raise\n    _sync(directory.parent)", "        raise"),
    ("    shutil.rmtree(old, ignore_errors=True)", ""),
    ("    finally:\n        shutil.rmtree(fresh, ignore_errors=True)", "    finally:\n        pass"),
    ("    directory.parent.mkdir(parents=True, exist_ok=True)\n", ""),
    ('f".{directory.name}.new-*"', 'f".{directory.name}*"'),
    ('content.rfind(b"\\n") + 1', 'content.rfind(b"\\n")'),
    ('content.rfind(b"\\n") + 1', "len(content)"),
    ('content[:size].decode().split("\\n")[:-1]', 'content[:size].decode().split("\\n")'),
    ('content[:size].decode().split("\\n")[:-1]', "content[:size].decode().splitlines()"),
    (' if path.exists() else b""', ""),
    ("        digest.update(piece)", "        digest = hashlib.sha256(piece)"),
)

_STATE = (
    (
        '    if isinstance(value, tuple):\n        return {"tuple"',
        '    if isinstance(value, tuple):\n        return {"list"',
    ),
    ("    if isinstance(value, tuple):", "    if isinstance(value, list):"),
    ("[_encode(key, tensors), _encode(item, tensors)]", "[str(key), _encode(item, tensors)]"),
    ("type(value) in (bool, int, float, str)", "isinstance(value, bool | int | float | str)"),
    ("        if tensor.untyped_storage().data_ptr() in self._memory:", "        if False:"),
    (".cpu().contiguous()", ".cpu()"),
    ("file.get_tensor(name).clone()", "file.get_tensor(name).float()"),
    ("    return _text_file(place).is_file()", "    return True"),
    (
        "    text = json.dumps(_encode(state, tensors))\n",
        "    text = json.dumps(_encode(state, tensors)).lower()\n",
    ),
)

_CHECKPOINT = (
    ("_READABLE = (2, FORMAT)", "_READABLE = (FORMAT,)"),
    ("_READABLE = (2, FORMAT)", "_READABLE = (2, FORMAT, FORMAT + 1)"),
    ("weights_only=True", "weights_only=False"),
    ("        remove_leftovers(directory)", "        pass"),
    ("    if of_format_2.is_file():", "    if False:"),
)

_LOG = (("min(keep_bytes, read_whole_lines(path).size)", "keep_bytes"),)

_LEFTOVERS = (
    ("for digest, path in now.items() if digest not in before", "for digest, path in []"),
    ("for digest, path in before.items() if digest not in now", "for digest, path in []"),
    ('manifest.get("format") != FORMAT', "False"),
    ("exclude=_NO_MATTER", "exclude={'lr'}"),
    ('"start": stage_inputs(paths.policy),', ""),
    ("(paths.best, paths.last,", "(paths.best,"),
    ("(paths.control, paths.control_last,", "(paths.control,"),
)

_PARTS = (
    ("catalog/files.py", _FILES, ("catalog/test_files.py",)),
    ("learner/training/state_files.py", _STATE, ("learner/training/test_state_files.py",)),
    ("learner/training/checkpoint.py", _CHECKPOINT, ("learner/training/test_checkpoint.py",)),
    ("learner/training/metrics_log.py", _LOG, ("learner/training/test_checkpoint.py",)),
    ("services/run/leftovers.py", _LEFTOVERS, ("services/run/test_leftovers.py",)),
    (
        "services/run/train.py",
        (
            ("        leftovers.check_same_data(config, paths)\n", "        pass\n"),
            ("if not leftovers.is_control_current(config, paths):", "if False:"),
            ("        leftovers.stamp_control(config, paths)\n", ""),
            ("        leftovers.discard_training(paths)\n", "        pass\n"),
        ),
        ("services/run/test_leftovers.py",),
    ),
    (
        "learner/policy/policy.py",
        (("and own != catalogue", "and False"), ("own is not None and ", "")),
        ("learner/policy/test_policy.py",),
    ),
    (
        "services/stages/pretrain.py",
        (
            ("    mark_catalogue(policy, catalogue)\n", ""),
            ("load_policy(Path(base), catalogue)", "load_policy(Path(base))"),
        ),
        ("services/run/test_leftovers.py",),
    ),
    (
        "catalog/fingerprint.py",
        (
            ("codes[order]", "codes"),
            ('"\\0".join(item_ids[row] for row in order)', '"x"'),
            ('    digest.update(np.ascontiguousarray(codes[order], dtype="<i4").tobytes())\n', ""),
        ),
        ("catalog/test_fingerprint.py",),
    ),
)

FILE_MUTANTS = tuple((file, old, new, tests) for file, pairs, tests in _PARTS for old, new in pairs)
