"""Scores kept by content: computed once, right after changes, kills and among several jobs."""

import os
import signal
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from lcde.models import scoring
from lcde.models.base import PairModel, PairNetworks
from lcde.models.score_cache import CachedScores, fingerprint, keep_within
from lcde.models.scoring import GraphScorer

EDGES = np.array([[0, 3], [5, 1], [2, 7], [39, 8]])


class Toy(PairModel):
    """Scores from one linear layer of random weights."""

    def __init__(self, feature_dim=8, k=6, power=1, seed=0):
        super().__init__(feature_dim, k)
        torch.manual_seed(seed)
        self.layer, self.power = nn.Linear(feature_dim, 1), power

    def losses(self, batch, training):
        return {}

    def networks(self, dtype):
        return PairNetworks(
            lambda features: self.layer(features)[..., 0].sigmoid() ** self.power,
            lambda features, _: self.layer(features).mean(1)[:, 0].sigmoid() ** self.power,
        )


class OtherToy(Toy):
    pass


class Counting(GraphScorer):
    """Counts what is asked of the networks, and is killed in the chunk after ``most`` of it."""

    asked, most = 0, np.inf

    def _score_share(self, items, advance):
        if self.asked + len(items) > self.most:
            raise KeyboardInterrupt
        self.asked += len(items)
        return super()._score_share(items, advance)


def counting(gallery):
    return Counting(Toy().networks(torch.float32), gallery, torch.device("cpu"))


def small_chunks(batches=2):
    """Batches of 5 faces or of 2 edges, in chunks of ``batches``."""
    scoring.TOKENS_PER_BATCH["cpu"], scoring.BATCHES_PER_CHUNK = 30, batches


@pytest.fixture
def scorer(make_gallery):
    return counting(make_gallery(0))


def test_scores_are_those_of_the_networks_and_computed_once(scorer, tmp_path):
    expected = scorer.connectivity(), scorer.edge_probability(EDGES)
    for asked in (40 + len(EDGES), 0):
        scorer.asked = 0
        cached = CachedScores(lambda: scorer, tmp_path, "key")
        np.testing.assert_array_equal(cached.connectivity(), expected[0])
        np.testing.assert_allclose(cached.edge_probability(EDGES[:2]), expected[1][:2], atol=1e-6)
        np.testing.assert_allclose(cached.edge_probability(EDGES[::-1]), expected[1][::-1], atol=1e-6)
        assert scorer.asked == asked
    assert len(cached.edge_probability(EDGES[:0])) == 0


def test_everything_that_changes_a_score_changes_the_key(make_gallery, monkeypatch):
    gallery, other = make_gallery(0), make_gallery(1)
    variants = [
        (Toy(), gallery, torch.float32),
        (Toy(), gallery, torch.bfloat16),
        (OtherToy(), gallery, torch.float32),
        (Toy(seed=1), gallery, torch.float32),
        (Toy(power=2), gallery, torch.float32),
        (Toy(), type(gallery)("test", other.features, gallery.graph), torch.float32),
        (Toy(), type(gallery)("test", gallery.features, other.graph), torch.float32),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
    same = type(gallery)("another name", gallery.features.copy(), gallery.graph)
    assert fingerprint(Toy(), same, torch.float32) == fingerprint(*variants[0])
    retrained = Toy()
    nn.init.zeros_(retrained.layer.bias)
    on_cpu = fingerprint(*variants[0])
    assert fingerprint(retrained, gallery, torch.float32) != on_cpu
    monkeypatch.setattr(Toy, "device", torch.device("cuda"))
    assert fingerprint(*variants[0]) != on_cpu


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:50],
        lambda content: b"",
        lambda content: content[:400] + bytes([content[400] ^ 1]) + content[401:],
        lambda content: content.replace(b"(40, 6)", b"(20, 6)").replace(b"(4,)", b"(2,)"),
    ],
    ids=["cut", "empty", "one bit changed", "fewer rows"],
)
def test_damaged_files_are_made_anew(damage, scorer, tmp_path):
    cached = CachedScores(lambda: scorer, tmp_path, "key")
    expected = cached.connectivity().copy(), cached.edge_probability(EDGES)  # not mapped, as its file is overwritten
    for file in (cached.connectivity_file, cached.edges_file):
        content = file.read_bytes()
        file.write_bytes(damage(content))
        assert file.read_bytes() != content
    again = CachedScores(lambda: scorer, tmp_path, "key")
    np.testing.assert_array_equal(again.connectivity(), expected[0])
    np.testing.assert_array_equal(again.edge_probability(EDGES), expected[1])


@pytest.fixture
def chunked(monkeypatch):
    monkeypatch.setitem(scoring.TOKENS_PER_BATCH, "cpu", None)  # both are restored after the test
    monkeypatch.setattr(scoring, "BATCHES_PER_CHUNK", None)
    small_chunks()


@pytest.fixture
def jobs(chunked, make_gallery, tmp_path):
    """Make the `Counting` scorer of one job and its `CachedScores`; scores depend on what else is in the batch."""

    def batch_mean(features, *_):
        return features.mean(dim=(1, 2) if features.shape[1] == 12 else 2) + features.mean()

    def job(most=np.inf, folder="killed"):
        scorer = Counting(PairNetworks(batch_mean, batch_mean), make_gallery(0, 43), torch.device("cpu"))
        scorer.most = most
        return scorer, CachedScores(lambda: scorer, tmp_path / folder, "key")

    return job


def test_killed_jobs_lose_one_chunk_and_no_bit(jobs, tmp_path):
    edges = np.random.default_rng(0).integers(43, size=(23, 2))
    edges = np.concatenate([edges, edges[::5]])  # some are asked about twice
    _, whole = jobs(folder="whole")
    expected = whole.connectivity(), whole.edge_probability(edges)
    np.testing.assert_array_equal(expected[0], jobs()[0].connectivity())

    killed, cached = jobs(most=35)
    with pytest.raises(KeyboardInterrupt):
        cached.connectivity()
    assert killed.asked == 30
    chunk = tmp_path / "killed" / "key.rows-10.npz"
    chunk.write_bytes(chunk.read_bytes()[:-20])  # truncated
    chunk = tmp_path / "killed" / "key.rows-20.npz"
    content = bytearray(chunk.read_bytes())
    content[-300] ^= 1  # damaged
    chunk.write_bytes(content)
    (tmp_path / "killed" / ".key.rows-30.npz.abc").touch()  # written when the job was killed
    small_chunks(batches=3)  # as a job of other processes would have
    killed, cached = jobs(most=20)
    with pytest.raises(KeyboardInterrupt):
        cached.connectivity()
    assert killed.asked == 15
    last, cached = jobs()
    np.testing.assert_array_equal(cached.connectivity(), expected[0])
    assert last.asked == 43 - 10 - 15

    small_chunks()
    killed, cached = jobs(most=10)
    with pytest.raises(KeyboardInterrupt):
        cached.edge_probability(edges)
    assert killed.asked == 8
    last, cached = jobs()
    np.testing.assert_array_equal(cached.edge_probability(edges), expected[1])
    assert last.asked == 23 - 8
    files = {file.name for file in (tmp_path / "killed").iterdir()}
    assert files == {"key.connectivity.npz", "key.edges.npz", "key.lock"}


def test_chunks_left_by_a_job_killed_after_the_last_one_are_removed(jobs, tmp_path):
    _, cached = jobs()
    expected = cached.connectivity()
    left = tmp_path / "killed" / "key.rows-0.npz"
    left.touch()
    np.testing.assert_array_equal(jobs()[1].connectivity(), expected)
    assert not left.exists()


def test_the_progress_bar_begins_with_what_was_there(jobs, monkeypatch):
    bars = []

    @contextmanager
    def counter(what, total, done, shown):
        advanced = []
        yield advanced.append
        bars.append((what, total, done, sum(advanced)))

    monkeypatch.setattr(scoring, "counter", counter)
    with pytest.raises(KeyboardInterrupt):
        jobs(most=20)[1].connectivity()
    _, cached = jobs()
    cached.connectivity()
    cached.edge_probability(EDGES[:3])
    cached.edge_probability(EDGES)
    probabilities = "edge probabilities"
    assert bars == [("connectivity", 43, 20, 23), (probabilities, 3, 0, 3), (probabilities, 4, 3, 1)]


def score(gallery, folder, edges):
    torch.set_num_threads(1)
    small_chunks()
    scorer = counting(gallery)
    cached = CachedScores(lambda: scorer, folder, "key")
    return cached.connectivity().sum(), cached.edge_probability(edges), scorer.asked


@pytest.mark.slow
def test_concurrent_jobs_compute_once_and_lose_nothing(processes, scorer, make_gallery, tmp_path):
    gallery = make_gallery(0)
    with processes.Pool(2) as pool:
        done = pool.starmap(score, [(gallery, tmp_path, EDGES[:3]), (gallery, tmp_path, EDGES[1:])])
    assert sum(asked for *_, asked in done) == 40 + len(EDGES)
    assert len({total for total, *_ in done}) == 1
    CachedScores(lambda: scorer, tmp_path, "key").edge_probability(EDGES)
    assert scorer.asked == 0


def score_slowly(gallery, folder):
    """Leave time for a kill between the chunks."""
    score_share = Counting._score_share

    def slow(self, items, advance):
        time.sleep(0.2)
        return score_share(self, items, advance)

    Counting._score_share = slow
    score(gallery, folder, EDGES)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_job_goes_on_when_the_one_that_it_waits_for_is_killed(processes, scorer, make_gallery, tmp_path):
    gallery = make_gallery(0)
    killed = processes.Process(target=score_slowly, args=(gallery, tmp_path))
    killed.start()
    while not (kept := list(tmp_path.glob("key.rows-*.npz"))):
        assert killed.is_alive()
        time.sleep(0.01)
    with processes.Pool(1) as pool:
        waiting = pool.apply_async(score, (gallery, tmp_path, EDGES))
        waiting.wait(0.3)
        assert not waiting.ready()  # the other has the lock
        killed.kill()
        killed.join()
        _, probability, asked = waiting.get(60)
    assert killed.exitcode == -signal.SIGKILL
    assert asked <= 40 + len(EDGES) - 10 * len(kept)  # chunks of 10 faces
    np.testing.assert_allclose(probability, scorer.edge_probability(EDGES), atol=1e-6)
    expected, scorer.asked = scorer.connectivity(), 0
    found = CachedScores(lambda: scorer, tmp_path, "key").connectivity()
    np.testing.assert_allclose(found, expected, atol=1e-6)  # of other batches
    assert scorer.asked == 0
    assert {file.name for file in tmp_path.iterdir()} == {"key.connectivity.npz", "key.edges.npz", "key.lock"}


def test_what_was_used_longest_ago_is_deleted(tmp_path):
    for age, name in enumerate(("d", "c", "b", "a")):
        for kind in ("connectivity", "edges"):
            file = tmp_path / f"{64 * name}.{kind}.npz"
            file.write_bytes(bytes(1_000))
            os.utime(file, (1e9 - age, 1e9 - age))
    others = [tmp_path / name for name in ("faces.npy", "faces.edges.npz")]
    for file in others:
        file.write_bytes(bytes(9_000))
        os.utime(file, (1, 1))
    (tmp_path / f"{64 * 'e'}.edges.npz").symlink_to(tmp_path / "deleted")  # listed, then deleted by another job

    def kept():
        return {file.name[0] for file in set(tmp_path.glob("*.np[yz]")) - set(others) if file.exists()}

    with FileLock(tmp_path / f"{64 * 'a'}.lock"):
        keep_within(tmp_path, 5e-6)
    assert kept() == {"a", "d"}
    keep_within(tmp_path, 0)
    assert kept() == {"d"}
    assert all(file.exists() for file in others)


def test_reading_scores_counts_as_use(make_gallery, tmp_path):
    gallery, first, second = make_gallery(0), 64 * "a", 64 * "b"
    for name in (first, second):
        CachedScores(lambda: counting(gallery), tmp_path, name).connectivity()
    os.utime(tmp_path / f"{first}.connectivity.npz", (1e9, 1e9))
    CachedScores(lambda: counting(gallery), tmp_path, first).connectivity()
    os.utime(tmp_path / f"{second}.connectivity.npz", (1.5e9, 1.5e9))
    keep_within(tmp_path, 0)
    assert [file.name for file in tmp_path.glob("*.npz")] == [f"{first}.connectivity.npz"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_other_users_may_take_a_lock(scorer, tmp_path):
    CachedScores(lambda: scorer, tmp_path, "key").connectivity()
    assert (tmp_path / "key.lock").stat().st_mode & 0o777 == 0o666
