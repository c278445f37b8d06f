"""Requests that the OpenAPI description allows or forbids never cause a 5xx, and get the described answers.

RAYGAN_FUZZ_EXAMPLES sets the number of requests per route (6 in the suite).
"""

from __future__ import annotations

import os

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings
from schemathesis.checks import load_all_checks

from raygan.serve.api import create_app
from raygan.serve.settings import ServeSettings
from tests.serve.local import make_service

EXAMPLES = int(os.environ.get("RAYGAN_FUZZ_EXAMPLES", "6"))


def description():
    """The OpenAPI description, which depends on no model."""
    return create_app(make_service({}), ServeSettings(storage="x", tracking_uri=None), list).openapi()


load_all_checks()
schema = schemathesis.openapi.from_dict(description())


@schema.parametrize()
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES <= 10,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_breaks_the_service(case, running):
    if case.operation.path == "/v1/stream" and isinstance(case.query, dict):
        n = case.query.get("n", 1000)
        if isinstance(n, int) and 40 < n <= 10_000:  # longer streams only take longer
            case.query["n"] = 40
    response = case.call(base_url=running.address, timeout=60)
    case.validate_response(response, excluded_checks=_NOT_PROMISED)


def _checks(*names):
    return [schemathesis.checks.CHECKS.get_one(name) for name in names]


# Like pydantic, the service accepts numbers as text ("5" for 5), and a token is optional.
_NOT_PROMISED = _checks(
    "negative_data_rejection",
    "positive_data_acceptance",
    "ignored_auth",
)


@pytest.mark.skipif(EXAMPLES <= 10, reason="memory is checked in long runs: set RAYGAN_FUZZ_EXAMPLES above 10")
def test_memory_does_not_grow(running, http):
    import psutil

    def ask():
        for seed in range(300):
            http.get("/v1/sample", params={"label": "cat", "n": 16, "seed": seed})
        return psutil.Process().memory_info().rss / 1e6

    ask()
    first = ask()
    for _ in range(5):
        last = ask()
    assert last < first * 1.05 + 20
