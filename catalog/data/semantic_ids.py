"""Semantic IDs: every item gets a short tuple of codes.

Near items share their first codes, and no two items have the same tuple.

Item vectors are the truncated SVD of the positive pointwise mutual information of items that occur close to
each other in *training* histories or have users in common there (Levy and Goldberg 2014), beside the item's
attributes and the user's embedding if there is one. Residual k-means (faiss) turns a vector into one code per
level: each level codes what the levels before it left over. Items that still share all codes are told apart
by a collision code, the most popular item first.

A large catalogue is trained in rounds of a few iterations, on a sample, for as long as they better it.

Everything is seeded and k-means runs on one thread: equal input gives equal codes on one machine.

Definition: docs/algorithms.md, Semantic IDs.
"""

import math
from collections.abc import Callable

import faiss
import numpy as np
import scipy.linalg
import scipy.sparse as sp

from sluice.catalog.data.settings import SemanticIdSettings

_POWER_ITERATIONS = 6
_OVERSAMPLING = 16
_VALUES = 1 << 22  # of a matrix that are worked on at a time
_SMALLEST_LEVEL_BITS, _LARGEST_LEVEL_BITS = 2, 13  # of codes that follow the catalogue
_ROOM = 16  # tuples of codes for each item of it
MANY = 1 << 15  # items of a large catalogue
_ROUND = 5  # iterations in which k-means on a large one
_LEAST_GAIN = 0.01  # must bring the items this much nearer to their centroids, or it has converged
_POINTS_PER_CODE, _FEW_POINTS_PER_CODE = 256, 39  # that k-means looks at; faiss advises at least the latter
_CONTEXT_SMOOTHING = 0.75  # of Levy, Goldberg and Dagan 2015: keeps rare contexts from dominating

Report = Callable[[float], None]  # told the share that is done since it was told last


def ppmi(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Positive pointwise mutual information `[N, N]` of symmetric counts, float32, nats.

        max(0, log( P(i, j) / (P(i) P'(j)) ))

    P' is P to the power 0.75, normalised (Levy, Goldberg and Dagan 2015). It is 0 where nothing was counted.
    """
    total = counts.sum()
    if total == 0:
        return counts.astype(np.float32)
    row = np.asarray(counts.sum(axis=1)).ravel() / total
    context = row**_CONTEXT_SMOOTHING
    context /= context.sum()
    counts.sort_indices()
    values = np.empty(counts.nnz, dtype=np.float32)
    for start in range(0, counts.nnz, _VALUES):
        part = slice(start, min(start + _VALUES, counts.nnz))
        own = np.searchsorted(counts.indptr, np.arange(part.start, part.stop), side="right") - 1
        chance = row[own] * context[counts.indices[part]]
        values[part] = np.log((counts.data[part] / total) / chance)
    np.maximum(values, 0, out=values)
    result = sp.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape, copy=True)
    result.eliminate_zeros()
    return result


def truncated_svd(
    matrix: sp.csr_matrix, dims: int, seed: int, power: float, report: Report = lambda share: None
) -> np.ndarray:
    """U * S^power of the `dims` leading singular vectors, float32 `[N, <= dims]`.

    Found by random projection and power iterations (Halko et al. 2011), the same for the same `seed`.
    """
    dims = min(dims, *matrix.shape)
    width = min(dims + _OVERSAMPLING, *matrix.shape)
    basis = np.random.default_rng(seed).standard_normal((matrix.shape[1], width)).astype(np.float32)
    basis, _ = np.linalg.qr(matrix @ basis)
    for _ in range(_POWER_ITERATIONS):
        basis, _ = np.linalg.qr(matrix.T @ basis)
        basis, _ = np.linalg.qr(matrix @ basis)
        report(1 / _POWER_ITERATIONS)
    left, values, _ = scipy.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    vectors: np.ndarray = ((basis @ left[:, :dims]) * values[:dims] ** power).astype(np.float32)
    return vectors


def item_vectors(
    counts: sp.csr_matrix,
    attributes: sp.csr_matrix,
    attribute_names: list[str],
    embedding: np.ndarray | None,
    settings: SemanticIdSettings,
    report: Report = lambda share: None,
) -> np.ndarray:
    """A vector for each item, float32 `[N, d]`: three parts side by side, as far as the data set has them.

    Co-occurrence has norm 1, the attributes have norm `attribute_weight`, the user's embedding has norm 1.
    Every attribute (the part of a name before `=`) weighs the same. An item of which nothing is known is a
    zero row.

    Args:
        counts: symmetric co-occurrence `[N, N]`.
        attributes: multi-hot `[N, A]`.
        attribute_names: `[A]`, such as "genre=Comedy".
        embedding: float `[N, any width]`, None: the user gave none.
        settings: widths, weights and the seed.
        report: told how the co-occurrences come along, which take most of the time.
    """
    parts = [_unit(truncated_svd(ppmi(counts), settings.vector_dims, settings.seed, 0.5, report))]
    if settings.attribute_weight and attribute_names:
        kinds = np.asarray([name.partition("=")[0] for name in attribute_names])
        blocks = []
        for kind in dict.fromkeys(kinds):
            block = attributes[:, np.flatnonzero(kinds == kind)].tocsr()
            norm = np.sqrt(np.asarray(block.multiply(block).sum(axis=1)).ravel())
            blocks.append(sp.diags(1 / np.maximum(norm, 1)) @ block)
        joined = sp.hstack(blocks, format="csr").astype(np.float32)
        if joined.shape[1] > settings.vector_dims:
            # U * S keeps the distances.
            dense = truncated_svd(joined, settings.vector_dims, settings.seed, power=1.0)
        else:
            dense = joined.toarray()
        parts.append(settings.attribute_weight * _unit(dense))
    if embedding is not None:
        parts.append(_unit(embedding.astype(np.float32)))
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def fitting_level_sizes(items: int) -> tuple[int, ...]:
    """Codes of each level, `[L]`, for a catalogue of `items`.

    The first level has two thirds of the catalogue, so that most items have a code of their own, and at most
    8,192 codes, since every code is a token. The next ones are for what shares it: further levels, of 8,192
    codes at most, until all together could tell 16 times the catalogue apart. All are powers of two.

    >>> fitting_level_sizes(12_101)
    (8192, 32)
    """
    items = max(1, items)
    sizes = [_power_of_two(round(math.log2(items * 2 / 3)))]
    while (missing := _ROOM * items / math.prod(sizes)) > 1:
        sizes.append(_power_of_two(math.ceil(math.log2(missing))))
    return tuple(sizes)


def _power_of_two(bits: int) -> int:
    size: int = 2 ** min(max(bits, _SMALLEST_LEVEL_BITS), _LARGEST_LEVEL_BITS)
    return size


def residual_kmeans(
    vectors: np.ndarray,
    level_sizes: tuple[int, ...],
    settings: SemanticIdSettings,
    report: Report = lambda share: None,
) -> np.ndarray:
    """Codes int32 `[N, L]` of vectors `[N, d]`, level l below `level_sizes[l]`.

    Items of which nothing is known (zero rows) are spread at random. `report` is told how it comes along.
    """
    known = np.linalg.norm(vectors, axis=1) > 0
    rng = np.random.default_rng(settings.seed)
    residual = vectors[known].astype(np.float32)
    codes = np.zeros((len(vectors), len(level_sizes)), dtype=np.int32)
    for level, size in enumerate(level_sizes):
        if known.any():
            of_level = _part_of(report, size / sum(level_sizes))
            seed = settings.seed + level + 1
            centroids, nearest = _kmeans(residual, size, settings.iterations, seed, of_level)
            codes[known, level] = nearest
            residual = residual - centroids[nearest]
        # One centroid for all of them would make all of them collide.
        codes[~known, level] = rng.integers(0, size, int((~known).sum()))
    return codes


def _part_of(report: Report, share: float) -> Report:
    """Reports on a part of the work that is this share of it."""
    return lambda done: report(done * share)


def _kmeans(
    rows: np.ndarray, size: int, iterations: int, seed: int, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """At most `size` centroids, and the nearest one of every row."""
    is_large = len(rows) > MANY
    step = _ROUND if is_large else iterations
    kmeans = faiss.Kmeans(
        rows.shape[1],
        min(size, len(rows)),
        seed=seed,
        min_points_per_centroid=1,  # silences advice; small catalogues are fine
        max_points_per_centroid=_FEW_POINTS_PER_CODE if is_large else _POINTS_PER_CODE,
    )
    threads = faiss.omp_get_max_threads()
    # The order of summation, and so the last bit, must not depend on the machine's cores.
    faiss.omp_set_num_threads(1)
    try:
        before = math.inf
        for done in range(0, iterations, step):
            kmeans.cp.niter = min(step, iterations - done)
            distance = kmeans.train(rows, init_centroids=kmeans.centroids)
            if distance > before * (1 - _LEAST_GAIN):
                report(1 - done / iterations)
                break
            report(kmeans.cp.niter / iterations)
            before = distance
        _, nearest = kmeans.index.search(rows, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    centroids: np.ndarray | None = kmeans.centroids
    assert centroids is not None, "training sets the centroids"
    return centroids, nearest[:, 0]


def resolve_collisions(codes: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Codes int32 `[N, L]` or `[N, L + 1]` that are one to one.

    A further level numbers the items that share a tuple; the most popular gets 0, the first among equals.
    Codes that are one to one already come back as they are, without a further level.
    """
    order = np.lexsort((np.arange(len(codes)), -popularity, *codes.T[::-1]))
    ordered = codes[order]
    opens = np.ones(len(codes), dtype=bool)
    opens[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    if opens.all():
        return np.array(codes, dtype=np.int32)
    places = np.arange(len(codes))
    collision = np.empty(len(codes), dtype=np.int32)
    collision[order] = places - np.maximum.accumulate(np.where(opens, places, 0))
    resolved: np.ndarray = np.concatenate([codes, collision[:, None]], axis=1).astype(np.int32)
    return resolved


def level_sizes_of(codes: np.ndarray, fitted: tuple[int, ...] = ()) -> tuple[int, ...]:
    """Codes per level, `[L]`: as `fitted` where k-means chose among them, else the largest code plus one."""
    return tuple(fitted) + tuple(int(largest) + 1 for largest in codes.max(axis=0)[len(fitted) :])


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    # Rows that are rounding noise of an empty row must not be blown up to norm 1.
    unit: np.ndarray = np.where(norm > 1e-6, rows / np.maximum(norm, 1e-6), 0).astype(np.float32)
    return unit
