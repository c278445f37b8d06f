"""Networks made fast for serving: the same function in fewer and cheaper operations.

1. In evaluation mode, a batch norm is a scale and a shift per channel. `fold_batch_norms` moves it into the convolution
   before it, which saves a pass over memory. Kernels that are filtered in every call are filtered once.
2. Convolutions on CPUs and tensor cores are fastest with channels last.
3. On CPUs, oneDNN reorders a convolution's weights in every call, which for a single image takes longer than the
   convolution. `_Packed` reorders them once, and computes the ReLU in the same pass. `ReluMaxPool2d` replaces torch's
   pooling, which would take a seventh of the time of a GoogLeNet in bfloat16.
4. bfloat16 where the hardware computes it natively, and only in the classifier: its probabilities tolerate rounding,
   while a generator's pixels must match the pictures of the training.

The original networks stay unchanged.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from raygan.models.double_backward import Conv2d
from raygan.models.hardware import computes_bf16
from raygan.models.layers import UpConvolution
from raygan.models.pooling import ReluMaxPool2d

if TYPE_CHECKING:
    from raygan.models.googlenet import Classifier

M = TypeVar("M", bound=nn.Module)

# Private to torch. The public way to these operators is `torch.compile` with frozen weights, which puts them in place
# of such modules, at the price of a compilation in each process.
_ops = torch.ops.mkldnn

# Exactly these: another subclass may compute something else.
_PACKABLE = (nn.Conv2d, nn.ConvTranspose2d, Conv2d)


def fast_network(network: M, example: Sequence[Tensor], device: torch.device, dtype: torch.dtype = torch.float32) -> M:
    """A fast copy of a network in evaluation mode, without gradients.

    Args:
        network: in evaluation mode, on the CPU.
        example: inputs like those to come; other shapes work too.
        device: of the copy.
        dtype: of the copy's weights and inputs.

    Raises:
        ValueError: the network is in training mode.
    """
    folded = fold_batch_norms(network).requires_grad_(False)
    folded.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if _packs(device, dtype):
        _replace(folded, example, _packed)
    return folded


def fast_classifier(classifier: Classifier, device: torch.device, *, bf16: bool) -> Classifier:
    """A fast copy of a classifier.

    Args:
        classifier: on the CPU.
        device: of the copy.
        bf16: compute in bfloat16. In float32, no probability changes by 0.01 (tested).
    """
    from raygan.models.googlenet import Classifier, to_input  # not needed, and slow to import, where faces are drawn

    dtype = torch.bfloat16 if bf16 else torch.float32
    size = classifier.image_size
    example = [to_input(torch.zeros(1, 3, size, size, dtype=torch.uint8), size).to(dtype)]
    network: nn.Module = fast_network(classifier.net, example, device, dtype)
    if bf16:
        if device.type == "cpu":
            replace_pools(network, example)
        network = _BFloat16(network)
    return Classifier(network, classifier.labels, size, classifier.about).to(device)


def fold_batch_norms(network: M) -> M:
    """A copy of a network whose convolutions have absorbed the batch norms after them.

    Pairs are found in `nn.Sequential` and in torchvision's `BasicConv2d`; other norms stay.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("batch norms fold in evaluation mode only: in training they depend on the batch")
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, UpConvolution):
                setattr(module, name, child.plain())
    for module in network.modules():
        if type(module).__name__ == "BasicConv2d":
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)  # type: ignore[type-var, arg-type]
            module.bn = nn.Identity()
        elif isinstance(module, nn.Sequential):
            _fold_pairs(module)
    return network


def replace_pools(network: nn.Module, example: Sequence[Tensor]) -> None:
    """Replace pools in place where every one comes after a ReLU, as in GoogLeNet in bfloat16."""

    def substitute(module: nn.Module, shape: torch.Size) -> nn.Module | None:
        if isinstance(module, nn.MaxPool2d) and ReluMaxPool2d.can_replace(module, shape):
            return ReluMaxPool2d(module)
        return None

    _replace(network, example, substitute)


def _fold_pairs(stack: nn.Sequential) -> None:
    for first, second in itertools.pairwise(range(len(stack))):
        convolution, norm = stack[first], stack[second]
        # Exactly these types: a subclass may depend on more than its input's channel.
        transposed = type(convolution) is nn.ConvTranspose2d
        if (transposed or type(convolution) is nn.Conv2d) and type(norm) is nn.BatchNorm2d:
            stack[first] = fuse_conv_bn_eval(convolution, norm, transpose=transposed)  # type: ignore[type-var]
            stack[second] = nn.Identity()


class _Packed(nn.Module):
    """A convolution, transposed or not, with weights in oneDNN's own layout, and possibly the ReLU after it.

    The layout is chosen for images of the given shape (N, C, H, W), but works for all.
    """

    def __init__(self, convolution: nn.Conv2d | nn.ConvTranspose2d, shape: torch.Size, *, relu: bool):
        super().__init__()
        options: list[Any] = [convolution.padding]
        if isinstance(convolution, nn.ConvTranspose2d):
            options.append(convolution.output_padding)
            pack, self._compute = (
                _ops._reorder_convolution_transpose_weight,
                _ops._convolution_transpose_pointwise.default,
            )
        else:
            pack, self._compute = _ops._reorder_convolution_weight, _ops._convolution_pointwise.default
        options += [convolution.stride, convolution.dilation, convolution.groups]
        self._weight = pack(convolution.weight, *options, shape)
        self._rest = (convolution.bias, *options, "relu" if relu else "none", [], "")

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self._compute(images, self._weight, *self._rest)
        return answer


def _packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this build of torch has the operators, and oneDNN computes the type natively on the device."""
    known = device.type == "cpu" and torch.backends.mkldnn.is_available() and hasattr(_ops, "_convolution_pointwise")
    return known and (dtype == torch.float32 or computes_bf16(device))


def _packed(module: nn.Module, shape: torch.Size) -> _Packed | None:
    """What replaces a convolution of a folded network that has its final device and type; None to keep it."""
    if type(module).__name__ == "BasicConv2d":  # whose forward has a ReLU
        return _Packed(module.conv, shape, relu=True)  # type: ignore[arg-type]
    if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or type(module) not in _PACKABLE:
        return None
    plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return _Packed(module, shape, relu=False) if plain else None


def _replace(
    network: nn.Module, example: Sequence[Tensor], substitute: Callable[[nn.Module, torch.Size], nn.Module | None]
) -> None:
    """Replace modules within a network.

    Args:
        network: changed in place.
        example: inputs, for a forward pass that finds the shape of each module's images.
        substitute: gives a module's replacement for images of that shape, or None to keep it.
    """
    shapes: dict[nn.Module, torch.Size] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[module] = inputs[0].shape

    hooks = [module.register_forward_pre_hook(look) for module in network.modules()]
    network(*example)
    for hook in hooks:
        hook.remove()

    def visit(parent: nn.Module) -> None:
        for name, module in parent.named_children():
            other = substitute(module, shapes[module]) if module in shapes else None
            if other is None:
                visit(module)
            else:
                setattr(parent, name, other)

    visit(network)


class _BFloat16(nn.Module):
    """A network in bfloat16 that answers in float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images.to(torch.bfloat16)).float()
        return answer
