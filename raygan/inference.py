"""Networks made ready to answer: the same function, fewer and cheaper operations.

The mental model:

1. In evaluation a batch norm is a scale and a shift per channel, so `fold_batch_norms` puts it into the convolution
   before it and the pass over memory is saved.
2. Channels-last is the layout that CPUs' and tensor cores' convolutions want.
3. bfloat16 where the hardware computes it natively, and only in the classifier: a verdict bears its rounding, pixels
   shall be those of the training's pictures.

torch only. The networks given are left as they were; answers hold copies.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

if TYPE_CHECKING:
    from raygan.judge.googlenet import Classifier  # torchvision takes a second to import; generators need none of it

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


def fast_network(network: M, device: torch.device) -> M:
    """A folded copy, channels last, on a device, without gradients."""
    folded = fold_batch_norms(network).requires_grad_(False)
    return folded.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class _BFloat16(nn.Module):
    """A network that computes in bfloat16 and answers in float32."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.network(images.to(torch.bfloat16)).float()
        return answer


def fast_classifier(classifier: Classifier, device: torch.device, *, bf16: bool) -> Classifier:
    """The classifier folded and, if asked, in bfloat16; folding moves no probability by 0.01 (a test sees to it)."""
    from raygan.judge.googlenet import Classifier

    network: nn.Module = fast_network(classifier.net, device)
    if bf16:
        network = _BFloat16(network)
    fast = Classifier(network, classifier.labels, classifier.image_size, classifier.about)
    return fast.to(device)


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision wanted; "auto" is bf16 where the device computes it natively."""
    if wanted == "auto":
        return "bf16" if computes_bf16(device) else "fp32"
    return wanted


def computes_bf16(device: torch.device) -> bool:
    """Whether bfloat16 convolutions run natively; emulated ones are tens of times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
