"""Train and score many methods on one data set: ``python compare.py [key=value …]``, the same as ``lcde compare``."""

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lcde.commands.compare import jobs_of, run_jobs
from lcde.commands.entry import exit_on_input_error
from lcde.configuration import CONF
from lcde.report.leaderboard import write_leaderboard


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="compare")
@exit_on_input_error
def main(config: DictConfig) -> None:
    """Run every method with every seed, each in a process of its own, and write the tables after each."""
    folder = Path(config.run_dir)
    jobs = jobs_of(config, HydraConfig.get(), folder)
    failed = 0
    for ended in run_jobs(jobs):
        failed += not ended.results.is_file()
        write_leaderboard([row for job in jobs for row in job.rows()], folder)
    write_leaderboard([row for job in jobs for row in job.rows()], folder, shown=True)
    print(f"leaderboard.csv, leaderboard.html and a folder for each method and seed: {folder}")
    if failed:
        sys.exit(
            f"error: {failed} of {len(jobs)} jobs failed; the same command with hydra.run.dir={folder} repeats them."
        )


if __name__ == "__main__":
    main()
