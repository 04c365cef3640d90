"""A sweep on Slurm in shards, compared with one job for each point by hydra-submitit-launcher on the same cluster.

    .venv/bin/python scripts/bench/bench_slurm.py --plugin FOLDER [--points 24] [--shards 4] [--repeats 1]

Install the plugin with `pip install --no-deps --target FOLDER hydra-submitit-launcher==1.2.0`; it is not part of this
project. The script needs a cluster that `sbatch` finds.

Both methods generate, score and publish the same points of the demo model. A job for one point also runs its control,
once, which is quick compared with the engine's start. It has an MLflow store of its own, because many processes would
block each other. The script prints wall seconds of the whole command and the number of engine starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sweep.util.paths import conf_dir

OVERRIDES = ("transform=scale", "prompts.limit=32", "sampling.max_tokens=32")


def main() -> None:
    """Run both methods in turn, and print their times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plugin", type=Path, required=True)
    parser.add_argument("--points", type=int, default=24)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    factors = ",".join(f"{1 + i / options.points:.4f}" for i in range(1, options.points + 1))
    sharded, per_point = [], []
    for _ in range(options.repeats):
        overrides = (*OVERRIDES, f"transform.factor={factors}")
        on_slurm = ("hydra/launcher=slurm", f"hydra.launcher.shards={options.shards}")
        sharded.append(_seconds([sys.executable, "-m", "sweep", *overrides, *on_slurm], os.environ))
        paths = [str(options.plugin.resolve()), str(Path(__file__).resolve().parent)]
        path = os.pathsep.join([*paths, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, __file__, "--multirun", *overrides, "hydra/launcher=submitit_slurm"]
        command += ["hydra.sweep.dir=bench", "hydra.run.dir=bench"]
        command.append(f"hydra.launcher.array_parallelism={options.shards}")
        per_point.append(_seconds(command, os.environ | {"PYTHONPATH": path, "SWEEP_BENCH_JOB": "1"}))
    print(f"{options.shards} shards, {options.shards} engine starts: {_show(sharded)}")
    print(f"one job for each of {options.points} points, {options.points} engine starts: {_show(per_point)}")
    print(f"ratio {statistics.median(per_point) / statistics.median(sharded):.1f}")


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def one_point(composed: DictConfig) -> None:
    """Generate, score and publish one point, in a separate store."""
    from sweep.app.sweep_runner import SweepRunner
    from sweep.config.loader import parse
    from sweep.console.terminal import Terminal
    from sweep.points.point import Point

    number = HydraConfig.get().job.num
    OmegaConf.update(composed, "sweep.dir", str(Path(HydraConfig.get().sweep.dir).resolve() / f"point-{number}"))
    OmegaConf.update(composed, "scoring.noise_floor", False)
    config = parse(composed)
    with SweepRunner(config, f"point-{number}", "bench", Terminal()) as runner:
        runner.run([Point(config)])
    if len(runner.results) != 2 or runner.problems or any(result.error for result in runner.results.values()):
        raise RuntimeError(f"{runner.results} {runner.problems}")


def _seconds(command: list[str], environment: Mapping[str, str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=dict(environment), capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return time.monotonic() - began


def _show(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.0f} s [{min(seconds):.0f}, {max(seconds):.0f}]"


if __name__ == "__main__":
    if os.environ.get("SWEEP_BENCH_JOB"):
        import bench_slurm  # the jobs import the task by this name

        from sweep.config import hydra_patches, loader

        loader.register()
        # The configuration overrides its result, but needs the resolver; SweepApp's resolver cannot be pickled.
        OmegaConf.register_new_resolver("sweep_folder", str)
        hydra_patches.skip_mode_lookup()
        bench_slurm.one_point()
    else:
        main()
