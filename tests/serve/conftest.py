"""A service without Ray on a real port, shared by the tests in this folder."""

from __future__ import annotations

import asyncio
import inspect
import threading

import httpx
import pytest
import uvicorn

from raygan.serve.messages import Champions
from tests.helpers import wait_until
from tests.serve.local import (
    CAT,
    CLASSIFIER,
    DOG,
    Local,
    files_of,
    local_service,
    make_classifier,
    make_generator,
    save,
)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Files of two generators and a classifier."""
    root = tmp_path_factory.mktemp("models")
    return {
        CAT: save(root / "cat", make_generator(0)),
        DOG: save(root / "dog", make_generator(1)),
        CLASSIFIER: files_of(make_classifier(root / "classifier")),
    }


@pytest.fixture(scope="session")
def champions():
    return Champions({"cat": CAT, "dog": DOG}, CLASSIFIER)


class Running:
    """A local service under uvicorn, in a thread."""

    def __init__(self, start):
        self._start = start
        self.local: Local | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def call(self, work):
        """What a coroutine gives, run in the service's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _serve(self):
        self._loop = asyncio.get_running_loop()
        self.local = await self._start()
        config = uvicorn.Config(self.local.app, port=0, log_level="warning", access_log=False)
        self._server = uvicorn.Server(config)
        await self._server.serve()

    def __enter__(self):
        self._thread.start()
        wait_until(lambda: self._server and self._server.started, "the service is up")
        self.address = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture(scope="session")
def running(models, champions):
    with Running(lambda: local_service(models, champions)) as server:
        yield server


@pytest.fixture(scope="session")
def http(running):
    with httpx.Client(base_url=running.address, timeout=60) as client:
        yield client


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is a coroutine."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(pyfuncitem.obj(**arguments))
    return True
