"""An iteration of training, in one process and by workers on two nodes, against a plain loop."""

from pathlib import Path

import numpy as np
import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file

from raygan.models.distributed import Share
from raygan.models.gan import NetworkSettings, build_critic, build_generator
from raygan.training.settings import StepOptions
from raygan.training.step import GanStep
from tests.conftest import takes_long
from tests.runtime.nodes import another_node

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)
OPTIONS = StepOptions(
    batch_size=7,  # over two workers: unevenly
    n_critic=2,
    sync_batch_norm=True,
    beta1=0.5,
    critic_lr=1e-3,
    generator_lr=1e-3,
)

REALS = np.random.default_rng(0).integers(0, 256, (2, 7, 3, 32, 32), dtype=np.uint8)


def one_iteration(share, out):
    """A critic step, whose gradients are kept, then another one and a generator step."""
    step = GanStep(NETWORKS, OPTIONS, "cpu", share, float64=True)
    step.step(torch.from_numpy(REALS[0][share.rows(7)]))
    gradients = {name: p.grad.clone() for name, p in step.critic.named_parameters()}
    step.step(torch.from_numpy(REALS[1][share.rows(7)]))
    if share.rank == 0:
        critic, generator = dict(step.critic.named_parameters()), dict(step.generator.named_parameters())
        save_file({f"gradient.{name}": value for name, value in gradients.items()}, out / "gradients")
        save_file({name: p.detach() for name, p in critic.items()}, out / "critic")
        save_file({name: p.detach() for name, p in generator.items()}, out / "generator")


def on_a_node(config):
    context, out = ray.train.get_context(), Path(config["out"])
    (out / f"node-{context.get_world_rank()}").write_text(ray.get_runtime_context().get_node_id())
    one_iteration(Share(context.get_world_rank(), context.get_world_size()), out)


def textbook_critic_loss(critic, generator, reals, batch):
    """WGAN-GP as in the paper: three forward passes, means over the whole batch."""
    draws = GanStep(NETWORKS, OPTIONS, float64=True).critic_draws.of(batch)
    latents, mix = draws["latents"], draws["mix"][:, :, None, None]
    fakes = generator(latents).detach()
    between = (reals + mix * (fakes - reals)).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return critic(fakes).mean() - critic(reals).mean() + 10 * penalty


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def assert_a_plain_loop_does_the_same(folder):
    """In float64, over the whole batch, with torch's Adam and without DDP."""
    torch.manual_seed(0)
    generator, critic = build_generator(NETWORKS).double(), build_critic(NETWORKS).double()
    critic_adam = torch.optim.Adam(critic.parameters(), 1e-3, (0.5, 0.9))
    generator_adam = torch.optim.Adam(generator.parameters(), 1e-3, (0.5, 0.9))
    images = torch.from_numpy(REALS).double() / 127.5 - 1
    for batch in range(2):
        critic_adam.zero_grad()
        textbook_critic_loss(critic, generator, images[batch], batch).backward()
        if batch == 0:
            # The exit's bias cancels between reals and fakes; its gradient is only rounding.
            gradients = {name: p.grad.clone() for name, p in critic.named_parameters() if name != "exit.bias"}
        critic_adam.step()
    latents = GanStep(NETWORKS, OPTIONS, float64=True).generator_draws.of(1)["latents"]
    generator_adam.zero_grad()
    (-critic(generator(latents)).mean()).backward()
    generator_adam.step()

    found = load_file(folder / "gradients")
    for name, gradient in gradients.items():
        assert relative_error(found[f"gradient.{name}"], gradient) < 1e-6, name
    for file, network in (("critic", critic), ("generator", generator)):
        found = load_file(folder / file)
        for name, parameter in network.named_parameters():
            if name != "exit.bias" or file == "generator":
                assert relative_error(found[name], parameter.detach()) < 1e-6, f"{file} {name}"


def test_an_iteration_is_the_papers(tmp_path):
    one_iteration(Share(), tmp_path)
    assert_a_plain_loop_does_the_same(tmp_path)


@takes_long  # `test_ranks` has several ranks do what one process does, and a drill trains on two nodes
def test_workers_on_two_nodes_do_what_a_single_process_does(ray_cluster, tmp_path):
    with another_node(2):
        TorchTrainer(
            on_a_node,
            train_loop_config={"out": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
            run_config=RunConfig(storage_path=str(tmp_path), name="iteration"),
        ).fit()
    assert len({path.read_text() for path in tmp_path.glob("node-*")}) == 2
    assert_a_plain_loop_does_the_same(tmp_path)
