"""Schedules for Kubernetes: manifests that its API accepts, and jobs that follow each other."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from schedule_files import ROOT, SCHEDULE, container, job, manifests, named, pod, run

from sweep.console.signals import CODES
from sweep.errors import ConfigError, SweepError, SweepHeld


def jobs() -> dict[str, dict[str, Any]]:
    found = [(path, d) for path, d in manifests() if d["kind"] in ("Job", "CronJob")]
    return {str(path.relative_to(SCHEDULE / "kubernetes")): document for path, document in found}


def test_the_api_accepts_the_manifests() -> None:
    """Kubernetes' own schema, with nothing in it that it does not know; the oldest version is that of podFailurePolicy."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    documents = list(manifests())
    assert len(documents) == 10
    for version in ("1.31", kubernetes_validate.latest_version()):
        for path, document in documents:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{path}: {error}")
    broken = named("Job", "shards/work.yaml") | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_every_job_has_bounds_and_none_overlaps() -> None:
    for file, document in jobs().items():
        assert 3600 <= job(document)["activeDeadlineSeconds"] < 24 * 3600, file
        assert ("backoffLimit" in job(document)) != ("backoffLimitPerIndex" in job(document)), file
        assert pod(document)["restartPolicy"] == "Never", file
        if document["kind"] == "CronJob":
            spec = document["spec"]
            assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Europe/Berlin"
            assert spec["schedule"] == "30 3 * * *" and spec["startingDeadlineSeconds"] == 7200
    three = sum(job(jobs()[f"shards/{name}.yaml"])["activeDeadlineSeconds"] for name in ("plan", "work", "finish"))
    assert three < job(jobs()["shards/cronjob.yaml"])["activeDeadlineSeconds"]


def test_pod_failure_policy_follows_exit_codes() -> None:
    assert SweepError.exit_code == 1 and set(CODES.values()) >= {130, 143}
    for file, document in jobs().items():
        if file == "shards/cronjob.yaml":  # the driver's pod; run has sense enough of them
            assert job(document)["backoffLimit"] == 0
            continue
        disruption, *rules = job(document)["podFailurePolicy"]["rules"]
        assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container(document)["name"]}
        assert {rule["onExitCodes"]["operator"] for rule in rules} == {"In"}
        actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
        held = "FailJob" if file == "shards/plan.yaml" else "Ignore"
        assert actions == {ConfigError.exit_code: "FailJob", SweepHeld.exit_code: held}, "the others count as tries"


def test_commands_files_and_volumes_of_manifests_exist() -> None:
    claims = {d["metadata"]["name"] for _, d in manifests() if d["kind"] == "PersistentVolumeClaim"}
    maps = {d["metadata"]["name"]: d["data"] for _, d in manifests() if d["kind"] == "ConfigMap"}
    for file, document in jobs().items():
        program, *arguments = container(document)["command"]
        if program.endswith("/python"):
            assert program == "/opt/sweep/.venv/bin/python"
        else:
            assert os.access(ROOT / Path(program).relative_to("/opt/sweep"), os.X_OK), file
        mounted = {mount["name"]: mount["mountPath"] for mount in container(document).get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod(document).get("volumes", [])}
        assert set(mounted) == set(volumes), file
        for name, volume in volumes.items():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims and mounted[name] == "/data"
            if "configMap" in volume:
                assert set(maps[volume["configMap"]["name"]]) == {"arguments"}
        if "@/etc/sweep/arguments" in arguments:
            assert "/etc/sweep" in mounted.values(), file
        assert pod(document)["securityContext"]["runAsNonRoot"] is True


def test_work_job_has_the_plans_shards() -> None:
    plan, work = jobs()["shards/plan.yaml"], jobs()["shards/work.yaml"]
    given = dict(argument.split("=", 1) for argument in container(plan)["command"] if "=" in argument)
    assert job(work)["completionMode"] == "Indexed" and job(work)["completions"] == int(given["hydra.launcher.shards"])
    manifest = f"{given['hydra.launcher.folder']}/manifest.json"
    assert container(work)["command"][1:] == ["-m", "sweep.shard", manifest, "$(JOB_COMPLETION_INDEX)"]
    assert manifest.startswith("/data/")
    assert container(plan)["command"][:2] == container(jobs()["shards/finish.yaml"])["command"], "the same sweep"


KUBECTL = """#!{python}
# A stand-in: jobs are files in $CLUSTER; they end, with the exit code that $CODES says, when they are asked about twice.
import json, os, sys
from pathlib import Path
cluster = Path(os.environ["CLUSTER"])
codes = json.loads(os.environ["CODES"])
verb, *rest = sys.argv[1:]
(cluster / "calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if verb == "create":
    name = "sweep-" + Path(rest[1]).stem
    try:
        (cluster / name).open("x").write("0")
    except FileExistsError:
        sys.exit("AlreadyExists")
elif verb == "delete":
    for name in rest[1:4]:
        (cluster / name).unlink(missing_ok=True)
elif rest[0] == "pods":
    print("1\\n%s" % codes[rest[2].rpartition("=")[2]])
elif "--ignore-not-found" in rest:
    print("job.batch/" + rest[1] if (cluster / rest[1]).exists() else "")
else:
    path = cluster / rest[1]
    if not path.exists():
        sys.exit("NotFound")
    asked = path.read_text()
    path.write_text("1" if asked == "0" else asked)
    if asked == "1":
        print("FailureTarget Failed" if codes[rest[1]] else "SuccessCriteriaMet Complete")
"""


@pytest.mark.parametrize(
    ("codes", "there", "ends", "performed"),
    [
        ((0, 0, 0), {}, 0, "plan work finish"),
        ((0, 0, 0), {"plan": "1", "work": "1", "finish": "1"}, 0, "plan work finish"),  # of the night before
        ((0, 1, 1), {}, 1, "plan work finish"),
        ((0, 1, 0), {}, 0, "plan work finish"),  # finish has done what a shard could not
        ((2, 0, 0), {}, 2, "plan"),
        ((75, 0, 0), {}, 75, "plan"),
        ((0, 0, 75), {}, 75, "plan work finish"),
        ((0, 0, 0), {"plan": "1", "work": "working"}, 75, ""),
    ],
)
def test_plan_work_and_finish_run_in_order(
    tmp_path: Path, codes: tuple[int, int, int], there: dict[str, str], ends: int, performed: str
) -> None:
    cluster, tools = tmp_path / "cluster", tmp_path / "bin"
    cluster.mkdir()
    tools.mkdir()
    (tools / "kubectl").write_text(KUBECTL.format(python=sys.executable))
    (tools / "kubectl").chmod(0o755)
    for name, asked in there.items():
        (cluster / f"sweep-{name}").write_text(asked)
    plan, work, finish = codes
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CLUSTER": str(cluster),
        "CODES": f'{{"sweep-plan": {plan}, "sweep-work": {work}, "sweep-finish": {finish}}}',
        "SWEEP_POLL": "0.01",
    }
    script = SCHEDULE / "kubernetes" / "shards" / "run"
    done = run([script], env=os.environ | environment)
    assert done.returncode == ends, done.stdout + done.stderr
    calls = (cluster / "calls").read_text()
    assert re.findall(r"^create -f (\w+)\.yaml$", calls, re.MULTILINE) == performed.split()
    if ends == 75:
        assert "another process runs this sweep" in done.stdout
        if there:
            assert "delete" not in calls
            assert run([script], env=os.environ | environment | {"SWEEP_HELD": "0"}).returncode == 0
