"""Networks made ready to answer: the same function, fewer and cheaper operations.

The mental model:

1. In evaluation a batch norm is a scale and a shift per channel, so `fold_batch_norms` puts it into the convolution
   before it and the pass over memory is saved.
2. Channels-last is the layout that CPUs' and tensor cores' convolutions want.
3. On CPUs oneDNN brings a convolution's weights into a layout of its own with every call, which for a lone image takes
   longer than convolving. `_Packed` does that once, and has the ReLU computed on the way out. `_Pool` stands for
   torch's pooling, which would be a seventh of the time of a GoogLeNet in bfloat16.
4. bfloat16 where the hardware computes it natively, and only in the classifier: a verdict bears its rounding, pixels
   shall be those of the training's pictures.

torch only. The networks given are left as they were; answers hold copies.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raygan.models.hardware import computes_bf16

if TYPE_CHECKING:
    from raygan.models.googlenet import Classifier

M = TypeVar("M", bound=nn.Module)


def fold_batch_norms(network: M) -> M:
    """A copy of an evaluated network whose convolutions have taken in the batch norms that follow them.

    Pairs are found in `nn.Sequential`s and in torchvision's `BasicConv2d`; other norms stay as they are.
    Raises ValueError if the network is in training mode.
    """
    if network.training:
        raise ValueError("batch norms fold in evaluation mode only: in training they depend on the batch")
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module).__name__ == "BasicConv2d":
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)  # type: ignore[type-var, arg-type]
            module.bn = nn.Identity()
        elif isinstance(module, nn.Sequential):
            _fold_pairs(module)
    return network


def _fold_pairs(stack: nn.Sequential) -> None:
    for first, second in itertools.pairwise(range(len(stack))):
        convolution, norm = stack[first], stack[second]
        # Exactly BatchNorm2d: a subclass may depend on more than the channel, on a label for one.
        if isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d) and type(norm) is nn.BatchNorm2d:
            transposed = isinstance(convolution, nn.ConvTranspose2d)
            stack[first] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)
            stack[second] = nn.Identity()


_ops = torch.ops.mkldnn


class _Packed(nn.Module):
    """A convolution, or a transposed one, and perhaps the ReLU after it, with weights in oneDNN's own layout.

    The operators are those that torch.compile puts in the place of such modules. shape: of the images to come, on
    which the layout depends; any others are right too.
    """

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, shape: torch.Size, *, relu: bool):
        super().__init__()
        options: list[Any] = [_pair(convolution.padding)]
        if isinstance(convolution, nn.ConvTranspose2d):
            options.append(_pair(convolution.output_padding))
            pack, self._compute = (
                _ops._reorder_convolution_transpose_weight,
                _ops._convolution_transpose_pointwise.default,
            )
        else:
            pack, self._compute = _ops._reorder_convolution_weight, _ops._convolution_pointwise.default
        options += [_pair(convolution.stride), _pair(convolution.dilation), convolution.groups]
        self._weight = pack(convolution.weight, *options, shape)
        self._rest = (convolution.bias, *options, "relu" if relu else "none", [], "")

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self._compute(images, self._weight, *self._rest)
        return answer


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch computes with packed weights on the device, which oneDNN doesn't emulate."""
    known = device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(_ops, "_convolution_pointwise")
    return known and (dtype == torch.float32 or computes_bf16(device))


def _replace(
    network: nn.Module, example: Sequence[Tensor], substitute: Callable[[nn.Module, torch.Size], nn.Module | None]
) -> None:
    """Put other modules in the place of some within a network.

    substitute: what is to stand for a module, which is given images of that shape; None where it stays.
    """
    shapes: dict[nn.Module, torch.Size] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = inputs[0].shape

    hooks = [module.register_forward_pre_hook(look) for module in network.modules()]
    network(*example)
    for hook in hooks:
        hook.remove()

    def put(parent: nn.Module) -> None:
        for name, module in parent.named_children():
            other = substitute(module, shapes[module]) if module in shapes else None
            if other is None:
                put(module)
            else:
                setattr(parent, name, other)

    put(network)


def _packed(module: nn.Module, shape: torch.Size) -> _Packed | None:
    """What stands for a convolution within a folded network that is on its device and in its precision."""
    if type(module).__name__ == "BasicConv2d":  # whose forward has a ReLU
        return _Packed(module.conv, shape, relu=True)  # type: ignore[arg-type]
    return _Packed(module, shape, relu=False) if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else None


def fast_network(network: M, example: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32) -> M:
    """A folded copy, channels last, on a device, in a precision, without gradients; packed on CPUs.

    example: inputs of the kind to come.
    """
    folded = fold_batch_norms(network).requires_grad_(False)
    folded.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if _packs(device, dtype):
        _replace(folded, example, _packed)
    return folded


#: Numbers of which torch's own pooling is the faster one.
_FEW = 2**15


class _Pool(nn.Module):
    """MaxPool2d of 3x3 over bfloat16, channels last, of which none is below 0, as after a ReLU.

    Such numbers are in the order of their bits taken as integers, and a square's greatest is the greatest of its rows'
    greatest: a few passes over integers, a third of the time of torch's own pooling, for the same bits.
    """

    def __init__(self, pool: nn.MaxPool2d):
        super().__init__()
        self._pool = pool
        self._reduce = _greatest_about if pool.stride == 1 else _greatest_of_pairs

    @staticmethod
    def can_replace(pool: nn.MaxPool2d, shape: torch.Size) -> bool:
        """Whether it computes the same as a pool does with images of this shape."""
        if pool.kernel_size != 3 or pool.dilation != 1:
            return False
        halves = pool.stride == 2 and pool.padding == 0 and pool.ceil_mode and not shape[2] % 2 and not shape[3] % 2
        return halves or (pool.stride == 1 and pool.padding == 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.numel() < _FEW:
            small: Tensor = self._pool(images)
            return small
        bits = images.permute(0, 2, 3, 1).view(torch.int16)
        for dimension in (1, 2):
            bits = self._reduce(bits.movedim(dimension, 0)).movedim(0, dimension)
        return bits.view(torch.bfloat16).permute(0, 3, 1, 2)


def _greatest_about(lines: Tensor) -> Tensor:
    """The greatest of each line and its neighbours: stride 1, padding 1."""
    greatest = lines.clone()
    torch.maximum(greatest[1:], lines[:-1], out=greatest[1:])
    torch.maximum(greatest[:-1], lines[1:], out=greatest[:-1])
    return greatest


def _greatest_of_pairs(lines: Tensor) -> Tensor:
    """The greatest of each pair of lines and the one that follows, if any: stride 2, no padding, ceiling mode."""
    first = lines[::2]
    greatest = torch.maximum(first, lines[1::2])
    torch.maximum(greatest[:-1], first[1:], out=greatest[:-1])
    return greatest


def _quick_pool(module: nn.Module, shape: torch.Size) -> _Pool | None:
    """What stands for a pool of a GoogLeNet in bfloat16, where each comes after ReLUs."""
    return _Pool(module) if isinstance(module, nn.MaxPool2d) and _Pool.can_replace(module, shape) else None


class _BFloat16(nn.Module):
    """A network in bfloat16 that answers in float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images.to(torch.bfloat16)).float()
        return answer


def fast_classifier(classifier: Classifier, device: torch.device, *, bf16: bool) -> Classifier:
    """The classifier made fast and, if asked, in bfloat16; in float32 no probability moves by 0.01 (tested)."""
    from raygan.models.googlenet import Classifier, to_input

    dtype = torch.bfloat16 if bf16 else torch.float32
    size = classifier.image_size
    example = [to_input(torch.zeros(1, 3, size, size, dtype=torch.uint8), size).to(dtype)]
    network: nn.Module = fast_network(classifier.net, example, device, dtype)
    if bf16:
        if device.type == "cpu":
            _replace(network, example, _quick_pool)
        network = _BFloat16(network)
    fast = Classifier(network, classifier.labels, size, classifier.about)
    return fast.to(device)
