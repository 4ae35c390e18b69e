"""Scores are those of each neighbourhood, in batches of any size and on any number of processes."""

import numpy as np
import pytest
import rich
import torch
from scipy.stats import spearmanr
from torch import distributed
from torch.multiprocessing.reductions import StorageWeakRef

from lcde.configuration import build, compose_config
from lcde.models import scoring
from lcde.models.lcde import LCDEModel
from lcde.models.scoring import GraphScorer, PairNetworks
from lcde.models.weights import load_checkpoint

D, K = 8, 4
EDGES = np.array([[0, 1], [1, 0], [5, 11], [7, 7], [11, 2]])


def make_model():
    torch.manual_seed(0)
    model = LCDEModel(D, K, 2, 4, 12, 0.3, 2, 1.0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def model(small_classifier):
    return make_model()


@pytest.fixture
def gallery(make_gallery):
    return make_gallery(0, num_faces=12, feature_dim=D, k=K)


@pytest.fixture
def scorer(model, gallery):
    return model.bind(gallery, "float32", False, None)


def test_scores_are_those_of_each_neighbourhood(model, scorer, gallery):
    neighbours = torch.from_numpy(gallery.features[gallery.graph.indices])
    ends = [torch.cat([neighbours[first], neighbours[second]]) for first, second in EDGES]
    with torch.no_grad():
        expected = [model.lcenet.connectivity(faces[None])[0] for faces in neighbours]
        expected_edges = [model.pcenet(faces[None]).softmax(-1)[0, 1] for faces in ends]
    connectivity, probability = scorer.connectivity(), scorer.edge_probability(EDGES)
    assert (connectivity.dtype, probability.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(connectivity, torch.stack(expected), atol=1e-5)
    np.testing.assert_allclose(scorer.connectivity(9), connectivity[9:], atol=1e-5)
    np.testing.assert_allclose(probability, torch.stack(expected_edges), atol=1e-5)
    assert probability.std() > 1e-3


@pytest.mark.parametrize("tokens", [1, 5 * K, 10_000])
def test_scores_do_not_depend_on_batch_size(scorer, monkeypatch, tokens):
    connectivity, probability = scorer.connectivity(), scorer.edge_probability(EDGES)
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", tokens)
    np.testing.assert_allclose(scorer.connectivity(), connectivity, atol=1e-5)
    np.testing.assert_allclose(scorer.edge_probability(EDGES), probability, atol=1e-5)


def test_scores_do_not_depend_on_threads(scorer):
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append((scorer.connectivity(), scorer.edge_probability(EDGES)))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        np.testing.assert_allclose(one, three, atol=1e-6)


def test_scores_do_not_depend_on_chunks(scorer, monkeypatch):
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", 2 * K)
    connectivity, probability = scorer.connectivity(), scorer.edge_probability(EDGES)
    monkeypatch.setattr(scoring, "BATCHES_PER_CHUNK", 1)
    assert np.array_equal(scorer.connectivity(), connectivity)
    assert np.array_equal(scorer.edge_probability(EDGES), probability)


@pytest.mark.slow
def test_scores_in_bfloat16_keep_their_order(trained, tiny_data):
    model = load_checkpoint(trained[0] / "checkpoints" / "best.ckpt").model.eval()
    gallery = build(compose_config("eval", tiny_data).dataset).load(train=False).evaluation[0]
    faces, columns = np.random.default_rng(0).integers((len(gallery), gallery.graph.k), size=(500, 2)).T
    edges = np.stack([faces, gallery.graph.indices[faces, columns]], axis=1)
    scorers = [GraphScorer(model.networks(t), gallery, torch.device("cpu"), t) for t in (torch.float32, torch.bfloat16)]
    for score in (lambda scorer: scorer.connectivity()[faces, columns], lambda scorer: scorer.edge_probability(edges)):
        exact, lower = map(score, scorers)
        apart = exact[:, None] - exact > 0.005
        assert apart.mean() > 0.1
        assert (lower[:, None] - lower)[apart].min() > 0
        assert spearmanr(exact, lower).statistic > 0.99


def test_a_bar_shows_progress_and_the_time_left(model, gallery, monkeypatch, capsys):
    monkeypatch.setattr(rich, "_console", None)  # that of an earlier test was made for a log file
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):  # with which rich takes any output for a terminal
        monkeypatch.setenv(name, "1")
    for shown in (True, False):
        model.bind(gallery, "float32", shown, None).connectivity()
        output = capsys.readouterr().out
        assert [part in output for part in ("connectivity", "0%", ":--")] == 3 * [shown], output


def test_no_edges_have_no_probabilities(scorer):
    probability = scorer.edge_probability(np.empty((0, 2), dtype=np.int64))
    assert (probability.shape, probability.dtype) == ((0,), np.float32)


def test_scoring_switches_dropout_off(model, gallery):
    scorer = model.train().bind(gallery, "float32", False, None)
    assert np.array_equal(scorer.connectivity(), scorer.connectivity())
    assert np.array_equal(scorer.edge_probability(EDGES), scorer.edge_probability(EDGES))


def test_no_output_outlives_its_batch(gallery, monkeypatch):
    """Small arrays kept between the large ones of each batch made memory grow by gigabytes with every 10,000 faces."""
    outputs = []

    def connectivity(neighbours):
        assert all(output.expired() for output in outputs)
        scores = torch.ones(neighbours.shape[:2])
        outputs.append(StorageWeakRef(scores.untyped_storage()))
        return scores

    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", 5 * K)
    scorer = GraphScorer(PairNetworks(connectivity), gallery, torch.device("cpu"))
    assert scorer.connectivity().all()
    assert len(outputs) == 3


def test_networks_may_read_the_whole_graph(gallery):
    def in_graph(graph, faces):
        of_neighbours = graph.features_of(graph.indices[graph.indices[faces].long()])  # (B, K, K, D)
        return of_neighbours.mean(dim=(2, 3))

    scorer = GraphScorer(PairNetworks(connectivity_in_graph=in_graph), gallery, torch.device("cpu"))
    indices = gallery.graph.indices
    assert scorer.connectivity() == pytest.approx(gallery.features[indices[indices]].mean(axis=(2, 3)), abs=1e-6)


@pytest.fixture
def small_memory(scorer):
    """`scorer` on a device that has memory for the neighbourhoods of three faces; the sizes of all batches."""
    sizes, networks = [], scorer.networks

    def within(compute):
        def limited(neighbours, *others):
            sizes.append(neighbours.shape[0] * neighbours.shape[1] // K)
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return compute(neighbours, *others)

        return limited

    scorer.networks = PairNetworks(within(networks.connectivity), within(networks.edge_probability))
    return sizes


def test_batches_that_exceed_the_memory_are_halved(model, gallery, scorer, small_memory):
    whole = model.bind(gallery, "float32", False, None)
    with pytest.warns(UserWarning, match="memory of cpu does not suffice for a batch of 12 .* halved") as warned:
        connectivity = scorer.connectivity()
    assert small_memory == [12, 6, 3, 3, 3, 3]
    np.testing.assert_allclose(connectivity, whole.connectivity(), atol=1e-6)
    np.testing.assert_allclose(scorer.edge_probability(EDGES), whole.edge_probability(EDGES), atol=1e-6)
    assert small_memory[6:] == [4, 2, 2, 2, 2, 2]
    assert len(warned) == 1


def test_pieces_of_batches_give_the_same_bits_where_items_do_not_depend_on_their_batch(scorer):
    scorer.networks = PairNetworks(lambda faces: faces.sum(dim=2), lambda faces, _: faces.sum(dim=(1, 2)))
    expected = scorer.connectivity(), scorer.edge_probability(EDGES)
    scorer.pieces = 4
    assert all(map(np.array_equal, (scorer.connectivity(), scorer.edge_probability(EDGES)), expected))


def test_values_of_faces_are_computed_in_pieces_too(gallery):
    def embed(faces):
        if len(faces) > 5:
            raise torch.OutOfMemoryError
        return faces.mean(dim=1)

    with pytest.warns(UserWarning, match="halved"):
        scorer = GraphScorer(PairNetworks(embedding=embed), gallery, torch.device("cpu"))
    expected = gallery.features[gallery.graph.indices].mean(axis=1)
    np.testing.assert_allclose(scorer.embedding(), expected, atol=1e-6)


def test_a_single_item_that_exceeds_the_memory_ends_the_run(gallery):
    def connectivity(faces):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    scorer = GraphScorer(PairNetworks(connectivity), gallery, torch.device("cpu"))
    with pytest.warns(UserWarning, match="halved"), pytest.raises(torch.OutOfMemoryError):
        scorer.connectivity()


def test_networks_may_embed_the_whole_graph(gallery):
    def in_graph(graph):
        return graph.features_of(graph.indices).mean(dim=1)

    scorer = GraphScorer(PairNetworks(embedding_in_graph=in_graph), gallery, torch.device("cpu"))
    assert scorer.embedding() == pytest.approx(gallery.features[gallery.graph.indices].mean(axis=1), abs=1e-6)


def score_on(rank, gallery, folder):
    torch.set_num_threads(1)
    scoring.TOKENS_PER_BATCH["cpu"], scoring.BATCHES_PER_CHUNK = 2 * K, 2
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    scorer = make_model().bind(gallery, "float32", False, folder / "scores")
    if rank:
        scorer.serve()
    else:
        np.savez(folder / "scores.npz", scorer.connectivity(), scorer.edge_probability(EDGES))
        scorer.dismiss()
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one_does(processes, gallery, tmp_path, monkeypatch):
    started = [processes.Process(target=score_on, args=(rank, gallery, tmp_path)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", 2 * K)
    one, two = make_model().bind(gallery, "float32", False, None), np.load(tmp_path / "scores.npz")
    np.testing.assert_allclose(two["arr_0"], one.connectivity(), atol=1e-6)
    np.testing.assert_allclose(two["arr_1"], one.edge_probability(EDGES), atol=1e-6)
