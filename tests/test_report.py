import json
import weakref

import numpy as np
import pytest

from lcde import report
from lcde.clustering.unsupervised import Unsupervised
from lcde.data.datasets import MS1M
from lcde.evaluation import evaluate_unsupervised

NAMES = ["part1_test", "part3_test", "part5_test"]
METHOD = Unsupervised(0.0005, 0.002, num_trials=1, seed=0, density_threshold=None, min_cluster_size=1)


@pytest.fixture
def parts(make_part, tmp_path):
    for kind in ("features", "labels"):
        (tmp_path / kind).mkdir()
    for seed, name in enumerate(NAMES):
        part = make_part(seed, num_faces=60)
        part.features.tofile(tmp_path / "features" / f"{name}.bin")
        np.savetxt(tmp_path / "labels" / f"{name}.meta", part.labels_true, fmt="%d")
    return MS1M(str(tmp_path), 6, 8, None, NAMES).load(train=False)[1]


def test_one_part_is_in_memory_at_a_time(parts, tmp_path):
    seen = []

    def evaluate(part):
        assert [features() is None for features in seen] == [True] * len(seen)
        seen.append(weakref.ref(part.features))
        return evaluate_unsupervised(part, METHOD)

    results, shown = report.evaluate_parts(parts, evaluate, tmp_path / "run", show=True)
    assert [result.part for result in results] == NAMES == list(shown)
    report.illustrate(results, shown, tmp_path / "run", {})
    figures = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert figures == {"methods.png", *(f"{name}_{kind}.png" for name in NAMES for kind in ("cluster_sizes", "edges"))}


def test_results_of_a_part_are_kept_when_a_later_one_fails(parts, tmp_path):
    def evaluate(part):
        if part.name == NAMES[1]:
            raise MemoryError
        return evaluate_unsupervised(part, METHOD)

    with pytest.raises(MemoryError):
        report.evaluate_parts(parts, evaluate, tmp_path / "run", show=False)
    assert list(json.loads((tmp_path / "run" / "metrics.json").read_text())) == NAMES[:1]
    assert len(np.load(tmp_path / "run" / "labels" / f"{NAMES[0]}.npy")) == 60


def test_other_ranks_have_no_results(parts, tmp_path):
    assert report.evaluate_parts(parts, lambda part: None, tmp_path / "run", show=True) == ([], {})
    assert not (tmp_path / "run").exists()
