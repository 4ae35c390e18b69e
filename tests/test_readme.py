"""What the README tells a newcomer to type is what is tested."""

import re
from importlib.util import find_spec
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).parents[1]
SWEEP_EXTRA = find_spec("hydra_plugins") is not None
README = (ROOT / "README.md").read_text()


def commands(script: str) -> list[list[str]]:
    """The arguments of every command line of the README that calls ``script``."""
    text = README.replace("\\\n", "")
    lines = [line.split("#")[0] for line in text.splitlines() if f"python {script}" in line and line[0] != "|"]
    return [line.replace("'", "").replace("…", "run").split(f"python {script}")[1].split() for line in lines]


def test_ci_runs_the_test_command_word_for_word():
    [command] = [line for line in README.splitlines() if line.endswith("&& pytest")]
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_picture_is_there_and_small():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
        assert (ROOT / picture).stat().st_size < 150_000


def test_every_command_composes():
    checked = 0
    for script in ("train", "eval"):
        for arguments in commands(f"{script}.py"):
            overrides = OverridesParser.create().parse_overrides([text for text in arguments if text != "-m"])
            if not SWEEP_EXTRA:
                overrides = [override for override in overrides if not override.is_hydra_override()]
            single = [override.input_line for override in overrides if not override.is_sweep_override()]
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                compose(script, single)
            checked += len(single)
    assert checked > 10
