"""Layers of a critic that is differentiated twice: torch's own, but for the cost of their second derivatives.

A gradient penalty is a function of the critic's gradient, so training differentiates that gradient again. There torch
sends a tensor of zeros on from each LeakyReLU, and everything before it computes with zeros as with numbers; and it
differentiates a norm's backward pass operation by operation, a dozen passes over images and their temporaries. Both
second derivatives have a closed form. Values and parameters are those of torch's layers, whose place they take.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LeakyReLU(nn.LeakyReLU):
    """`torch.nn.LeakyReLU` of a positive slope: its second derivative is zero but where it isn't defined."""

    def forward(self, values: Tensor) -> Tensor:
        bent: Tensor = _Bend.apply(values, self.negative_slope)
        return bent


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` with scale and shift and without running statistics, on (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__(channels, affine=True)

    def forward(self, values: Tensor) -> Tensor:
        # Sums over an image want more than half precision; torch's autocast says so of group norms, too.
        wide = values.to(self.weight.dtype)
        normal: Tensor = _Normalise.apply(wide.contiguous(), self.weight, self.bias, self.eps)
        return normal.to(values.dtype)


class _Bend(torch.autograd.Function):
    """values where signs are positive, slope * values elsewhere: linear in the values, so its own derivative.

    signs: by default the values' own.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: float, signs: Tensor | None = None) -> Tensor:
        bent: Tensor
        if signs is None:
            bent = nn.functional.leaky_relu(values, slope)
            signs = bent  # it has the values' signs, and the next convolution keeps it anyway
        else:
            bent = torch.ops.aten.leaky_relu_backward(values, signs, slope, True)
        ctx.save_for_backward(signs)
        ctx.slope = slope
        ctx.set_materialize_grads(False)
        return bent

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, None, None]:
        back = None if gradient is None else _Bend.apply(gradient, ctx.slope, *ctx.saved_tensors)
        return back, None, None


class _Normalise(torch.autograd.Function):
    """y = scale * n + shift with n = (x - mean) / deviation, of each channel of each image on its own."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        normal: Tensor
        # Normalised in groups of one channel: five times as fast as torch's instance norm on AVX2.
        normal, mean, inverse = torch.native_group_norm(values, scale, shift, *_groups(values), eps)
        ctx.save_for_backward(values, scale, mean, inverse)
        return normal

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_NormaliseBackward.apply(gradient, *ctx.saved_tensors), None


class _NormaliseBackward(torch.autograd.Function):
    """Of y's gradient g: scale / deviation * P g for x, and the sums of n g and of g for scale and shift.

    P g = g - mean(g) - n mean(n g) is the part of g that changes neither mean nor deviation. It is symmetric, and n
    depends on x by P / deviation, so that for a gradient v of the first result

        on g:     scale / deviation * P v
        on x:    -scale / deviation**2 * (mean(n v) P g + mean(n g) P v + mean(v P g) n)
        on scale: the sum of v P g / deviation
    """

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, values: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(gradient, values, scale, mean, inverse)
        ctx.set_materialize_grads(False)
        back: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
            gradient.contiguous(), values, mean, inverse, scale, *_groups(values), [True, True, True]
        )
        return back

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, v: Tensor | None, on_scale: Tensor | None, on_shift: Tensor | None) -> tuple[Any, ...]:
        g, x, scale, mean, inverse = ctx.saved_tensors
        v = torch.zeros_like(g) if v is None else v
        scale, mean, inverse = scale[:, None, None], mean[..., None, None], inverse[..., None, None]
        mean_g, mean_v = _mean(g), _mean(v)
        n_g = inverse * (_mean(g * x) - mean * mean_g)
        n_v = inverse * (_mean(v * x) - mean * mean_v)
        inner = _mean(v * g) - mean_v * mean_g - n_v * n_g
        share = scale * inverse
        on_n = -share * n_v if on_scale is None else on_scale[:, None, None] - share * n_v
        for_g, for_v = inverse * on_n, -inverse * share * n_g
        for_n = -inverse * share * inner - for_g * n_g - for_v * n_v
        shift = 0 if on_shift is None else on_shift[:, None, None]
        # n = inverse * x - inverse * mean, which is never laid out in memory.
        to_g = _combine(shift - share * mean_v - on_n * inverse * mean, (share, v), (on_n * inverse, x))
        rest = -for_g * mean_g - for_v * mean_v - for_n * inverse * mean
        to_x = _combine(rest, (for_g, g), (for_v, v), (for_n * inverse, x))
        to_scale = (inverse * inner).sum((0, 2, 3)) * (x.shape[2] * x.shape[3])
        return to_g, to_x, to_scale, None, None


def _groups(values: Tensor) -> tuple[int, int, int, int]:
    count, channels, height, width = values.shape
    return count, channels, height * width, channels


def _mean(values: Tensor) -> Tensor:
    return values.mean((2, 3), keepdim=True)


def _combine(constant: Tensor, first: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of a constant and of factors (N, C, 1, 1) times tensors (N, C, H, W)."""
    total = first[0] * first[1]
    for factor, values in others:
        total.addcmul_(values, factor)
    return total.add_(constant)
