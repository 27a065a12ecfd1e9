"""Each network against the same network in torch on random weights: block by block, forward and gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from f2pad_jax.networks import efficientnet, layers, resnet
from f2pad_jax.pretrained import key_maps

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

pytestmark = pytest.mark.parity

PER_BLOCK, PER_NETWORK = 1e-5, 1e-4


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


# The networks in torch: batch norms unfolded, modules named as the published weights name them.


class TorchBasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(TorchBasicBlock(64, 64, 1), TorchBasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(TorchBasicBlock(64, 128, 2), TorchBasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(TorchBasicBlock(128, 256, 2), TorchBasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(TorchBasicBlock(256, 512, 2), TorchBasicBlock(512, 512, 1))
        self.fc = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def same(x: Tensor, size: int, stride: int) -> Tensor:
    """Uneven padding that keeps ceil(length / stride), the extra line last."""
    pads = []
    for length in (x.shape[3], x.shape[2]):
        total = max((-(-length // stride) - 1) * stride + size - length, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class TorchInvertedResidual(nn.Module):
    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and inputs == outputs
        self._expand_conv = None
        if expansion != 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = norm(inner)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x if self._expand_conv is None else F.relu6(self._bn0(self._expand_conv(x)))
        y = F.relu6(self._bn1(self._depthwise_conv(same(y, self.kernel, self.stride))))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class TorchLite0(nn.Module):
    """Takes images in the colours the weights were trained with."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        blocks, inputs = [], 32
        for kernel, stride, expansion, outputs, repeats in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(TorchInvertedResidual(kernel, step, expansion, inputs, outputs))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self._fc = nn.Linear(1280, 10)

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(same(x, 3, 2))))
        maps = []
        for block in self._blocks:
            x = block(x)
            maps.append(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return maps, self._fc(x.mean((2, 3)))


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
    return module.eval().requires_grad_(requires_grad=False)


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


def compare(function: Callable, torch_function: Callable, images: np.ndarray, tolerance: float) -> None:
    def all_outputs(x: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        outputs, pull = jax.vjp(lambda x: list(function(x)), x)
        return outputs, pull([jnp.asarray(draw(*out.shape, seed=7)) for out in outputs])[0]

    outputs, gradient = jax.jit(all_outputs)(jnp.asarray(images))
    expected_outputs, expected_gradient = torch_with_gradient(torch_function, images)
    for actual, expected in zip(outputs, expected_outputs, strict=True):
        assert_near(actual, expected, tolerance)
    assert_near(gradient, expected_gradient, tolerance)


def converted(module, network, spec, key_map) -> layers.Params:
    state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    return key_maps.convert(state, network.shapes(spec), key_map(spec))


@pytest.fixture(scope="module")
def torch_resnet():
    module = randomised(TorchResNet18(), seed=0)
    spec = dataclasses.replace(resnet.RESNET18, taps=(1, 2, 3, 4))
    return module, spec, converted(module, resnet, spec, key_maps.torchvision_resnet)


@pytest.fixture(scope="module")
def torch_lite0():
    module = randomised(TorchLite0(), seed=0)
    spec = dataclasses.replace(efficientnet.LITE0, classes=10)
    return module, spec, converted(module, efficientnet, spec, key_maps.efficientnet_pytorch)


def test_resnet_stem_against_torch(torch_resnet):
    module, _, params = torch_resnet
    compare(
        lambda x: [resnet.stem(params["conv1"], x)],
        lambda x: [F.max_pool2d(F.relu(module.bn1(module.conv1(x))), 3, 2, 1)],
        draw(2, 32, 48, 3),
        PER_BLOCK,
    )


@pytest.mark.parametrize("layer", [1, 2, 3, 4])
@pytest.mark.parametrize("index", [0, 1])
def test_resnet_blocks_against_torch(torch_resnet, layer, index):
    module, _, params = torch_resnet
    block = getattr(module, f"layer{layer}")[index]
    stride = 2 if layer > 1 and index == 0 else 1
    compare(
        lambda x: [resnet.basic_block(params[f"layer{layer}"][str(index)], x, stride=stride)],
        lambda x: [block(x)],
        draw(2, 8, 10, block.conv1.in_channels),
        PER_BLOCK,
    )


def test_resnet_against_torch(torch_resnet):
    module, spec, params = torch_resnet
    compare(lambda x: resnet.apply(params, x, spec=spec), module, draw(2, 64, 96, 3), PER_NETWORK)


@pytest.mark.parametrize("index", range(16))
def test_lite0_blocks_against_torch(torch_lite0, index):
    module, spec, params = torch_lite0
    block = spec.blocks[index]
    compare(
        lambda x: [efficientnet.inverted_residual(params["blocks"][str(index)], x, block=block)],
        lambda x: [module._blocks[index](x)],
        draw(2, 8, 10, block.inputs),
        PER_BLOCK,
    )


def test_lite0_against_torch(torch_lite0):
    module, spec, params = torch_lite0
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def reference(x):
        maps, _ = module(((x * std + mean) * 255 - 127) / 128)
        return [maps[index] for index in (2, 4, 10)]

    compare(lambda x: efficientnet.apply(params, x, spec=spec), reference, draw(2, 64, 96, 3), PER_NETWORK)
    images = draw(2, 64, 64, 3, seed=3)
    logits = module(((nchw(images) * std + mean) * 255 - 127) / 128)[1]
    assert_near(efficientnet.classify(params, jnp.asarray(images), spec=spec), logits, PER_NETWORK)
