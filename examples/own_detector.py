"""A detector of one's own: the distance of a feature from the mean normal feature, in units of the deviation."""

import jax
import jax.numpy as jnp
from flax import struct

import f2pad_jax as f2
from f2pad_jax.data.textures import texture_category
from f2pad_jax.detectors import DETECTORS


class Average(struct.PyTreeNode):
    name, level, anchored, published = "average", 0, False, {}  # scores lie on the grid of the finest feature map
    mean: jax.Array  # (C,)
    variance: jax.Array  # (C,)

    @classmethod
    def fit(cls, maps, *, seed=0):
        return cls(maps[cls.level].mean((0, 1, 2)), maps[cls.level].var((0, 1, 2)))

    def summands(self, maps):
        return jnp.mean(jnp.square(maps[self.level] - self.mean) / self.variance, axis=-1)

    score = summands

    def localize(self, maps, positions, coarser=None):
        return positions

    def local_scores(self, local, maps):
        return self.summands(maps).reshape(-1)[local]

    # A detector whose models are saved has `state` and `from_state` as well.


DETECTORS[Average.name] = Average
normals, [(image, truth, _)] = texture_category("brick", test=1, size=64)
model = f2.fit(normals, detector="average", extractor=f2.load_extractor("efficientnet_lite0"))
result = f2.segment(model, image)
print(result.status, f"{(result.mask & truth).sum() / (result.mask | truth).sum():.2f}")
