"""Each network against other people's on random weights: block by block, forward and gradient in the image."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_parts import import_torchvision

from f2pad_jax.networks import efficientnet, layers, resnet
from f2pad_jax.weights import key_maps, load_extractor

torch = pytest.importorskip("torch")
torchvision: Any = import_torchvision()

import timm  # noqa: E402
from efficientnet_pytorch import EfficientNet  # noqa: E402
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.parity

PER_BLOCK, PER_NETWORK = 1e-5, 1e-4
IMAGES = np.random.default_rng(0).standard_normal((3, 32, 48, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def _highest_precision():
    with jax.default_matmul_precision("highest"):
        yield


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_near(actual: object, expected: object, tolerance: float) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def randomised(module: nn.Module, seed: int) -> nn.Module:
    """The module in evaluation mode, with random batch norms and kernels that keep the variance."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                uniform(part.weight, 0.5, 1.5)
                uniform(part.bias, -0.3, 0.3)
                uniform(part.running_mean, -0.3, 0.3)  # pyright: ignore[reportArgumentType]
                uniform(part.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
            elif isinstance(part, nn.Conv2d | nn.Linear):
                scale = (2 / part.weight[0].numel()) ** 0.5
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * scale)
                if part.bias is not None:
                    uniform(part.bias, -0.3, 0.3)
    return module.eval().requires_grad_(requires_grad=False)


def settled(module: nn.Module) -> nn.Module:
    """The module with batch norms that know its statistics: its gates would else switch on the last digit."""
    norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        module.train()(nchw(draw(2, 64, 96, 3)))
        for norm in norms:
            norm.running_var.clamp_(min=0.1)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
    return module.eval()


# The comparison.


def nchw(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))


def torch_with_gradient(
    function: Callable[[Tensor], list[Tensor]], images: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """Outputs NHWC, and the gradient of their products with fixed random numbers, summed."""
    x = nchw(images).requires_grad_()
    outputs = function(x)
    loss = sum((out * nchw(draw(*nhwc_shape(out), seed=7))).sum() for out in outputs)
    loss.backward()  # pyright: ignore[reportAttributeAccessIssue]
    return [out.detach().numpy().transpose(0, 2, 3, 1) for out in outputs], np.asarray(x.grad).transpose(0, 2, 3, 1)


def nhwc_shape(tensor) -> tuple[int, ...]:
    batch, channels, height, width = tensor.shape
    return batch, height, width, channels


def compare(
    function: Callable, params: layers.Params, torch_function: Callable, images: np.ndarray, tolerance: float
) -> None:
    """Outputs of every image; the gradient of the best, for a ReLU may fall otherwise after other rounding."""

    @jax.jit
    def both(params: layers.Params, x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        outputs, pull = jax.vjp(lambda x: list(function(params, x)), x)
        return outputs, pull([jnp.asarray(draw(*out.shape, seed=7)) for out in outputs])[0]

    errors, largest = [], 0.0
    for image in images:
        outputs, gradient = both(params, jnp.asarray(image[None]))
        expected_outputs, expected_gradient = torch_with_gradient(torch_function, image[None])
        for actual, expected in zip(outputs, expected_outputs, strict=True):
            assert_near(actual, expected, tolerance)
            largest = max(largest, float(np.abs(actual - expected).max() / np.abs(expected).max()))
        assert gradient.shape == expected_gradient.shape
        errors.append(np.abs(gradient - expected_gradient).max() / np.abs(expected_gradient).max())
    print(f"maps differ by at most {largest:.1e} of the largest value, the gradient by {min(errors):.1e}")
    assert min(errors) <= tolerance


def converted(module: nn.Module, network: Any, spec: Any, key_map: Callable[[Any], key_maps.KeyMap]) -> layers.Params:
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return jax.tree.map(jnp.asarray, key_maps.convert(state, network.shapes(spec), key_map(spec)))


def hooked(module: nn.Module, parts: Sequence[nn.Module], x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What some parts of a module put out on the way, and what the whole does."""
    seen: list[Tensor] = []

    def see(_part: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output)

    hooks = [part.register_forward_hook(see) for part in parts]
    whole = module(x)
    for hook in hooks:
        hook.remove()
    return seen, whole


# ResNet


def every_layer(name: str) -> resnet.ResNetSpec:
    return dataclasses.replace(resnet.FAMILY[name], taps=(1, 2, 3, 4))


@pytest.fixture(scope="module", params=["resnet18", "wide_resnet50_2"])
def residual(request: pytest.FixtureRequest):
    """A network of the family with one block of every kind."""
    spec = dataclasses.replace(every_layer(request.param), depths=(2, 1, 1, 1))
    theirs = torchvision.models.resnet
    block, width = (theirs.Bottleneck, 256 // spec.bottleneck) if spec.bottleneck else (theirs.BasicBlock, 64)
    module = randomised(theirs.ResNet(block, list(spec.depths), num_classes=10, width_per_group=width), seed=0)
    return module, spec, converted(module, resnet, spec, key_maps.torchvision_resnet)


def test_resnet_stem_against_torchvision(residual):
    module, _, params = residual
    compare(
        lambda p, x: [resnet.stem(p, x)],
        params["conv1"],
        lambda x: [module.maxpool(module.relu(module.bn1(module.conv1(x))))],
        draw(2, 32, 48, 3),
        PER_BLOCK,
    )


@pytest.mark.parametrize(("layer", "index"), [(1, 0), (1, 1), (2, 0)])
def test_resnet_blocks_against_torchvision(residual, layer, index):
    module, spec, params = residual
    block = getattr(module, f"layer{layer}")[index]
    form = resnet.bottleneck if spec.bottleneck else resnet.basic_block
    stride = 2 if layer > 1 and index == 0 else 1
    compare(
        lambda p, x: [form(p, x, stride=stride)],
        params[f"layer{layer}"][str(index)],
        lambda x: [block(x)],
        draw(2, 8, 10, block.conv1.in_channels),
        PER_BLOCK,
    )


def test_shallow_resnets_against_torchvision(residual):
    module, spec, params = residual
    parts = [module.layer1, module.layer2, module.layer3, module.layer4]
    compare(
        partial(resnet.apply, spec=spec),
        params,
        lambda x: hooked(module, parts, x)[0],
        IMAGES,
        PER_NETWORK,
    )


def test_resnet18_against_transformers():
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic")
    module, spec = randomised(ResNetModel(config), seed=0), every_layer("resnet18")

    def torchvisions(name: str) -> str:
        """Its name for a parameter."""
        name = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        name = re.sub(r"encoder\.stages\.(\d)\.layers", lambda stage: f"layer{int(stage[1]) + 1}", name)
        name = name.replace("shortcut.convolution", "downsample.0").replace("shortcut.normalization", "downsample.1")
        name = re.sub(r"layer\.(\d)\.convolution", lambda place: f"conv{int(place[1]) + 1}", name)
        return re.sub(r"layer\.(\d)\.normalization", lambda place: f"bn{int(place[1]) + 1}", name)

    state = {torchvisions(name): tensor.numpy() for name, tensor in module.state_dict().items()}
    params = key_maps.convert(state, resnet.shapes(spec), key_maps.torchvision_resnet(spec))
    compare(
        partial(resnet.apply, spec=spec),
        params,
        lambda x: list(module(x, output_hidden_states=True).hidden_states[1:]),
        IMAGES,
        PER_NETWORK,
    )


# EfficientNet

BLOCKS = (0, 1, 2, 3, 4, 8)  # of B0 and Lite0: every kernel and stride, with and without a shortcut


def own_classes(name: str) -> efficientnet.EfficientNetSpec:
    return dataclasses.replace(efficientnet.FAMILY[name], classes=10)


def lukemelas(name: str) -> Any:
    module = EfficientNet.from_name(name.replace("_", "-"), num_classes=10, image_size=None)
    return settled(randomised(module, seed=0))


@pytest.fixture(scope="module")
def b0():
    module, spec = lukemelas("efficientnet_b0"), own_classes("efficientnet_b0")
    return module, spec, converted(module, efficientnet, spec, key_maps.efficientnet_pytorch)


@pytest.fixture(scope="module")
def timm_lite0():
    module = randomised(timm.create_model("tf_efficientnet_lite0", num_classes=10), seed=0)
    spec = own_classes("efficientnet_lite0")
    return module, spec, converted(module, efficientnet, spec, key_maps.timm_efficientnet)


@pytest.mark.parametrize("index", BLOCKS)
def test_b0_blocks_against_efficientnet_pytorch(b0, index):
    module, spec, params = b0
    block, theirs = spec.blocks[index], module._blocks[index]

    def both(x: Tensor) -> list[Tensor]:
        (linear,), whole = hooked(theirs, [theirs._bn2], x)
        return [linear, whole]

    compare(
        lambda p, x: [efficientnet.projection(p, x, block=block), efficientnet.inverted_residual(p, x, block=block)],
        params["blocks"][str(index)],
        both,
        draw(2, 8, 10, block.inputs),
        PER_BLOCK,
    )


def test_b6_against_efficientnet_pytorch():
    module, spec = lukemelas("efficientnet_b6"), own_classes("efficientnet_b6")
    params = converted(module, efficientnet, spec, key_maps.efficientnet_pytorch)
    cut = dataclasses.replace(spec, classes=0)
    parts = [module._blocks[index]._bn2 for index in spec.tap_blocks]

    def theirs(x: Tensor) -> list[Tensor]:
        maps, logits = hooked(module, parts, x)
        return [*maps, logits[..., None, None]]

    # Maps and logits in one program: so deep a network is long to compile.
    compare(
        lambda p, x: [*efficientnet.apply(p, x, spec=cut), efficientnet.classify(p, x, spec=spec)[:, None, None]],
        params,
        theirs,
        IMAGES,
        PER_NETWORK,
    )


@pytest.mark.parametrize("index", BLOCKS)
def test_lite0_blocks_against_timm(timm_lite0, index):
    module, spec, params = timm_lite0
    stage, place = spec.places[index]
    block = spec.blocks[index]
    compare(
        lambda p, x: [efficientnet.inverted_residual(p, x, block=block)],
        params["blocks"][str(index)],
        lambda x: [module.blocks[stage][place](x)],
        draw(2, 8, 10, block.inputs),
        PER_BLOCK,
    )


def test_lite0_against_timm(timm_lite0):
    module, spec, params = timm_lite0
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def colours(x: Tensor) -> Tensor:
        return ((x * std + mean) * 255 - 127) / 128

    parts = [module.blocks[index] for index in (1, 2, 4)]
    compare(
        partial(efficientnet.apply, spec=spec),
        params,
        lambda x: hooked(module, parts, colours(x))[0],
        IMAGES,
        PER_NETWORK,
    )
    logits = jax.jit(partial(efficientnet.classify, spec=spec))(params, IMAGES)
    assert_near(logits, module(colours(nchw(IMAGES))), PER_NETWORK)


def test_either_layout_of_a_file_makes_the_extractor(b0, tmp_path: Path):
    apply = jax.jit(partial(efficientnet.apply, spec=efficientnet.FAMILY["efficientnet_b0"]))

    def check(module: nn.Module, parts: list[nn.Module]) -> None:
        torch.save(module.state_dict(), tmp_path / "weights.pth")
        extractor = load_extractor("efficientnet_b0", weights=tmp_path / "weights.pth")
        wanted, _ = hooked(module, parts, nchw(IMAGES))
        for features, theirs in zip(apply(extractor.params, IMAGES), wanted, strict=True):
            assert_near(features, theirs.permute(0, 2, 3, 1), PER_NETWORK)

    theirs, _, _ = b0
    check(theirs, [theirs._blocks[index]._bn2 for index in (4, 10, 14)])
    timms: Any = settled(randomised(timm.create_model("tf_efficientnet_b0"), seed=1))
    check(timms, [timms.blocks[stage][-1].bn3 for stage in (2, 4, 5)])


# The families: names and shapes of all parameters, and strides, against definitions without any numbers in them.


def meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def described(network: Any, spec: Any, key_map: key_maps.KeyMap) -> dict[str, tuple[int, ...]]:
    """The names and shapes that a file must hold."""
    wanted, tree = {}, network.shapes(spec)
    for source in key_map.sources:
        node = tree
        for key in source.path:
            node = node[key]
        height, width, inputs, outputs = node["kernel"].shape
        kernel = (outputs, inputs) if source.dense else (outputs, inputs, height, width)
        wanted[f"{source.name}.weight"] = kernel
        if source.norm is None:
            wanted[f"{source.name}.bias"] = (outputs,)
        else:
            wanted |= {f"{source.norm}.{part}": (outputs,) for part in key_maps.NORM}
    return wanted


def held(module: nn.Module) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("name", efficientnet.FAMILY)
def test_every_efficientnet_is_as_published(name: str):
    spec = dataclasses.replace(efficientnet.FAMILY[name], classes=1000)
    timms = meta(lambda: timm.create_model(f"tf_{name}"))
    assert described(efficientnet, spec, key_maps.timm_efficientnet(spec)) == held(timms)
    if not spec.lite:
        theirs = meta(lambda: EfficientNet.from_name(name.replace("_", "-")))
        assert described(efficientnet, spec, key_maps.efficientnet_pytorch(spec)) == held(theirs)
    convolutions = [part for part in timms.modules() if isinstance(part, nn.Conv2d) and part.groups > 1]
    assert [block.stride for block in spec.blocks] == [part.stride[0] for part in convolutions]


@pytest.mark.parametrize("name", resnet.FAMILY)
def test_every_resnet_is_as_published(name: str):
    spec = every_layer(name)
    theirs = meta(lambda: torchvision.models.get_model(name, weights=None))
    without_head = {key: shape for key, shape in held(theirs).items() if not key.startswith("fc.")}
    assert described(resnet, spec, key_maps.torchvision_resnet(spec)) == without_head
