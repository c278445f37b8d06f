"""The quickstart, shortened: drawn faces go through every stage."""

import functools
import signal
import socket
from types import SimpleNamespace

import pytest

from raygan import tracking
from raygan.data.shards import DataSet, Manifest, ShardFile
from raygan.errors import ConfigurationError, Terminated
from raygan.quickstart import quickstart as module
from raygan.quickstart.quickstart import quickstart
from raygan.quickstart.settings import QuickstartSettings
from raygan.quickstart.timetable import Timetable
from raygan.settings import validate


def test_drawn_faces_become_a_registered_generator_and_a_classifier(ray_cluster, new_storage, monkeypatch, capsys):
    monkeypatch.setattr(module, "DRAWN_FACES", 48)
    settings = QuickstartSettings(storage=str(new_storage), tracking_uri=None, epochs=1, image_size=32, serve=False)
    quickstart(settings)
    shown = capsys.readouterr().out
    assert "mlflow ui --backend-store-uri" in shown
    assert f"python jobs/serve.py --storage {new_storage}, then open" in shown
    assert "/v1/sample?label=cat&n=16&seed=7" in shown
    assert list((new_storage / "runs").glob("*/pictures/*.png"))
    assert set(tracking.serving_generators(tracking.connect(settings))) == {"cat"}
    assert tracking.serving_classifier(tracking.connect(settings)).name == "raygan-classifier"
    quickstart(settings)  # nothing is trained twice
    assert capsys.readouterr().out.count("already trained") == 2


def test_the_command_that_serves_names_the_records_in_use(tmp_path):
    settings = QuickstartSettings(storage=str(tmp_path / "my faces"), tracking_uri="postgresql://me:hush@db/m")
    said = module._serve_command(settings)
    assert said == f"python jobs/serve.py --storage '{tmp_path}/my faces' --tracking-uri postgresql://db/m"


class Clock:
    """A clock that stands still but for what stages take."""

    seconds = 0.0

    def __call__(self):
        return self.seconds

    def stage(self, seconds, answer=None, asked=None, name=""):
        """A stand-in for a stage: it notes what it is asked, and takes so long."""

        def run(settings):
            self.seconds += seconds
            if asked is not None:
                asked[name] = settings
            return answer

        return run


@pytest.fixture
def shortened(monkeypatch):
    """Runs `quickstart` with stages of given lengths, in minutes; returns what they are asked."""

    def run(settings, prepare=0.0, classify=0.0, train=0.0, evaluate=0.0):
        asked, clock = {}, Clock()
        shards = [
            ShardFile(file=f"{split}.parquet", split=split, rows={"cat": count})
            for split, count in (("train", 400), ("validation", 60))
        ]
        manifest = Manifest(image_size=64, classes=["cat", "dog"], shards=shards, fingerprint="f", configuration={})
        data, report = DataSet("shards", manifest), SimpleNamespace(folder="reports/r")
        monkeypatch.setattr(module, "Timetable", functools.partial(Timetable, now=clock))
        monkeypatch.setattr(module.cluster, "connect", lambda settings: None)
        monkeypatch.setattr(module.cluster, "nodes", lambda: [{"CPU": 2}])
        monkeypatch.setattr(module.tracking, "check_records", lambda settings: None)
        monkeypatch.setattr(module.DataSet, "open", lambda address: data)
        stages = {"prepare": (prepare, None), "classify": (classify, None), "train": (train, None)}
        for name, (minutes, answer) in {**stages, "evaluate": (evaluate, report)}.items():
            monkeypatch.setattr(module, name, clock.stage(60 * minutes, answer, asked, name))
        quickstart(settings)
        return asked

    return run


@pytest.mark.parametrize("label", ["cat", None])
def test_minutes_name_the_preset_the_time_and_what_to_expect(shortened, capsys, tmp_path, label):
    """The plan alone, with stages that only note what they are asked."""
    values = {"storage": str(tmp_path), "tracking_uri": None, "input": ["photos"], "label": label, "serve": False}
    asked = shortened(QuickstartSettings(minutes=60, **values), prepare=6, classify=3, train=49.5, evaluate=1)
    # 60 minutes, without the nine that have passed and the two that are set aside.
    assert (asked["train"].objective, asked["train"].minutes, asked["train"].image_size) == ("r3gan", 49, 64)
    assert asked["classify"].epochs == 20
    assert (asked["train"].label, asked["train"].conditional) == (label, label is None)
    assert asked["evaluate"].model == [f"raygan-generator-{label or 'all'}"]
    shown = capsys.readouterr().out
    assert shown.startswith("60 minutes in all")
    assert "400 training photos" in shown
    assert "the GAN trains for 49.0 minutes, and all is ready about 60.0 minutes after the start" in shown
    assert "time      59.5 minutes (Ray 0.0, photos 6.0, GoogLeNet 3.0, GAN 49.5, report card 1.0)" in shown
    assert "report    reports/r/report.html" in shown
    assert "/v1/sample?label=cat&" in shown


def test_a_label_that_the_photos_lack_is_refused_before_anything_is_trained(shortened, monkeypatch, tmp_path):
    settings = QuickstartSettings(storage=str(tmp_path), tracking_uri=None, input=["photos"], label="bird", serve=False)
    monkeypatch.setattr(module, "_classified", lambda *_: pytest.fail("GoogLeNet is trained"))
    with pytest.raises(ConfigurationError, match="--label: shards has no label 'bird'; it has cat, dog"):
        shortened(settings)


def test_photos_that_take_longer_than_the_minutes_leave_the_gan_a_share_and_are_told_of(shortened, capsys, tmp_path):
    settings = QuickstartSettings(storage=str(tmp_path), tracking_uri=None, input=["photos"], minutes=10, serve=False)
    assert shortened(settings, prepare=12)["train"].minutes == 3
    assert "all is ready about 17.0 minutes after the start" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_serving_ends_with_the_signal_that_stopped_it(monkeypatch, tmp_path, number, ends_with):
    """So the exit status is 130 or 143, as that of every job that is stopped."""
    stopped = []
    service = SimpleNamespace(
        start=lambda **_: None, run=lambda *_, **__: signal.raise_signal(number), shutdown=lambda: stopped.append(True)
    )
    data = SimpleNamespace(address="shards", manifest=SimpleNamespace(classes=["cat"], count=lambda *_: 400))
    monkeypatch.setattr(module.cluster, "connect", lambda settings: None)
    monkeypatch.setattr(module.tracking, "check_records", lambda settings: None)
    for name, answer in (("check_port", None), ("build", None), ("serve", service), ("_drawn_faces", "faces")):
        monkeypatch.setattr(module, name, answer if name == "serve" else lambda *_, answer=answer: answer)
    monkeypatch.setattr(module, "_shards", lambda *_: data)
    monkeypatch.setattr(module, "_trained", lambda *_: "pictures")
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        with pytest.raises(ends_with) as ended:
            quickstart(QuickstartSettings(storage=str(tmp_path), tracking_uri=None))
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)
    assert type(ended.value) is ends_with
    assert stopped


def test_epochs_and_minutes_exclude_each_other(tmp_path):
    with pytest.raises(ConfigurationError, match="give epochs or minutes"):
        validate(QuickstartSettings, {"storage": str(tmp_path), "epochs": 3, "minutes": 60})


def test_a_port_in_use_is_reported_before_work_starts(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} of 127.0.0.1 is not available"):
            quickstart(QuickstartSettings(storage=str(tmp_path), port=port))
    assert not list(tmp_path.iterdir())
