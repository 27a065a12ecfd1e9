"""PaDiM and PatchCore against SciPy, scikit-learn, torch and brute force, on random features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import mahalanobis
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from f2pad_jax.checkpoint import load_arrays, save_arrays
from f2pad_jax.commands.models import parse_options
from f2pad_jax.detectors import DETECTORS, Detector, check_options, detector_class, options_of, padim, patchcore
from f2pad_jax.detectors.cflow import CFlow
from f2pad_jax.detectors.padim import PaDiM
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import fit
from f2pad_jax.networks import flow
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.networks.flow import FlowSpec

CHANNELS = (6, 5, 4)
SIDES = (8, 4, 2)
Maps = tuple[np.ndarray, ...]


def draw_maps(count: int, seed: int = 0) -> Maps:
    """Features whose channels have different means and scales, as those of linear bottlenecks have."""
    rng = np.random.default_rng(seed)
    return tuple(
        (rng.standard_normal((count, side, side, width)) * np.geomspace(0.3, 3, width) + 1.5).astype(np.float32)
        for side, width in zip(SIDES, CHANNELS, strict=True)
    )


def one(maps: Maps, index: int = 0) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(m[index]) for m in maps)


def repeated(maps: Maps) -> np.ndarray:
    """All channels on the finest grid by Kronecker products: (N, H_1, W_1, D) float64."""
    grown = [np.kron(m.astype(float), np.ones((1, SIDES[0] // m.shape[1], SIDES[0] // m.shape[2], 1))) for m in maps]
    return np.concatenate(grown, axis=-1)


def regulariser(maps: Maps, channels: np.ndarray) -> float:
    variances = np.concatenate([m.astype(float).reshape(-1, m.shape[-1]).var(axis=0) for m in maps])
    return 0.01 * variances[channels].mean()


def inverse_covariance(maps: Maps, channels: np.ndarray, i: int, j: int) -> np.ndarray:
    covariance = np.cov(repeated(maps)[:, i, j][:, channels], rowvar=False)
    return np.linalg.inv(covariance + regulariser(maps, channels) * np.eye(len(channels)))


# PaDiM


plain_padim = partial(PaDiM.fit, plain=True)


def test_the_references_channels() -> None:
    subset = padim.channel_subset(448)
    assert subset[:12].tolist() == [408, 9, 247, 435, 199, 165, 424, 405, 266, 51, 227, 262]
    assert subset.sum() == 23181
    assert np.histogram(subset, bins=[0, 64, 192, 448])[0].tolist() == [18, 23, 59]
    assert len(set(subset.tolist())) == 100
    assert padim.channel_subset(176).tolist() == list(range(176))
    assert len(padim.channel_subset(448, kept=448)) == 448


def test_padims_embedding_repeats_coarser_maps() -> None:
    maps = draw_maps(2)
    channels = np.array([14, 0, 7, 3, 11])
    embedded = padim.embed(one(maps), jnp.asarray(channels), 0)
    np.testing.assert_array_equal(embedded, repeated(maps)[0][..., channels].astype(np.float32))


@pytest.mark.parity
def test_padims_embedding_is_the_references_unfolding() -> None:
    torch = pytest.importorskip("torch")

    def concatenate(fine, coarse):
        """`embedding_concat` of the reference code, restated: unfold, append to each phase, fold."""
        stride = fine.shape[-1] // coarse.shape[-1]
        phases = torch.nn.functional.unfold(fine, stride, stride=stride)
        phases = phases.view(len(fine), fine.shape[1], stride**2, *coarse.shape[-2:])
        phases = torch.cat([phases, coarse[:, :, None].expand(-1, -1, stride**2, -1, -1)], dim=1)
        merged = phases.reshape(len(fine), -1, coarse.shape[-2] * coarse.shape[-1])
        return torch.nn.functional.fold(merged, fine.shape[-2:], stride, stride=stride)

    maps = draw_maps(2)
    fine, middle, coarse = (torch.from_numpy(m.transpose(0, 3, 1, 2).copy()) for m in maps)
    wanted = concatenate(concatenate(fine, middle), coarse).numpy().transpose(0, 2, 3, 1)
    embedded = padim.embed(one(maps, 1), jnp.arange(sum(CHANNELS)), 0)
    np.testing.assert_array_equal(embedded, wanted[1])


@pytest.mark.parametrize(("count", "kept"), [(40, None), (16, None), (15, None), (9, None), (2, None), (12, 7), (7, 7)])
def test_padims_score_is_scipys(count: int, kept: int | None) -> None:
    maps, test = draw_maps(count), draw_maps(1, seed=9)
    detector = plain_padim(maps, channels=kept)
    channels = np.asarray(detector.mixing)
    assert len(channels) == (kept or 15)
    assert isinstance(detector.inverse, padim.Dense) == (count > len(channels))
    scores, squares = detector.score(one(test)), detector.summands(one(test))
    for i, j in [(0, 0), (0, 7), (3, 4), (7, 2)]:
        mean = repeated(maps)[:, i, j][:, channels].mean(axis=0)
        inverse = inverse_covariance(maps, channels, i, j)
        wanted = mahalanobis(repeated(test)[0, i, j][channels], mean, inverse)
        np.testing.assert_allclose(scores[i, j], wanted, rtol=1e-4)
        np.testing.assert_allclose(squares[i, j], wanted**2, rtol=2e-4)


def test_padims_low_rank_form_equals_the_full_one() -> None:
    maps, test = draw_maps(9), draw_maps(1, seed=9)
    low = plain_padim(maps)
    assert isinstance(low.inverse, padim.LowRank)
    assert low.inverse.basis.shape == (64, 8, 15)
    channels = np.arange(15)
    dense = [inverse_covariance(maps, channels, i, j) for i, j in np.ndindex(8, 8)]
    full = low.replace(inverse=padim.Dense(jnp.asarray(np.stack(dense), jnp.float32)))

    def both(detector: PaDiM) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        return jax.value_and_grad(lambda m: detector.summands(m).sum())(one(test))

    for found, wanted in zip(jax.tree.leaves(both(low)), jax.tree.leaves(both(full)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())


def test_padims_cut_basis_never_lowers_a_distance() -> None:
    count, width = padim.MAX_RANK + 20, padim.MAX_RANK + 30
    rng = np.random.default_rng(0)
    spread = np.geomspace(0.01, 3, width).astype(np.float32)
    maps = (spread * rng.standard_normal((count, 1, 2, width), np.float32),)
    test = (jnp.asarray(spread * rng.standard_normal((1, 2, width), np.float32)),)
    cut = plain_padim(maps, channels=width)
    assert isinstance(cut.inverse, padim.LowRank)
    assert cut.inverse.basis.shape == (2, padim.MAX_RANK, width)
    for position, found in enumerate(np.asarray(cut.summands(test))[0]):
        features = maps[0][:, 0, position].astype(float)
        delta = np.asarray(test[0][0, position], float) - features.mean(axis=0)
        inverse = np.linalg.inv(np.cov(features, rowvar=False) + regulariser(maps, np.arange(width)) * np.eye(width))
        exact = delta @ inverse @ delta
        assert 0.999 * exact < found < 1.2 * exact


@pytest.mark.parametrize(("count", "rank"), [(40, 5), (9, 5), (40, 1), (9, 7)])
def test_padims_rank_is_probabilistic_pca(count: int, rank: int) -> None:
    maps, test = draw_maps(count), draw_maps(1, seed=9)
    detector = plain_padim(maps, rank=rank)
    assert isinstance(detector.inverse, padim.LowRank)
    assert (detector.inverse.basis.shape, detector.inverse.floor.shape) == ((64, rank, 15), (64, 1))
    squares = detector.summands(one(test))
    floor = regulariser(maps, np.arange(15))
    for i, j in [(0, 0), (0, 7), (3, 4), (7, 2)]:
        value, vector = np.linalg.eigh(np.cov(repeated(maps)[:, i, j], rowvar=False))
        value[:-rank] = value[:-rank].mean()
        delta = repeated(test)[0, i, j] - repeated(maps)[:, i, j].mean(axis=0)
        np.testing.assert_allclose(squares[i, j], np.square(delta @ vector) @ (1 / (value + floor)), rtol=2e-4)


@pytest.mark.parametrize("count", [40, 9])
def test_padims_error_falls_with_the_rank(count: int) -> None:
    maps, test = draw_maps(count), one(draw_maps(1, seed=9))
    exact = np.asarray(plain_padim(maps).score(test))
    errors = []
    for rank in (1, 2, 4, 6, 8, 11, 14, 15):
        found = np.asarray(plain_padim(maps, rank=rank).score(test))
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
    assert np.all(np.diff(errors) <= 1e-6)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-6


def test_a_rank_that_cuts_nothing_changes_nothing() -> None:
    for count in (40, 9):
        maps = draw_maps(count)
        jax.tree.map(np.testing.assert_array_equal, plain_padim(maps, rank=15), plain_padim(maps))
    with pytest.raises(InputError, match="a rank of 0 keeps nothing"):
        plain_padim(maps, rank=0)


def test_padim_takes_positions_where_training_features_agree() -> None:
    maps = draw_maps(5)
    for m in maps:
        m[:, :1, :1] = m[:1, :1, :1]
    detector = plain_padim(maps)
    distance = float(detector.summands(one(draw_maps(1, seed=9)))[0, 0])
    delta = repeated(draw_maps(1, seed=9))[0, 0, 0] - repeated(maps)[0, 0, 0]
    np.testing.assert_allclose(distance, delta @ delta / regulariser(maps, np.arange(15)), rtol=1e-3)


@pytest.mark.parametrize("count", [40, 9])
def test_padims_gradient_is_twice_the_whitened_difference(count: int) -> None:
    maps, test = draw_maps(count), draw_maps(1, seed=9)
    detector = plain_padim(maps)
    weight = np.random.default_rng(0).standard_normal((8, 8))
    found = jax.grad(lambda m: jnp.sum(weight * detector.summands(m)))(one(test))
    wanted = np.zeros((8, 8, 15))
    for i, j in np.ndindex(8, 8):
        delta = repeated(test)[0, i, j] - repeated(maps)[:, i, j].mean(axis=0)
        wanted[i, j] = 2 * weight[i, j] * inverse_covariance(maps, np.arange(15), i, j) @ delta
    start = 0
    for gradient in found:
        side, width = gradient.shape[0], gradient.shape[-1]
        part = wanted[..., start : start + width]
        summed = part.reshape(side, 8 // side, side, 8 // side, width).sum((1, 3))
        np.testing.assert_allclose(gradient, summed, atol=3e-4 * np.abs(wanted).max())
        start += width


def test_all_of_resnet18s_channels_fit_into_memory() -> None:
    """448 channels, 209 images, 224²: what the compiled functions hold at once, without holding it."""

    def array(*shape: int, dtype: type = np.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    positions, rank = 56 * 56, min(209 - 1, padim.MAX_RANK)
    inverse: Any = padim.LowRank(array(positions, rank, 448), array(positions, rank), array(positions, 1))  # pyright: ignore[reportArgumentType]
    detector: Any = PaDiM(array(448, dtype=np.int32), array(positions, 448), inverse, 0)  # pyright: ignore[reportArgumentType]
    maps = array(56, 56, 64), array(28, 28, 128), array(14, 14, 256)

    def total(detector: PaDiM, maps: tuple[jax.Array, ...]) -> jax.Array:
        return detector.summands(maps).sum()

    assert jax.eval_shape(PaDiM.summands, detector, maps).shape == (56, 56)
    for function in (PaDiM.score, jax.value_and_grad(total, argnums=1)):
        memory: Any = jax.jit(function).lower(detector, maps).compile().memory_analysis()
        held = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
        assert memory.argument_size_in_bytes > positions * 448 * rank * 4
        assert held < 2 * 2**30


def test_padims_finer_maps_are_averaged_and_channels_mixed() -> None:
    maps = draw_maps(2)
    mixing = padim.mixing_columns(15, kept=4, seed=3)
    np.testing.assert_allclose(mixing.T @ mixing, np.eye(4), atol=1e-6)
    fine = maps[0].astype(float).reshape(2, 4, 2, 4, 2, CHANNELS[0]).mean((2, 4))
    coarse = np.kron(maps[2].astype(float), np.ones((1, 2, 2, 1)))
    wanted = np.concatenate([fine, maps[1], coarse], axis=-1) @ mixing
    np.testing.assert_allclose(padim.embed(one(maps), jnp.asarray(mixing), 1), wanted[0], rtol=1e-5, atol=1e-5)
    for row in range(4):
        rows = padim._rows(maps, (4, 4), mixing, row)
        np.testing.assert_allclose(rows, wanted[:, row].transpose(1, 0, 2), rtol=1e-5, atol=1e-5)
    assert padim.mixing_columns(400).tolist() == list(range(400))
    assert padim.mixing_columns(401).shape == (401, 200)


@pytest.mark.parametrize(("count", "channels"), [(40, None), (5, None), (9, 6)])
def test_padims_positions_share_a_part_of_their_covariance(count: int, channels: int | None) -> None:
    maps, test = draw_maps(count), draw_maps(1, seed=9)
    detector = PaDiM.fit(maps, channels=channels, shared=0.4)
    embedded = np.stack([padim.embed(one(maps, k), detector.mixing, 1) for k in range(count)]).astype(float)
    assert embedded.shape == (count, 4, 4, channels or 15)
    covariances = {(i, j): EmpiricalCovariance().fit(embedded[:, i, j]).covariance_ for i, j in np.ndindex(4, 4)}
    unbiased = count / (count - 1)
    common = unbiased * np.mean(list(covariances.values()), axis=0)
    floor = 0.01 * embedded.var((0, 1, 2)).mean()
    scores, seen = detector.score(one(test)), np.asarray(padim.embed(one(test), detector.mixing, 1), float)
    for (i, j), own in covariances.items():
        matrix = 0.6 * unbiased * own + 0.4 * common + floor * np.eye(len(own))
        wanted = mahalanobis(seen[i, j], embedded[:, i, j].mean(axis=0), np.linalg.inv(matrix))
        np.testing.assert_allclose(scores[i, j], wanted, rtol=3e-4)
    local = detector.localize(one(test), POSITIONS)
    squares = np.square(np.asarray(scores)).ravel()[POSITIONS]
    np.testing.assert_allclose(detector.local_scores(local, one(test)), squares, rtol=1e-4)


def test_padims_shares_that_make_no_sense() -> None:
    for share in (-0.1, 1.5):
        with pytest.raises(InputError, match="makes no sense"):
            PaDiM.fit(draw_maps(3), shared=share)
    with pytest.raises(InputError, match="a shared covariance has no rank"):
        PaDiM.fit(draw_maps(3), shared=0.3, rank=2)


# PatchCore


def locally_averaged(maps: Maps, index: int) -> list[np.ndarray]:
    mean = np.full((3, 3, 1), 1 / 9)
    return [ndimage.convolve(m[index].astype(float), mean, mode="nearest") for m in maps[1:]]


def test_patchcores_embedding_is_scipys_mean_and_bilinear_growth() -> None:
    maps = draw_maps(1)
    fine, coarse = locally_averaged(maps, 0)
    # Bilinear with half-pixel centres: output k reads (k + ½)/2 − ½, the border repeated.
    places = np.clip((np.arange(4) + 0.5) / 2 - 0.5, 0, 1)
    matrix = np.stack([1 - places, places], axis=1)
    grown = np.einsum("ai,bj,ijc->abc", matrix, matrix, coarse)
    scale = np.linspace(0.5, 2, 9)
    wanted = np.concatenate([fine, grown], axis=-1) * scale
    np.testing.assert_allclose(patchcore.embed(one(maps), jnp.asarray(scale)), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parity
def test_patchcores_embedding_is_torchs() -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng(0)
    maps = tuple(rng.standard_normal((1, side, side, 3)).astype(np.float32) for side in (24, 12, 6, 3))
    pooled = [
        functional.avg_pool2d(
            functional.pad(torch.from_numpy(m.transpose(0, 3, 1, 2).copy()), (1,) * 4, mode="replicate"), 3, 1
        )
        for m in maps[1:]
    ]
    grown = [functional.interpolate(m, size=(12, 12), mode="bilinear", align_corners=False) for m in pooled]
    wanted = torch.cat(grown, dim=1)[0].numpy().transpose(1, 2, 0)
    found = patchcore.embed(one(maps), jnp.ones(9))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("first", [0, 17])
def test_the_coreset_is_the_greedy_one(first: int) -> None:
    points = np.random.default_rng(first).standard_normal((300, 6)).astype(np.float32)
    distances = pairwise_distances(points.astype(float))
    taken = [first]
    while len(taken) < 40:
        taken.append(int(distances[:, taken].min(axis=1).argmax()))
    found = patchcore.greedy_coreset(jnp.asarray(points), 40, jnp.int32(first))
    assert found.tolist() == taken


def test_the_whole_set_is_its_own_coreset() -> None:
    points = jnp.asarray(np.random.default_rng(0).standard_normal((30, 3)), jnp.float32)
    assert sorted(patchcore.greedy_coreset(points, 30, jnp.int32(4)).tolist()) == list(range(30))


def test_the_bank_holds_training_patches() -> None:
    maps = draw_maps(6)
    detector = PatchCore.fit(maps, ratio=0.25, seed=3)
    deviations = [m.astype(float).reshape(-1, m.shape[-1]).var(axis=0).mean() ** 0.5 for m in maps[1:]]
    scale = np.repeat(deviations, CHANNELS[1:])
    plain = PatchCore.fit(maps, ratio=0.25, seed=3, plain=True)
    np.testing.assert_allclose(plain.metric, 1 / scale, rtol=1e-5)
    np.testing.assert_array_equal(plain.usual, 1)
    scaled = np.concatenate([patchcore.embed(one(maps, k), plain.metric).reshape(16, 9) for k in range(6)])
    wanted = EmpiricalCovariance().fit(scaled).covariance_
    wanted = wanted + patchcore.RIDGE * np.trace(wanted) / 9 * np.eye(9)
    whitening = np.asarray(detector.metric, float) * scale[:, None]
    np.testing.assert_allclose(whitening @ whitening.T, np.linalg.inv(wanted), rtol=2e-4, atol=2e-5)
    patches = np.concatenate([patchcore.embed(one(maps, k), detector.metric).reshape(16, 9) for k in range(6)])
    bank = np.asarray(detector.bank)
    assert bank.shape == (24, 9)
    distances = pairwise_distances(bank.astype(float), patches.astype(float))
    np.testing.assert_allclose(distances.min(axis=1), 0, atol=1e-5)
    assert len(set(distances.argmin(axis=1).tolist())) == 24
    np.testing.assert_allclose(detector.norm, np.square(bank).sum(axis=-1), rtol=1e-6)
    # Covering by greedy k-centers beats a random choice of as many patches.
    rest = pairwise_distances(patches, bank).min(axis=1).max()
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = patches[rng.choice(96, 24, replace=False)]
        assert rest < pairwise_distances(patches, chosen).min(axis=1).max()


def test_usual_distances_leave_a_pictures_own_patches_out() -> None:
    maps = draw_maps(5)
    maps[1][:, 0, 0] *= 4  # normal pictures differ most in one corner
    detector = PatchCore.fit(maps, ratio=0.5)
    patches = np.stack([patchcore.embed(one(maps, k), detector.metric).reshape(16, 9) for k in range(5)])
    bank = np.asarray(detector.bank)
    owner = pairwise_distances(bank, patches.reshape(-1, 9)).argmin(axis=1) // 16
    nearest = [pairwise_distances(patches[k], bank[owner != k]).min(axis=1) ** 2 for k in range(5)]
    mean = ndimage.gaussian_filter(np.mean(nearest, axis=0).reshape(4, 4), 1.0)
    wanted = np.maximum(mean / np.quantile(mean, patchcore.ORDINARY), 1)
    np.testing.assert_allclose(detector.usual, wanted.ravel(), rtol=1e-4)
    assert wanted.argmax() == 0
    assert wanted.max() > 1.2
    np.testing.assert_array_equal(PatchCore.fit(draw_maps(1)).usual, 1)  # there is no other picture


def test_the_bank_depends_on_the_seed_alone_and_has_a_limit() -> None:
    maps = draw_maps(4)
    first, again, other = (np.asarray(PatchCore.fit(maps, seed=seed).bank) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (6, 9)
    assert not np.array_equal(first, other)
    assert PatchCore.fit(maps, limit=3).bank.shape == (3, 9)
    assert PatchCore.fit(draw_maps(1), ratio=1e-6).bank.shape == (1, 9)


def test_patchcores_score_is_scikit_learns_nearest_neighbour() -> None:
    detector = PatchCore.fit(draw_maps(10), ratio=0.5)
    test = draw_maps(1, seed=9)
    features = np.asarray(patchcore.embed(one(test), detector.metric), float).reshape(16, 9)
    neighbours = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(np.asarray(detector.bank, float))
    wanted = neighbours.kneighbors(features)[0][:, 0] ** 2 / np.asarray(detector.usual)
    np.testing.assert_allclose(detector.score(one(test)), wanted.reshape(4, 4), rtol=2e-5)


def test_a_training_patch_in_the_bank_scores_zero() -> None:
    maps = draw_maps(3)
    detector = PatchCore.fit(maps, ratio=1.0)
    scores = np.asarray(detector.score(one(maps)))
    assert scores.min() >= 0
    np.testing.assert_allclose(scores, 0, atol=1e-4)


POSITIONS = jnp.asarray([0, 3, 6, 15, 6], jnp.int32)


@pytest.fixture(scope="module")
def local_case() -> tuple[PatchCore, patchcore.Local, np.ndarray]:
    """A bank of 160, the candidates at some positions of one image, and their choice by brute force."""
    detector = PatchCore.fit(draw_maps(20), ratio=0.5)
    start = one(draw_maps(1, seed=9))
    local = detector.localize(start, POSITIONS)
    features = np.asarray(patchcore.embed(start, detector.metric), float).reshape(16, 9)[POSITIONS]
    order = pairwise_distances(features, np.asarray(detector.bank, float)).argsort(axis=1)[:, :50]
    return detector, local, np.asarray(detector.bank)[order]


def test_the_candidates_are_the_fifty_nearest(
    local_case: tuple[PatchCore, patchcore.Local, np.ndarray],
) -> None:
    detector, local, wanted = local_case
    assert detector.bank.shape == (160, 9)
    assert local.candidates.shape == (5, 50, 9)
    for found, brute in zip(np.asarray(local.candidates), wanted, strict=True):
        assert {tuple(row) for row in found.tolist()} == {tuple(row) for row in brute.tolist()}


def test_local_scores_are_the_nearest_candidates(
    local_case: tuple[PatchCore, patchcore.Local, np.ndarray],
) -> None:
    detector, local, candidates = local_case
    exact = 0
    for step in (0.0, 0.2, 1.0):
        moved = tuple(a + step * b for a, b in zip(one(draw_maps(1, 9)), one(draw_maps(1, 11)), strict=True))
        features = np.asarray(patchcore.embed(moved, detector.metric), float).reshape(16, 9)[POSITIONS]
        usual = np.asarray(detector.usual)[POSITIONS]
        dense = np.square(features[:, None] - candidates).sum(axis=-1).min(axis=1) / usual
        found = np.asarray(detector.local_scores(local, moved))
        np.testing.assert_allclose(found, dense, rtol=1e-5)
        whole = np.asarray(detector.score(moved)).reshape(-1)[POSITIONS]
        assert (found > whole - 1e-3).all()
        among = np.isclose(found, whole, rtol=1e-4)
        bank = np.asarray(detector.bank)
        nearest = bank[pairwise_distances(features, bank.astype(float)).argmin(axis=1)]
        held = (candidates == nearest[:, None]).all(axis=-1).any(axis=-1)
        np.testing.assert_array_equal(among, held)  # exact just where the true nearest is a candidate
        exact += held.sum()
        assert held.all() or step > 0
    assert exact >= 8


def test_stale_candidates_are_found(local_case: tuple[PatchCore, patchcore.Local, np.ndarray]) -> None:
    detector, local, candidates = local_case
    bank, seen = np.asarray(detector.bank, float), set()
    pictures = [draw_maps(1, seed) for seed in (9, 11, 12, 13)]
    for maps in pictures:
        features = np.asarray(patchcore.embed(one(maps), detector.metric), float).reshape(16, 9)[POSITIONS]
        nearest = bank[pairwise_distances(features, bank).argmin(axis=1)]
        wanted = ~(candidates == nearest[:, None]).all(axis=-1).any(axis=-1)
        np.testing.assert_array_equal(detector.stale(local, one(maps)), wanted)
        seen |= set(wanted.tolist())
    assert seen == {False, True}
    assert not detector.stale(local, one(pictures[0])).any()
    stacked = tuple(jnp.concatenate([maps[k] for maps in pictures]) for k in range(3))
    together = jax.vmap(lambda maps: detector.stale(local, maps))(stacked)
    np.testing.assert_array_equal(together[1], detector.stale(local, one(pictures[1])))


def test_patchcores_gradient_points_away_from_the_nearest(
    local_case: tuple[PatchCore, patchcore.Local, np.ndarray],
) -> None:
    detector, local, candidates = local_case
    test = one(draw_maps(1, seed=12))
    weight = np.array([1.0, -2.0, 0.5, 3.0, 1.0])
    found = jax.grad(lambda maps: jnp.sum(weight * detector.local_scores(local, maps)))(test)
    embedded, pull = jax.vjp(lambda maps: patchcore.embed(maps, detector.metric), test)
    features = np.asarray(embedded, float).reshape(16, 9)[POSITIONS]
    nearest = np.square(features[:, None] - candidates).sum(axis=-1).argmin(axis=1)
    cotangent = np.zeros((16, 9))
    difference = (features - candidates[np.arange(5), nearest]) / np.asarray(detector.usual)[POSITIONS, None]
    np.add.at(cotangent, np.asarray(POSITIONS), 2 * weight[:, None] * difference)
    (wanted,) = pull(jnp.asarray(cotangent.reshape(4, 4, 9), jnp.float32))
    np.testing.assert_array_equal(found[0], 0)
    for gradient, brute in zip(found, wanted, strict=True):
        np.testing.assert_allclose(gradient, brute, atol=1e-5)
    assert np.abs(found[1]).max() > 0.1


# All


def fitted(name: str, count: int) -> Detector:
    options: dict[str, Any] = {"epochs": 1, "blocks": 2, "used": 3} if name == "cflow" else {}
    return DETECTORS[name].fit(draw_maps(count), **options)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("count", [40, 8])
def test_local_scores_are_the_summands_at_their_positions(name: str, count: int) -> None:
    detector = fitted(name, count)
    test = one(draw_maps(1, seed=9))
    side = SIDES[detector.level]
    positions = jnp.asarray([side * side - 1, 0, 5, 9, 5], jnp.int32)
    local = detector.localize(test, positions)
    weight = jnp.asarray([1.0, 2.0, -1.0, 0.5, 3.0])

    def at_positions(scores: Callable[[tuple[jax.Array, ...]], jax.Array]):
        return jax.value_and_grad(lambda maps: jnp.sum(weight * scores(maps)))(test)

    found = at_positions(lambda maps: detector.local_scores(local, maps))
    wanted = at_positions(lambda maps: detector.summands(maps).reshape(-1)[positions])
    for one_leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one_leaf, other, rtol=1e-4, atol=1e-4 * (1 + np.abs(other).max()))


def test_cflow_needs_only_the_cells_of_coarser_maps_in_which_positions_lie() -> None:
    detector = CFlow.fit(draw_maps(8), used=3, epochs=1, blocks=2)
    test = one(draw_maps(1, seed=9))
    side, coarse = SIDES[0], [len(m) for m in test[1:]]
    positions = jnp.asarray([3, 0, side * side - 1, 5 * side + 2], jnp.int32)
    rows, columns = np.divmod(np.asarray(positions), side)
    own = [np.unique(rows * n // side * n + columns * n // side) for n in coarse]
    assert all(len(cells) < n * n for cells, n in zip(own, coarse, strict=True))
    padded = tuple(jnp.asarray([*cells, n * n - 1], jnp.int32) for cells, n in zip(own, coarse, strict=True))
    found, wanted = (
        detector.local_scores(detector.localize(test, positions, coarser), test) for coarser in (padded, None)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def imported(*, divided: bool, clamp: Any) -> CFlow:
    """Flows that were made elsewhere, with both choices that a trained one never has."""
    specs = [FlowSpec(width, blocks=2, clamp=clamp) for width in CHANNELS]
    made = [(flow.init(jax.random.key(k), spec), spec) for k, spec in enumerate(specs)]
    return CFlow.imported(draw_maps(4), made, divided=divided)


KINDS: dict[str, Callable[[], Detector]] = {
    "padim, dense": lambda: PaDiM.fit(draw_maps(40)),
    "padim, low rank": lambda: PaDiM.fit(draw_maps(9)),
    "padim, dense cut to a rank": lambda: PaDiM.fit(draw_maps(40), rank=5),
    "padim, low rank cut to a rank": lambda: PaDiM.fit(draw_maps(9), rank=5),
    "padim, some channels": lambda: PaDiM.fit(draw_maps(9), channels=7),
    "patchcore": lambda: PatchCore.fit(draw_maps(6)),
    "cflow, trained": lambda: fitted("cflow", 8),
    "cflow, undivided": lambda: CFlow.fit(draw_maps(8), used=1, divided=False, epochs=1, blocks=1),
    "cflow, imported": lambda: imported(divided=False, clamp="atan"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_detector_is_its_state(kind: str, tmp_path: Path) -> None:
    detector = KINDS[kind]()
    assert isinstance(detector, Detector)
    arrays, facts = detector.state()
    save_arrays(tmp_path / "kept", arrays, facts, kind="model", version=1)
    arrays, read = load_arrays(tmp_path / "kept", kind="model", version=1)
    again = type(detector).from_state(jax.tree.map(jnp.asarray, arrays), {name: read[name] for name in facts})
    assert jax.tree.structure(again) == jax.tree.structure(detector)  # static choices are part of it
    for found, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(detector), strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)
    test = one(draw_maps(1, seed=9))
    np.testing.assert_array_equal(again.score(test), detector.score(test))
    np.testing.assert_array_equal(again.summands(test), detector.summands(test))


def test_static_choices_compile_anew_and_others_do_not() -> None:
    traced: list[str] = []

    @jax.jit
    def total(detector: Detector, maps: tuple[jax.Array, ...]) -> jax.Array:
        traced.append(type(detector).__name__)
        return detector.summands(maps).sum()

    test = one(draw_maps(1, seed=9))
    for detector in (PatchCore.fit(draw_maps(4)), PatchCore.fit(draw_maps(4), seed=1)):
        total(detector, test)
    assert traced == ["PatchCore"]
    for divided, clamp in ((True, "tanh"), (False, "tanh"), (True, "atan")):
        total(imported(divided=divided, clamp=clamp), test)
    assert traced == ["PatchCore"] + 3 * ["CFlow"]


def test_the_options_of_a_detector_are_those_of_its_fit() -> None:
    assert list(options_of(PaDiM)) == ["channels", "rank", "shared", "plain"]
    assert list(options_of(PatchCore)) == ["ratio", "limit", "plain"]
    assert list(options_of(CFlow)) == ["used", "divided", "flow", "epochs", "rate", "blocks", "checkpoint"]
    for detector in DETECTORS.values():
        with pytest.raises(InputError, match=f"{detector.name} has no option 'colour'; its options are "):
            check_options(detector, {"colour": 1})


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("padim", "channels=1", 1),
        ("padim", "channels=-2", None),
        ("padim", "rank=0", None),
        ("padim", "shared=0", 0.0),
        ("padim", "shared=1.5", None),
        ("padim", "plain=maybe", None),
        ("patchcore", "ratio=1", 1.0),
        ("patchcore", "ratio=0", None),
        ("patchcore", "ratio=nan", None),
        ("patchcore", "ratio=inf", None),
        ("patchcore", "limit=-5", None),
        ("cflow", "used=0", None),
        ("cflow", f"flow={__file__}", Path(__file__)),
        ("cflow", "checkpoint=training", Path("training")),
        ("cflow", "epochs=1", 1),
        ("cflow", "epochs=0", 0),
        ("cflow", "epochs=-1", None),
        ("cflow", "rate=-1", None),
        ("cflow", "rate=nan", None),
        ("cflow", "blocks=1025", None),
    ],
)
def test_values_of_options_are_within_their_ranges(name: str, given: str, taken: object) -> None:
    option, _, value = given.partition("=")
    if taken is None:
        with pytest.raises(InputError, match=f"option {option} of {name} is '{value}'; input should be "):
            parse_options(detector_class(name), [given])
    else:
        assert parse_options(detector_class(name), [given]) == {option: taken}


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("padim", {"rank": 0}, "option rank of padim is 0; input should be greater than or equal to 1"),
        ("patchcore", {"limit": np.int32(0)}, r"option limit of patchcore is np.int32\(0\); input should be greater"),
        ("patchcore", {"ratio": 1.5}, "option ratio of patchcore is 1.5; input should be less than or equal to 1"),
        ("cflow", {"epochs": -1}, "option epochs of cflow is -1; input should be greater than or equal to 0"),
        ("cflow", {"used": 2.5}, "option used of cflow is 2.5; input should be a valid integer"),
    ],
)
def test_python_keeps_to_the_ranges_of_options_as_the_command_line_does(
    lite0: Extractor, name: str, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(InputError, match=error):
        fit(np.zeros((4, 64, 64, 3), np.uint8), detector=name, extractor=lite0, options=options)


def test_an_option_may_be_of_any_type() -> None:
    class Own(PaDiM):
        @classmethod
        def fit(
            cls,
            maps: tuple[np.ndarray, ...],
            *,
            prior: np.ndarray | None = None,
            spec: FlowSpec | None = None,
            other=1,
            seed: int = 0,
        ) -> Any:
            raise NotImplementedError

    options = {"prior": np.ones(3), "spec": FlowSpec(6, 2), "other": 2}
    assert check_options(Own, options) == options
    with pytest.raises(InputError, match="option prior of padim is 3; input should be an instance of ndarray"):
        check_options(Own, {"prior": 3})


@pytest.mark.parametrize(("count", "maps"), [(16, 2), (17, 3)])
def test_cflow_takes_two_maps_with_few_pictures(count: int, maps: int) -> None:
    assert len(CFlow.fit(draw_maps(count), epochs=0, blocks=1).decoders) == maps
    assert len(CFlow.fit(draw_maps(count), used=1, epochs=0, blocks=1).decoders) == 1


def test_an_unknown_detector_is_refused() -> None:
    with pytest.raises(InputError, match=r"no detector is called 'dog'; choose one of padim, patchcore, cflow"):
        detector_class("dog")
