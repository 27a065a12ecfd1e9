"""CFLOW-AD: training, scores, import of trained flows."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

from f2pad_jax.detectors import bound_of, cflow_training
from f2pad_jax.detectors.cflow import CFlow
from f2pad_jax.errors import InputError
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.weights.flow_files import from_freia, read_flows, to_freia

CHANNELS, SIDES = (5, 4), (4, 2)
QUICK: dict[str, Any] = {"epochs": 4, "blocks": 2, "rate": 1e-2}
Maps = tuple[np.ndarray, ...]


def draw_maps(count: int, seed: int = 0) -> Maps:
    """Features of several scales whose channels hang together."""
    rng = np.random.default_rng(seed)
    maps = []
    for side, width in zip(SIDES, CHANNELS, strict=True):
        mixing = np.random.default_rng(width).standard_normal((width, width)) * np.geomspace(0.3, 5, width)
        maps.append((rng.standard_normal((count, side, side, width)) @ mixing + 1).astype(np.float32))
    return tuple(maps)


def one(maps: Maps, index: int = 0) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(m[index]) for m in maps)


@pytest.fixture(scope="module")
def fitted() -> CFlow:
    return CFlow.fit(draw_maps(24), seed=0, **QUICK)


def assert_same(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def likelihoods(detector: CFlow, maps: Maps, level: int) -> np.ndarray:
    """Log p / C at every position of all pictures, from the flow and the position code alone: (N, H, W)."""
    decoder, m = detector.decoders[level], maps[level]
    spec = FlowSpec(m.shape[-1], decoder.flow["scale"].shape[0])
    standard = (m - np.asarray(decoder.mean)) / np.asarray(decoder.deviation)
    code = np.tile(flow.position_code(*m.shape[1:3]).reshape(-1, 128), (len(m), 1))
    terms = flow.condition_terms(decoder.flow, jnp.asarray(code))
    logs = flow.log_prob(decoder.flow, jnp.asarray(standard.reshape(-1, m.shape[-1])), terms, spec=spec)
    return np.asarray(logs, float).reshape(m.shape[:3]) / m.shape[-1]


# Training


def test_training_lowers_the_held_out_loss(fitted: CFlow) -> None:
    fresh = draw_maps(40, seed=5)
    before = CFlow.fit(draw_maps(24), seed=0, blocks=2, epochs=0)
    for level in range(2):
        first, last = (likelihoods(p, fresh, level).mean() for p in (before, fitted))
        assert last > first + 0.05


def test_one_program_trains_a_map_through_all_epochs() -> None:
    compiled: Any = cflow_training._run
    before = compiled._cache_size()
    CFlow.fit(draw_maps(4), used=1, epochs=3, blocks=1)
    assert compiled._cache_size() == before + 1


def test_training_depends_on_the_seed_alone(fitted: CFlow) -> None:
    assert_same(CFlow.fit(draw_maps(24), seed=0, **QUICK), fitted)
    other = CFlow.fit(draw_maps(24), seed=1, **QUICK)
    assert not np.array_equal(other.decoders[0].flow["inner"], fitted.decoders[0].flow["inner"])


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_interrupted_training_goes_on_where_it_stopped(
    fitted: CFlow, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in the first map, between the maps and in the second."""
    run, calls = cflow_training._run, []

    def fails(*arguments: Any):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return run(*arguments)

    folder = tmp_path / "training"
    monkeypatch.setattr(cflow_training, "_run", fails)
    with pytest.raises(KeyboardInterrupt):
        CFlow.fit(draw_maps(24), seed=0, checkpoint=folder, **QUICK)
    resumed: list[int] = []
    monkeypatch.setattr(cflow_training, "_run", lambda *a: resumed.append(1) or run(*a))
    assert_same(CFlow.fit(draw_maps(24), seed=0, checkpoint=folder, **QUICK), fitted)
    assert len(resumed) == 2 * QUICK["epochs"] - stop
    resumed.clear()
    assert_same(CFlow.fit(draw_maps(24), seed=0, checkpoint=folder, **QUICK), fitted)
    assert not resumed


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    CFlow.fit(draw_maps(4), used=1, checkpoint=folder, epochs=1, blocks=1)
    changed: list[dict[str, Any]] = [{}, {"seed": 1}, {"rate": 1e-4}]
    for maps, options in zip((draw_maps(4, seed=1), draw_maps(4), draw_maps(4)), changed, strict=True):
        with pytest.raises(InputError, match="a training of other pictures or settings; name a new folder"):
            CFlow.fit(maps, used=1, checkpoint=folder, epochs=1, blocks=1, **options)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    with pytest.raises(InputError, match="exists already and is no flow-training"):
        CFlow.fit(draw_maps(4), checkpoint=tmp_path / "mine", epochs=1, blocks=1)


def test_training_stops_early_and_keeps_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.1, 2.0, 2.4, 2.6, 1.0])
    seen: list[Any] = []
    run = cflow_training._run
    monkeypatch.setattr(cflow_training, "_run", lambda *a: seen.append(run(*a)) or seen[-1])
    monkeypatch.setattr(cflow_training, "_judge", lambda *_: jnp.float32(next(losses)))
    detector = CFlow.fit(draw_maps(4), used=1, epochs=20, blocks=1)
    assert len(seen) == 2 + cflow_training.PATIENCE
    assert_same(detector.decoders[0].flow, seen[1][0])


def test_diverged_training_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="diverged; lower its learning rate"):
        CFlow.fit(draw_maps(24), epochs=2, blocks=2, rate=1e30)


def test_the_schedule_is_the_references() -> None:
    rates = np.concatenate([cflow_training.learning_rates(e, 4, epochs=25, rate=2e-4) for e in range(25)])
    lowest = 2e-7

    def cosine(epoch: int) -> float:
        return lowest + (2e-4 - lowest) * (1 + np.cos(np.pi * epoch / 25)) / 2

    np.testing.assert_allclose(rates[0], 2e-5, rtol=1e-6)
    np.testing.assert_allclose(rates[4], (2e-5 + cosine(2)) / 2, rtol=1e-6)
    np.testing.assert_allclose(rates[8:].reshape(-1, 4), np.array([[cosine(e)] * 4 for e in range(2, 25)]), rtol=1e-5)
    assert (np.diff(rates[:8]) > 0).all()


def test_too_few_pictures_or_maps_are_refused() -> None:
    with pytest.raises(InputError, match="one picture is too few"):
        CFlow.fit(draw_maps(1))
    with pytest.raises(InputError, match="3 maps are asked for, the extractor has 2"):
        CFlow.fit(draw_maps(4), used=3)


# Scores


def test_the_summands_add_up_to_equation_six(fitted: CFlow) -> None:
    test = draw_maps(1, seed=9)
    logs = [likelihoods(fitted, test, level)[0] for level in range(2)]
    for detector, factors in ((fitted, (1, 1)), (fitted.replace(divided=False), CHANNELS)):
        summands = np.asarray(detector.summands(one(test)))
        costs = [-np.log(1 / (1 + np.exp(-factor * log))) for log, factor in zip(logs, factors, strict=True)]
        np.testing.assert_allclose(summands.sum(), sum(cost.sum() for cost in costs), rtol=1e-4)
        np.testing.assert_allclose(summands, costs[0] + np.kron(costs[1], np.ones((2, 2))) / 4, rtol=1e-4)


def test_the_score_is_the_likelihood_missing_from_the_references(fitted: CFlow) -> None:
    train, test = draw_maps(24), draw_maps(1, seed=9)
    wanted = np.zeros((4, 4))
    for level, side in enumerate(SIDES):
        reference = likelihoods(fitted, train, level).max()
        np.testing.assert_allclose(fitted.decoders[level].reference, reference, rtol=1e-4)
        p = np.minimum(np.exp(likelihoods(fitted, test, level)[0] - reference), 1)
        corners = np.linspace(0, side - 1, 4)
        grid = np.stack(np.meshgrid(corners, corners, indexing="ij"), axis=-1)
        wanted += 1 - RegularGridInterpolator((np.arange(side), np.arange(side)), p)(grid)
    np.testing.assert_allclose(fitted.score(one(test)), wanted, atol=1e-4)
    assert float(fitted.score(one(test)).max()) <= fitted.bound == bound_of(fitted) == len(fitted.decoders)


def test_strange_features_score_higher(fitted: CFlow) -> None:
    test = draw_maps(1, seed=9)
    strange = tuple(m.copy() for m in test)
    strange[0][0, 1, 2] += 20
    for function in (fitted.score, fitted.summands):
        before, after = (np.asarray(function(one(maps))) for maps in (test, strange))
        changed = before != after
        assert changed.sum() == 1
        assert after[1, 2] > before[1, 2] + 0.1


def test_fewer_maps_and_undivided_likelihoods_are_options() -> None:
    few = CFlow.fit(draw_maps(4), used=1, divided=False, epochs=1, blocks=1)
    assert (len(few.decoders), few.divided) == (1, False)
    arrays, facts = few.state()
    assert (arrays.keys(), facts) == ({"map0"}, {"divided": False, "clamp": "tanh"})
    summands = np.asarray(few.summands(one(draw_maps(4))))
    wanted = np.logaddexp(0, -CHANNELS[0] * likelihoods(few, draw_maps(4), 0)[0])
    np.testing.assert_allclose(summands, wanted, rtol=1e-4)


# Import


def flows(*, permutation: Any = "soft") -> list[tuple[flow.Params, FlowSpec]]:
    specs = [FlowSpec(width, blocks=2, permutation=permutation) for width in CHANNELS]
    return [(flow.init(jax.random.key(k), spec), spec) for k, spec in enumerate(specs)]


def file_of(path: Path, states: list[dict[str, np.ndarray]], prefix: str = "model.decoders.") -> Path:
    named = {f"{prefix}{k}.{name}": array for k, state in enumerate(states) for name, array in state.items()}
    np.savez(path, **named)  # pyright: ignore[reportArgumentType]
    return path


@pytest.mark.parametrize("permutation", ["soft", "hard"])
def test_flows_survive_a_file(tmp_path: Path, permutation: str) -> None:
    wanted = flows(permutation=permutation)
    path = file_of(tmp_path / "flows.npz", [to_freia(params) for params, _ in wanted])
    found = read_flows(path, clamp="atan")
    for (params, spec), (original, known) in zip(found, wanted, strict=True):
        assert spec == FlowSpec(known.channels, 2, clamp="atan", permutation=permutation)  # pyright: ignore[reportArgumentType]
        assert_same(params, original)


@pytest.mark.parity
@pytest.mark.parametrize("source", ["cflow-ad", "cflow-ad, legacy", "anomalib"])
def test_torch_checkpoints_are_read(tmp_path: Path, source: str) -> None:
    torch = pytest.importorskip("torch")
    states = [OrderedDict((k, torch.tensor(v)) for k, v in to_freia(params).items()) for params, _ in flows()]
    encoder = OrderedDict({"conv1.weight": torch.zeros(4, 3, 7, 7)})
    if source != "anomalib":
        content = {"encoder_state_dict": encoder, "decoder_state_dict": states}
    else:
        named = {f"model.decoders.{k}.{name}": leaf for k, state in enumerate(states) for name, leaf in state.items()}
        content = {"state_dict": {"model.encoder.conv1.weight": encoder["conv1.weight"], **named}}
    torch.save(content, tmp_path / "model.pt", _use_new_zipfile_serialization="legacy" not in source)
    for (params, spec), (original, known) in zip(read_flows(tmp_path / "model.pt"), flows(), strict=True):
        assert spec == known
        assert_same(params, original)


@pytest.mark.parametrize("clamp", ["tanh", "atan"])
def test_imported_flows_need_no_training(clamp: Any) -> None:
    imported = [(params, FlowSpec(spec.channels, 2, clamp=clamp)) for params, spec in flows()]
    detector = CFlow.imported(draw_maps(4), imported)
    assert detector.clamp == clamp
    assert_same(detector.decoders[1].flow, imported[1][0])
    test = draw_maps(1, seed=9)
    terms = flow.condition_terms(imported[0][0], jnp.asarray(flow.position_code(4, 4).reshape(16, 128)))
    logs = flow.log_prob(imported[0][0], jnp.asarray(test[0].reshape(16, -1)), terms, spec=imported[0][1])
    only = CFlow.imported(draw_maps(4), imported[:1])
    found = only.summands(one(test)).ravel()
    np.testing.assert_allclose(found, jax.nn.softplus(-logs / CHANNELS[0]), rtol=1e-4)
    with pytest.raises(InputError, match="the flows are of maps with 4 channels, not 5"):
        CFlow.imported(draw_maps(4), imported[1:])


def test_a_file_takes_the_place_of_training(tmp_path: Path) -> None:
    path = file_of(tmp_path / "flows.npz", [to_freia(params) for params, _ in flows()])
    found = CFlow.fit(draw_maps(4), flow=path)
    assert_same(found, CFlow.imported(draw_maps(4), read_flows(path)))
    assert len(CFlow.fit(draw_maps(4), flow=path, used=1).decoders) == 1
    assert len(CFlow.fit(draw_maps(4), flow=path, blocks=2).decoders) == 2
    with pytest.raises(InputError, match="the flows have 2 couplings, not 3"):
        CFlow.fit(draw_maps(4), flow=path, blocks=3)
    with pytest.raises(InputError, match="imported flows are not trained; leave checkpoint out"):
        CFlow.fit(draw_maps(4), flow=path, checkpoint=tmp_path / "training")


def _broken(change: str) -> dict[str, np.ndarray]:
    state = to_freia(flows()[0][0])
    match change:
        case "missing":
            del state["module_list.1.subnet.0.bias"]
        case "unknown":
            state["module_list.0.vk_householder"] = np.zeros((2, 5), np.float32)
        case "gap":
            state = {name.replace("list.1.", "list.2."): array for name, array in state.items()}
        case "shape":
            state["module_list.1.subnet.2.bias"] = np.zeros(3, np.float32)
        case "infinite":
            state["module_list.0.global_offset"] = np.full((1, 5), np.inf, np.float32)
        case "inverse":
            state["module_list.0.w_perm_inv"] = state["module_list.0.w_perm_inv"][::-1]
        case "rotation":
            state["module_list.0.w_perm"] = 2 * state["module_list.0.w_perm"]
            state["module_list.0.w_perm_inv"] = state["module_list.0.w_perm_inv"] / 2
        case "flat":
            state["module_list.0.global_scale"] = np.zeros(5, np.float32)
        case "foreign":
            state["something"] = np.zeros(5, np.float32)
    return state


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("missing", "subnet.0.bias of block 1 is missing"),
        ("unknown", "vk_householder of block 0 is unknown"),
        ("gap", r"has blocks \[0, 2\]"),
        ("shape", r"subnet.2.bias of block 1 is \(3,\), not \(4,\)"),
        ("infinite", "global_offset of block 0 holds non-finite values"),
        ("inverse", "w_perm_inv of block 0 is not the inverse of w_perm"),
        ("rotation", "w_perm of block 0 is no rotation"),
        ("flat", r"global_scale of block 0 is missing or not \(1, C\)"),
        ("foreign", "unknown key 'something'"),
    ],
)
def test_a_flow_that_does_not_fit_is_one_clear_line(change: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        from_freia(_broken(change))
    with pytest.raises(InputError, match=f"flow 0: {complaint}") as caught:
        read_flows(file_of(tmp_path / "flows.npz", [_broken(change)]))
    assert "\n" not in str(caught.value)


def test_a_file_without_flows_is_one_clear_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weight=np.zeros(3))
    with pytest.raises(InputError, match="holds no flows; give a checkpoint of cflow-ad"):
        read_flows(tmp_path / "other.npz")
    state = to_freia(flows()[0][0])
    file_of(tmp_path / "gap.npz", [{}, state])
    with pytest.raises(InputError, match=r"holds flows \[1\]"):
        read_flows(tmp_path / "gap.npz")
