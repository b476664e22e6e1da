"""Mutants of what makes the learner scale: weights of workers, optimizer, reference, adapters, shards,
precision.
"""

from tests.mutation.mutant import Mutant

MICRO, OPTIMIZER, STEP = (
    "learner/training/micro_batches.py",
    "learner/training/optimizer.py",
    "learner/training/step.py",
)
REFERENCE, LORA, SHARDING = (
    "learner/policy/reference.py",
    "learner/policy/lora.py",
    "learner/policy/sharding.py",
)
WEIGHTS, VALIDATION = "learner/policy/packed_weights.py", "learner/training/validation.py"
IN_STEP, IN_WORKERS, IN_WEIGHTS = (
    ("learner/training/test_step.py",),
    ("learner/training/test_workers.py",),
    ("learner/policy/test_packed_weights.py",),
)
IN_REFERENCE, IN_LORA = ("learner/policy/test_reference.py",), ("learner/policy/test_lora.py",)

_MICRO = (
    ("normalisers * workers / total, 0.0", "normalisers / total, 0.0", IN_WORKERS),
    ("normalisers * workers / total, 0.0", "normalisers * 0 + workers / len(normalisers), 0.0", IN_WORKERS),
    ("        dist.all_reduce(total)\n", "", IN_WORKERS),
    (
        "torch.where(total > 0, normalisers * workers / total, 0.0)",
        "normalisers * workers / total",
        IN_WORKERS,
    ),
    ("0.0 * part.masked", "1.0 * part.masked", IN_WORKERS),
    ("part.masked_fill(part == -torch.inf, 0.0)", "part", IN_WORKERS),
    ("not is_distributed():\n        return loss", "True:\n        return loss", IN_WORKERS),
)

_REDUCTION = (
    ("table[:, 0] / table[:, 1]", "table[:, 0]", IN_STEP),
    ("dist.all_reduce(table)", "pass", IN_WORKERS),
)

_OPTIMIZER = (
    ("(step + 1) / settings.warmup_steps", "step / settings.warmup_steps", IN_STEP),
    ("0.5 * (1 + math.cos", "0.5 * (1 - math.cos", IN_STEP),
    ("p.ndim >= 2", "p.ndim >= 1", IN_STEP),
    ("    optimizer.load_state_dict(state)\n", "", IN_STEP),
)

_STEP = (
    ("torch.bfloat16, enabled=half", "torch.bfloat16, enabled=False", IN_STEP),
    ("torch.bfloat16, enabled=half", "torch.bfloat16, enabled=True", IN_STEP),
    ("                follower.follow(self._step)\n", "                pass\n", IN_REFERENCE),
    ("        with self.reference.in_place():\n", "        if True:\n", IN_REFERENCE),
    (
        "        self.model.eval()\n        with self.reference",
        "        with self.reference",
        IN_REFERENCE,
    ),
    ('self.reference.load_state_dict(state["reference"])', "pass", IN_REFERENCE),
    ("float(self.reference.version)", "0.0", IN_REFERENCE),
    ("self.settings.lora.dropout > 0", "False", IN_LORA),
    ('local_share(parameter).copy_(state["weights"][name])', "pass", IN_LORA),
    ("self.settings.lora is None and not", "not", IN_LORA),
)

_REFERENCE = (
    ("if step % every == 0", "if step % every == 1", IN_REFERENCE),
    ("if step % every == 0", "if (step + 1) % every == 0", IN_REFERENCE),
    ("if step % every == 0", "", IN_REFERENCE),
    ("local_share(parameter), 1 - decay", "local(parameter), decay", IN_REFERENCE),
    ("local_share(parameter), 1 - decay", "local(parameter), 1 + decay", IN_REFERENCE),
    ("mine.copy_(kept)", "pass", IN_REFERENCE),
    ("theirs.copy_(mine)", "pass", IN_REFERENCE),
    ("kept = theirs.clone()", "kept = theirs", IN_REFERENCE),
    (
        "        try:\n            yield\n        finally:\n            self._exchange()",
        "        yield\n        self._exchange()",
        IN_REFERENCE,
    ),
    ("if p.requires_grad}", "}", IN_REFERENCE),
    ("if written != self._settings.type:", "if False:", IN_REFERENCE),
    ('value.copy_(state["values"][name])', "pass", IN_REFERENCE),
    ('self._version = state["version"]', "pass", IN_REFERENCE),
    (").clone()\n            for", ")\n            for", IN_REFERENCE),
)

_LORA = (
    ("weight + layer.scaling[_ADAPTER] * (b_OR @ a_RI)", "weight + (b_OR @ a_RI)", IN_LORA),
    ("weight + layer.scaling[_ADAPTER]", "weight - layer.scaling[_ADAPTER]", IN_LORA),
    ("weight + layer.scaling[_ADAPTER]", "weight + 2 / layer.scaling[_ADAPTER]", IN_LORA),
    ("layer.scaling[_ADAPTER] * (b_OR @ a_RI)", "layer.scaling[_ADAPTER] * (b_OR @ a_RI).T", IN_LORA),
    ("range(first, first + size)", "range(first, first + size - 1)", IN_LORA),
    ("[embedding] if head.weight is embedding.weight else [embedding, head]", "[embedding]", IN_LORA),
    ('if kind == "weight" else value', "", IN_LORA),
    ("        torch.manual_seed(seed)\n", "", IN_LORA),
)

_SHARDING = (
    ("mesh=mesh, reshard_after_forward=True", "mesh=mesh", IN_WORKERS),
    ('    register_fsdp_forward_method(root, "run")\n', "", IN_WORKERS),
    ("    for layer in layers:\n        fully_shard(layer, mesh=mesh)\n", "", IN_WORKERS),
)

_OTHERS = (
    (WEIGHTS, "shape.numel() * kind.itemsize", "shape.numel()", IN_WEIGHTS),
    (WEIGHTS, "self._verified.result()", "pass", IN_WEIGHTS),
    (WEIGHTS, "        weights.verify_manifest()\n", "", IN_WEIGHTS),
    (WEIGHTS, "!= expected", "!= expected and False", IN_WEIGHTS),
    (VALIDATION, "-(-len(examples) // world)", "len(examples) // world", IN_WORKERS),
)

SCALE = (
    *(Mutant(MICRO, old, new, tests) for old, new, tests in _MICRO),
    *(Mutant("learner/reduction.py", old, new, tests) for old, new, tests in _REDUCTION),
    *(Mutant(OPTIMIZER, old, new, tests) for old, new, tests in _OPTIMIZER),
    *(Mutant(STEP, old, new, tests) for old, new, tests in _STEP),
    *(Mutant(REFERENCE, old, new, tests) for old, new, tests in _REFERENCE),
    *(Mutant(LORA, old, new, tests) for old, new, tests in _LORA),
    *(Mutant(SHARDING, old, new, tests) for old, new, tests in _SHARDING),
    *(Mutant(file, old, new, tests) for file, old, new, tests in _OTHERS),
)
