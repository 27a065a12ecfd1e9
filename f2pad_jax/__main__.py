"""`python -m f2pad_jax` is `f2pad`."""

import sys

from f2pad_jax.cli import main

sys.exit(main())
