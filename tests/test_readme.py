"""What README.md and docs/ tell the reader to type is what is tested."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from lcde.configuration import compose_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()
SWEEP_EXTRA = find_spec("hydra_plugins") is not None
COMMAND = re.compile(r"^(?:python (train|eval|compare)\.py|lcde (train|eval|compare))(?: (.*))?$", re.MULTILINE)
OTHER = ("-m", "--help", "--cfg", "job")  # what Hydra itself takes


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Command and arguments of every line of a page that starts with one; comments left out."""
    text = page.read_text().replace("\\\n", "").replace("…", "run")
    found = [match.groups() for match in COMMAND.finditer(text)]
    return [(script or name, shlex.split(arguments or "", comments=True)) for script, name, arguments in found]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_ci_runs_the_test_command_word_for_word():
    [command] = [line for line in README.splitlines() if line.endswith("&& pytest")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_picture_is_there_and_small(page):
    pictures = [link for link in re.findall(r"!\[[^\]]*\]\((.+?)\)", page.read_text()) if "://" not in link]
    assert pictures or page != PAGES[0]
    for picture in pictures:
        file = page.parent / picture
        assert file.read_bytes().startswith(b"\x89PNG")
        assert file.stat().st_size < 150_000


@pytest.mark.parametrize(
    "page", [PAGES[0], *(pytest.param(page, marks=pytest.mark.slow) for page in PAGES[1:])], ids=name_of
)
def test_every_command_composes(page):
    for command, arguments in commands(page):
        if "--config-dir" in arguments:
            continue  # of the reader's own YAML files, which tests/commands/test_own_methods.py writes
        overrides = [text for text in arguments if text not in OTHER]
        parsed = OverridesParser.create().parse_overrides(overrides)
        if not SWEEP_EXTRA:
            parsed = [override for override in parsed if not override.is_hydra_override()]
        single = [override.input_line for override in parsed if not override.is_sweep_override()]
        compose_config(command, single)


def test_commands_are_found():
    found = [line for page in PAGES for line in commands(page)]
    assert len(found) > 25
    assert ("eval", ["dataset=custom", "dataset.features=faces.npy"]) in found
    assert {"checkpoint=runs/k${dataset.k}/checkpoints/best.ckpt"} & {text for _, line in found for text in line}
