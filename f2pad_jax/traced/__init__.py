"""The whole way from pixels to mask as one function that JAX traces: what `export` writes.

`segment` takes the same steps on the host with SciPy's tools, in crops and lanes of many pictures. Here every array has
the size of the picture, and a choice that depends on the pixels is made inside the program.
"""

from __future__ import annotations

from f2pad_jax.traced.refining import VERDICTS, refine_one, score_one

__all__ = ["VERDICTS", "refine_one", "score_one"]
