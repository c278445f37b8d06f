"""The GPU benchmark in tiny on the CPU: it needs torch alone, goes on where it stopped, and fills its page."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from raygan.benchmarks.candidates import TEXTBOOK
from raygan.benchmarks.gpu import Session, finish
from raygan.benchmarks.gpu_report import benchmark
from raygan.benchmarks.gpu_timeline import short
from raygan.benchmarks.gpu_training import Training
from raygan.benchmarks.settings import GpuBenchmarkSettings
from raygan.errors import ConfigurationError
from tests.helpers import REPOSITORY

#: Runs the benchmark where nothing can be imported but torch with what it needs itself, numpy, and this checkout.
TORCH_ALONE = """
import importlib.machinery, importlib.metadata, re, runpy, sys

def plain(name):
    return name.lower().replace("_", "-")

def needs(name, found):
    if name not in found:
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" not in line:
                try:
                    needs(plain(re.match(r"[\\w.-]+", line)[0]), found)
                except importlib.metadata.PackageNotFoundError:
                    pass
    return found

allowed = needs("torch", set()) | {"numpy"}
packages = importlib.metadata.packages_distributions()
forbidden = {m for m, owners in packages.items() if not any(plain(owner) in allowed for owner in owners)} - {"raygan"}
assert {"ray", "mlflow", "pydantic", "pyarrow", "safetensors", "yaml", "psutil", "PIL", "tqdm"} <= forbidden

class Installed(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in forbidden else super().find_spec(name, path, target)

sys.meta_path = [Installed if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
sys.argv = ["gpu", *sys.argv[1:]]
runpy.run_module("raygan.benchmarks.gpu", run_name="__main__")
"""


def measure(folder, *flags):
    command = [sys.executable, "-c", TORCH_ALONE, str(folder), "--device", "cpu", *flags]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=variables, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def tiny(tmp_path, write_shards):
    """Settings of the smallest benchmark, whose plan is written."""
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- gpu 32 px -->\nNot measured yet.\n<!-- /gpu 32 px -->\n\n## More\n")
    settings = GpuBenchmarkSettings(
        folder=str(tmp_path / "gpu"),
        presets=["wgan-gp-128", "best-64"],
        width=4,
        batches=[4, 8],
        rounds=1,
        seconds=0.02,
        minutes=0.005,
        points=2,
        page=str(page),
    )
    plan = benchmark(settings.model_copy(update={"data": str(write_shards()), "label": "cat"}))
    for training in plan["trainings"]:
        training["networks"]["width"] = 4
    for candidate in (*plan["trainings"], *plan["candidates"], plan["timeline"]):
        candidate["options"]["batch_size"] = 4
    (tmp_path / "gpu" / "plan.json").write_text(json.dumps(plan))
    return settings


def test_torch_alone_measures_and_the_page_shows_it(tiny, tmp_path):
    folder, page = tmp_path / "gpu", tmp_path / "page.md"
    benchmark(tiny)
    assert "Not measured yet." in page.read_text()
    said = measure(folder, "--seconds", "0")
    assert said.startswith(
        "to do: machine, speeds, losses, steps 4, steps 8, timeline, training best-64, training textbook;"
    )
    assert measure(folder) == "everything is measured\n"
    result = benchmark(tiny)
    steps = result["steps 4"]
    presets = [f"{preset} {precision}" for preset in ("wgan-gp-128", "best-64") for precision in ("tf32", "bf16")]
    assert list(steps) == ["textbook tf32", *presets[:-1], "best-64 bf16, not recorded", "best-64 bf16"]
    assert set(result["losses"]) == {"wgan-gp-128 tf32", "wgan-gp-128 bf16"}
    assert result["losses"]["wgan-gp-128 tf32"] < 1e-4
    assert steps["textbook tf32"]["ratio"] == 1
    assert all(0 < row["share_of_peak_at_best"] <= 1 for row in steps.values())
    assert 0 < result["timeline"]["busy"] <= 1
    assert [row["images"] for row in result["kid"]["best-64"]] == [row["images"] for row in result["training best-64"]]
    text = page.read_text()
    assert text.startswith("# Page\n\n<!-- gpu 32 px -->\nNo GPU, torch ")
    assert text.endswith("\n<!-- /gpu 32 px -->\n\n## More\n")
    for row in ("| best-64 bf16 |", "| textbook |", "| kernel |", "| NVLink, 450 GB/s |"):
        assert row in text
    assert (folder / "samples.png").exists()


@pytest.mark.parametrize("name", ["best-64", TEXTBOOK])
def test_a_training_goes_on_where_its_command_ended(tiny, tmp_path, name):
    session = Session(tmp_path / "gpu", 0.0, "cpu")
    candidate = session.candidate(next(each for each in session.plan["trainings"] if each["name"] == name))
    whole, first = (Training(candidate, tmp_path / f"{name}-{which}") for which in ("whole", "first"))
    batches = [torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8) for _ in range(6)]
    for training, count in ((whole, 6), (first, 3)):
        torch.manual_seed(0)  # the textbook's draws
        for reals in batches[:count]:
            training.step(reals)
    first.keep()
    first.save()
    again = Training(candidate, first.path)
    for reals in batches[3:]:
        again.step(reals)
    assert again.kept == first.kept == [{"seconds": 0.0, "images": 12}]
    for training in (whole, again):
        training.keep()
    files = [training.path.with_name(f"{name}-{len(training.kept)}.pt") for training in (whole, again)]
    weights, others = (torch.load(file, weights_only=True) for file in files)
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[key]) for key, value in weights.items()) or name == TEXTBOOK


def test_a_part_that_fails_leaves_the_others(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("raygan.benchmarks.gpu.machine", lambda: 1 / 0)
    plan = tmp_path / "gpu" / "plan.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "batches": [], "trainings": []}))
    session = Session(tmp_path / "gpu", 100.0, "cpu")
    assert not session.run()
    assert list(session.results) == ["speeds", "losses", "timeline"]
    assert "machine failed: ZeroDivisionError" in capsys.readouterr().err
    finish(tmp_path / "gpu", 100.0, "cpu")  # ends, although it can't measure everything
    monkeypatch.undo()
    clock = iter(range(1000))  # time runs out again and again
    monkeypatch.setattr("raygan.benchmarks.gpu.time.perf_counter", lambda: 50.0 * next(clock))
    finish(tmp_path / "gpu", 120.0, "cpu")
    assert "machine" in Session(tmp_path / "gpu", 100.0, "cpu").results


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (
            "void at::native::(anonymous namespace)::RowwiseMomentsCUDAKernel<float>(long, float)",
            "RowwiseMomentsCUDAKernel",
        ),
        (
            "void at::native::elementwise_kernel<128, 2, at::native::gpu_kernel_impl_nocast<at::native::direct_copy_"
            "kernel_cuda(at::TensorIteratorBase&)::{lambda()#3}>>(int)",
            "elementwise_kernel direct_copy_kernel_cuda",
        ),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::BinaryFunctor<float, float, float, "
            "at::native::binary_internal::MulFunctor<float> >, std::array<char*, 3ul> >(int)",
            "vectorized_elementwise_kernel MulFunctor",
        ),
        ("sm90_xmma_dgrad_implicit_gemm_indexed", "sm90_xmma_dgrad_implicit_gemm_indexed"),
    ],
)
def test_a_kernels_name_says_what_it_does(name, shown):
    assert short(name) == shown


def test_a_page_without_marks_is_named_before_anything_is_measured_or_judged(tiny, tmp_path):
    (tmp_path / "page.md").write_text("# Page\n")
    (tmp_path / "gpu" / "results.json").write_text('{"training best-64": [{}]}')  # its generator is missing
    with pytest.raises(ConfigurationError, match=r"page\.md has no lines <!-- gpu 32 px --> and <!-- /gpu 32 px -->"):
        benchmark(tiny)


def test_results_are_not_taken_for_those_of_another_plan(tmp_path, write_shards):
    folder = tmp_path / "gpu"
    settings = GpuBenchmarkSettings(folder=str(folder), data=str(write_shards()), presets=["best-64"], batches=[4])
    benchmark(settings)
    (folder / "results.json").write_text("{}")
    benchmark(settings)  # the same plan goes on
    for changes in ({"batches": [8]}, {"label": "dog", "photos": 16}):
        with pytest.raises(ConfigurationError, match=r"--folder: .* has results of another plan"):
            benchmark(settings.model_copy(update=changes))
    assert json.loads((folder / "plan.json").read_text())["batches"] == [4]
    (folder / "results.json").unlink()
    benchmark(settings.model_copy(update={"batches": [8]}))
    assert json.loads((folder / "plan.json").read_text())["batches"] == [8]
