from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from math import erf
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_parts import import_torchvision

from f2pad_jax.cli import main
from f2pad_jax.data.textures import make_textures, texture_category
from f2pad_jax.errors import InputError
from f2pad_jax.fills import FILLS, training
from f2pad_jax.fills.autoencoder import Inpainter, autoencoder_fill, removed_tokens, spec_of
from f2pad_jax.fitting import fit
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.networks import mae, transformer
from f2pad_jax.networks.mae import MAESpec
from f2pad_jax.networks.transformer import patchify
from f2pad_jax.preparing import begin
from f2pad_jax.procedure import Procedure
from f2pad_jax.weights import import_weights, list_weights, load_extractor, mae_keys
from f2pad_jax.weights.inpainters import load_inpainter
from f2pad_jax.weights.registry import NETWORKS, _inpainter
from f2pad_jax.weights.weight_files import read_weights

TINY = MAESpec(32, 8, 48, 2, 4, 32, 2, 4)


def _random_params(spec: MAESpec = TINY, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)

    def made(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        spread = (leaf.shape[-2]) ** -0.5 if path[-1].key == "kernel" else 0.3
        return (rng.normal(0, spread, leaf.shape) + (path[-1].key == "scale")).astype(np.float32)

    return jax.tree_util.tree_map_with_path(made, mae.shapes(spec))


def _images(count: int, spec: MAESpec = TINY, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, spec.size, spec.size, 3)).astype(np.float32)


def _relative(found: Any, wanted: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - np.asarray(wanted))) / np.max(np.abs(np.asarray(wanted))))


def _dropping(params: dict[str, Any], image: np.ndarray, removed: np.ndarray, spec: MAESpec) -> np.ndarray:
    """One picture in float64, token by token, with the removed tokens really left out of the encoder."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)

    def norm(p: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    def dense(p: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return x @ p["kernel"] + p["bias"]

    def run(stack: dict[str, Any], x: np.ndarray, heads: int) -> np.ndarray:
        for index in range(len(stack["qkv"]["bias"])):
            p = jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            q, k, v = np.split(dense(p["qkv"], norm(p["norm1"], x)), 3, axis=-1)
            seen = []
            for a, b, c in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
                logits = np.exp(a @ b.T / np.sqrt(a.shape[-1]))
                seen.append(logits / logits.sum(-1, keepdims=True) @ c)
            x = x + dense(p["proj"], np.concatenate(seen, axis=-1))
            hidden = dense(p["fc1"], norm(p["norm2"], x))
            hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
            x = x + dense(p["fc2"], hidden)
        return x

    grid, side = spec.grid, spec.patch
    cells = [image[r * side : (r + 1) * side, c * side : (c + 1) * side] for r in range(grid) for c in range(grid)]
    tokens = [
        dense(params["patch"], cell.reshape(-1)) + params["positions"][1 + index]
        for index, cell in enumerate(cells)
        if not removed[index]
    ]
    encoded = run(params["blocks"], np.stack([params["cls"] + params["positions"][0], *tokens]), spec.heads)
    left = iter(dense(params["decoder_embed"], norm(params["norm"], encoded)))
    first = next(left)
    full = np.stack([first, *(params["mask_token"] if gone else next(left) for gone in removed)])
    out = run(params["decoder_blocks"], full + params["decoder_positions"], spec.decoder_heads)
    vectors = dense(params["decoder_pred"], norm(params["decoder_norm"], out[1:]))
    made = np.zeros((spec.size, spec.size, 3))
    for index, vector in enumerate(vectors):
        r, c = divmod(index, grid)
        made[r * side : (r + 1) * side, c * side : (c + 1) * side] = vector.reshape(side, side, 3)
    return made


def test_masking_equals_dropping_whatever_the_mask() -> None:
    params, images = _random_params(), _images(4)
    removed = np.random.default_rng(2).random((4, TINY.tokens)) < np.array([[0.0], [0.3], [0.8], [1.0]])
    assert not removed[0].any()
    assert removed[3].all()
    found = mae.reconstruct(params, jnp.asarray(images), jnp.asarray(removed), spec=TINY)
    for index in range(4):
        wanted = _dropping(params, images[index], removed[index], TINY)
        assert _relative(found[index], wanted) < 1e-5


def test_removed_pixels_have_no_influence() -> None:
    params, images = _random_params(), jnp.asarray(_images(1))
    removed = np.zeros((1, TINY.tokens), bool)
    removed[0, [1, 6]] = True
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(mae.reconstruct(params, x, jnp.asarray(removed), spec=TINY))))(images)
    assert np.isfinite(slope).all()
    moved = np.asarray(jnp.abs(patchify(slope, patch=TINY.patch)).max(-1) > 0)
    np.testing.assert_array_equal(moved, ~removed)


def test_patches_run_by_rows_with_the_channel_last() -> None:
    images = np.arange(2 * 4 * 4 * 3).reshape(2, 4, 4, 3)
    vectors = patchify(jnp.asarray(images), patch=2)
    np.testing.assert_array_equal(vectors[1, 2], images[1, 2:, :2].reshape(-1))
    np.testing.assert_array_equal(mae.unpatchify(vectors, patch=2), images)


def test_position_code_is_that_of_a_plain_loop() -> None:
    grid, width = 3, 16
    wanted = np.zeros((grid * grid + 1, width))
    for row in range(grid):
        for column in range(grid):
            for k in range(width // 4):
                omega = 10000 ** (-k / (width // 4))
                for half, place in enumerate((column, row)):
                    wanted[1 + row * grid + column, half * width // 2 + k] = np.sin(place * omega)
                    wanted[1 + row * grid + column, half * width // 2 + width // 4 + k] = np.cos(place * omega)
    np.testing.assert_allclose(mae.position_code(grid, width), wanted, atol=1e-7)


def test_the_published_networks_have_their_known_sizes() -> None:
    counts = {
        name: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(mae.shapes(spec)))
        for name, spec in mae.FAMILY.items()
    }
    assert counts["mae_vit_base"] == 111_907_840
    assert counts["mae_vit_large"] == counts["mae_vit_large_ganloss"] == 329_541_888


# -- files


def _facebook(params: dict[str, Any], spec: MAESpec = TINY) -> dict[str, np.ndarray]:
    """The state dict that facebookresearch/mae would write, spelt out name by name."""
    state = {
        "cls_token": params["cls"][None, None],
        "pos_embed": params["positions"][None],
        "mask_token": params["mask_token"][None, None],
        "decoder_pos_embed": params["decoder_positions"][None],
        "patch_embed.proj.bias": params["patch"]["bias"],
        "patch_embed.proj.weight": np.stack(
            [column.reshape(spec.patch, spec.patch, 3).transpose(2, 0, 1) for column in params["patch"]["kernel"].T]
        ),
    }
    for ours, theirs in (("norm", "norm"), ("decoder_norm", "decoder_norm")):
        state |= {f"{theirs}.weight": params[ours]["scale"], f"{theirs}.bias": params[ours]["bias"]}
    for name in ("decoder_embed", "decoder_pred"):
        state |= {f"{name}.weight": params[name]["kernel"].T, f"{name}.bias": params[name]["bias"]}
    for stack in ("blocks", "decoder_blocks"):
        for n in range(2):
            for part, name in (("norm1", "norm1"), ("norm2", "norm2")):
                state[f"{stack}.{n}.{name}.weight"] = params[stack][part]["scale"][n]
                state[f"{stack}.{n}.{name}.bias"] = params[stack][part]["bias"][n]
            for part, name in (("qkv", "attn.qkv"), ("proj", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
                state[f"{stack}.{n}.{name}.weight"] = params[stack][part]["kernel"][n].T
                state[f"{stack}.{n}.{name}.bias"] = params[stack][part]["bias"][n]
    return state


def test_facebooks_names_are_a_bijection() -> None:
    params = _random_params()
    found = mae_keys.convert(_facebook(params), TINY)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other)


def test_all_that_is_wrong_is_said_at_once() -> None:
    state = _facebook(_random_params())
    state["stray"] = state.pop("decoder_blocks.1.attn.qkv.bias")
    state["pos_embed"] = state["pos_embed"][:, 1:]
    state["norm.bias"] = np.full(48, np.nan, np.float32)
    with pytest.raises(ValueError, match="decoder_blocks") as caught:
        mae_keys.convert(state, TINY)
    for part in (
        "missing decoder_blocks.1.attn.qkv.bias",
        "unknown stray",
        "pos_embed has shape (1, 16, 48), not (1, 17, 48)",
        "norm.bias holds non-finite values",
    ):
        assert part in str(caught.value)


def test_checkpoints_that_predict_no_pixels_are_refused(tmp_path: Path) -> None:
    state = _facebook(_random_params())
    mae_keys.check_targets(state, tmp_path / "mae_visualize_vit_base.pth")
    with pytest.raises(InputError, match="normalised patch by patch.*mae_visualize"):
        mae_keys.check_targets(state, tmp_path / "mae_pretrain_vit_base_full.pth")
    encoder = {name: array for name, array in state.items() if not name.startswith(("decoder", "mask"))}
    with pytest.raises(InputError, match="holds no decoder"):
        mae_keys.check_targets(encoder, tmp_path / "mae_pretrain_vit_base.pth")
    file, state = tmp_path / "model.safetensors", {"vit.embeddings.cls_token": np.zeros((1, 1, 48))}
    with pytest.raises(InputError, match=r"no config\.json beside it"):
        mae_keys.check_targets(state, file)
    (tmp_path / "config.json").write_text(json.dumps({"norm_pix_loss": True}))
    with pytest.raises(InputError, match=r"normalised patch by patch.*norm_pix_loss in config\.json"):
        mae_keys.check_targets(state, file)
    (tmp_path / "config.json").write_text(json.dumps({"norm_pix_loss": False}))
    mae_keys.check_targets(state, file)


def test_a_published_file_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(NETWORKS, "mae_vit_base", _inpainter(TINY))
    licences = {s.name: s.entry.licence for s in list_weights() if s.entry.kind == "inpainter"}
    assert licences == dict.fromkeys(mae.FAMILY, "CC-BY-NC-4.0")
    with pytest.raises(InputError, match="no weights on this machine"):
        load_inpainter("mae_vit_base")
    params = _random_params()
    np.savez(tmp_path / "some.npz", **_facebook(params))  # type: ignore[arg-type]
    status = import_weights("mae_vit_base", tmp_path / "some.npz")
    inpainter = load_inpainter("mae_vit_base")
    assert (inpainter.name, inpainter.digest, inpainter.spec) == ("mae_vit_base", status.digest, TINY)
    np.testing.assert_array_equal(inpainter.params["blocks"]["qkv"]["kernel"], params["blocks"]["qkv"]["kernel"])
    with pytest.raises(InputError, match="is an inpainter, not an extractor"):
        load_extractor("mae_vit_base")
    with pytest.raises(InputError, match="is an extractor, not an inpainter"):
        load_inpainter("resnet18")
    with pytest.raises(InputError, match="no such autoencoder.*mae_vit_large_ganloss"):
        load_inpainter("mae_vit_giant")


# -- fills


def test_the_fill_changes_the_region_alone_and_never_looks_into_it() -> None:
    params, image = _random_params(), _images(1)[0]
    region = np.zeros((32, 32), bool)
    region[7:9, 20:22] = True  # reaches into two cells of the same column
    removed = removed_tokens(region, TINY.patch)
    assert sorted(np.flatnonzero(removed)) == [2, 6]
    filled = autoencoder_fill(image, region, params, TINY)
    np.testing.assert_array_equal(filled[~region], image[~region])
    wanted = _dropping(params, image, removed, TINY)
    assert _relative(filled[region], wanted[region]) < 1e-5
    spoiled = np.where(region[..., None], 9.0, image).astype(np.float32)
    np.testing.assert_array_equal(autoencoder_fill(spoiled, region, params, TINY)[region], filled[region])
    with pytest.raises(InputError, match="works on 32 × 32 pixels, the picture has 48 × 40"):
        autoencoder_fill(np.zeros((40, 48, 3), np.float32), np.ones((40, 48), bool), params, TINY)


@pytest.mark.parametrize(
    "facts", [None, {"size": 32}, {"extra": 1}, asdict(TINY) | {"heads": 5}, asdict(TINY) | {"depth": 0}], ids=str
)
def test_definitions_that_make_no_sense_are_refused(facts: Any) -> None:
    if facts == {"size": 32}:
        assert spec_of(facts, "x") == MAESpec(size=32)
        return
    with pytest.raises(InputError, match="x: damaged autoencoder"):
        spec_of(facts, "x")


# -- training


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return texture_category("brick", train=12, test=1, size=32)[0]


def test_masks_have_the_shape_of_regions() -> None:
    masks = np.asarray(training.region_tokens(jax.random.key(0), 400, 14))
    assert masks.shape == (400, 196)
    assert masks.any(1).all()
    # a removed token's right neighbour is removed too far more often than by chance
    grids = masks.reshape(-1, 14, 14)
    beside = (grids[:, :, :-1] & grids[:, :, 1:]).sum() / grids[:, :, :-1].sum()
    assert beside > 0.7
    assert 0.1 < masks.mean() < 0.6


def test_training_lowers_the_loss_and_goes_on_to_the_same_parameters(pictures: np.ndarray, tmp_path: Path) -> None:
    losses: list[float] = []
    train = partial(training.train, pictures, seed=3, epochs=40, spec=TINY)
    whole = train(on_step=lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])

    def cut(step: int, loss: float) -> None:
        if step == 11:
            raise KeyboardInterrupt

    unfinished = tmp_path / "mae.unfinished"
    with pytest.raises(KeyboardInterrupt):
        train(unfinished=unfinished, on_step=cut)
    with pytest.raises(InputError, match="unfinished run with other settings or pictures"):
        training.train(pictures, seed=4, epochs=40, spec=TINY, unfinished=unfinished)
    seen: list[int] = []
    again = train(unfinished=unfinished, on_step=lambda step, loss: seen.append(step))
    assert seen == list(range(12, len(losses) + 1))
    for one, other in zip(jax.tree.leaves(again.params), jax.tree.leaves(whole.params), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_bad_pictures_are_refused(pictures: np.ndarray) -> None:
    with pytest.raises(InputError, match="the pictures are float32"):
        training.train(pictures.astype(np.float32))
    with pytest.raises(InputError, match="no picture"):
        training.train(pictures[:0])
    with pytest.raises(InputError, match="pictures of 40 pixels do not fit"):
        training.small_spec(40)


# -- models and the command line


def test_a_model_keeps_its_own_autoencoder(tiny_model: Model, tmp_path: Path) -> None:
    spec = MAESpec(64, 16, 48, 2, 4, 32, 2, 4)
    inpainter = Inpainter(_random_params(spec), spec)
    model = fit(
        np.concatenate([tiny_model.normals.pictures, tiny_model.held_out]),
        detector="padim",
        extractor=tiny_model.extractor,
        procedure=Procedure(start="autoencoder"),
        inpainter=inpainter,
    )
    save_model(model, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    image, region = _images(1, spec)[0], np.zeros((64, 64), bool)
    region[20:30, 20:40] = True
    start = begin(loaded, image, region)
    np.testing.assert_array_equal(start.normal, autoencoder_fill(image, region, inpainter.params, spec))
    assert start.filled
    with pytest.raises(InputError, match="the model has no autoencoder"):
        FILLS["autoencoder"](image, region, tiny_model)
    normals = tiny_model.normals.pictures
    with pytest.raises(InputError, match="there is none"):
        fit(normals, detector="padim", extractor=tiny_model.extractor, procedure=model.procedure)
    other = Inpainter(_random_params(), TINY)
    with pytest.raises(InputError, match="64 × 64 pixels, the autoencoder's 32"):
        fit(normals, detector="padim", extractor=tiny_model.extractor, inpainter=other)


def test_a_model_wants_the_imported_weights_it_was_fitted_with(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(NETWORKS, "mae_vit_base", _inpainter(TINY))
    np.savez(tmp_path / "some.npz", **_facebook(_random_params()))  # type: ignore[arg-type]
    import_weights("mae_vit_base", tmp_path / "some.npz")
    inpainter = load_inpainter("mae_vit_base")
    save_model(replace(tiny_model, inpainter=inpainter), tmp_path / "model")
    loaded = load_model(tmp_path / "model").inpainter
    assert loaded is not None
    assert loaded.digest == inpainter.digest
    save_model(replace(tiny_model, inpainter=replace(inpainter, digest="0" * 64)), tmp_path / "model")
    with pytest.raises(InputError, match="fitted with other weights of mae_vit_base"):
        load_model(tmp_path / "model")


def test_the_command_line_trains_fits_and_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    small, checked = MAESpec(64, 16, 48, 2, 4, 32, 2, 4), training.small_spec
    monkeypatch.setattr(training, "small_spec", lambda size: replace(small, size=checked(size).size))
    make_textures(tmp_path / "set", train=6, test=1, size=64, categories=["brick"])
    assert main(["train-mae", "set/brick", "--out", "mae", "--size", "64", "--epochs", "2", "--seed", "1"]) == 0
    assert not (tmp_path / "mae.unfinished").exists()
    assert load_inpainter("mae").spec == small
    options = ["--detector", "padim", "--extractor", "efficientnet_lite0", "--inpainter", "mae"]
    assert main(["fit", "set/brick", *options, "--size", "64", "--out", "model"]) == 0
    assert load_model("model").procedure.start == "autoencoder"
    assert main(["segment", "model", "set/brick/test/color/000.png", "--out", "out"]) == 0
    capsys.readouterr()
    wrong = {
        "multiple of 16": ["train-mae", "set/brick", "--out", "other", "--size", "50"],
        "no such folder": ["train-mae", "nothing", "--out", "other"],
        "exists already and is no autoencoder": ["train-mae", "set/brick", "--out", "model", "--size", "64"],
        "no such autoencoder": ["fit", "set/brick", *options[:-1], "none", "--size", "64", "--out", "other"],
        "the autoencoder's 64": ["fit", "set/brick", *options, "--size", "128", "--out", "other"],
    }
    for message, command in wrong.items():
        assert main(command) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert message in line
    assert not (tmp_path / "other").exists()
    sums = (tmp_path / "mae/SHA256SUMS").read_text()
    name = next(line.split("  ")[1] for line in sums.splitlines() if line[-1].isdigit())
    data = bytearray((tmp_path / "mae" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "mae" / name).write_bytes(data)
    with pytest.raises(InputError, match="damaged autoencoder"):
        load_inpainter("mae")


# -- transformers


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A `ViTMAEForPreTraining` with random weights, and the file it is saved as."""
    torch = pytest.importorskip("torch")
    import_torchvision()  # which transformers imports
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192, image_size=32,
        patch_size=8, decoder_hidden_size=32, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=128, layer_norm_eps=1e-6, mask_ratio=0.5,
    )  # fmt: skip
    model = transformers.ViTMAEForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder / "model.safetensors"


def _torch(array: Any) -> Any:
    import torch

    return torch.from_numpy(np.array(array))


@pytest.mark.parity
def test_operations_and_blocks_agree_with_transformers(theirs: tuple[Any, Path]) -> None:
    model, file = theirs
    params = jax.tree.map(lambda leaf: leaf[1], mae_keys.convert(read_weights(file)[0], TINY)["blocks"])
    x, weights = (np.random.default_rng(k).normal(size=(3, 17, 48)).astype(np.float32) for k in (3, 4))
    layer = model.vit.layers[1] if hasattr(model.vit, "layers") else model.vit.encoder.layer[1]
    norm = partial(transformer.layer_norm, epsilon=mae.EPSILON)
    attention = partial(transformer.attention, heads=4)
    block = partial(transformer.block, heads=4, epsilon=mae.EPSILON)
    cases = {
        "norm": (norm, params["norm1"], layer.layernorm_before, 1e-6),
        "attention": (attention, params, lambda y: layer.attention(y)[0], 2e-6),
        "block": (block, params, layer, 1e-5),
    }
    for name, (ours, own, other, limit) in cases.items():
        y = _torch(x).requires_grad_()
        wanted = other(y)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        (wanted * _torch(weights)).sum().backward()
        found, back = jax.vjp(partial(ours, own), x)
        assert _relative(found, wanted.detach().numpy()) < limit, name
        assert _relative(back(weights)[0], y.grad.numpy()) < 2 * limit, name


@pytest.mark.parity
def test_the_whole_agrees_with_transformers(theirs: tuple[Any, Path]) -> None:
    model, file = theirs
    state, _ = read_weights(file)
    mae_keys.check_targets(state, file)
    params, images = mae_keys.convert(state, TINY), _images(3)
    pixels = _torch(images.transpose(0, 3, 1, 2)).requires_grad_()
    output = model(pixels, noise=_torch(np.random.default_rng(5).random((3, TINY.tokens)).astype(np.float32)))
    weights = np.random.default_rng(6).normal(size=output.logits.shape).astype(np.float32)
    (output.logits * _torch(weights)).sum().backward()
    removed = output.mask.numpy().astype(bool)
    assert removed.sum() == 3 * TINY.tokens / 2
    found, back = jax.vjp(lambda x: mae.reconstruct(params, x, removed, spec=TINY), images)
    assert _relative(patchify(found, patch=TINY.patch), output.logits.detach().numpy()) < 1e-4
    slope = back(mae.unpatchify(jnp.asarray(weights), patch=TINY.patch))[0]
    assert _relative(slope, pixels.grad.numpy().transpose(0, 2, 3, 1)) < 1e-4


@pytest.mark.parity
def test_published_names_of_the_hub_and_torch_files_are_read(theirs: tuple[Any, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    _, file = theirs
    state, _ = read_weights(file)
    # what the Hub's files hold; transformers 5 writes the decoder's blocks under another name
    old = {k.replace("decoder.decoder_encoder.layer.", "decoder.decoder_layers."): v for k, v in state.items()}
    assert {k for k in old if k.startswith("decoder.decoder_layers.1.attention.attention.")}
    params = mae_keys.convert(old, TINY)
    tensors = {name: _torch(array) for name, array in _facebook(params).items()}
    torch.save({"model": tensors}, tmp_path / "mae_visualize.pth")
    again = mae_keys.convert(read_weights(tmp_path / "mae_visualize.pth")[0], TINY)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(one, other)
