"""Imports between the packages point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lcde"
ORDER = [
    "data",
    "clustering",
    "methods",
    "models",
    "peers",
    "evaluation",
    "training",
    "report",
    "commands",
    "estimator",
]
# What a package may not import beside the packages after it.
FORBIDDEN = {
    "metrics.py": ("lcde", "torch", "pytorch_lightning"),
    "files.py": ("torch", "pytorch_lightning", "hydra"),
    "errors.py": ("lcde", "hydra"),
    "settings.py": ("torch", "pytorch_lightning", "hydra"),
    "data": ("pytorch_lightning", "hydra"),
    "clustering": ("pytorch_lightning", "hydra", "torch"),
    "methods": ("pytorch_lightning", "hydra"),
    "models": ("hydra",),
    "peers": ("hydra",),
    "evaluation": ("pytorch_lightning", "lcde.models", "lcde.peers"),
    "report": ("lcde.training", "lcde.models", "lcde.peers"),
}


def imports(file: Path) -> set[str]:
    """Modules imported anywhere in ``file``, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("place", [*FORBIDDEN, *(name for name in ORDER if name not in FORBIDDEN)])
def test_a_layer_imports_nothing_above_it(place):
    path = PACKAGE / place if (PACKAGE / place).exists() else PACKAGE / f"{place}.py"
    above = [f"lcde.{name}" for name in ORDER[ORDER.index(place) + 1 :]] if place in ORDER else []
    above = [*above, *FORBIDDEN.get(place, ())]
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for name in imports(file) - {"lcde.commands.eval"} if file.name == "sweep.py" else imports(file):
            assert not any(name == bad or name.startswith(f"{bad}.") for bad in above), (file.name, name)
