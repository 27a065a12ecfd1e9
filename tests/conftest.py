"""Test session: CPU, checked shapes in the core, and where real data may be found."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

install_import_hook("f2pad_jax.core", "checking.checked")  # of what is imported from here on

from f2pad_jax.data.textures import texture_category  # noqa: E402
from f2pad_jax.fitting import fit  # noqa: E402
from f2pad_jax.model import Model  # noqa: E402
from f2pad_jax.networks.extractor import Extractor  # noqa: E402
from f2pad_jax.weights import load_extractor  # noqa: E402

jax.config.update("jax_platforms", "cpu")

COMPILED = "F2PAD_TESTS_COMPILED"  # environment variable: the folder of compiled code that all processes of a run share


def pytest_configure() -> None:
    """Keeps compiled code for the run: files and processes compile the same programs."""
    if COMPILED not in os.environ:
        os.environ[COMPILED] = tempfile.mkdtemp(prefix="f2pad-tests-")
    jax.config.update("jax_compilation_cache_dir", os.environ[COMPILED])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that began the run
        shutil.rmtree(os.environ.pop(COMPILED), ignore_errors=True)


def _real(name: str) -> Path:
    """The folder named by an environment variable, or one beside the checkout; skips where absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    return Path(os.environ.get("F2PAD_REAL_DATA", default)) / name


@pytest.fixture(scope="session")
def mvtec_root() -> Path:
    root = _real("data/mvtec")
    if not root.is_dir():
        pytest.skip("real MVTec AD images are not here (set F2PAD_REAL_DATA)")
    return root


@pytest.fixture(scope="session")
def resnet18_trunk() -> Path:
    path = _real("weights/resnet18-imagenet1k_v1-trunk-bnfolded.npz")
    if not path.is_file():
        pytest.skip("the real ResNet-18 trunk is not here (set F2PAD_REAL_DATA)")
    return path


@pytest.fixture(scope="session")
def lite0() -> Extractor:
    """EfficientNet-Lite0 with its real weights, which are a dependency of the package."""
    return load_extractor("efficientnet_lite0")


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled():
    """Compiled functions are hardly shared between files, and add up to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny_model(lite0: Extractor) -> Model:
    """A model of few small pictures, for tests that do not look at its accuracy."""
    return fit(texture_category("brick", train=8, test=1, size=64)[0], detector="padim", extractor=lite0)
