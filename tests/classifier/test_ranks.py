"""A step of the classifier on two ranks, against a single process."""

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from raygan.classifier.settings import ClassifierOptions
from raygan.classifier.step import ClassifierStep
from raygan.models.distributed import Share
from raygan.models.draws import Batches, Draws
from raygan.models.googlenet import build_googlenet
from tests.helpers import run_ranks

OPTIONS = ClassifierOptions(batch_size=7, warmup=0.5)  # two ranks take 3 and 4 images


def without_dropout(net):
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def one_step(rank, images, targets, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}.meet", rank=rank, world_size=2)
    share = Share(rank, 2)
    step = ClassifierStep(2, OPTIONS, 28, "cpu", share, sync_batch_norm=True, float64=True)
    without_dropout(step.net)
    step.step(torch.from_numpy(images[share.rows(7)]), torch.from_numpy(targets[share.rows(7)]))
    if rank == 0:
        save_file({name: p.grad.contiguous() for name, p in step.net.named_parameters()}, out + ".gradients")
        save_file({name: b.contiguous() for name, b in step.net.named_buffers()}, out + ".statistics")
    dist.destroy_process_group()


def augment_with_numpy(image, draws):
    """One image (3, 32, 32), flipped and shifted."""
    shifts = [int(draw * 5) - 2 for draw in draws[1:].tolist()]
    padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    flipped = padded[:, :, ::-1] if draws[0] < 0.5 else padded
    return flipped[:, 2 + shifts[0] : 34 + shifts[0], 2 + shifts[1] : 34 + shifts[1]]


def test_a_step_on_two_ranks_equals_a_single_process(tmp_path):
    """The oracle is a plain float64 pass over the whole batch, with torch's own batch norm and without DDP."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    targets = random.integers(0, 2, 7)
    out = str(tmp_path / "step")
    run_ranks(one_step, 2, images, targets, out)
    torch.manual_seed(0)
    net = build_googlenet(2).double().train()
    without_dropout(net)
    batches = Batches(0, 7, Share(), torch.device("cpu"), torch.float32)
    draws = Draws(batches, "classify", normals={}, uniforms={"place": 3}).of(0)["place"]
    pixels = np.stack([augment_with_numpy(image, draw) for image, draw in zip(images, draws, strict=True)])
    outputs = net(((torch.from_numpy(pixels).float() - 127.5) / 127.5).double())
    correct = torch.from_numpy(targets)
    loss = F.cross_entropy(outputs.logits, correct)
    loss = loss + 0.3 * (F.cross_entropy(outputs.aux_logits1, correct) + F.cross_entropy(outputs.aux_logits2, correct))
    loss.backward()
    found = load_file(out + ".gradients")
    for name, parameter in net.named_parameters():
        assert (found[name] - parameter.grad).norm() < 1e-6 * parameter.grad.norm(), name
    found = load_file(out + ".statistics")
    for name, buffer in net.named_buffers():
        torch.testing.assert_close(found[name], buffer, rtol=1e-9, atol=1e-12)
