"""`raygan JOB …` and `python jobs/JOB.py …` are the same job."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raygan import tracking
from raygan.benchmarks.registry import BENCHMARKS
from raygan.cli import load, parse
from raygan.commands import JOBS, main
from raygan.models.gan import NetworkSettings, build_generator, save_generator
from raygan.runtime.settings import StorageSettings
from tests.helpers import REPOSITORY

#: What each job may be asked for, from both sides.
WORDS = [[job] for job in JOBS] + [["benchmark", name] for name in BENCHMARKS]


def console(*words: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """The console command, from its declared entry point."""
    program = "import sys; from raygan.commands import main; sys.argv[0] = 'raygan'; main()"
    return run([sys.executable, "-c", program, *words], cwd, environment)


def script(job: str, *words: str, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, str(REPOSITORY / "jobs" / f"{job}.py"), *words], cwd, environment)


def run(command: list[str], cwd: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=False)


def test_the_package_declares_the_command():
    text = (REPOSITORY / "pyproject.toml").read_text()
    assert '[project.scripts]\nraygan = "raygan.commands:main"\n' in text


def test_every_job_file_is_a_job():
    files = {path.stem for path in (REPOSITORY / "jobs").glob("*.py")}
    assert files == {*JOBS, "benchmark"}
    listed = console("--help")
    assert listed.returncode == 0
    for job in files:
        assert f"\n  {job} " in listed.stdout


def help_of(program: Callable[[], Any], words: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [*words, "--help"])
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_both_give_the_same_help(words, monkeypatch, capsys):
    job, *others = words
    file = str(REPOSITORY / "jobs" / f"{job}.py")
    one = help_of(main, ["raygan", job, *others], monkeypatch, capsys)
    other = help_of(lambda: runpy.run_path(file, run_name="__main__"), [file, *others], monkeypatch, capsys)
    assert one.startswith(f"usage: raygan {' '.join(words)} ")
    shown = one.replace(f"raygan {job}", "X")
    assert shown.split() == other.replace(f"python jobs/{job}.py", "X").replace(f"{job}.py", "X", 1).split()


@pytest.mark.parametrize(("job", "listed"), [("promote", False), ("export", False), ("serve", False), ("train", True)])
def test_a_job_without_a_run_takes_a_run_s_settings_and_lists_none(job, listed, monkeypatch, capsys):
    shown = help_of(main, ["raygan", job], monkeypatch, capsys)
    assert "--tracking-uri" in shown
    for flag in ("--experiment", "--system-metrics"):
        assert (flag in shown) == listed
    given = {"promote": ["--model", "x"], "export": ["--model", "x", "--output", "y"], "train": ["--data", "x"]}
    settings, _ = parse(load(JOBS[job].settings), [*given.get(job, []), "--experiment", "e"], doc="")
    assert settings.experiment == "e"


@pytest.mark.parametrize("job", [*JOBS.values(), *BENCHMARKS.values()], ids=lambda job: job.function)
def test_every_job_has_its_function(job):
    assert callable(load(job.function))


def test_a_job_is_listed_and_parsed_without_ray_and_torch():
    program = """
import sys
from raygan.cli import load, parse
from raygan.commands import JOBS, main
for job in JOBS.values():
    load(job.settings)
parse(load(JOBS["train"].settings), ["--data", "x"], doc="")
assert not {"ray", "torch", "mlflow"} & set(sys.modules), sorted(sys.modules)
"""
    done = run([sys.executable, "-c", program], REPOSITORY, {})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "'trian' is not a job; did you mean train? (see raygan --help)"),
        ([], "name a job (see raygan --help)"),
        (["train", "--data", "x", "--epoch", "3"], "--epoch is not a known flag; did you mean --epochs? (see --help)"),
        (["submit", "--", "train.py"], "--working-dir: {folder} is not a checkout of raygan: it has no jobs"),
        (["serve"], "--service: cannot read serve_config.yaml: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(words, says, tmp_path):
    done = console(*words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {says.format(folder=tmp_path)}\n"


def test_both_resolve_the_same_settings():
    words = ["--data", "x", "--preset", "quick", "--width", "5", "--dry-run"]
    one, other = console("train", *words), script("train", *words)
    assert one.returncode == other.returncode == 0
    assert one.stdout == other.stdout


def test_both_do_the_same_work(new_storage, tmp_path):
    """Each promotes the same version, in its own copy of the registry."""
    save_generator(tmp_path / "g", build_generator(NetworkSettings(image_size=32, z_dim=8, width=4)), {"label": "cat"})
    settings = StorageSettings(storage=str(new_storage), tracking_uri=None)
    with tracking.start_run(settings, "trained", job="test", params={}) as run:
        tracking.register_generator(run, tmp_path / "g", "cat", labels=["cat"], promote=False)
    shown = []
    for program, name in ((console, "one"), (script, "other")):
        copy = settings.model_copy(update={"storage": str(tmp_path / name)})
        shutil.copytree(new_storage, copy.storage)
        assert not tracking.serving_generators(tracking.connect(copy))
        done = program(
            "promote", "--model", "raygan-generator-cat/1", "--storage", copy.storage, MLFLOW_TRACKING_URI=""
        )
        assert done.returncode == 0, done.stderr
        assert tracking.serving_generators(tracking.connect(copy))["cat"].version == "1"
        shown.append(done.stdout)
    assert shown[0] == shown[1] != ""
