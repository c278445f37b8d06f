"""The registry: an outage isn't an empty registry, and labels of any text are found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from mlflow.utils.validation import _validate_metric_name, _validate_model_name

from raygan import tracking
from raygan.errors import ConfigurationError, RayganError
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.tracking.runs import metric_name


class Refusing:
    """A client whose registry answers everything with the same error."""

    def __init__(self, code):
        self.code = code

    def __getattr__(self, name):
        def refuse(*args, **kwargs):
            raise MlflowException("no", error_code=self.code)

        return refuse


def test_a_registry_that_does_not_answer_is_not_an_empty_one(settings):
    assert tracking.serving_classifier(tracking.connect(settings)) is None
    assert tracking.find_model(tracking.connect(settings), "nobody/3") is None
    away = Refusing(TEMPORARILY_UNAVAILABLE)
    for ask in (tracking.serving_classifier, tracking.serving_generators):
        with pytest.raises(RayganError, match="registry does not answer"):
            ask(away)


LABELS = ["a:b,_c/d\"e'f", "🐱", "[1]", "%41?#&$x$", "قط" * 100]


@given(st.text(min_size=1), st.text(min_size=1))
def test_any_two_labels_have_names_of_their_own_that_the_registry_takes(one, other):
    names = [tracking.generator_name(label) for label in (one, other)]
    for name in names:
        _validate_model_name(name)
        assert len(name) <= 256
    assert (names[0] == names[1]) == (one == other)


@given(st.text(min_size=1))
def test_metrics_of_any_label_have_names_that_mlflow_takes(label):
    _validate_metric_name(metric_name(f"variation.{label}") or "x")


def test_labels_of_any_text_are_registered_and_found_as_they_are(settings, tmp_path):
    folder = tmp_path / "generator"
    save_generator(folder, build_generator(NetworkSettings(image_size=32, z_dim=8, width=4)), {"label": LABELS[0]})
    with tracking.start_run(settings, "run", job="test", params={}, tags={"raygan.label": LABELS[0]}) as run:
        run.log_metrics({f"variation.{label}": 1.0 for label in LABELS}, step=0)
        several = tracking.register_generator(run, folder, "all", labels=LABELS, promote=True)
        alone = [tracking.register_generator(run, folder, label, labels=[label], promote=True) for label in LABELS]
    client = tracking.connect(settings)
    assert tracking.serving_generators(client) == dict(zip(LABELS, alone, strict=True))
    assert len(client.get_run(run.id).data.metrics) == len(LABELS)
    for model in alone:
        client.delete_registered_model_alias(model.name, tracking.SERVING_ALIAS)
    assert tracking.serving_generators(client) == dict.fromkeys(LABELS, several)
    assert (tracking.download_model(client, alone[0], tmp_path / "fetched") / "generator.json").exists()


def test_more_labels_than_a_model_can_have_are_refused_and_as_many_as_it_can_are_registered(settings, tmp_path):
    labels = [f"identity_{number:06}" for number in range(6_250)]  # 99,999 characters with commas
    tracking.check_labels(labels)
    with pytest.raises(ConfigurationError, match=r"its 6,251 labels have 100,015 characters together"):
        tracking.check_labels([*labels, "another_identit"])
    folder = tmp_path / "generator"
    save_generator(folder, build_generator(NetworkSettings(image_size=32, z_dim=8, width=4)), {"label": "all"})
    with tracking.start_run(settings, "run", job="test", params={}) as run:
        model = tracking.register_generator(run, folder, "all", labels=labels, promote=True)
    client = tracking.connect(settings)
    assert tracking.serving_generators(client) == dict.fromkeys(labels, model)
    # Databases keep 5,000 characters of a registered model's tag.
    assert max(map(len, client.get_registered_model(model.name).tags.values())) <= 5_000
