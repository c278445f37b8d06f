"""The console command: `raygan JOB …` does what `python jobs/JOB.py …` does in a checkout.

`JOBS` is the one table of jobs. It names settings and functions as text: both are imported when the job runs, so the
command line is parsed and Ray configured before Ray or torch is imported.
"""

from __future__ import annotations

import sys
from typing import NoReturn

from raygan.benchmarks.registry import run_benchmark
from raygan.cli import Job, guarded_output
from raygan.settings import closest

JOBS = {
    "quickstart": Job(
        summary="Prepare, train and serve in one command, on faces that raygan draws itself or on your photos.",
        settings="raygan.quickstart.settings:QuickstartSettings",
        function="raygan.quickstart.quickstart:quickstart",
        examples=("", "--input photos --label cat --no-serve"),
        notes="Run it again to resume where it stopped.",
    ),
    "prepare": Job(
        summary="Clean folders of photos and write them as training shards, with Ray Data.",
        settings="raygan.data.settings:PrepareSettings",
        function="raygan.data.prepare:prepare",
        examples=("--input photos --output shards --image-size 64",),
        notes="The input may be class folders, files named like cat.123.jpg, photos next to a CSV table of their "
        "labels, archives of these, Parquet files with an image column or, with --label, any folder of one class. The "
        "output has the shards, report.json, rejected.parquet (each rejected photo with the reason and the "
        "measurement) and pictures of kept and rejected photos. Run the same command again to resume a killed job.",
    ),
    "train": Job(
        summary="Train a face GAN on prepared shards with Ray Train, log it to MLflow and register the generator.",
        settings="raygan.training.settings:TrainSettings",
        function="raygan.training.train:train",
        examples=("--data shards --preset quick --label cat --num-workers 2",),
        notes="The last line of standard output is one JSON object: run_id, model, promotion (whether it is the "
        "champion now, and why), checkpoint, metrics of the checkpoint that became the model (those that begin with "
        "fresh_ did not choose it) and last_metrics.",
    ),
    "tune": Job(
        summary="Search learning rates, z_dim or other settings with Ray Tune; every trial is a real training.",
        settings="raygan.tuning.settings:TuneSettings",
        function="raygan.tuning.tune:tune",
        examples=(
            "--data shards --preset quick --label cat --trials 12 --trial-kimg 30",
            "--data shards --label cat --space generator_lr=1e-5..1e-3 z_dim=64,128 --search tpe",
        ),
        notes="Trials train for at most --trial-kimg. The length of a full training (--epochs or --kimg) matters only "
        "for --train-best and best.yaml. The last line of standard output is one JSON object: run_id, best, kid "
        "(measured again), searched_kid (which chose the best), better (than the baseline by more than the standard "
        "error), trials, settings_file and pictures.",
    ),
    "classify": Job(
        summary="Train GoogLeNet to tell labels apart on real photos, generated images or both, and register it.",
        settings="raygan.classifier.settings:ClassifySettings",
        function="raygan.classifier.classify:classify",
        examples=(
            "--data shards --num-workers 2",
            "--data shards --real-fraction 0      (generated images only)",
        ),
        notes="The last line of standard output is one JSON object: run_id, model, promotion (whether it is the "
        "champion now, and why) and the metrics on the validation photos. After training on generated images only, the "
        "accuracy is the classification accuracy score (CAS).",
    ),
    "evaluate": Job(
        summary="Write a report card of generators against real shards: FID, KID, precision, recall, copies and more.",
        settings="raygan.evaluation.settings:EvaluateSettings",
        function="raygan.evaluation.evaluate:evaluate",
        examples=(
            "--data shards                        (the champion of every label)",
            "--data shards --label cat --model raygan-generator-cat/3 runs/mine/checkpoint_2 --baselines",
        ),
        notes="The last line of standard output is one JSON object: run_id, the address of the report and the metrics.",
    ),
    "usefulness": Job(
        summary="Measure whether generated images help a classifier, by training it on real photos and on mixtures.",
        settings="raygan.classifier.settings:UsefulnessSettings",
        function="raygan.classifier.usefulness.study:study",
        examples=(
            "--data shards",
            "--data shards --real-sizes 100 1000 --real-fractions 1 0.5 --seeds 5",
            "--data shards --elsewhere",
        ),
        notes="By default, a generator is trained on each small set of real photos alone, and draws the images that "
        "are added to it. The last line of standard output is one JSON object: run_id, the folder with table and "
        "chart, and the table.",
    ),
    "sample": Job(
        summary="Draw many samples from a registered generator or a checkpoint, on the whole cluster.",
        settings="raygan.sampling.settings:SampleSettings",
        function="raygan.sampling.sample:sample",
        examples=(
            "--label cat --n 10000 --output samples",
            "--model raygan-generator-cat/3 --format parquet --output samples",
        ),
        notes="Run the same command again to resume an interrupted job. The last line of standard output is one JSON "
        "object: model, output and n.",
    ),
    "export": Job(
        summary="Write a registered model or a checkpoint as an ONNX file, which runs without torch.",
        settings="raygan.sampling.settings:ExportSettings",
        function="raygan.sampling.export:export",
        examples=("--model raygan-generator-cat --output cat.onnx", "--model raygan-classifier/2 --output judge.onnx"),
        notes="Labels, sizes and the scale of pixels are in the file's metadata. The last line of standard output is "
        "one JSON object: model and output.",
    ),
    "promote": Job(
        summary="Serve another version of a registered model: move its serving alias.",
        settings="raygan.runtime.settings:PromoteSettings",
        function="raygan.tracking.promotion:promote",
        examples=("--model raygan-generator-cat/3", "--model raygan-generator-cat --rollback"),
        notes="The service follows within seconds. Each move is recorded in the version's tags in MLflow.",
    ),
    "serve": Job(
        summary="Serve samples of the promoted generators over HTTP, until Ctrl-C.",
        settings="raygan.serve.settings:ServeJobSettings",
        function="raygan.serve.app:run",
        examples=("", "--service my_serve_config.yaml"),
        notes="Checks that the port is free, that there is a token if other machines can reach it, and that there is a "
        "generator to serve, then becomes `serve run serve_config.yaml`.",
    ),
    "submit": Job(
        summary="Run a job of this checkout on a cluster, and follow it from here.",
        settings="raygan.runtime.settings:SubmitSettings",
        function="raygan.runtime.submit:submit",
        examples=(
            "--address http://HEAD:8265 -- train.py --data s3://bucket/shards --preset best-64 --label cat",
            "--address http://HEAD:8265 --no-install -- tune.py --data s3://bucket/shards --trials 12",
        ),
        notes="After --, give a file in jobs/ and its flags. The exit status is the job's. Ctrl-C leaves the job "
        "running.",
        takes_command=True,
    ),
    "drill": Job(
        summary="Break things while raygan works and report what is lost: nodes, workers, MLflow, the disk and more.",
        settings="raygan.benchmarks.settings:DrillSettings",
        function="raygan.benchmarks.faults.run:drill",
        examples=("", "--drills worker node", "--short"),
        notes="Runs Ray nodes and trainings of its own on this machine; nothing else should use Ray here at the same "
        "time. Needs a checkout.",
    ),
}

#: The job that runs other ones: `raygan benchmark NAME`.
_BENCHMARK = "benchmark"
_BENCHMARK_SUMMARY = "Measure raygan beside its peers, both in the same run."


def run(name: str) -> NoReturn:
    """Run a job from its file in jobs/, with the flags of this process."""
    JOBS[name].run(f"python jobs/{name}.py", sys.argv[1:])


def main() -> NoReturn:
    """The console command ``raygan``."""
    name, *argv = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        summaries = {job: entry.summary for job, entry in JOBS.items()} | {_BENCHMARK: _BENCHMARK_SUMMARY}
        with guarded_output():
            print("usage: raygan JOB [flags]\n\nTrain and serve face-image GANs on Ray.\n\njobs:")
            print("\n".join(f"  {job:12}{summary}" for job, summary in summaries.items()))
            print("\n`raygan JOB --help` lists a job's flags.")
        sys.exit(0)
    if name == _BENCHMARK:
        run_benchmark(f"raygan {name}", argv)
    if name not in JOBS:
        problem = f"{name!r} is not a job{closest(name, [*JOBS, _BENCHMARK])}" if name else "name a job"
        print(f"error: {problem} (see raygan --help)", file=sys.stderr)
        sys.exit(2)
    JOBS[name].run(f"raygan {name}", argv)
