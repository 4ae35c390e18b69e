"""Ranks wait for what rank 0 alone does."""

import time
from datetime import timedelta

import pytest
from torch import distributed

from lcde.distributed import broadcast, gather


def take_part(number, folder):
    """Be rank ``number`` of two jobs in turn, whose own group waits for a second, while rank 0 works for three."""
    for job in ("first", "second"):  # of a sweep
        store = f"file://{folder / job}"
        distributed.init_process_group("gloo", store, rank=number, world_size=2, timeout=timedelta(seconds=1))
        if number == 0:
            time.sleep(3)
        told = broadcast(f"by {number}")
        gathered = gather(number)
        (folder / f"{job}-{number}").write_text(f"{told}, {gathered}")
        distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_wait_for_rank_0_longer_than_their_group_does(processes, tmp_path):
    ranks = [processes.Process(target=take_part, args=(number, tmp_path)) for number in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    for job in ("first", "second"):
        assert (tmp_path / f"{job}-0").read_text() == "by 0, [0, 1]"
        assert (tmp_path / f"{job}-1").read_text() == "by 0, []"
