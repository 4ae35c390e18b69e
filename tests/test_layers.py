"""Dependencies point one way."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lcde"
# What a file or folder may not import, directly: the layer above it, or the frameworks it must work without.
FORBIDDEN = {
    "metrics.py": ("lcde", "torch", "pytorch_lightning"),
    "clustering": ("lcde.data", "lcde.models", "lcde.callbacks", "lcde.evaluation", "pytorch_lightning", "hydra"),
    "data/formats.py": ("lcde.models", "pytorch_lightning"),
    "data/knn.py": ("lcde.models", "torch", "pytorch_lightning"),
    "data/pairs.py": ("lcde.models", "torch", "pytorch_lightning"),
    "data/synthetic.py": ("lcde.models", "torch", "pytorch_lightning"),
    "data/datamodule.py": ("lcde.models", "lcde.callbacks", "lcde.evaluation"),
    "models": ("lcde.callbacks", "lcde.evaluation", "lcde.report", "hydra"),
    "saved_clustering.py": ("lcde.models", "lcde.evaluation", "torch", "pytorch_lightning"),
    "evaluation.py": ("lcde.callbacks", "lcde.report", "pytorch_lightning"),
}


def imports(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("place", FORBIDDEN)
def test_layer_imports_nothing_above_it(place):
    path = PACKAGE / place
    for file in path.rglob("*.py") if path.is_dir() else [path]:
        for name in imports(file):
            assert not any(name == bad or name.startswith(f"{bad}.") for bad in FORBIDDEN[place]), (file.name, name)
