"""Training of a small masked autoencoder on the normal pictures of one part: `f2pad train-mae`.

The targets are plain ImageNet-normalised pixels of the removed patches. Nothing is flipped or turned: a part's left
is not its right. Every random choice of a step depends on the seed and the step's number alone, so that a run that
was cut off goes on to the very parameters it would have reached.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from f2pad_jax.checkpoint import check_arrays, check_target, is_checkpoint, load_arrays, save_arrays
from f2pad_jax.core.pixels import normalize
from f2pad_jax.errors import InputError
from f2pad_jax.fills.autoencoder import KIND, VERSION, Inpainter
from f2pad_jax.networks.mae import MAESpec, position_code, reconstruct, shapes
from f2pad_jax.networks.transformer import patchify
from f2pad_jax.output import sweep

STATE = "training-run"  # kind of the folder that keeps an unfinished run
BATCH = 8
STEPS = 900  # of a run whose epochs are not given: about 8 minutes of one core
RATE, WARM_UP, DECAY = 2e-3, 0.05, 0.05  # peak of the learning rate; share of the steps that it rises; weight decay
BLOCKS = 6  # rectangles that a mask is the union of, at most
SAVE_EVERY = 60.0  # seconds between two saves of an unfinished run


def small_spec(size: int) -> MAESpec:
    """The autoencoder that is trained for pictures of a size, a multiple of 16: 2.5 million parameters.

    Raises:
      InputError: another size.
    """
    if size % 16 or size < 32:
        raise InputError(f"pictures of {size} pixels do not fit", hint="use a multiple of 16, at least 32")
    return MAESpec(size, 16, 192, 4, 3, 128, 2, 2)


def initial_params(spec: MAESpec, seed: int) -> dict[str, Any]:
    """Glorot-uniform matrices, zero biases, unit scales, σ = 0.02 for class and mask token.

    The last matrix is zero: the first prediction is ImageNet's mean colour. Positions start as sines and cosines.
    """
    rng = np.random.default_rng([seed, 0])

    def made(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = path[-1].key
        if name in ("positions", "decoder_positions"):
            return jnp.asarray(position_code(spec.grid, leaf.shape[-1]))
        if name in ("cls", "mask_token"):
            return jnp.asarray(rng.normal(0, 0.02, leaf.shape), jnp.float32)
        if name == "kernel" and path[0].key != "decoder_pred":
            limit = math.sqrt(6 / sum(leaf.shape[-2:]))
            return jnp.asarray(rng.uniform(-limit, limit, leaf.shape), jnp.float32)
        return jnp.full(leaf.shape, float(name == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(made, shapes(spec))


def region_tokens(key: jax.Array, batch: int, grid: int) -> jax.Array:
    """Masks of the shape that regions have: unions of up to `BLOCKS` rectangles, each less than 3/4 of the grid a side.

    Args:
      key: random key.
      batch: how many.
      grid: tokens along one side.

    Returns:
      (batch, grid²) bool, at least one token each.
    """
    extent, place, number = jax.random.split(key, 3)
    sides = jax.random.randint(extent, (batch, BLOCKS, 2), 1, max(grid * 3 // 4, 2))
    first = jnp.floor(jax.random.uniform(place, sides.shape) * (grid - sides + 1)).astype(jnp.int32)
    line = jnp.arange(grid)
    inside = (line >= first[..., None]) & (line < (first + sides)[..., None])  # (batch, BLOCKS, 2, grid)
    used = jnp.arange(BLOCKS) < jax.random.randint(number, (batch, 1), 1, BLOCKS + 1)
    blocks = inside[:, :, 0, :, None] & inside[:, :, 1, None, :] & used[..., None, None]
    return blocks.any(1).reshape(batch, -1)


def loss(params: dict[str, Any], images: jax.Array, removed: jax.Array, *, spec: MAESpec) -> jax.Array:
    """Mean squared error over the removed patches of normalised images (B, S, S, 3)."""
    made = reconstruct(params, images, removed, spec=spec)
    error = jnp.mean(jnp.square(patchify(made - images, patch=spec.patch)), axis=-1)
    return jnp.sum(jnp.where(removed, error, 0.0)) / jnp.sum(removed)


class _State(NamedTuple):
    params: Any
    moments: optax.OptState
    step: jax.Array


def _optimizer(steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, RATE, round(WARM_UP * steps), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, 0.9, 0.95, weight_decay=DECAY, mask=_decayed))


def _decayed(params: dict[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


@partial(jax.jit, static_argnames=("spec", "steps"))
def _step(state: _State, pictures: jax.Array, seed: jax.Array, *, spec: MAESpec, steps: int):
    """One update from a batch drawn of uint8 pictures (N, S, S, 3); returns the new state and the loss."""
    chosen, masks = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))
    batch = pictures[jax.random.randint(chosen, (BATCH,), 0, len(pictures))]
    images = normalize(batch)
    removed = region_tokens(masks, BATCH, spec.grid)
    value, slope = jax.value_and_grad(loss)(state.params, images, removed, spec=spec)
    change, moments = _optimizer(steps).update(slope, state.moments, state.params)
    return _State(optax.apply_updates(state.params, change), moments, state.step + 1), value


def train(
    images: np.ndarray,
    *,
    seed: int = 0,
    epochs: int | None = None,
    spec: MAESpec | None = None,
    unfinished: Path | None = None,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Inpainter:
    """Trains a small masked autoencoder with AdamW and a cosine schedule.

    Args:
      images: normal pictures, uint8 RGB (N, S, S, 3).
      seed: of the parameters, the batches and the masks.
      epochs: passes over the pictures; None makes 900 steps of 8 pictures, whatever N.
      spec: another network than `small_spec(S)`.
      unfinished: folder that keeps the state about once a minute and when the run is cut off; a run found there
        goes on, and the folder is removed at the end.
      on_step: called after each step with its number, from 1, and its loss.

    Raises:
      InputError: pictures of the wrong kind, or `unfinished` is of a run with other settings or pictures.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] != images.shape[2]:
        raise InputError(f"the pictures are {images.dtype} {images.shape}", hint="give uint8 RGB, (N, S, S, 3)")
    if not len(images):
        raise InputError("there is no picture to train on", hint="give normal pictures")
    spec = spec or small_spec(images.shape[1])
    steps = STEPS if epochs is None else max(1, math.ceil(epochs * len(images) / BATCH))
    pictures = hashlib.sha256(images.tobytes()).hexdigest()
    facts = {"spec": asdict(spec), "seed": seed, "steps": steps, "pictures": pictures}
    params = initial_params(spec, seed)
    state = _State(params, _optimizer(steps).init(params), jnp.int32(0))
    if unfinished is not None:
        sweep(unfinished.parent)  # a save that was killed may have set it aside
    if unfinished is not None and unfinished.exists():
        state = _restored(unfinished, state, facts)
    saved = time.monotonic()
    device_pictures = jnp.asarray(images)
    try:
        with tqdm(total=steps, initial=int(state.step), desc="train-mae", unit="step", disable=None) as bar:
            for step in range(int(state.step) + 1, steps + 1):
                state, value = _step(state, device_pictures, jnp.uint32(seed), spec=spec, steps=steps)
                bar.update()
                bar.set_postfix_str(f"loss {float(value):.3f}", refresh=False)
                on_step(step, float(value))
                if unfinished is not None and time.monotonic() > saved + SAVE_EVERY:
                    _keep(unfinished, state, facts)
                    saved = time.monotonic()
    except BaseException:
        if unfinished is not None:
            _keep(unfinished, state, facts)
        raise
    return Inpainter(state.params, spec)


def _keep(folder: Path, state: _State, facts: dict[str, Any]) -> None:
    leaves = {str(index): leaf for index, leaf in enumerate(jax.tree.leaves(state))}
    save_arrays(folder, leaves, facts, kind=STATE, version=VERSION)


def _restored(folder: Path, like: _State, facts: dict[str, Any]) -> _State:
    arrays, found = load_arrays(folder, kind=STATE, version=VERSION)
    if {name: found.get(name) for name in facts} != facts:
        raise InputError(
            "is an unfinished run with other settings or pictures",
            where=folder,
            hint="finish it with those, or remove it",
        )
    leaves, tree = jax.tree.flatten(like)
    try:
        check_arrays(arrays, {str(index): leaf for index, leaf in enumerate(leaves)})
        state = jax.tree.unflatten(tree, [jnp.asarray(arrays[str(index)]) for index in range(len(leaves))])
        if not 0 <= state.step <= facts["steps"]:
            raise ValueError(f"step {state.step} of {facts['steps']}")
    except ValueError as error:
        raise InputError(f"damaged {STATE} ({error})", where=folder, hint="remove it") from error
    return state


def train_to_folder(images: np.ndarray, out: Path, *, seed: int = 0, epochs: int | None = None) -> Inpainter:
    """`train`, kept in a folder that `load_inpainter` reads; a run that was cut off leaves `OUT.unfinished`.

    Raises:
      InputError: as for `train`, or `out` exists and is no autoencoder.
    """
    check_target(out, kind=KIND)
    unfinished = out.with_name(f"{out.name}.unfinished")
    inpainter = train(images, seed=seed, epochs=epochs, unfinished=unfinished)
    facts = {"spec": asdict(inpainter.spec), "seed": seed}
    save_arrays(out, inpainter.params, facts, kind=KIND, version=VERSION)
    if is_checkpoint(unfinished, kind=STATE):
        shutil.rmtree(unfinished)
    return inpainter
