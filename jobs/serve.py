#!/usr/bin/env python
"""Serve samples of the promoted generators over HTTP, until Ctrl-C.

  python jobs/serve.py
  python jobs/serve.py --service my_serve_config.yaml

Checks that the port is free and that there is a generator to serve, then does what
`serve run serve_config.yaml` does.
"""

from raygan.cli import run_job
from raygan.serve.settings import ServeJobSettings


def main(settings: ServeJobSettings) -> None:
    from raygan.serve.app import run

    run(settings)


if __name__ == "__main__":
    run_job(ServeJobSettings, main, doc=__doc__)
