"""The registry: an outage isn't an empty registry."""

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from raygan import tracking
from raygan.errors import RayganError


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
