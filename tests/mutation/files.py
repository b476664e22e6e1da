"""Mutants of writing, reading and comparing files, of checkpoints, and of reading logs, as (file, old, new,
tests).
"""

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
    ("        _put_back(old, directory)\n", ""),
    ("        os.rename(former[-1], directory)\n", "        pass\n"),
    ("former[-1], directory", "former[0], directory"),
    ("    settle_directory(directory)\n    for", "    for"),
    ("    for kind in (_NEW, _OLD):", "    for kind in (_NEW,):"),
    ("        if now != digest:", "        if False:"),
    ("        except OSError as error:", "        except ZeroDivisionError as error:"),
    ("        raise\n    _sync(directory.parent)", "        raise"),
    ("    shutil.rmtree(old, ignore_errors=True)", ""),
    ("    finally:\n        shutil.rmtree(fresh, ignore_errors=True)", "    finally:\n        pass"),
    ("    directory.parent.mkdir(parents=True, exist_ok=True)\n", ""),
    ('f".{glob.escape(path.name)}.{kind}-*"', 'f".{glob.escape(path.name)}*"'),
    ('content.rfind(b"\\n") + 1', 'content.rfind(b"\\n")'),
    ('content.rfind(b"\\n") + 1', "len(content)"),
    ('content[:size].decode().split("\\n")[:-1]', 'content[:size].decode().split("\\n")'),
    ('content[:size].decode().split("\\n")[:-1]', "content[:size].decode().splitlines()"),
    (' if path.exists() else b""', ""),
    ("        digest.update(piece)", "        digest = hashlib.sha256(piece)"),
    ("min(nbytes, read_whole_lines(path).size)", "nbytes"),
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
    ("_READABLE = (2, 3, FORMAT)", "_READABLE = (FORMAT,)"),
    ("_READABLE = (2, 3, FORMAT)", "_READABLE = (2, 3, FORMAT, FORMAT + 1)"),
    ("weights_only=True", "weights_only=False"),
    ("        remove_leftovers(directory)", "        pass"),
    ("    if whole and digest_files", "    if False and digest_files"),
    ("    if workers != sealed:", "    if False:"),
    ("    return find_damage(checkpoint, digests)", "    return None"),
    ('return "sums-0.json is missing" if written == FORMAT else None', "return None"),
    ("    except FileNotFoundError:\n", "    except ZeroDivisionError:\n"),
    ("(OSError, ValueError, KeyError, TypeError) as error", "(OSError, ValueError) as error"),
    ("    if of_format_2.is_file():", "    if False:"),
)

_LOG = (
    ("purge_step=last_step + 1", "purge_step=None"),
    ("purge_step=last_step + 1", "purge_step=last_step"),
    ("        if keep_bytes == 0:\n", "        if False:\n"),
    ("        if kind not in _CURVES:\n", "        if False:\n"),
)

_RECOVERY = (
    ("    settle_directory(best)\n", ""),
    ("score = read_state(best).best if has_best else NONE.best", "score = NONE.best"),
    ("(best.exists() and is_whole(best))", "best.exists()"),
)

_KEPT = (
    ("reverse=True", "reverse=False"),
    (" if path.is_dir())", ")"),
    ("        if not lost:\n", "        if lost:\n"),
    ("    place.unlink()\n", ""),
)

_LEFTOVERS = (
    ("for digest, path in now.items() if digest not in before", "for digest, path in []"),
    ("for digest, path in before.items() if digest not in now", "for digest, path in []"),
    ('manifest.get("format") != FORMAT', "False"),
    ('if resume == "auto":', "if False:"),
    ('return "last" if begun else None', 'return "last"'),
    ("or was_moved_away(arm.best_checkpoint)", ""),
    ('not (resume == "auto" and has_begun(paths))', "True"),
    ("        settle_directory(directory)\n", "        pass\n"),
    ("        check_resume(config, paths.root)\n", "        pass\n"),
    ("        check_same_data(config, paths)\n", "        pass\n"),
)

_INPUTS = (
    ("read_manifest(paths.data) if keep else None", "None"),
    ("read_manifest(paths.data) if keep else None", "read_manifest(paths.data)"),
    ("        if (paths.root / RECORD).exists():", "        if True:"),
    ("        if (paths.root / RECORD).exists():", "        if False:"),
    ("if name in now and now[name] != before", "if False"),
    ("for place in (paths.policy, paths.ranker)", "for place in (paths.ranker,)"),
    ("sha256_of(file) if file is not None and file.is_file() else", ""),
)

_FORK = (
    ("if at and step.isdecimal():", "if at:"),
    ("if config.learner.steps <= step:", "if config.learner.steps < step:"),
    ("for place in (paths.ranker, paths.ranker_halves, paths.catalogue):", "for place in ():"),
    ("    if config.ranker == before.ranker:\n", "    if True:\n"),
    ("    if config.ranker == before.ranker:\n", "    if False:\n"),
    ("    leftovers.check_same_data(config, source)\n", ""),
    ("    inputs.check_unchanged(before, source)\n", ""),
    ("[: state.metrics_bytes]", ""),
    ("        since_best=0,\n", ""),
    ('if name != "seed" or not config.deterministic', "if True"),
    ("same_prompts = config.seed == before.seed", "same_prompts = True"),
    ("same_prompts = config.seed == before.seed", "same_prompts = False"),
    ("other.journal.read_bytes()[: state.journal_bytes]", "other.journal.read_bytes()"),
    ('("name", "seed", "ranker")', '("name", "seed", "ranker", "policy")'),
)

_CATALOGUE = (
    ("    if other not in (None, own):", "    if False:"),
    ("load_policy(paths.policy, own)", "load_policy(paths.policy)"),
    ("    write_atomically(paths.catalogue / _MADE_FOR, own)\n", ""),
    ("or (made_for is None and resumed)", ""),
    ("or (made_for is None and resumed)", "or made_for is None"),
    ("        number += 1\n", "        number += 5\n"),
)

_LOG_FILES = (
    ("path.relative_to(directory).parts)", "path.name.split('/'))"),
    ('part.startswith((".", "_"))', 'part.startswith(".")'),
    ("[int(piece) if place % 2 else piece", "[piece"),
    ("        if order_matters:\n", "        if False:\n"),
    ("not isinstance(first, int) or not isinstance(second, int)", "False"),
    ("_natural(earlier.relative_to(directory)) == _natural(later.relative_to(directory))", "False"),
    ("    if real in above:\n        return\n", ""),
    ("if other is not file.path:", "if False:"),
    ("os.path.realpath(file.path)", "file.path"),
    ('"gzip" if self.path.name.lower()', '"gzip" if self.path.name'),
    ("elif not path.is_file():", "elif False:"),
)

_VALUES = (
    ("~is_inexact(values)", "True"),
    ("from_pandas=True", "from_pandas=False"),
    ('r"\\.0+$"', 'r"\\.00$"'),
    ("FLOAT_LIMITS[values.type.bit_width]", "FLOAT_LIMITS[64]"),
    ('text.startswith("[") != text.endswith("]")', "False"),
    ('or "..." in parts', ""),
    ("levels.setdefault(level, name) == name", "True"),
    ("as_text(values.flatten())", "as_text(values.values)"),
    ('if "," in text:', "if False:"),
)

_TIMESTAMPS = (
    ("values <= self._latest_s * factor", "values <= 2 * self._latest_s * factor"),
    ("values >= _EARLIEST_S * factor", "values > 0"),
    ("if other != unit", "if False"),
    ("usable & (values > latest) & ~elsewhere", "usable & (values < latest) & ~elsewhere"),
    ("usable & (values > latest) & ~elsewhere", "usable & (values > latest)"),
    ("self._check_remembered(decided)", "pass"),
    ("self._in_span(values, unit) & usable", "self._in_span(values, unit)"),
    ("usable & (values < _EARLIEST_S * UNITS[unit])", "usable & (values < 0)"),
    ('(micros > self._latest_s * UNITS["us"])', '(micros > self._latest_s * UNITS["ns"])'),
    ('self._off = unit == "none"', "self._off = False"),
)

_HISTORIES = (
    ("going_on = end + 1 - len(window)", "going_on = end - len(window)"),
    ("if going_on < end and self._agrees", "if self._agrees"),
    ("and self._may_be_at(start + len(window) - 1, time)", ""),
    ("range(going_on - 1, -len(window), -1)", "range(going_on - 1, 0, -1)"),
    ("range(going_on + 1, end)", "range(end - 1, going_on, -1)"),
    ("range(going_on + 1, end)", "range(max(0, going_on + 1), end)"),
    ("            self.repeated += 1", "            pass"),
    ("self._times[owner] == time", "self._times[owner] <= time"),
    ("times is not None or len(left) == len(waiting)", "True"),
    ("window[end - start :]", "window[end - start - 1 :]"),
    ("row = row if owner == FROM_HISTORY else owner", "row = owner"),
    ("        if start < 0:\n", "        if False:\n"),
)

_SORT = (
    ('order("hash, user_id, timestamp, place")', 'order("hash, user_id, timestamp")'),
    ('order("hash, user_id, timestamp, place")', 'order("user_id, timestamp, place")'),
    ("glob.escape(str(self._path))", "str(self._path)"),
    ('bucket, side="right"))', 'bucket, side="left"))'),
    ("shutil.rmtree(self._spill, ignore_errors=True)", "pass"),
    ("self._rows += len(rows)", "self._rows += 0"),
)
_PAIRS = (
    ("self._most // 2 // self", "self._most // self"),
    ("if self.matrix.nnz > self._most:", "if False:"),
    ("np.argsort(-counts.data[start:end]", "np.argsort(counts.data[start:end]"),
    ("<= MOST_OF_USER", "< MOST_OF_USER"),
    ("counts.maximum(counts.T).tocsr() if self._sum.was_cut else counts", "counts"),
    ("if items**2 <= most:", "if True:"),
    ("max(MOST_PAIRS, PAIRS_PER_ITEM * items)", "MOST_PAIRS"),
)
_EVENTS = (
    ('for column in ("item", "timestamp", "user")', 'for column in ("item", "user")'),
    ('for column in ("item", "timestamp", "user")', 'for column in ("timestamp", "user")'),
    ("first[order[1:][same]] = False", "first[order[:-1][same]] = False"),
    (
        'pc.invert(events.column("click")).fill_null(False)',
        'pc.invert(events.column("click")).fill_null(True)',
    ),
    ("if rules.unclicked_are_impressions:", "if False:"),
    ("of=events)", "of=None)"),
    ("rows_of >= rules.min_interactions", "rows_of > rules.min_interactions"),
    ("keeps = rows_of >= rules.min_interactions", "keeps = rows_of >= 0"),
    ("np.cumsum(keeps) - 1 + first_user", "np.cumsum(keeps) - 1"),
    ('if name in (*_TIME_AND_PLACE, "part") else pc.if_else(known, column, None)', ""),
    ("np.minimum.accumulate(own[::-1])[::-1]", "own"),
    ("if rules.has_times else 0", ""),
    ("& told[:-1]", ""),
    ("timestamp[rows].tolist() if has_times else None", "None"),
    ("int((~keeps & (rows_of > 0)).sum())", "int((~keeps).sum())"),
)

_CLEANING = (
    ("int((odd & self.good).sum())", "int(odd.sum())"),
    ("pc.utf8_trim_whitespace(as_text(values)).fill_null", "as_text(values).fill_null"),
    ("pc.is_in(trimmed, value_set=MISSING_WORDS)", 'pc.equal(trimmed, "")'),
    ('(write ids as text or whole numbers)": is_undecodable(values)', '": is_missing(values)'),
    ("~known_items(trimmed)", "known_items(trimmed)"),
    ("np.flatnonzero(bad)[first]", "first"),
    ("batch.rows[good]", "batch.rows[: good.sum()]"),
    ("others * (self.bad < self.rows)", "others"),
)

_PREPARE = (
    ("                for bad in bucket.refused:\n                    log.add(bad)\n", ""),
    ('if not self._noted["impressions"]:', "if False:"),
    ('has_times="timestamp" in self._source.columns', "has_times=True"),
    ('table is not None and table.unclicked == "impression"', "table is not None"),
)

_DATASET = (
    ("(times >= self._ends(part)[users])", "(times > self._ends(part)[users])"),
    ("self._impressions.parts <= SPLITS", "self._impressions.parts < SPLITS"),
    ("(earlier - self.offsets[users])", "earlier"),
    (
        "[users, parts, times], [owners, self._labels, self.timestamps]",
        "[users, times], [owners, self.timestamps]",
    ),
    ("if len(self._impressions):", "if False:"),
    ("ends[SPLITS.index(part)]", "ends[1]"),
    ("following < self.offsets[1:], times[following], never", "following >= 0, times[following], never"),
)

_PARTS = (
    ("catalog/data/log_files.py", _LOG_FILES, ("catalog/data/test_log_files.py",)),
    ("catalog/values.py", _VALUES, ("catalog/test_values.py",)),
    ("catalog/timestamps.py", _TIMESTAMPS, ("catalog/test_timestamps.py",)),
    ("catalog/data/histories.py", _HISTORIES, ("catalog/data/test_histories.py",)),
    ("catalog/data/partition.py", _EVENTS, ("catalog/data/test_partition.py",)),
    ("catalog/data/partition.py", _SORT, ("catalog/data/test_partition.py",)),
    ("catalog/data/cooccurrence.py", _PAIRS, ("catalog/data/test_cooccurrence.py",)),
    (
        "services/stages/prepare_progress.py",
        (
            ("stages[: stages.index(self._stage)]", "stages"),
            ("if self._fits else 0\n        vectors_s", "\n        vectors_s"),
            ("rounds / _FLOPS", "1 / _FLOPS"),
        ),
        ("services/stages/test_prepare_progress.py",),
    ),
    (
        "services/interrupts.py",
        (("raise Terminated", "return"), ("signal.signal(signal.SIGTERM, before)", "pass")),
        ("services/test_interrupts.py",),
    ),
    (
        "services/bench/system/scale_data.py",
        (('row["peak_mb"] - row["imports_mb"]', 'row["peak_mb"]'), ("range(0, rows, _CHUNK_ROWS)", "[0]")),
        ("services/bench/system/test_scale_data.py",),
    ),
    ("catalog/data/cleaning.py", _CLEANING, ("catalog/data/test_cleaning.py",)),
    ("services/stages/prepare.py", _PREPARE, ("services/stages/test_log_warnings.py",)),
    (
        "services/stages/log_checks.py",
        (('settings.reward == "click" and impressions', "False"),),
        ("services/stages/test_log_warnings.py",),
    ),
    ("catalog/data/dataset.py", _DATASET, ("catalog/data/test_dataset.py",)),
    ("catalog/files.py", _FILES, ("catalog/test_files.py",)),
    ("learner/training/state_files.py", _STATE, ("learner/training/test_state_files.py",)),
    ("learner/training/checkpoint.py", _CHECKPOINT, ("learner/training/test_checkpoint.py",)),
    ("learner/training/kept.py", _KEPT, ("learner/training/test_kept.py",)),
    ("learner/training/recovery.py", _RECOVERY, ("learner/training/test_recovery.py",)),
    (
        "learner/training/train_loop.py",
        (("max(state.best, self.choice.best)", "state.best"),),
        ("learner/training/test_train_loop.py",),
    ),
    ("learner/training/metrics_log.py", _LOG, ("learner/training/test_checkpoint.py",)),
    (
        "catalog/data/sources.py",
        (
            ('if family_of(values.type) == "text":', "if False:"),
            (">= _KNOWN_SHARE", ">= 0"),
            ('if "history" in source.columns or not names:', "if not names:"),
        ),
        ("services/stages/test_log_warnings.py",),
    ),
    (
        "catalog/data/cleaning.py",
        (("time_unit=unit, parts", 'time_unit="auto", parts'),),
        ("services/preflight/test_logs.py",),
    ),
    ("services/run/leftovers.py", _LEFTOVERS, ("services/run/test_leftovers.py",)),
    (
        "services/run/train.py",
        (
            ("        leftovers.check_same_data(config, paths)\n", "        pass\n"),
            ("if not arms.is_trained(paths, name, made_with):", "if False:"),
            ("        arms.discard_training(config, paths)\n", "        pass\n"),
            ('arms.ended_figures(config, paths) if resume == "last" else None', "None"),
            ('        arms.mark_begun(paths, "train")\n', ""),
            ('    if resume == "best" and (fault', "    if False and (fault"),
            ('choose_checkpoint(arm.kept, arm.best_checkpoint).lines() if resume == "last" else []', "[]"),
        ),
        ("services/run/test_leftovers.py",),
    ),
    (
        "services/run/train.py",
        (("while resumed and fleet", "while False and fleet"), ("while resumed and fleet", "while fleet")),
        ("services/run/test_train.py",),
    ),
    (
        "services/run/arms.py",
        (
            ('    if figures["throughput"]["learner_steps"] >= config.learner.steps:', "    if True:"),
            ('is_trained(paths, "train", arm_inputs(config, config.objective)) else None', "False else None"),
            ("(paths.summary, paths.report, paths.ranks, paths.trust)", "(paths.summary,)"),
            ("    discard_outdated(config, paths, gate_rate=0.0)\n", ""),
            ("arm.kept, board_of(arm.metrics))", "arm.kept)"),
            ("for file in (arm.metrics, arm.journal):", "for file in (arm.metrics,):"),
        ),
        ("services/run/test_leftovers.py",),
    ),
    ("services/run/inputs.py", _INPUTS, ("services/run/test_inputs.py",)),
    ("services/run/fork.py", _FORK, ("services/run/test_fork.py",)),
    ("services/stages/catalogue.py", _CATALOGUE, ("services/stages/test_catalogue.py",)),
    (
        "services/stages/staging.py",
        (
            ("(keep or (stamp", "(False or (stamp"),
            ("and find_stage_damage(directory) is None))", "))"),
            ("    settle_directory(directory)\n", ""),
        ),
        ("services/stages/test_staging.py",),
    ),
    (
        "services/run/arms.py",
        (('        "start": stage_inputs(RunPaths.of(config).policy),\n', ""),),
        ("services/run/test_leftovers.py",),
    ),
    (
        "services/run/arms.py",
        (
            ("if build_objective(objective).needs_groups:", "if False:"),
            (
                "        if paths.arm(name).best.exists()\n        and not",
                "        if False\n        and not",
            ),
            ("    (paths.arm(name).last / _STAMP).unlink(missing_ok=True)\n", "    pass\n"),
            ("if paths.sft_all.exists() and not matches_start(paths):", "if False:"),
        ),
        ("services/run/test_arms.py",),
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
            ('[ids, np.ascontiguousarray(codes[order], dtype="<i4").tobytes()]', "[ids]"),
        ),
        ("catalog/test_fingerprint.py",),
    ),
)

FILE_MUTANTS = tuple((file, old, new, tests) for file, pairs, tests in _PARTS for old, new in pairs)
