"""What the command line tells JAX before it starts: a device for each core, and where compiled code is kept."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from f2pad_jax.errors import InputError
from f2pad_jax.output import make_private, user_cache

SWITCH = "F2PAD_COMPILE_CACHE"  # environment variable; "0" turns the cache off
LARGEST = 2**30  # bytes of compiled code that are kept


def prepare_jax() -> None:
    """Sets JAX's environment variables that are not set yet; must run before jax is imported."""
    # On a CPU pictures are solved side by side, one on each core.
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(os.cpu_count() or 1))
    if os.environ.get(SWITCH) == "0" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = compile_cache()
        # Whoever can write there can make us run code: nobody but the user may.
        make_private(folder)
        folder.chmod(0o700)
    except (InputError, OSError):
        return  # no cache is slower and as right
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(LARGEST))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def check_devices() -> None:
    """Makes sure that JAX can compute, which it does not say before it is asked to.

    Accelerators take seconds to start, so commands look at the paths they are given first.

    Raises:
      InputError: it finds none of the devices that it was told to use.
    """
    import jax  # after `prepare_jax`

    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # a bare AssertionError where CUDA has no GPU
        what = f"JAX finds no device ({str(error) or type(error).__name__})"
        where = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        raise InputError(what, where=where, hint="name what is there, such as cpu, or unset it") from error


def compile_cache() -> Path:
    """The folder of code compiled by this version of JAX for this processor, in the user's cache folder."""
    parts = [version(name) for name in ("jax", "jaxlib")] + [platform.machine(), _processor()]
    return user_cache() / "compiled" / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: code compiled for one must not run on another."""
    facts = Path("/proc/cpuinfo")
    if not facts.is_file():
        return platform.processor()
    lines = facts.read_text("utf-8", "replace").splitlines()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
