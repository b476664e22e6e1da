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

_PARTS = (
    ("catalog/files.py", _FILES, ("catalog/test_files.py",)),
    ("learner/training/state_files.py", _STATE, ("learner/training/test_state_files.py",)),
    ("learner/training/checkpoint.py", _CHECKPOINT, ("learner/training/test_checkpoint.py",)),
    ("learner/training/metrics_log.py", _LOG, ("learner/training/test_checkpoint.py",)),
)

FILE_MUTANTS = tuple((file, old, new, tests) for file, pairs, tests in _PARTS for old, new in pairs)
