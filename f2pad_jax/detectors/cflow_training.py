"""Training of CFLOW-AD's flows on the features of normal pictures, interruptible."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from f2pad_jax.checkpoint import check_arrays, check_target, is_checkpoint, load_arrays, save_arrays
from f2pad_jax.errors import InputError
from f2pad_jax.networks import flow
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.output import sweep

KIND, VERSION = "flow-training", 1

BATCH = 256  # features a step, as the reference's
EPOCHS = 25  # meta-epochs, as the reference's
PASSES = 8  # over the features in one meta-epoch at most, as the reference's …
STEPS = 120  # … but no more steps than this
WARM_UP = 2  # meta-epochs
RATE = 1e-3  # highest learning rate; the reference's 2e-4 is for its 200 passes
HELD_OUT = 8  # one picture in eight tells when to stop
JUDGED = 8192  # held-out features that are judged at most
PATIENCE = 5  # meta-epochs without a better held-out likelihood


class Progress:
    """What an unfinished training has reached, kept in a folder where there is one, with the progress bar.

    Args of the constructor are those of `cflow.fit`; they and the maps themselves must be the same when it goes on.
    """

    def __init__(
        self, folder: Path | None, maps: tuple[np.ndarray, ...], *, epochs: int, rate: float, blocks: int, seed: int
    ) -> None:
        self.folder, self.epochs, self.rate, self.seed = folder, epochs, rate, seed
        self.kept: dict[str, Any] = {}
        self.facts = {"epochs": epochs, "rate": rate, "blocks": blocks, "seed": seed}
        if folder is None:
            return
        digest = hashlib.sha256()
        for m in maps:
            digest.update(repr((m.shape, m.dtype.str)).encode() + np.ascontiguousarray(m).tobytes())
        self.facts["features"] = digest.hexdigest()
        sweep(folder.parent)  # a save that was killed may have set it aside
        check_target(folder, kind=KIND)
        if is_checkpoint(folder, kind=KIND):
            self.kept, facts = load_arrays(folder, kind=KIND, version=VERSION)
            if any(facts.get(name) != value for name, value in self.facts.items()):
                raise InputError(
                    "holds a training of other pictures or settings", where=folder, hint="name a new folder"
                )
            if unknown := sorted(self.kept.keys() - {f"map{level}" for level in range(len(maps))}):
                raise InputError(f"damaged {KIND} (it has a {unknown[0]})", where=folder, hint="remove it")

    def restore(self, level: int, fresh: State) -> State:
        """The state of one map's training, or the fresh one.

        Raises:
          InputError: what is kept is no state of such a training.
        """
        kept = self.kept.get(f"map{level}")
        if kept is None:
            return fresh
        leaves, tree = jax.tree.flatten(fresh)
        try:
            check_arrays(kept, {f"{k:03d}": leaf for k, leaf in enumerate(leaves)})
            state = jax.tree.unflatten(tree, [jnp.asarray(kept[f"{k:03d}"]) for k in range(len(leaves))])
            if not (1 <= state.epoch <= self.epochs and 0 <= state.stale < state.epoch):
                raise ValueError(f"meta-epoch {state.epoch} of {self.epochs}, {state.stale} without a better one")
        except (AttributeError, ValueError) as error:
            raise InputError(f"damaged {KIND} (map{level}: {error})", where=self.folder, hint="remove it") from error
        return state

    def store(self, level: int, state: Any) -> None:
        """Keeps the state of one map's training."""
        if self.folder is not None:
            self.kept[f"map{level}"] = {f"{k:03d}": np.asarray(leaf) for k, leaf in enumerate(jax.tree.leaves(state))}
            save_arrays(self.folder, self.kept, self.facts, kind=KIND, version=VERSION)


class State(NamedTuple):
    """The training of one flow after some meta-epochs."""

    params: flow.Params
    moments: optax.OptState
    best: flow.Params  # with the lowest held-out loss
    lowest: jax.Array  # () that loss
    stale: jax.Array  # () int32, meta-epochs since
    epoch: jax.Array  # () int32, meta-epochs done


class Fibres(NamedTuple):
    """Features of pictures as rows, and the condition of the position of row i at i modulo the positions."""

    features: jax.Array  # (N·H·W, C)
    code: jax.Array  # (H·W, 128)


def learning_rates(epoch: int, steps: int, *, epochs: int, rate: float) -> np.ndarray:
    """The reference's schedule of one meta-epoch, (steps,): a cosine down to rate/1000, after a linear warm-up."""
    lowest = rate * 0.1**3

    def cosine(at: int) -> float:
        return lowest + (rate - lowest) * (1 + np.cos(np.pi * at / epochs)) / 2

    if epoch >= WARM_UP:
        return np.full(steps, cosine(epoch), np.float32)
    done = (epoch * steps + np.arange(steps)) / (WARM_UP * steps)
    return (rate / 10 + done * (cosine(WARM_UP) - rate / 10)).astype(np.float32)


def _loss(params: flow.Params, fibres: Fibres, rows: jax.Array, spec: FlowSpec) -> jax.Array:
    """Mean of −log σ(log p / C), of some rows."""
    terms = flow.condition_terms(params, fibres.code[rows % len(fibres.code)])
    logs = flow.log_prob(params, fibres.features[rows], terms, spec=spec)
    return jnp.mean(jax.nn.softplus(-logs / spec.channels))


_judge = jax.jit(_loss, static_argnames="spec")


@partial(jax.jit, static_argnames="spec")
def _run(
    params: flow.Params, moments: optax.OptState, fibres: Fibres, order: jax.Array, rates: jax.Array, spec: FlowSpec
) -> tuple[flow.Params, optax.OptState]:
    """Adam steps on batches of rows `order` (steps, batch), with the rates (steps,)."""
    fixed = {name: leaf for name, leaf in params.items() if name in flow.FIXED}
    adam = optax.scale_by_adam()

    def step(carry, batch):
        trained, moments = carry
        rows, rate = batch
        gradient = jax.grad(lambda p: _loss(p | fixed, fibres, rows, spec))(trained)
        direction, moments = adam.update(gradient, moments)
        return (jax.tree.map(lambda p, d: p - rate * d, trained, direction), moments), None

    trained = {name: leaf for name, leaf in params.items() if name not in flow.FIXED}
    (trained, moments), _ = jax.lax.scan(step, (trained, moments), (order, rates))
    return trained | fixed, moments


def _fibres(pictures: np.ndarray) -> Fibres:
    height, width, channels = pictures.shape[1:]
    code = flow.position_code(height, width).reshape(height * width, -1)
    return Fibres(jnp.asarray(pictures.reshape(-1, channels)), jnp.asarray(code))


def train(m: np.ndarray, spec: FlowSpec, *, level: int, progress: Progress, bar: tqdm) -> flow.Params:
    """The flow of one map, with the parameters of the best held-out likelihood.

    Meta-epochs of at most `PASSES` passes and `STEPS` Adam steps; ends early after `PATIENCE` of them without a
    better one. Held-out pictures are normal ones of the training set; no anomaly is ever looked at.

    Args:
      m: standardised features (N, H, W, C) of normal pictures, N ≥ 2.
      spec: definition of the flow.
      level: number of the map, finest first.
      progress: settings, and where unfinished training is kept.
      bar: moves by one a meta-epoch.

    Raises:
      InputError: the training diverged.
    """
    shuffled = np.random.default_rng([progress.seed, 0]).permutation(len(m))
    kept = max(1, len(m) // HELD_OUT)
    unseen, seen = _fibres(m[np.sort(shuffled[:kept])]), _fibres(m[np.sort(shuffled[kept:])])
    judged = np.linspace(0, len(unseen.features) - 1, min(JUDGED, len(unseen.features))).astype(np.int32)
    count = len(seen.features)
    batch = min(BATCH, count)
    steps = min(STEPS, PASSES * (count // batch))
    params = flow.init(jax.random.fold_in(jax.random.key(progress.seed), level), spec)
    moments = optax.scale_by_adam().init({k: leaf for k, leaf in params.items() if k not in flow.FIXED})
    zero = jnp.int32(0)
    state = progress.restore(level, State(params, moments, params, jnp.float32(np.inf), zero, zero))
    bar.update(int(state.epoch))
    for epoch in range(int(state.epoch), progress.epochs):
        if state.stale >= PATIENCE:
            break
        rng = np.random.default_rng([progress.seed, 1, level, epoch])
        passes = [rng.permutation(count)[: count - count % batch] for _ in range(-(-steps // (count // batch)))]
        order = np.concatenate(passes).astype(np.int32)[: steps * batch].reshape(steps, batch)
        rates = learning_rates(epoch, steps, epochs=progress.epochs, rate=progress.rate)
        params, moments = _run(state.params, state.moments, seen, order, rates, spec)
        loss = _judge(params, unseen, judged, spec)
        if not jnp.isfinite(loss):
            raise InputError("the training of a flow diverged", hint="lower its learning rate")
        better = loss < state.lowest
        state = State(
            params=params,
            moments=moments,
            best=params if better else state.best,
            lowest=jnp.minimum(loss, state.lowest),
            stale=jnp.int32(0) if better else state.stale + 1,
            epoch=jnp.int32(epoch + 1),
        )
        progress.store(level, state)
        bar.set_postfix(loss=f"{float(state.lowest):.3f}", refresh=False)
        bar.update()
    return state.best
