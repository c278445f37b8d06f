"""A new generator takes the champion's place if it is better, and only then."""

from dataclasses import replace

import pytest
import torch

from raygan import tracking
from raygan.data import synthetic
from raygan.data.prepare import prepare
from raygan.data.settings import PrepareSettings
from raygan.data.shards import DataSet
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.serve.messages import ModelVersion
from raygan.serve.model_store import ModelStore
from raygan.serve.settings import ServeSettings
from raygan.training.promotion import judge
from raygan.training.train import train
from tests.conftest import takes_long
from tests.helpers import CORES, taken_cores

NETWORKS = NetworkSettings(image_size=32, z_dim=8, width=4)


def painted(brightness, networks=NETWORKS):
    """A generator of images of about this brightness, from -3 to 3."""
    torch.manual_seed(0)
    generator = build_generator(networks).eval()
    with torch.no_grad():
        generator.exit[0].bias.fill_(brightness)
    return generator


def register(run, folder, generator, **about):
    save_generator(folder, generator, {"label": "cat", **about})
    return tracking.register_generator(run, folder, "cat", labels=["cat"])


@pytest.fixture
def no_core_is_free(ray_cluster):
    """Another training waited for the cores, and has them now."""
    with taken_cores(CORES):
        yield


@pytest.mark.usefixtures("no_core_is_free")
def test_the_better_generator_is_the_champion(train_settings, write_shards, tmp_path):
    settings = train_settings(
        label="cat", data=str(write_shards(held_out=12, brightest=40)), quality_samples=32, promote="better"
    )
    data = DataSet.open(settings.data)
    with tracking.start_run(settings, "r", job="test", params={}) as run:

        def judged(generator, measure=True, **changes):
            changed = settings.model_copy(update=changes)
            return judge(changed, data, generator, "raygan-generator-cat", run, measure=measure)

        def decision(generator, **changes):
            return judged(generator, measure=False, **changes)[1]

        bright, dark = painted(2), painted(-2)
        model = register(run, tmp_path / "bright", bright)
        alone, first = judged(bright)
        assert first.promote
        run.client.set_registered_model_alias(model.name, tracking.SERVING_ALIAS, "1")
        better = decision(dark)
        assert better.promote
        assert "of version 1 is better (difference -" in better.reason
        # The KIDs on record are those that decide, and are measured in the same way without a champion.
        measured, verdict = judged(bright)
        assert measured == alone
        assert f"its kid32_efficientnet_lite0 of {measured['fresh_kid32_efficientnet_lite0']:.3g}" in verdict.reason
        assert set(measured) == {
            f"fresh_kid32_efficientnet_lite{number}{end}" for number in (0, 2) for end in ("", "_error")
        }
        same = decision(painted(2))
        assert not same.promote
        assert "not better by more than the standard error" in same.reason
        # Not compared, or not allowed to decide.
        large = decision(painted(-2, replace(NETWORKS, image_size=64)))
        assert (large.promote, large.reason) == (False, "it draws 64 px images, and version 1 draws 32 px ones")
        assert "draws cat, dog" in decision(painted(-2, replace(NETWORKS, labels=("cat", "dog")))).reason
        unmeasured = decision(dark, quality_network="/nowhere.pth")
        assert not unmeasured.promote
        assert "could not be compared with the champion: --quality-network" in unmeasured.reason
        assert decision(bright, promote="always").promote
        assert not decision(dark, promote="never").promote
        run.client.set_registered_model_alias(
            model.name, tracking.SERVING_ALIAS, register(run, tmp_path / "dark", dark).version
        )
        assert "of version 2 is not better" in decision(bright).reason
        # Where too few photos are held back, those that chose the new one must not judge it.
        few = DataSet.open(str(write_shards(held_out=6, brightest=40, folder="few")))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("raygan.training.promotion.measure_fresh", None)  # numbers that nobody would get
            measured, unfair = judge(settings, few, dark, model.name, run, measure=True)
        assert (measured, unfair.promote) == ({}, False)
        assert unfair.reason.startswith("the 6 validation photos, on which it would be compared, are those that chose")
        # Nor is a generator of other animals replaced, where both draw all labels of their shards.
        register(run, tmp_path / "wild", bright, learned_from=["fox", "wolf"])
        run.client.set_registered_model_alias(model.name, tracking.SERVING_ALIAS, "3")
        wild = decision(dark, label=None)
        assert (wild.promote, wild.reason) == (False, "it learned from cat, dog, and version 3 from fox, wolf")
        assert judged(dark, quality_network="/nowhere.pth", promote="never")[0] == {}
    assert (
        "could not be measured afresh: --quality-network" in run.client.get_run(run.id).data.tags["raygan.unmeasured"]
    )


@takes_long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray_cluster")
def test_a_short_training_does_not_replace_a_long_one(train_settings, tmp_path, capsys):
    synthetic.draw_folder(tmp_path / "faces", 300)
    values = {"input": [str(tmp_path / "faces")], "output": str(tmp_path / "drawn"), "image_size": 32}
    prepare(PrepareSettings.model_validate({**values, "storage": str(tmp_path / "storage"), "tracking_uri": None}))
    settings = train_settings(
        data=str(tmp_path / "drawn"), label="cat", width=16, z_dim=64, batch_size=32, num_workers=1, log_every=1
    )
    champion = train(settings.model_copy(update={"kimg": 100.0, "cpus_per_worker": 2.0, "name": "long"}))
    again = train(settings.model_copy(update={"kimg": 2.0, "name": "short"}))
    assert (champion.model.version, again.model.version) == ("1", "2")
    client = tracking.connect(settings)
    assert tracking.serving_generators(client) == {"cat": champion.model}
    # What the service asks.
    served = ModelStore(ServeSettings(storage=settings.storage, tracking_uri=None)).champions().generators
    assert served == {"cat": ModelVersion("raygan-generator-cat", "1")}
    assert "raygan-generator-cat/2 is not promoted: its kid200_efficientnet_lite0" in capsys.readouterr().out
