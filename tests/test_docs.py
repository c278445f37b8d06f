"""What the READMEs say exists: their links lead somewhere, and their commands parse."""

from __future__ import annotations

import re
import shlex

import pytest

from raygan.benchmarks.registry import BENCHMARKS
from raygan.cli import Job, load, parse
from raygan.commands import JOBS
from tests.helpers import REPOSITORY

PAGES = ("README.md", "raygan/benchmarks/README.md", "raygan/benchmarks/faults/README.md")

#: Starts of commands in running text, whose flags a reader has to fill in.
INCOMPLETE = (["benchmark", "NAME"], ["train", "--config"], ["train", "--objective", "hinge"], ["serve", "run"])


def read(page: str) -> str:
    return (REPOSITORY / page).read_text()


def commands(page: str) -> list[tuple[Job, list[str]]]:
    """Jobs and their flags: in code blocks, and between backticks."""
    code = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
    lines = [line for language, block in code.findall(read(page)) if language == "bash" for line in block.splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", code.sub("", read(page)))]
    found = []
    for command in (part.strip() for line in lines for part in line.split("&&")):
        words = re.sub(r"^(python jobs/|raygan )", "", command).split(" # ")[0].split()
        if len(words) < 2 or "…" in command or words in INCOMPLETE:
            continue
        jobs = BENCHMARKS if words[0] in ("benchmark", "benchmark.py") else JOBS
        name, *flags = words[1:] if jobs is BENCHMARKS else words
        if name.removesuffix(".py") in jobs:
            found.append((jobs[name.removesuffix(".py")], shlex.split(" ".join(flags))))
    return found


@pytest.mark.parametrize(("page", "least"), [(PAGES[0], 10), (PAGES[1], 25), (PAGES[2], 0)])
def test_commands_parse(page, least):
    found = commands(page)
    assert len(found) >= least
    for job, flags in found:
        if "--" in flags:  # submit: a job of its own
            at = flags.index("--")
            flags, (inner, *rest) = flags[:at], flags[at + 1 :]
            parse(load(JOBS[inner.removesuffix(".py")].settings), rest, doc=None)
        settings = load(job.settings)
        # Text leaves out what a reader knows.
        missing = [name for name, field in settings.model_fields.items() if field.is_required()]
        given = [word for name in missing if f"--{name}" not in flags for word in (f"--{name}", "x")]
        parse(settings, [*flags, *given], doc=None)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / path
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
