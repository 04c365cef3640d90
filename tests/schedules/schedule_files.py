"""Files of scripts/schedule for tests: a checkout with a stand-in for scripts/sweep, and what the schedules contain."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEDULE = ROOT / "scripts" / "schedule"
MANIFESTS = sorted((SCHEDULE / "kubernetes").rglob("*.yaml"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces of its own")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(command: list[Any], **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], text=True, capture_output=True, timeout=120, check=False, **how
    )


STAND_IN = """#!/usr/bin/env bash
trap 'echo ended in order; exit 143' TERM
printf '<%s>\\n' "$@"
echo "TZ=${TZ:-}"
[ ! -e "$(dirname "$0")/slow" ] || { touch started; for _ in {1..200}; do sleep 0.1; done; }
exit "$(cat "$(dirname "$0")/code" 2>/dev/null || echo 0)"
"""


def checkout_in(folder: Path) -> Path:
    """Make a checkout with the schedules and a stand-in for scripts/sweep, whose exit code is in the file `code`."""
    shutil.copytree(SCHEDULE, folder / "sweep" / "scripts" / "schedule")
    stand_in = folder / "sweep" / "scripts" / "sweep"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder / "sweep"


def nightly(checkout: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    (checkout / "scripts" / "code").write_text(str(code))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SWEEP_") and key != "TZ"}
    return run(["scripts/schedule/nightly", *arguments], cwd=checkout, env=clean | environment)


def logs(checkout: Path) -> list[Path]:
    return sorted((checkout / "outputs" / "logs").iterdir())


def newest(checkout: Path) -> str:
    return max(logs(checkout), key=lambda log: log.stat().st_mtime_ns).read_text()


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def named(kind: str, file: str) -> dict[str, Any]:
    [found] = [
        d for path, d in manifests() if d["kind"] == kind and path.relative_to(SCHEDULE / "kubernetes") == Path(file)
    ]
    return found


@contextmanager
def isolated(
    tmp_path: Path, mounts: dict[str, Path], command: str, *namespaces: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command of bash where some of this machine's places are others."""
    binds = "".join(f"mount --bind '{source}' {target} && " for target, source in mounts.items())
    process = subprocess.Popen(
        ["unshare", "--mount", *namespaces, "bash", "-c", f"{binds} {command}"],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | environment,
        stdout=(tmp_path / "daemon.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


def job(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec


def pod(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job(document)["template"]["spec"]
    return spec


def container(document: dict[str, Any]) -> dict[str, Any]:
    [only] = pod(document)["containers"]
    assert isinstance(only, dict)
    return only
