"""The main job as a user starts it: a process of its own, the embedded model, MLflow's SQLite store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from servers import chromium, mlflow_server

pytestmark = pytest.mark.slow  # vLLM in a process of its own, and a browser

SHOTS = os.environ.get("SWEEP_SCREENSHOTS")  # a folder to leave pictures in


@pytest.fixture(scope="module")
def first_command(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The first command of the README, with two factors, run in an empty folder."""
    tmp_path = tmp_path_factory.mktemp("user")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "VLLM_"))}
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "sweep", "transform=scale", "transform.factor=1.2,1.5"],
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "MLFLOW_RUN_ID": "0" * 32},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return tmp_path, done


def test_the_first_command_of_the_readme(first_command: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    tmp_path, done = first_command
    home = tmp_path / "home"
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr, done.stderr
    assert re.search(r"control .*factor=1\.2 .*factor=1\.5 ", done.stdout, re.DOTALL), done.stdout
    assert "Compare: run scripts/ui, then open http://127.0.0.1:5000/#/experiments/1/runs?" in done.stdout
    assert re.search(r"\* differs from the control", done.stdout)

    outputs = tmp_path / "outputs"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "outputs"}
    assert not [path for path in home.rglob("*") if path.is_file()], "files were written outside sweep.dir"

    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    roles = {run.info.run_name: run.data.tags["sweep.role"] for run in runs}
    assert sorted(roles.values()) == ["control", "point", "point", "sweep"]
    assert {"control", "factor=1.2", "factor=1.5"} < set(roles)
    assert {run.info.status for run in runs} == {"FINISHED"}
    points = {run.info.run_name: run for run in runs}
    assert points["control"].data.metrics["quality/exact_match"] >= 0.9
    assert points["factor=1.5"].data.params["transform.factor"] == "1.5"
    assert points["factor=1.5"].data.metrics["perturbation/relative_l2"] > 0.49
    table = json.loads(Path(client.download_artifacts(points["control"].info.run_id, "generations.json")).read_text())
    answers = {
        row[table["columns"].index("prompt")]: row[table["columns"].index("generation")] for row in table["data"]
    }
    assert "Paris" in answers["Please tell me about the capital of France."]
    assert "summer" in answers["When is the day longest during the year?"].lower()
    assert "sun" in answers["Where is bigger, the moon or the sun?"].lower()
    assert len(answers["Tell me a creative story."].split()) > 10


def test_the_printed_links_show_the_points_side_by_side(
    first_command: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """The real MLflow UI in a real browser: answers of two points to one prompt, in the order of the swept value."""
    folder, done = first_command
    links = dict(re.findall(r"^(Compare|Charts): .*(http://\S+)$", done.stdout, re.MULTILINE))
    outputs = folder / "outputs"
    with mlflow_server(tmp_path, outputs / "mlflow.db", outputs / "artifacts") as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1900, "height": 950})

        def open_link(name: str) -> None:
            page.goto(links[name].replace("http://127.0.0.1:5000", server))
            with suppress(Exception):  # the pane of MLflow's assistant, which is open on a first visit
                page.locator('button[aria-label*="lose"]').first.click(timeout=5000)

        open_link("Compare")
        page.get_by_text("Tokyo is the capital of Japan.").first.wait_for(timeout=60_000)
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/mlflow_comparison.png")
        headers = [
            page.get_by_text(name, exact=True).last.bounding_box() for name in ("control", "factor=1.2", "factor=1.5")
        ]
        places = [box["x"] for box in headers if box is not None]
        assert len(places) == 3 and places == sorted(places)
        answers = page.get_by_text("Tokyo is the capital of Japan.")
        boxes = [box for i in range(answers.count()) if (box := answers.nth(i).bounding_box()) is not None]
        assert len({round(box["x"]) for box in boxes}) >= 2 and len({round(box["y"]) for box in boxes}) == 1

        open_link("Charts")
        if SHOTS:
            page.wait_for_timeout(8000)
            page.screenshot(path=f"{SHOTS}/mlflow_charts.png")
        page.get_by_text("axis/transform.factor vs. quality/exact_match").first.wait_for(timeout=60_000)
        if SHOTS:
            page.wait_for_timeout(3000)
            page.screenshot(path=f"{SHOTS}/mlflow_charts.png")
