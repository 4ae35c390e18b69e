"""Small galleries and graphs for all tests, hypothesis settings, and the reference files beside the project."""

import atexit
import contextlib
import copy
import functools
import gc
import io
import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings

from lcde.data.formats import normalise
from lcde.data.gallery import Gallery, KNNGraph
from lcde.data.knn import build_knn

settings.register_profile("lcde", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("lcde")


def pytest_collection_finish():
    """Spare the garbage collector what the imports made, half a million objects."""
    gc.freeze()


def pytest_runtest_setup(item):
    """Skip tests that need a GPU where there is none."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")


@pytest.fixture(scope="session")
def shared():
    """The folder ``shared`` beside the project's root, which a user's machine lacks."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the reference files in {folder}")
    return folder


@pytest.fixture(scope="session")
def make_gallery():
    """A gallery of random faces around random identities; the last ``duplicates`` faces repeat face 0."""

    def make(seed, num_faces=40, feature_dim=8, k=6, duplicates=0):
        rng = np.random.default_rng(seed)
        labels = rng.integers(num_faces // 4, size=num_faces)
        features = rng.standard_normal((num_faces // 4, feature_dim))[labels]
        features += 0.4 * rng.standard_normal(features.shape)
        features[num_faces - duplicates :], labels[num_faces - duplicates :] = features[0], labels[0]
        features = normalise(features.astype(np.float32), "a test")
        return Gallery("test", features, build_knn(features, k), labels)

    return make


@pytest.fixture
def circle():
    """Ten points of a circle and their five neighbours; values of the literature's methods on them are known."""
    angles = np.deg2rad([0, 5, 11, 18, 40, 46, 53, 75, 84, 110])
    features = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    graph = build_knn(features, 5)
    graph.indices[7] = 7, 8, 6, 5, 9  # 4 is as near as 9
    assert graph.indices[[3, 6]].tolist() == [[3, 2, 1, 0, 4], [6, 5, 4, 7, 8]]
    return Gallery("circle", features, graph, np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]))


@pytest.fixture
def batch(make_gallery):
    """60 pairs of D = 16 and K = 8, of one identity and of two."""
    import torch

    from lcde.models.base import DeviceGraph, Neighbourhoods

    gallery = make_gallery(0, 60, 16, 8)
    indices, features, labels = gallery.graph.indices, gallery.features, torch.from_numpy(gallery.labels_true)
    graph = DeviceGraph(torch.from_numpy(features), torch.from_numpy(indices), labels)
    pairs = np.stack([np.arange(60), indices[np.arange(60), np.arange(60) % 7 + 1]], axis=1)
    pairs = torch.from_numpy(pairs)
    neighbours, ends = graph.indices[pairs].long(), labels[pairs]
    same_as_end = (labels[neighbours][:, None] == ends[..., None, None]).long()
    same_identity = (ends[:, 0] == ends[:, 1]).long()
    return Neighbourhoods(graph.features_of(neighbours), same_as_end, same_identity, pairs, graph)


@pytest.fixture(scope="session")
def make_graph():
    """A `KNNGraph` full of ties, and connectivity (N, K): similarities in ±{0, ¼, ½, 1}, connectivity in {0, ¼, ½, 1}.

    All sums and products are exact, so tests can compare with ==.
    """

    def make(seed, num_faces, k):
        rng = np.random.default_rng(seed)
        indices = np.argsort(rng.random((num_faces, num_faces)), axis=1)
        indices = np.stack([[face, *row[row != face][: k - 1]] for face, row in enumerate(indices)]).astype(np.int32)
        similarities = rng.choice([-1, -0.5, -0.25, 0, 0.25, 0.5, 0.5, 1], size=indices.shape)
        similarities = -np.sort(-similarities, axis=1)
        similarities[:, 0] = 1
        connectivity = rng.choice([0, 0.25, 0.5, 1], size=indices.shape)
        return KNNGraph(indices, similarities.astype(np.float32)), connectivity.astype(np.float32)

    return make


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The files of an untrained published pair of networks for D = 32 and K = 8, which one seed makes."""
    import torch

    from lcde.models.lcde import LCDEModel
    from lcde.models.weights import export_published

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    model = LCDEModel(32, 8, 3, 8, 32, 0.1, neighbours_per_end=8, negative_weight=1.0)
    export_published(model, folder / "lce.pth", folder / "pce.pth")
    return folder / "lce.pth", folder / "pce.pth"


@pytest.fixture(scope="session")
def tiny_data():
    """Settings of a small synthetic data set."""
    sizes = "dataset.num_identities={part0_train:60,part1_test:40,part2_test:50}", "dataset.held_out_identities=40"
    return [*sizes, "dataset.k=8"]


@pytest.fixture(scope="session")
def tiny(tiny_data):
    """Settings of that data set and of small networks, which train in seconds."""
    return [*tiny_data, "model.num_layers=1", "trainer=cpu"]


@pytest.fixture(scope="session")
def lcde():
    """Run ``lcde <arguments>`` in this process; returns what it prints."""
    from lcde.__main__ import main

    def run(*arguments):
        output, argv = io.StringIO(), sys.argv
        sys.argv = ["lcde", *map(str, arguments)]
        try:
            with contextlib.redirect_stdout(output):
                main()
        finally:
            sys.argv = argv
        return output.getvalue()

    return run


@pytest.fixture(scope="session")
def task():
    """As ``lcde``, without Hydra's command line: the same choices are composed once, and get their values later."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf, open_dict

    from lcde.__main__ import SCRIPTS
    from lcde.configuration import CONF

    main = functools.cache(lambda command: runpy.run_path(str(SCRIPTS / f"{command}.py"))["main"])

    @functools.cache
    def composed(command, *choices):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose(command, [*choices, "hydra.mode=RUN"], return_hydra_config=True)

    def run(command, *overrides):
        parsed = OverridesParser.create().parse_overrides(list(map(str, overrides)))
        choices = [one for one in parsed if one.is_delete() or (CONF / one.key_or_group).is_dir()]
        config = copy.deepcopy(composed(command, *(choice.input_line for choice in choices)))
        for value in (one for one in parsed if one not in choices):
            OmegaConf.update(config, value.key_or_group, value.value(), force_add=value.is_add())
        with open_dict(config):
            config.hydra.overrides.task = [one.input_line for one in parsed if not one.is_hydra_override()]
            config.hydra.runtime.output_dir = config.hydra.run.dir
            HydraConfig.instance().set_config(config)
            del config["hydra"]
        output = io.StringIO()
        with contextlib.redirect_stdout(output), initialize_config_dir(str(CONF), version_base="1.3"):
            main(command)(config)
        return output.getvalue()

    return run


@pytest.fixture(scope="session")
def processes():
    """A context of ``multiprocessing`` whose processes are forks of one that has imported what takes seconds."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hypothesis", "networkit", "lcde.commands.scoring", "lcde.training.fit"])
    return context


class Started(NamedTuple):
    """A process that runs a command, and the file of what it prints."""

    process: BaseProcess
    log: Path

    def end(self) -> tuple[int, str]:
        """Exit code and output of the command, when it has ended."""
        self.process.join(300)
        self.process.kill()
        self.process.join()
        return self.process.exitcode, self.log.read_text()


def run_lcde(arguments, folder, environment, log, room):
    """``lcde <arguments>`` in the process that calls this, up to what an interpreter does at its end.

    Mapped files apart, it and the processes that it starts may take ``room`` bytes more than it takes now.
    """
    from lcde.__main__ import main

    if room is not None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_DATA, (used + room,) * 2)

    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["lcde", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()


@pytest.fixture(scope="session")
def start(processes, tmp_path_factory):
    """Start ``lcde <arguments>`` in a process of its own."""

    def start(*arguments, folder=None, environment=None, room=None):
        log = tmp_path_factory.mktemp("log") / "log.txt"
        settings = list(map(str, arguments)), folder or os.getcwd(), dict(environment or os.environ), log, room
        process = processes.Process(target=run_lcde, args=settings)
        process.start()
        return Started(process, log)

    return start


@pytest.fixture(scope="session")
def trained(lcde, tiny, tmp_path_factory):
    """Folder and output of one small training run, which all tests share."""
    folder = tmp_path_factory.mktemp("train")
    epochs = "trainer.max_epochs=2", "trainer.log_every_n_steps=1"
    return folder, lcde("train", *tiny, *epochs, f"hydra.run.dir={folder}")
