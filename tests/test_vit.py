"""DINOv2 and DINOv3 against transformers and timm, from their files, and detectors on maps of one stride."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from solving import QUICK
from torch_parts import import_torchvision

from f2pad_jax.cli import main
from f2pad_jax.core.energy import scored_stride
from f2pad_jax.detectors.patchcore import PatchCore
from f2pad_jax.errors import InputError
from f2pad_jax.fitting import fit
from f2pad_jax.model import Model
from f2pad_jax.model_file import load_model, save_model
from f2pad_jax.networks import vit
from f2pad_jax.networks.extractor import Extractor
from f2pad_jax.networks.vit import ViTSpec
from f2pad_jax.preparing import plan
from f2pad_jax.segmentation import segment
from f2pad_jax.sights import look
from f2pad_jax.weights import load_extractor, vit_keys
from f2pad_jax.weights.registry import NETWORKS, _vit
from f2pad_jax.weights.weight_files import read_weights

LEARNED = ViTSpec(14, 48, 4, (2, 3), table=4)
REGISTERS = dataclasses.replace(LEARNED, registers=2, antialias=True)
ROTARY = ViTSpec(16, 48, 4, (2, 3), registers=2, table=None, epsilon=1e-5)
SPECS = {"learned": LEARNED, "registers": REGISTERS, "rotary": ROTARY}


def draw_params(spec: ViTSpec, seed: int = 0) -> dict[str, Any]:
    """Random parameters whose features neither vanish nor explode."""
    rng = np.random.default_rng(seed)

    def made(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        spread = leaf.shape[-2] ** -0.5 if path[-1].key == "kernel" else 0.3
        return jnp.asarray(rng.normal(0, spread, leaf.shape) + (path[-1].key == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(made, vit.shapes(spec))


# -- against other implementations


@pytest.fixture
def torch() -> Any:
    torch = pytest.importorskip("torch")
    import_torchvision()  # which both libraries import
    torch.manual_seed(0)
    return torch


def stirred(model: Any) -> Any:
    """The model with random weights of its own size at every parameter, layer scales and class token among them."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if name.endswith("weight") else 0.3))
    return model.eval().requires_grad_(requires_grad=False)


def of_transformers(spec: ViTSpec) -> tuple[Any, Callable[[Any], list[Any]]]:
    """A model, and the tokens of the tapped blocks after the last norm."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": spec.width, "num_hidden_layers": spec.depth, "num_attention_heads": spec.heads}
    if spec.table is None:
        config = transformers.DINOv3ViTConfig(**sizes, intermediate_size=192, num_register_tokens=spec.registers)
        model = transformers.DINOv3ViTModel(config)
    elif spec.registers:
        config = transformers.Dinov2WithRegistersConfig(
            **sizes, image_size=14 * spec.table, patch_size=14, num_register_tokens=spec.registers
        )
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=14 * spec.table, patch_size=14))

    def tokens(pixels: Any) -> list[Any]:
        out = model(pixels, output_hidden_states=True)
        norm = model.norm if spec.table is None else model.layernorm
        return [*(norm(out.hidden_states[tap]) for tap in spec.taps[:-1]), out.last_hidden_state]

    return stirred(model), tokens


def of_timm(spec: ViTSpec, **choices: Any) -> tuple[Any, Callable[[Any], list[Any]]]:
    timm = pytest.importorskip("timm")
    kind = "vit_small_patch16_dinov3" if spec.table is None else "vit_small_patch14_dinov2"
    if spec.registers and spec.table:
        kind = "vit_small_patch14_reg4_dinov2"
    if spec.registers:
        choices["num_reg_tokens" if spec.table is None else "reg_tokens"] = spec.registers
    if spec.table:
        choices |= {"img_size": 14 * spec.table, "dynamic_img_size": True}
    sizes = {"embed_dim": spec.width, "depth": spec.depth, "num_heads": spec.heads}
    model = timm.create_model(kind, pretrained=False, num_classes=0, **sizes, **choices)

    def tokens(pixels: Any) -> list[Any]:
        taps = [tap - 1 for tap in spec.taps]
        return model.forward_intermediates(pixels, taps, norm=True, output_fmt="NLC", intermediates_only=True)

    return stirred(model), tokens


def compare(spec: ViTSpec, params: Any, tokens: Callable[[Any], list[Any]], grid: tuple[int, int]) -> None:
    """Maps and the gradient of their products with fixed random numbers, in one picture."""
    import torch

    rng, (rows, columns) = np.random.default_rng(1), grid
    image = rng.standard_normal((1, rows * spec.patch, columns * spec.patch, 3)).astype(np.float32)
    weights = rng.standard_normal((len(spec.taps), 1, rows, columns, spec.width)).astype(np.float32)
    pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).requires_grad_()
    wanted = [own[:, -rows * columns :].reshape(1, rows, columns, -1) for own in tokens(pixels)]
    sum((own * torch.from_numpy(w)).sum() for own, w in zip(wanted, weights, strict=True)).backward()  # pyright: ignore
    extractor = Extractor(params, "", vit.apply, spec, "")
    found, back = jax.vjp(jax.jit(lambda x: extractor(x)), image)
    slope = back(tuple(jnp.asarray(w) for w in weights))[0]
    largest = max(relative(ours, theirs.detach().numpy()) for ours, theirs in zip(found, wanted, strict=True))
    gradient = relative(slope, np.asarray(pixels.grad).transpose(0, 2, 3, 1))
    print(f"maps differ by at most {largest:.1e} of the largest value, the gradient by {gradient:.1e}")
    assert largest < 1e-5
    assert gradient < 2e-5


def relative(found: Any, wanted: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - wanted)) / np.max(np.abs(wanted)))


def loaded(spec: ViTSpec, path: Path) -> Any:
    return vit_keys.convert(read_weights(path)[0], spec)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "grid"), [("learned", (3, 6)), ("registers", (3, 6)), ("rotary", (4, 4)), ("rotary", (3, 6))]
)
def test_maps_and_gradient_agree_with_transformers(
    torch: Any, kind: str, grid: tuple[int, int], tmp_path: Path
) -> None:
    spec = SPECS[kind]
    model, tokens = of_transformers(spec)
    model.save_pretrained(tmp_path)
    params = loaded(spec, tmp_path / "model.safetensors")
    compare(spec, params, tokens, grid)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "choices", "grid"),
    [
        ("learned", {}, (4, 4)),  # elsewhere timm smooths the table, which transformers does not
        ("registers", {}, (3, 6)),
        ("rotary", {}, (3, 6)),
        ("rotary", {"qkv_bias": True}, (4, 4)),
    ],
)
def test_maps_and_gradient_agree_with_timm(
    torch: Any, kind: str, choices: dict[str, Any], grid: tuple[int, int], tmp_path: Path
) -> None:
    spec = SPECS[kind]
    model, tokens = of_timm(spec, **choices)
    save_file({name: leaf.numpy() for name, leaf in model.state_dict().items()}, tmp_path / "x.safetensors")
    compare(spec, loaded(spec, tmp_path / "x.safetensors"), tokens, grid)


@pytest.mark.parity
@pytest.mark.parametrize("kind", SPECS)
def test_metas_files_give_what_timm_makes_of_them(torch: Any, kind: str, tmp_path: Path) -> None:
    from timm.models import eva, vision_transformer

    spec = SPECS[kind]
    model, _ = of_timm(spec, **({} if spec.table else {"qkv_bias": True}))
    state = metas_state(spec)
    torch.save({name: torch.from_numpy(leaf) for name, leaf in state.items()}, tmp_path / "meta.pth")
    convert = (vision_transformer if spec.table else eva).checkpoint_filter_fn
    theirs = convert(torch.load(tmp_path / "meta.pth", weights_only=True), model)
    save_file({name: leaf.numpy() for name, leaf in theirs.items()}, tmp_path / "timm.safetensors")
    model.load_state_dict(theirs)
    ours, wanted = (loaded(spec, tmp_path / name) for name in ("meta.pth", "timm.safetensors"))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)


def metas_state(spec: ViTSpec) -> dict[str, np.ndarray]:
    """Random arrays by the names of Meta's own files."""
    rng, width = np.random.default_rng(0), spec.width
    sizes = {"norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,)}
    sizes |= {"attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,), "ls1.gamma": (width,)}
    sizes |= {"attn.proj.weight": (width, width), "attn.proj.bias": (width,), "ls2.gamma": (width,)}
    sizes |= {"mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,)}
    sizes |= {"mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,)}
    whole = {f"blocks.{k}.{name}": shape for k in range(spec.depth) for name, shape in sizes.items()}
    whole |= {"cls_token": (1, 1, width), "mask_token": (1, width), "norm.weight": (width,), "norm.bias": (width,)}
    whole |= {"patch_embed.proj.weight": (width, 3, spec.patch, spec.patch), "patch_embed.proj.bias": (width,)}
    if spec.table:
        whole |= {"pos_embed": (1, 1 + spec.table**2, width)}
    if spec.registers:
        whole |= {"register_tokens" if spec.table else "storage_tokens": (1, spec.registers, width)}
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in whole.items()}
    if not spec.table:
        state["rope_embed.periods"] = np.ones(width // spec.heads // 4, np.float32)
        for index in range(spec.depth):
            state[f"blocks.{index}.attn.qkv.bias_mask"] = np.full(3 * width, np.nan, np.float32)
    return state


@pytest.mark.parity
@pytest.mark.parametrize("name", vit.FAMILY)
def test_the_published_networks_are_those_of_timm(torch: Any, name: str) -> None:
    timm, spec = pytest.importorskip("timm"), vit.FAMILY[name]
    size = {"s": "small", "b": "base", "l": "large"}[name[10]]
    kind = name.replace(f"_vit{name[10]}", "")
    model = timm.create_model(
        f"vit_{size}_patch"
        + {"dinov214": "14_dinov2", "dinov214_reg": "14_reg4_dinov2", "dinov316": "16_dinov3"}[kind],
        pretrained=False,
        num_classes=0,
        device="meta",
        **({"img_size": 518} if spec.table else {}),
    )
    ours = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(vit.shapes(spec)))
    scales, keyless = 2 * spec.depth * spec.width, 0 if spec.table else 3 * spec.depth * spec.width
    place = spec.width if spec.table and not spec.registers else 0  # of the class token
    assert sum(leaf.numel() for leaf in model.parameters()) == ours + scales - keyless + place
    assert model.blocks[0].attn.num_heads == spec.heads
    assert model.blocks[0].norm1.eps == spec.epsilon


# -- files


TINY = ViTSpec(8, 24, 2, (1, 2), table=4)


def tiny_file(path: Path) -> Path:
    save_file({name: 0.3 * leaf for name, leaf in metas_state(TINY).items()}, path)
    return path


def test_files_are_imported_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("F2PAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(NETWORKS, "dinov2_vits14", _vit(TINY))
    file = tiny_file(tmp_path / "x.safetensors")
    assert main(["weights", "import", "dinov2_vits14", str(file)]) == 0
    assert "Apache-2.0, SHA-256" in capsys.readouterr().out
    assert main(["weights", "list"]) == 0
    rows = {words[0]: words for line in capsys.readouterr().out.splitlines() if (words := line.split())}
    assert rows["dinov2_vits14"] == ["dinov2_vits14", "?", "Apache-2.0", "?", "imported"]
    assert rows["dinov3_vitl16"][2:4] == ["LicenseRef-DINOv3", "?"]
    assert rows["resnet18"][3] == "f37072fd…"
    extractor = load_extractor("dinov2_vits14")
    assert (extractor.channels, extractor.strides, extractor.everywhere) == ((24, 24), (8, 8), True)
    for one, other in zip(jax.tree.leaves(extractor.params), jax.tree.leaves(loaded(TINY, file)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_unfit_files_are_refused_with_all_that_is_wrong(tmp_path: Path) -> None:
    state = metas_state(TINY)
    state["blocks.0.ls1.gamma"] = state["blocks.0.ls1.gamma"][:-1]
    state["extra"] = state.pop("norm.bias")
    with pytest.raises(
        ValueError, match=r"missing norm.bias.*blocks.0.ls1.gamma has shape .23,., not .24,..*unknown extra"
    ) as caught:
        vit_keys.convert(state, TINY)
    assert str(caught.value).count("unknown") == 1
    save_file(metas_state(TINY), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="not the weights of dinov2_vits14: .*not .384"):
        load_extractor("dinov2_vits14", weights=tmp_path / "x.safetensors")


def test_deeper_blocks_than_the_last_map_are_not_needed() -> None:
    whole, shallow = (
        vit_keys.convert(metas_state(TINY), dataclasses.replace(TINY, taps=taps)) for taps in ((1, 2), (1,))
    )
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    maps = vit.apply(whole, jnp.asarray(image), spec=TINY)
    (first,) = vit.apply(shallow, jnp.asarray(image), spec=dataclasses.replace(TINY, taps=(1,)))
    np.testing.assert_allclose(first, maps[0], rtol=1e-5, atol=1e-5)


def test_how_far_bfloat16_is_off() -> None:
    image = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 64, 3)), jnp.float32)
    exact = Extractor(draw_params(ROTARY), "", vit.apply, ROTARY, "")
    half = dataclasses.replace(exact, precision="bf16")
    apply = jax.jit(lambda extractor, x: extractor(x))
    for found, wanted in zip(apply(half, image), apply(exact, image), strict=True):
        assert found.dtype == jnp.float32
        assert 1e-4 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.03


# -- detectors on maps of one stride


def test_the_grid_of_the_scores_is_the_coarsest_where_there_are_few() -> None:
    assert [scored_stride((4, 8, 16), level) for level in (0, 1, 2, 3)] == [4, 8, 16, 16]
    assert [scored_stride(strides, 1) for strides in ((14, 14, 14), (16,), (8, 8, 16))] == [14, 16, 16]


def test_patchcore_leaves_out_no_map_where_all_are_of_one_grid() -> None:
    rng = np.random.default_rng(0)
    maps = tuple(rng.standard_normal((3, 6, 5, width), np.float32) for width in (4, 3))
    finer = rng.standard_normal((3, 12, 10, 2), np.float32)
    alone, pyramid = PatchCore.fit(maps), PatchCore.fit((finer, *maps))
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(pyramid), strict=True):
        np.testing.assert_array_equal(one, other)
    picture = tuple(jnp.asarray(m[0]) for m in maps)
    np.testing.assert_array_equal(alone.score(picture), pyramid.score((jnp.asarray(finer[0]), *picture)))
    single = PatchCore.fit(maps[:1]).score(picture[:1])
    assert single.shape == (6, 5)
    assert float(single.max()) > 0


def pictures(count: int, side: int = 60) -> np.ndarray:
    """Grey with a little noise; sides are no multiples of a patch."""
    noise = np.random.default_rng(0).normal(128, 6, (count, side, side, 3))
    return np.clip(noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("detector", "taps"), [("padim", (1, 2)), ("patchcore", (2,)), ("cflow", (1, 2))])
def test_detectors_fit_and_segment_on_maps_of_one_stride(detector: str, taps: tuple[int, ...]) -> None:
    model = tiny_fit(detector, dataclasses.replace(TINY, taps=taps))
    assert (model.shape, model.seen) == ((60, 60), (56, 56))
    assert model.grids == ((7, 7),) * len(taps)
    image, truth = pictures(13)[-1], np.zeros((60, 60), bool)
    truth[18:38, 22:42] = True
    image[truth] = (240, 30, 30)
    check_positions(model, image)
    mask = segment(model, image).mask
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


def check_positions(model: Model, image: np.ndarray) -> None:
    """A change anywhere changes the scores of all positions, and all of them count, wherever the region is."""
    (sight,) = look(model, image[None])
    region = np.zeros(model.shape, bool)
    region[5:9, 5:9] = True
    changed = np.where(region[..., None], 255 - image, image)
    assert (look(model, changed[None])[0].costs != sight.costs).all()
    chosen = plan(model, sight, region)
    np.testing.assert_array_equal(chosen.affected.positions, np.arange(sight.costs.size))
    assert chosen.affected.present.all()


def test_a_model_of_one_grid_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "dinov2_vits14", _vit(TINY))
    file = tiny_file(tmp_path / "x.safetensors")
    model = tiny_fit("patchcore", TINY, load_extractor("dinov2_vits14", weights=file))
    save_model(model, tmp_path / "model")
    again, image = load_model(tmp_path / "model", weights=file), pictures(1)
    np.testing.assert_array_equal(look(again, image)[0].scores, look(model, image)[0].scores)


def tiny_fit(detector: str, spec: ViTSpec, extractor: Extractor | None = None) -> Model:
    if extractor is None:
        params = draw_params(spec)
        # Tokens stay what they are, more or less, as trained ones do; random attention would spread an anomaly evenly.
        params["blocks"]["proj"] = jax.tree.map(lambda leaf: 0.1 * leaf, params["blocks"]["proj"])
        extractor = Extractor(params, "", vit.apply, spec, "")
    return fit(pictures(12), detector=detector, extractor=extractor, options=QUICK.get(detector))
