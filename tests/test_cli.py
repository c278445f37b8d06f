"""The edge: command lines and YAML files, and what a mistake is answered with."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile

import pytest

from raygan.cli import Job, parse, run_job
from raygan.data.settings import PrepareSettings
from raygan.errors import ConfigurationError, RayganError, Terminated
from raygan.evaluation.settings import EvaluateSettings
from raygan.quickstart.settings import QuickstartSettings
from raygan.runtime.runs import recorded
from raygan.serve.settings import ServeJobSettings
from raygan.settings import preset_names
from raygan.training.settings import TrainSettings
from tests.helpers import REPOSITORY, finish_job


def train(*argv):
    return parse(TrainSettings, argv, doc="")[0]


def test_later_sources_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: wgan-gp-128\ndata: from-file\nz_dim: 17\nwidth: 9\n")
    settings = train("--config", str(file), "--width", "8")
    assert (settings.width, settings.z_dim, settings.data) == (8, 17, os.path.abspath("from-file"))
    assert settings.generator_lr == 0.00035  # the preset's
    assert settings.penalty_every == 1
    assert settings.keep_checkpoints == 2  # the class's


def test_the_preset_wgan_gp_128_is_exact():
    settings = train("--data", "x", "--preset", "wgan-gp-128")
    assert settings.model_dump(
        include={"epochs", "batch_size", "generator_lr", "critic_lr", "z_dim", "image_size"}
    ) == {
        "epochs": 80,
        "batch_size": 128,
        "generator_lr": 0.00035,
        "critic_lr": 1e-4,
        "z_dim": 200,
        "image_size": 128,
    }


def test_the_last_file_names_the_preset_and_a_flag_another(tmp_path):
    files = []
    for preset in ("dcgan-64", "wgan-gp-128"):
        (tmp_path / preset).write_text(f"preset: {preset}\n")
        files.append(str(tmp_path / preset))
    assert train("--data", "x", "--config", files[0], "--config", files[1]).z_dim == 200
    assert train("--data", "x", "--config", files[1], "--preset", "dcgan-64").z_dim == 100


def test_paths_are_absolute_and_uris_stay_as_they_are():
    settings = train("--data", "s3://bucket/shards", "--storage", "~/here")
    assert (settings.data, settings.storage) == ("s3://bucket/shards", os.path.expanduser("~/here"))


def test_passwords_are_not_shown():
    """Only a database's address may contain one."""
    settings = train("--data", "x", "--tracking-uri", "postgresql://me:hush@host/db")
    assert "hush" not in f"{settings} {settings!r} {recorded(settings)}"
    job = finish_job("train", "--dry-run", "--data", "x", "--tracking-uri", "postgresql://me:hush@host/db")
    assert "tracking_uri: postgresql://host/db" in job.stdout


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--data", "s3://key:hush@bucket/x", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("--storage", "s3://bucket/x?region=here&secret_key=hush", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("--quality-network", "abfss://box@host/x?sig=hush", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("--tracking-uri", "https://me:hush@mlflow", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_passwords_are_refused_if_the_environment_can_hold_them(flag, value, says, monkeypatch):
    with pytest.raises(ConfigurationError, match=f"{flag}: .*{says}") as raised:
        train("--data", "x", flag, value)
    assert "hush" not in str(raised.value)
    name = {"--storage": "RAYGAN_STORAGE", "--tracking-uri": "MLFLOW_TRACKING_URI"}.get(flag)
    if name:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigurationError, match=f"{flag}: .*{says}") as raised:
            train("--data", "x")
        assert "hush" not in str(raised.value)


def test_file_uris_and_relative_databases_become_absolute_paths():
    """Ray gives each trial its own working directory."""
    home = train("--data", "x", "--tracking-uri", "sqlite:///~/here.db")
    assert home.tracking_uri == f"sqlite:///{os.path.expanduser('~')}/here.db"
    settings = train("--data", "file:///my%20shards", "--tracking-uri", "sqlite:///here.db")
    assert (settings.data, settings.tracking_uri) == ("/my shards", f"sqlite:///{os.path.abspath('here.db')}")
    assert train("--data", "x", "--tracking-uri", "sqlite:////there.db").tracking_uri == "sqlite:////there.db"


@pytest.mark.parametrize("preset", preset_names(TrainSettings))
def test_every_preset_is_valid_and_changes_only_known_fields(preset):
    assert train("--data", "x", "--preset", preset).data == os.path.abspath("x")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ((), "--data is required"),
        (("--data", "x", "--epoch", "3"), "did you mean --epochs"),
        (("--data", "x", "--epochs", "many"), "--epochs"),
        (("--data", "x", "--kimg", "inf"), "--kimg"),
        (("--data", "x", "--epochs", "0"), "--epochs"),
        (("--data", "x", "--image-size", "48"), "power of two from 32 to 256"),
        (("--data", "x", "--image-size", "512"), "power of two from 32 to 256"),
        (("--data", "x", "--batch-size", "4", "--num-workers", "8"), "batch_size (4) is smaller than num_workers (8)"),
        (
            ("--data", "x", "--preset", "best"),
            "preset: 'best' is unknown; choose one of best-128, best-64, dcgan-64, quick",
        ),
        (("--data", "x", "--critic-norm", "batch"), "losses are defined per image"),
        (("--data", "x", "--config", "missing.yaml"), "missing.yaml"),
        (("--data", "x", "--beta1", "1.5"), "--beta1"),
        (("--data", "x", "--augment", "colour"), "--augment"),
    ],
)
def test_a_mistake_names_the_flag_and_the_remedy(argv, says):
    with pytest.raises(ConfigurationError) as raised:
        train(*argv)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "chosen"),
    [
        ((), "better"),
        (("--promote",), "always"),
        (("--promote", "--width", "8"), "always"),
        (("--promote", "never"), "never"),
        (("--promote", "--no-promote"), "never"),
        (("--no-promote", "--promote", "better"), "better"),
    ],
)
def test_a_choice_may_be_a_switch(argv, chosen, tmp_path):
    assert train("--data", "x", *argv).promote == chosen
    file = tmp_path / "switched.yaml"
    file.write_text(f"promote: {'true' if chosen == 'always' else 'false'}\n")
    assert train("--data", "x", "--config", str(file)).promote == ("always" if chosen == "always" else "never")
    with pytest.raises(ConfigurationError, match=r"--promote: .*'better', 'always' or 'never' \(got 'worse'\)$"):
        train("--data", "x", "--promote", "worse")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("widht: 3", "did you mean width?"),
        ("a: [", "not valid YAML at line 1: expected the node content, but found '<stream end>'"),
        ("width: 3\nz_dim: 4\nwidth: 5", "not valid YAML at line 3: width is there twice"),
        ("width: " + "[" * 3000 + "]" * 3000, "not valid YAML: maximum recursion depth"),
        ("label: 2020-13-45", "not valid YAML at line 1: '2020-13-45' is not a valid timestamp; put text in quotes"),
        ("width: " + "9" * 5000, "9' is not a valid int; put text in quotes"),
        ("label: !!timestamp x", "'x' is not a valid timestamp"),
        ("label: !!bool x", "'x' is not a valid bool"),
        ("space: &a [*a]\nlabel: x", "space is not a known setting"),
        ("label: &a [*a]", "--label: input should be a valid string (got [[[...]]])"),
        ("label: no", "--label: input should be a valid string (got False; put it in quotes)"),
        ("label: 2020-01-01", "(got datetime.date(2020, 1, 1); put it in quotes)"),
        ("label: [s3://me:pass@b]", "(got ['s3://b'])"),
        (b"label: f\xfc", "mine.yaml is not UTF-8"),
        ("width: 3".encode("utf-16"), "mine.yaml is not UTF-8"),
        ("- 1", "must contain"),
        ("width: wide", "--width"),
    ],
)
def test_a_mistake_in_a_file_is_named_too(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigurationError) as raised:
        train("--data", "x", "--config", str(file))
    assert says in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("kind", [PrepareSettings, TrainSettings, QuickstartSettings, ServeJobSettings])
def test_help_shows_every_flag_and_its_meaning(kind, capsys):
    with pytest.raises(SystemExit):
        parse(kind, ["--help"], doc="what it does")
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in kind.model_fields.items():
        flag = "--" + name.replace("_", "-") + " "
        if name in kind.unlisted:
            assert flag not in shown
        else:
            assert flag in shown
            assert " ".join(field.description.split()) in shown.replace("- ", "-")


def test_a_job_exits_with_2_and_one_line_for_a_wrong_command_line():
    done = finish_job("train", "--data", "x", "--z-dim", "-1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --z-dim")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "values", "way_on"),
    [
        (TrainSettings, ["--name", "a"], "; the same command resumes it"),
        (TrainSettings, [], "; the same command, with the --name printed above if there is one, resumes it"),
        (EvaluateSettings, ["--name", "a"], ""),
    ],
)
def test_an_interrupted_job_says_how_to_resume_it(kind, values, way_on, capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")  # else the job sets variables in this process

    def interrupt(settings):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_job(kind, interrupt, doc=None, argv=["--data", "x", *values])
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"interrupted{way_on}\n"


def test_ctrl_c_inside_ray_is_told_from_other_errors(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")

    def fail(cause):
        def main(settings):
            # What CPython raises when a C function returns a result although a signal handler has raised.
            raise SystemError("<wait> returned a result with an exception set") from cause

        return main

    with pytest.raises(SystemExit) as ended:
        run_job(EvaluateSettings, fail(Terminated()), doc=None, argv=["--data", "x"])
    assert ended.value.code == 143
    assert capsys.readouterr().err == "interrupted\n"
    with pytest.raises(SystemError):
        run_job(EvaluateSettings, fail(ValueError()), doc=None, argv=["--data", "x"])


def test_no_call_connects_to_ray_implicitly():
    """Otherwise a search's thread would reconnect after its job, being stopped, has disconnected."""
    program = """
from raygan.cli import run_job
from raygan.evaluation.settings import EvaluateSettings

def main(settings):
    import ray

    try:
        ray.put(1)
    except ray.exceptions.RaySystemError as error:
        print(error)

run_job(EvaluateSettings, main, doc="", argv=["--data", "x"])
"""
    job = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
    assert (job.returncode, job.stderr) == (0, "")
    assert "Ray has not been started yet" in job.stdout


def test_a_dry_run_prints_settings_that_are_a_configuration_file(tmp_path):
    done = finish_job("train", "--data", "x", "--preset", "quick", "--width", "5", "--dry-run")
    assert done.returncode == 0
    file = tmp_path / "resolved.yaml"
    file.write_text(done.stdout)
    assert train("--config", str(file)) == train("--data", "x", "--preset", "quick", "--width", "5")


def test_a_terminal_that_knows_only_ascii_gets_escapes():
    asked = [sys.executable, "-c", "from raygan.cli import run_job; from raygan.data.settings import PrepareSettings\n"]
    asked[-1] += "run_job(PrepareSettings, lambda settings: print(settings.output), doc='')"
    done = subprocess.run(
        [*asked, "--input", "a", "--output", "/котики"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert (done.stdout, done.returncode) == ("/\\u043a\\u043e\\u0442\\u0438\\u043a\\u0438\n", 0)


@pytest.mark.parametrize("words", ["--help", "benchmark --help"])
@pytest.mark.parametrize(
    ("shell", "says"),
    [("> /dev/full", "error: standard output can't be written: its disk is full\n"), ("| true", "")],
)
def test_lists_that_nobody_takes_are_no_traceback(words, shell, says):
    command = f"'{sys.executable}' -u -c 'from raygan.commands import main; main()' {words} {shell}; exit $PIPESTATUS"
    done = subprocess.run(["/bin/bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, says)


@pytest.mark.parametrize(
    ("shell", "status", "says"),
    [
        ("> /dev/full", 1, "error: standard output can't be written: its disk is full\n"),
        ("2>&-", 0, ""),
        (">&-", 0, ""),
    ],
)
def test_streams_that_take_nothing_are_no_traceback(shell, status, says):
    job = f"exec '{sys.executable}' '{REPOSITORY}/jobs/train.py' --dry-run --data x {shell}"
    done = subprocess.run(["/bin/bash", "-c", job], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (status, says)


def job_of(main):
    """A process that runs a job with this body, indented by four spaces."""
    program = "from raygan.cli import run_job\nfrom raygan.evaluation.settings import EvaluateSettings\n"
    program += f"def main(settings):\n{main}\nrun_job(EvaluateSettings, main, doc='', argv=['--data', 'x'])"
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_not_blamed_on_standard_output(unbuffered):
    job = job_of("    open('/dev/full', 'w').write('x' * 100_000)")
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(job, capture_output=True, text=True, env=environment, cwd=REPOSITORY, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        f"error: a disk is full (that of {tempfile.gettempdir()}?): make room\n",
    )


def test_a_connection_that_breaks_is_not_taken_for_a_reader_that_is_gone():
    job = job_of("    import socket\n    near, far = socket.socketpair()\n    far.close()\n    near.send(b'x')")
    done = subprocess.run(job, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: a connection was lost (")
    assert done.stderr.count("\n") == 1


def test_lines_of_both_streams_are_in_order_in_a_log():
    job = job_of("    import sys\n    print('first')\n    print('second', file=sys.stderr)")
    done = subprocess.run(job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout == "first\nsecond\n"


@pytest.mark.parametrize(
    ("terminal", "variables", "says"),
    [(True, {}, "None"), (True, {"NO_COLOR": "1"}, "0"), (False, {}, "0"), (False, {"RAY_COLOR_PREFIX": "1"}, "1")],
)
def test_ray_colors_nothing_in_a_log_or_against_the_user_s_wish(terminal, variables, says):
    job = job_of("    import os\n    print(os.environ.get('RAY_COLOR_PREFIX'))")
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "RAY_COLOR_PREFIX")}
    reader, writer = os.openpty() if terminal else os.pipe()
    subprocess.run(job, stdout=writer, stderr=writer, env=environment | variables, cwd=REPOSITORY, check=True)
    os.close(writer)
    assert os.read(reader, 100).split() == [says.encode()]
    os.close(reader)


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_the_very_end_is_no_traceback(sent, status):
    """Ray ends in such a function, for seconds."""
    slow = "    import atexit, time\n    atexit.register(lambda: (print('ending', flush=True), time.sleep(60)))"
    job = subprocess.Popen(job_of(slow), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert job.stdout.readline() == "ending\n"
    job.send_signal(sent)
    assert (*job.communicate(), job.returncode) == ("", "", status)


class Undefined:
    """A result with numbers that JSON lacks."""

    def __init__(self, settings):
        pass

    def to_json(self):
        return json.dumps({"a": math.nan, "b": [math.inf, 1.5]})


def test_the_last_line_is_json_for_every_parser(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    settings = "raygan.evaluation.settings:EvaluateSettings"
    with pytest.raises(SystemExit):
        Job("", settings, "tests.test_cli:Undefined").run("job", ["--data", "x"])
    assert capsys.readouterr().out == '{"a": null, "b": [null, 1.5]}\n'


def test_a_current_folder_that_is_gone_is_named(tmp_path):
    job = f"cd '{tmp_path}' && rmdir '{tmp_path}' && exec '{sys.executable}' '{REPOSITORY}/jobs/train.py' --data x"
    done = subprocess.run(["/bin/bash", "-c", job], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: the current folder has been removed: change to one that exists\n",
    )


def test_an_error_stays_one_line_whatever_a_file_is_called():
    error = RayganError("cannot read a\nb\x1b[31m\udc80猫.jpg")
    assert str(error) == r"cannot read a\nb\x1b[31m\udc80猫.jpg"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - from Ray's workers


_COUNTS = """
import time
from raygan.cli import run_job
from raygan.evaluation.settings import EvaluateSettings

def main(settings):
    from tqdm import tqdm
    for _ in tqdm(range(50)):
        time.sleep(0.02)

run_job(EvaluateSettings, main, doc=None, argv=["--data", "x"])
"""


def test_a_log_is_not_filled_by_a_progress_bar():
    job = subprocess.run([sys.executable, "-c", _COUNTS], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert "50/50" in job.stderr
    assert job.stderr.count("it/s") <= 2
