"""A user's own model and rule, each one Python file and one YAML outside the package, go through everything."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "own_methods"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for name in ("toy_model", "toy_rule"):
        sys.modules.pop(name, None)


@pytest.fixture
def own(tiny_data):
    """Arguments that choose both."""
    data = *tiny_data, "dataset.parts=[part1_test]"
    return [f"--config-dir={FOLDER}", *data, "trainer=cpu", "model=toy", "clustering=toy_rule"]


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_train_evaluate_and_estimate(own, lcde, task, tmp_path):
    from lcde import LCDE

    output = lcde("train", *own, "trainer.max_epochs=1", "~baselines", f"hydra.run.dir={tmp_path / 'train'}")
    assert "toy_rule" in output
    trained = metrics_of(tmp_path / "train")
    assert trained["part1_test"]["method"] == "toy_rule"
    assert trained["part1_test"]["pairwise"]["f_score"] > 0.2
    assert (tmp_path / "train" / "report.html").is_file()

    # The checkpoint names both: no model=, clustering= or --config-dir.
    checkpoint = tmp_path / "train" / "checkpoints" / "best.ckpt"
    alone = [argument for argument in own[1:] if not argument.startswith(("model=", "clustering="))]
    networks = f"checkpoint={checkpoint}", "report=false", "score_cache=null"
    task("eval", *alone, *networks, f"hydra.run.dir={tmp_path / 'eval'}")
    assert metrics_of(tmp_path / "eval")["part1_test"]["pairwise"] == trained["part1_test"]["pairwise"]
    task("eval", *alone, *networks, "clustering.least=0.99", f"hydra.run.dir={tmp_path / 'strict'}")
    assert metrics_of(tmp_path / "strict")["part1_test"]["clusters"] > trained["part1_test"]["clusters"]
    with pytest.raises(SystemExit, match=r"best\.ckpt holds a \w+, but model=… is a LCDEModel"):
        task("train", *alone, f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path / 'other'}")

    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 6)
    X = rng.standard_normal((30, 64))[labels] + 0.5 * rng.standard_normal((180, 64))
    assert LCDE.from_checkpoint(checkpoint).fit_predict(X).shape == (180,)
    estimator = LCDE(k=8, model="toy", clustering="toy_rule", config_dir=FOLDER, max_epochs=1)
    assert estimator.fit(X, labels).n_clusters_ < 180
    assert estimator.density_ is None
    assert estimator.connectivity_.shape == (180, 8)
    with pytest.raises(ValueError, match="cannot assign new faces"):
        estimator.assign(X[:3])


@pytest.mark.slow
def test_sweep(own, lcde, tmp_path):
    settings = "trainer.max_epochs=1", "~baselines", "report=false", f"hydra.sweep.dir={tmp_path}"
    lcde("train", "-m", *own, *settings, "clustering.least=0.5,0.9")
    clusters = [metrics_of(tmp_path / job)["part1_test"]["clusters"] for job in ("0", "1")]
    assert clusters[0] < clusters[1]
    assert (tmp_path / "sweep.csv").is_file()
