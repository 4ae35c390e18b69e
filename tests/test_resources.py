"""Threads and memory by the limits of containers, jobs and users."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

import lcde.resources
from lcde.data.datasets import MS1M, Custom
from lcde.errors import InputError
from lcde.estimator import LCDE
from lcde.resources import available_memory, cpu_quota, limit_threads, require_memory, usable_cores

ROOT = Path(__file__).parents[1]


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine that the files given describe, below /proc and /sys/fs/cgroup."""

    def make(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(lcde.resources, "PROC", tmp_path / "proc")
    monkeypatch.setattr(lcde.resources, "CGROUPS", tmp_path / "cgroup")
    return lambda files: make(**{name.replace("/", "__"): text for name, text in files.items()})


WATCH = """
import os, runpy, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
runpy.run_path(sys.argv[1], run_name="script")
"""


@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [
        *((script, {}, "10000") for script in ("train.py", "eval.py", "compare.py")),
        ("train.py", {"OMP_WAIT_POLICY": "active"}, "None"),
        ("train.py", {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_that_wait_sleep_soon(script, given, expected):
    """Torch's runtime reads the variable when it is loaded."""
    environment = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    command = [sys.executable, "-c", WATCH, str(ROOT / script)]
    found = subprocess.run(command, env={**environment, **given}, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == expected


V1 = "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n"
QUOTAS = {
    "none": ({}, None),
    "v2, in a container": ({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": "150000 100000\n"}, 1.5),
    "v2, none": ({"proc/self/cgroup": "0::/job\n", "cgroup/job/cpu.max": "max 100000\n"}, None),
    "v2, of a group above": (
        {"proc/self/cgroup": "0::/a/b\n", "cgroup/a/cpu.max": "200000 100000", "cgroup/a/b/cpu.max": "800000 100000"},
        2,
    ),
    "v1, path not mounted": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
            "cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
    "v1, one controller a folder": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu/docker/a/cpu.cfs_quota_us": "50000",
            "cgroup/cpu/docker/a/cpu.cfs_period_us": "100000",
        },
        0.5,
    ),
    "v1, none": (
        {
            "proc/self/cgroup": V1,
            "cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_quota_of_a_container(name, system):
    files, expected = QUOTAS[name]
    system(files)
    assert cpu_quota() == expected


@pytest.fixture
def restored(monkeypatch):
    """Threads and the environment as they were before the test, of a machine of 64 cores without OMP_NUM_THREADS."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(lcde.resources, "THREADS_GIVEN", False)
    monkeypatch.setattr(lcde.resources, "usable_cores", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "unchanged")
    with threadpool_limits(None):
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("quota", "processes", "expected"), [(3, 1, 3), (2.5, 1, 3), (4, 2, 2), (2, 8, 1)])
def test_threads_share_the_quota(quota, processes, expected, monkeypatch, restored):
    monkeypatch.setattr(lcde.resources, "cpu_quota", lambda: quota)
    limit_threads(processes)
    assert torch.get_num_threads() == expected
    assert os.environ["OMP_NUM_THREADS"] == str(expected)
    assert {library["num_threads"] for library in threadpool_info() if library["user_api"] == "openmp"} == {expected}


@pytest.mark.parametrize(("quota", "given"), [(None, False), (64, False), (2, True)])
def test_threads_stay_without_a_quota_or_by_the_users_choice(quota, given, monkeypatch, restored):
    monkeypatch.setattr(lcde.resources, "cpu_quota", lambda: quota)
    monkeypatch.setattr(lcde.resources, "THREADS_GIVEN", given)
    before = torch.get_num_threads()
    limit_threads()
    assert torch.get_num_threads() == before
    assert os.environ["OMP_NUM_THREADS"] == "unchanged"


@pytest.mark.slow
def test_every_library_follows_the_quota(tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    code = f"""
from pathlib import Path
import lcde.resources
lcde.resources.PROC = lcde.resources.CGROUPS = Path({str(tmp_path)!r})
lcde.resources.usable_cores = lambda: 64
lcde.resources.limit_threads()
import faiss, networkit, torch
print(faiss.omp_get_max_threads(), networkit.getMaxNumberOfThreads(), torch.get_num_threads())
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["3", "3", "3"], done.stderr


MEMORY = {
    "of the machine": ({"proc/meminfo": "MemTotal: 99 kB\nMemAvailable:   2000 kB\n"}, 2_048_000),
    "v2": (
        {
            "proc/meminfo": "MemAvailable: 2000 kB\n",
            "proc/self/cgroup": "0::/job\n",
            "cgroup/job/memory.max": "1000000\n",
            "cgroup/job/memory.current": "600000\n",
            "cgroup/job/memory.stat": "anon 500000\nfile 100000\n",
            "cgroup/memory.max": "max\n",
        },
        500_000,
    ),
    "v1": (
        {
            "proc/meminfo": "MemAvailable: 2000 kB\n",
            "proc/self/cgroup": V1,
            "cgroup/memory/memory.limit_in_bytes": "700000\n",
            "cgroup/memory/memory.usage_in_bytes": "600000\n",
        },
        100_000,
    ),
    "unknown": ({}, None),
}


@pytest.mark.parametrize("name", MEMORY)
def test_available_memory(name, system):
    files, expected = MEMORY[name]
    system(files)
    assert available_memory() == expected


def test_memory_and_cores_of_this_machine():
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    if sys.platform == "linux":
        assert 2**20 < available_memory() < 2**50


def test_too_little_memory_is_an_error_and_little_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(lcde.resources, "available_memory", lambda: 4 * 10**9)
    require_memory("part1_test", (584_013, 256), 80)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"part3_test, 1,740,301 .* may need up to 7\.24 GB .* may take 4 GB\."):
        require_memory("part3_test", (1_740_301, 256), 80)
    message = r"^part9_test, 5,206,761 faces of D=256 with K=80, needs 8\.66 GB for features .* 4 GB; .*dataset\.k\.$"
    with pytest.raises(InputError, match=message):
        require_memory("part9_test", (5_206_761, 256), 80)
    with pytest.warns(UserWarning, match=r"part9_test, 5,206,761 .* may need up to 16\.3 GB .* may take 4 GB\."):
        require_memory("part9_test", (5_206_761, 256), 80, mapped=True)
    monkeypatch.setattr(lcde.resources, "available_memory", lambda: 3 * 10**9)
    with pytest.raises(InputError, match=r"needs 3\.33 GB for its kNN graph alone, .* 3 GB;"):
        require_memory("part9_test", (5_206_761, 256), 80, mapped=True)
    monkeypatch.setattr(lcde.resources, "available_memory", lambda: None)
    require_memory("part9_test", (5_206_761, 256), 80)


def test_what_does_not_fit_is_refused_before_it_is_read(make_gallery, tmp_path, monkeypatch):
    gallery = make_gallery(0)
    for kind in ("features", "labels"):
        (tmp_path / kind).mkdir()
    gallery.features.tofile(tmp_path / "features" / "part1_test.bin")
    np.savetxt(tmp_path / "labels" / "part1_test.meta", gallery.labels_true, fmt="%d")
    np.save(tmp_path / "faces.npy", gallery.features)
    monkeypatch.setattr(lcde.resources, "available_memory", lambda: 1_900)
    monkeypatch.setattr("lcde.data.datasets.read_matrix", lambda *_: pytest.fail("read"))
    with pytest.raises(InputError, match="part1_test, 40 faces of D=8 with K=6"):
        MS1M(str(tmp_path), 6, 8, None, [1]).load(train=False)
    with pytest.raises(InputError, match=r"faces\.npy, 40 faces of D=8 with K=6"):
        Custom(6, features=str(tmp_path / "faces.npy")).load(train=False)
    with pytest.raises(InputError, match="X, 40 faces of D=8 with K=6"):
        LCDE(k=6).fit(gallery.features)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell how much memory a process takes")
def test_a_command_keeps_to_the_limit_of_its_address_space(tmp_path):
    features = np.lib.format.open_memmap(tmp_path / "faces.npy", "w+", np.float32, (1_000_000, 256))  # a sparse file
    del features
    code = f"""
import resource, sys
from lcde.__main__ import main
import lcde.estimator
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 1_300_000_000,) * 2)
sys.argv = ["lcde", "eval", "dataset=custom", "dataset.features={tmp_path}/faces.npy", "hydra.run.dir={tmp_path}/run"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}/faces.npy, 1,000,000 faces of D=256 with K=80, needs 1.66 GB")
