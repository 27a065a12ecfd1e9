"""CFLOW-AD (Gudovskiy et al., arXiv 2107.12571): one conditional normalising flow per feature map.

Facts follow gudovskiy/cflow-ad (`model.py`, `train.py`). Its score map compares with the likeliest position of the
whole test set; here that reference is the likeliest position of the training pictures, so that one picture is
enough. Its training pictures are turned by up to 5° at random; here features are computed once, of pictures as they
are. Its flows have eight couplings; three score as well and are smoother, so n descends farther and in less time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from pydantic import Field, FilePath
from tqdm import tqdm

from f2pad_jax.detectors.base import Arrays, Count, Facts, Maps, PositiveShare, Shape
from f2pad_jax.detectors.cflow_training import EPOCHS, RATE, Progress, train
from f2pad_jax.errors import InputError
from f2pad_jax.networks import flow as flows
from f2pad_jax.networks.flow import FlowSpec
from f2pad_jax.weights.flow_files import read_flows

BLOCKS = 3  # couplings of each flow; the reference has 8
FEW_SHOTS, FEW_SHOT_MAPS = 16, 2  # with 16 training pictures the F2PAD paper uses two maps


class Decoder(struct.PyTreeNode):
    """The flow of one feature map.

    Attributes:
      mean: (C,), subtracted from features.
      deviation: (C,), by which they are divided.
      flow: parameters, see `networks.flow`.
      reference: the highest log-likelihood per channel that any training feature reaches, ().
    """

    mean: jax.Array
    deviation: jax.Array
    flow: flows.Params
    reference: jax.Array


class LocalMap(struct.PyTreeNode):
    """Of one map: the cells that count (S_k,), which of them a position lies in (S,), and the condition's share.

    Attributes:
      cells: (S_k,) int32, row-major.
      places: (S,) int32, indices of `cells`.
      terms: (B, S_k, 2d), what the condition adds to every block's first layer.
    """

    cells: jax.Array
    places: jax.Array
    terms: jax.Array


class CFlow(struct.PyTreeNode):
    """One decoder a map, finest first.

    Attributes:
      decoders: of the maps that are used.
      divided: whether log p in Eq. (6) is divided by the number of channels, as in the training loss; static.
      clamp: how the blocks limit log-scales, see `networks.flow.FlowSpec`; static.
    """

    name: ClassVar[str] = "cflow"
    level = 0
    anchored: ClassVar[bool] = False
    published: ClassVar[Mapping[str, Any]] = {"blocks": 8}

    decoders: tuple[Decoder, ...]
    divided: bool = struct.field(pytree_node=False, default=True)
    clamp: Literal["tanh", "atan"] = struct.field(pytree_node=False, default="tanh")

    @classmethod
    def fit(
        cls,
        maps: tuple[np.ndarray, ...],
        *,
        used: Count | None = None,
        divided: bool = True,
        flow: FilePath | None = None,
        epochs: Annotated[int, Field(ge=0, le=10**6)] = EPOCHS,
        rate: PositiveShare = RATE,
        blocks: Annotated[int, Field(ge=1, le=1024)] | None = None,
        checkpoint: Path | None = None,
        seed: int = 0,
    ) -> Self:
        """Trains a flow per map on standardised features, or takes those of a file.

        Args:
          maps: features of the training images, (N, H_k, W_k, C_k) each, finest first; N ≥ 2.
          used: how many maps, finest first; by default two with at most 16 pictures, as in the paper, else all.
          divided: whether log p in Eq. (6) is divided by the number of channels, as in the training loss.
          flow: file of decoders trained by CFLOW-AD or anomalib, in place of training.
          epochs: meta-epochs of the training, see `cflow_training.train`; 0 leaves the flows untrained, which is of use
            to measure speed alone.
          rate: highest learning rate.
          blocks: couplings per flow, 3 by default or those of the file; the reference's are 8.
          checkpoint: folder that keeps unfinished training; `fit` goes on from what it finds there.
          seed: of initial parameters, the choice of held-out pictures and the order of the features.

        Raises:
          InputError: too few pictures or maps, imported flows for other channels, a checkpoint of another training, or
            flows to import that have another number of couplings.
        """
        if len(maps[0]) < 2:
            raise InputError("one picture is too few to train a flow", hint="give at least 2")
        if flow is not None:
            if checkpoint is not None:
                raise InputError("imported flows are not trained", where=flow, hint="leave checkpoint out")
            decoders = read_flows(flow)
            if blocks not in (None, decoders[0][1].blocks):
                raise InputError(f"the flows have {decoders[0][1].blocks} couplings, not {blocks}", where=flow)
            return cls.imported(maps, decoders, used=used, divided=divided)
        few = FEW_SHOT_MAPS if len(maps[0]) <= FEW_SHOTS else len(maps)
        blocks = BLOCKS if blocks is None else blocks
        maps = _used(maps, min(few, len(maps)) if used is None else used)
        progress = Progress(checkpoint, maps, epochs=epochs, rate=rate, blocks=blocks, seed=seed)
        decoders = []
        with tqdm(total=len(maps) * epochs, desc="fit cflow", unit="epoch", leave=False, disable=None) as bar:
            for level, m in enumerate(maps):
                mean, deviation = _standardise(m)
                spec = FlowSpec(m.shape[-1], blocks)
                trained = train((m - mean) / deviation, spec, level=level, progress=progress, bar=bar)
                decoders.append(Decoder(jnp.asarray(mean), jnp.asarray(deviation), trained, jnp.float32(0)))
        return cls(tuple(decoders), divided)._with_references(maps)

    @classmethod
    def imported(
        cls,
        maps: tuple[np.ndarray, ...],
        decoders: Sequence[tuple[flows.Params, FlowSpec]],
        *,
        used: int | None = None,
        divided: bool = True,
    ) -> Self:
        """Decoders that were trained elsewhere; they see features as they are.

        Args:
          maps: features of the training images, as for `fit`.
          decoders: parameters and definition of the flow of each map, finest first.
          used: how many of them count; all by default.
          divided: as for `fit`.

        Raises:
          InputError: there are fewer maps, or the flows are for other channels.
        """
        maps = _used(maps, len(decoders) if used is None else used)
        wanted, found = [m.shape[-1] for m in maps], [spec.channels for _, spec in decoders][: len(maps)]
        if wanted != found:
            raise InputError(
                f"the flows are of maps with {', '.join(map(str, found))} channels, not {', '.join(map(str, wanted))}",
                hint="use the extractor that they were trained with",
            )
        made = tuple(
            Decoder(jnp.zeros(spec.channels), jnp.ones(spec.channels), params, jnp.float32(0))
            for params, spec in decoders[: len(maps)]
        )
        return cls(made, divided, decoders[0][1].clamp)._with_references(maps)

    @property
    def bound(self) -> float:
        """What no score can exceed: each map adds at most 1."""
        return float(len(self.decoders))

    def score(self, maps: Maps) -> jax.Array:
        """CFLOW-AD's score, from 0 (all maps as likely as their references) to the number of maps: (H_1, W_1).

        Each map adds 1 − exp(log p / C − reference), at least 0, resized to the finest grid corner to corner.
        """
        height, width = maps[0].shape[:2]
        missing = jnp.zeros((height, width))
        for level, decoder in enumerate(self.decoders):
            m = maps[level]
            terms = self._terms(level, m.shape[:2])
            found = self._per_channel(level, m.reshape(-1, m.shape[-1]), terms).reshape(m.shape[:2])
            lost = -jnp.expm1(jnp.minimum(found - decoder.reference, 0.0))
            with jax.default_matmul_precision("highest"):
                missing = missing + _stretch(m.shape[0], height) @ lost @ _stretch(m.shape[1], width).T
        return missing

    def summands(self, maps: Maps) -> jax.Array:
        """−s_kij of Eq. (6) on the finest grid, (H_1, W_1): each position has its share of the coarser maps' positions.

        The sum is that of all maps and positions, each of weight one.
        """
        height, width = maps[0].shape[:2]
        positions = jnp.arange(height * width)
        return self.local_scores(self.localize(maps, positions), maps).reshape(height, width)

    def localize(
        self, maps: Maps, positions: jax.Array, coarser: Sequence[jax.Array] | None = None
    ) -> tuple[LocalMap, ...]:
        """What the solver needs of each map.

        Args:
          maps: features of any picture of the same size.
          positions: (S,) int32 in row-major order on the finest grid.
          coarser: for each further map the cells in which the positions lie, (S_k,) int32, ascending, with others
            among them or not; by default all cells.
        """
        width = maps[0].shape[1]
        rows, columns = positions // width, positions % width
        local = []
        for level, m in enumerate(maps[: len(self.decoders)]):
            tall, wide = m.shape[:2]
            if level == 0:
                cells, places = positions, jnp.arange(len(positions))
            else:
                cells = jnp.arange(tall * wide) if coarser is None else coarser[level - 1]
                own = rows * tall // maps[0].shape[0] * wide + columns * wide // width
                places = jnp.searchsorted(cells, own)
            local.append(LocalMap(cells, places, self._terms(level, (tall, wide), cells)))
        return tuple(local)

    def local_scores(self, local: tuple[LocalMap, ...], maps: Maps) -> jax.Array:
        """`summands` at the positions of `localize`: (S,)."""
        total = jnp.zeros(len(local[0].places))
        height, width = maps[0].shape[:2]
        for level, own in enumerate(local):
            m = maps[level]
            found = self._per_channel(level, m.reshape(-1, m.shape[-1])[own.cells], own.terms)
            shared = (height // m.shape[0]) * (width // m.shape[1])  # the positions that a cell counts for
            cost = jax.nn.softplus(-found * (1 if self.divided else m.shape[-1]))  # −log σ(log p) of Eq. (6)
            total = total + cost[own.places] / shared
        return total

    def state(self) -> tuple[Arrays, Facts]:
        """Arrays of "map0", "map1", …, and the static choices."""
        arrays = {f"map{level}": dict(vars(decoder)) for level, decoder in enumerate(self.decoders)}
        return arrays, {"divided": self.divided, "clamp": self.clamp}

    @classmethod
    def from_state(cls, arrays: Arrays, facts: Facts) -> Self:
        """The inverse of `state`."""
        return cls(
            tuple(Decoder(**arrays[f"map{level}"]) for level in range(len(arrays))), facts["divided"], facts["clamp"]
        )

    @classmethod
    def declared(cls, arrays: Arrays, maps: Sequence[Shape]) -> Arrays:
        """Shapes of the arrays of `state`; the number of maps and of couplings is theirs to say."""
        if not 1 <= len(arrays) <= len(maps):
            raise ValueError(f"there are flows of {len(arrays)} maps")
        wanted = {}
        for level, m in enumerate(maps[: len(arrays)]):
            own, channels = arrays[f"map{level}"], m.shape[-1]
            order = own["flow"].get("order")
            if order is not None and not (np.sort(order, axis=-1) == np.arange(channels)).all():
                raise ValueError(f"order of map{level} is no permutation")
            if not (own["deviation"] > 0).all():
                raise ValueError(f"deviation of map{level} is not positive")
            spec = FlowSpec(channels, len(own["flow"]["scale"]), permutation="soft" if order is None else "hard")
            vector = Shape((channels,), jnp.float32)
            wanted[f"map{level}"] = {
                "mean": vector,
                "deviation": vector,
                "flow": flows.shapes(spec),
                "reference": Shape((), jnp.float32),
            }
        return wanted

    def _per_channel(self, level: int, features: jax.Array, terms: jax.Array) -> jax.Array:
        """Log-likelihood per channel, log p / C, of features (P, C) of a map: (P,)."""
        decoder = self.decoders[level]
        blocks, channels = decoder.flow["scale"].shape
        spec = FlowSpec(channels, blocks, clamp=self.clamp)
        standard = (features - decoder.mean) / decoder.deviation
        with jax.default_matmul_precision("highest"):
            return flows.log_prob(decoder.flow, standard, terms, spec=spec) / channels

    def _terms(self, level: int, shape: tuple[int, ...], cells: jax.Array | None = None) -> jax.Array:
        """What the condition adds in some cells of a map of this height and width, by default in all: (B, P, 2d)."""
        height, width = shape
        cells = jnp.arange(height * width) if cells is None else cells
        with jax.default_matmul_precision("highest"):
            tables = flows.position_tables(self.decoders[level].flow, height, width)
        return flows.position_terms(tables, cells // width, cells % width)

    def _with_references(self, maps: tuple[np.ndarray, ...]) -> Self:
        decoders = []
        for level, (m, decoder) in enumerate(zip(maps, self.decoders, strict=True)):
            terms = self._terms(level, m.shape[1:3])
            highest = jax.jit(lambda one, k=level, t=terms: jnp.max(self._per_channel(k, one, t)))
            reference = jnp.max(jnp.stack([highest(one.reshape(-1, one.shape[-1])) for one in m]))
            decoders.append(decoder.replace(reference=reference))
        return self.replace(decoders=tuple(decoders))


def _used(maps: tuple[np.ndarray, ...], used: int) -> tuple[np.ndarray, ...]:
    if not 1 <= used <= len(maps):
        raise InputError(f"{used} maps are asked for, the extractor has {len(maps)}", hint=f"use 1 to {len(maps)}")
    return maps[:used]


def _standardise(m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel, (C,) float32: features of linear bottlenecks are not of unit scale."""
    mean, deviation = m.mean(axis=(0, 1, 2), dtype=np.float64), m.std(axis=(0, 1, 2), dtype=np.float64)
    deviation = np.maximum(deviation, 1e-6 * max(float(deviation.max()), 1e-6))
    return mean.astype(np.float32), deviation.astype(np.float32)


def _stretch(length: int, target: int) -> np.ndarray:
    """Linear interpolation between the corners of an axis as a matrix (target, length)."""
    place = np.linspace(0, length - 1, target)
    return np.maximum(1 - np.abs(place[:, None] - np.arange(length)), 0).astype(np.float32)
