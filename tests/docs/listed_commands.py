"""Commands of README and docs that no test runs, or that are run in another way, each with the reason."""

from __future__ import annotations

# Commands that no test here runs, by how they begin, and why.
NOT_RUN = {
    "scripts/ui": "a server that runs until it is stopped; tests/tracking has its parts",
    "vllm serve": "a server on a GPU; tests/engines/test_server.py has one on a CPU",
    "pip install": "changes the environment and needs a network",
    "pip uninstall": "changes the environment",
    "crontab": "replaces the user's crontab; tests/schedules/test_cron.py has it",
    "scrontab": "needs Slurm",
    "mkdir -p": "a step before the next command",
    "cp scripts/schedule/systemd/*": "changes the user's systemd units; tests/schedules/test_systemd.py has it",
    "systemctl": "changes the user's systemd units; tests/schedules/test_systemd.py has it",
    "loginctl": "changes the user's systemd units",
    "kubectl": "needs a Kubernetes cluster; tests/schedules/test_kubernetes.py checks the manifests",
    "scripts/schedule/kubernetes/shards/run": "needs a Kubernetes cluster; tests/schedules/test_kubernetes.py has it",
    ".venv/bin/python scripts/bench/": "takes minutes to hours, some of it on a GPU",
    "echo $?": "a step after a sweep",
    "grep -rn": "a search in the repository",
}
# Commands that this process answers before Hydra does, or that need no sweep.
ANSWERS = ("--help", "--version")
# Sweeps that cannot be made of the command line in this process, and why. They are run as processes, if slow tests are.
FRESH = {"hydra/launcher=serial": "Hydra looks for plugins when a process starts"}
# Sweeps that are not run for real, and why; their dry runs are.
DRY_ONLY = {
    "hydra/launcher=slurm": "needs a cluster; tests/launch/test_slurm.py has one",
    "hydra/launcher=ray": "needs a cluster; tests/launch/test_ray.py has one",
    "hydra.launcher.workers=8": "starts eight engines; tests/launch/test_shards.py has workers",
    "engine=server": "needs a server; tests/engines/test_server.py has one",
    "tracking.uri=http": "needs a server; tests/tracking/test_tracking_server.py has one",
    "experiment=scale_demo": "takes a minute",
    "experiment=noise_seeds": "takes minutes, and a package of 93 MB",
    "experiment=equivalence": "takes minutes with the model that it is about",
    "experiment=likelihoods": "takes minutes, and a package of 93 MB",
    "experiment=recovery": "takes minutes, and a package of 93 MB",
    "scoring.recovery=[nearest,rotation,linear]": "takes minutes; tests/report/test_recovery_report.py has a small one",
    "divergence/sentence_similarity": "downloads an encoder; tests/scoring/test_similarity.py has one",
    "scoring.judge.url=": "needs a judge; tests/scoring/test_judge.py has one",
    "experiment=contrast": "downloads a model and takes minutes",
    "experiment=turning": "downloads a model and takes minutes",
    "engine.args.": "arguments of vLLM; tests/engines/test_engine_args.py has them",
    "sampling.args.": "parameters that the scripted engine lacks; tests/engines/test_sampling_args.py has them",
    "model.lora=": "the scripted engine has no adapters; tests/engines/test_lora_answers.py has them",
    "engine=constant": "the example engine gives token ids that mean nothing",
}
