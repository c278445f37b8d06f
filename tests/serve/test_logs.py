"""The log: one stream of JSON lines, with a request's id and trace in the gateway and in replicas."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import json
import logging
import os
import pickle

import httpx
import pytest

from raygan.serve import logs
from raygan.serve.messages import Champions
from tests.serve.local import CAT, local_service

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def configured():
    logger = logging.getLogger("raygan")
    before = logger.handlers, logger.propagate, logger.level
    logs.configure()
    yield
    logger.handlers, logger.propagate, logger.level = before


async def test_a_replicas_error_names_the_request_and_its_trace(models, configured, capfd, monkeypatch):
    local = await local_service(models, Champions({"cat": CAT}, None), access_log=True)
    headers = {"X-Request-ID": "mine-1", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    run = local.generator.run

    async def over_the_wire(model, request):  # as Serve sends it, in another context
        received = pickle.loads(pickle.dumps(request))  # noqa: S301
        return await contextvars.Context().run(asyncio.ensure_future, run(model, received))

    monkeypatch.setattr(local.generator, "run", over_the_wire)
    monkeypatch.setattr("raygan.serve.replicas.latents_for", lambda request, z_dim, directions: 1 / 0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        assert (await client.get("/v1/sample?label=cat&n=1", headers=headers)).status_code == 500
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    lines = [line for line in lines if not line.get("message", "").startswith("serving")]
    assert {(line.get("id"), line.get("trace")) for line in lines} == {("mine-1", TRACE)}, lines
    assert [line["status"] for line in lines if "status" in line] == [500]
    errors = [line for line in lines if "traceback" in line]
    assert errors
    assert all("ZeroDivisionError" in line["traceback"] for line in errors)


@pytest.mark.parametrize(
    ("header", "trace"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", TRACE),
        (f"00-{TRACE}-00f067aa0ba902b7", ""),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", ""),
        ("", ""),
    ],
)
def test_only_well_formed_traces_are_taken(header, trace):
    assert logs.trace_of(header.encode()) == trace


async def test_a_log_that_can_not_be_written_costs_no_answer(models, configured, monkeypatch):
    tried = []

    def full(descriptor, line):
        tried.append(json.loads(line))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    local = await local_service(models, Champions({"cat": CAT}, None), access_log=True)
    monkeypatch.setattr(os, "write", full)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(local.app), base_url="http://test") as client:
        answer = await client.get("/v1/sample?label=cat&n=1")
    logging.getLogger("raygan.serve").warning("a warning")
    monkeypatch.undo()
    assert answer.status_code == 200
    assert [line.get("status", line.get("message")) for line in tried] == [200, "a warning"]
