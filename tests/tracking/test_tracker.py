"""What becomes of a sweep's runs when the user, or MLflow, has done something to them in between."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from point_records import RECORD, TABLE
from sweep.config.schema import TrackingConfig
from sweep.core.records import Publication, Table
from sweep.errors import ConfigError, TrackingError
from sweep.tracking import Closing, Tracker, limits, point_publishing

DONE = replace(
    RECORD, parameters={"transform.factor": 2.0}, axes=(("transform.factor", 2.0),), metrics={"cost/requests": 3.0}
)
FAILED = replace(DONE, ended=1.5, error="it failed")


def begin(root: Path, name: str = "name") -> tuple[Tracker, bool]:
    tracker = Tracker(TrackingConfig(), root, "some")
    return tracker, tracker.start(name, "sweep …", "seed: 0\n")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[MlflowClient]:
    begin(tmp_path)
    yield MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def shown(client: MlflowClient) -> dict[str, str]:
    """Return the status of each run that is not deleted, by its id."""
    return {run.info.run_id: run.info.status for run in runs(client) if run.data.tags["sweep.role"] != "sweep"}


def runs(client: MlflowClient) -> list[Run]:
    return list(client.search_runs(["1"]))


def purge(client: MlflowClient, run_id: str) -> None:
    """Delete a run as `mlflow gc` does."""
    client.delete_run(run_id)
    client._tracking_client.store._hard_delete_run(run_id)


@pytest.mark.parametrize("how", ["deleted", "purged", "refused"])
def test_point_is_published_if_its_failed_run_cannot_be_deleted(
    client: MlflowClient, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker, _ = begin(tmp_path)
    old = tracker.publish(FAILED, TABLE, retry=False)
    if how == "deleted":
        client.delete_run(old)
    elif how == "purged":
        purge(client, old)
    else:

        def refuse(*_: object) -> None:
            raise MlflowException("no permission", error_code=7)

        monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    new = tracker.publish(DONE, TABLE, retry=False, replaces=old)
    assert shown(client) == {new: "FINISHED"} | ({old: "FAILED"} if how == "refused" else {})
    assert tracker.publish(DONE, TABLE, retry=True, replaces=old) == new
    assert (f"The run {old} was replaced but could not be deleted" in caplog.text) is (how == "refused")


def test_first_error_of_a_failed_publication_is_reported(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, _ = begin(tmp_path)

    def refuse(reason: str) -> None:
        raise OSError(reason)

    monkeypatch.setattr(point_publishing, "has_known_schema", lambda: False)
    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", lambda *_: refuse("no room"))
    monkeypatch.setattr(MlflowClient, "delete_run", lambda *_: refuse("no way back"))
    with pytest.raises(TrackingError, match="MLflow failed to publish the point factor=2: no room"):
        tracker.publish(DONE, TABLE, retry=False)


@pytest.mark.parametrize("how", ["deleted", "purged"])
def test_points_of_a_deleted_parent_move_to_the_new_parent(client: MlflowClient, tmp_path: Path, how: str) -> None:
    tracker, _ = begin(tmp_path)
    point, parent = tracker.publish(DONE, TABLE, retry=False), str(tracker.parent)
    client.delete_run(parent)
    if how == "purged":
        client._tracking_client.store._hard_delete_run(parent)
    again, earlier = begin(tmp_path)
    assert earlier and again.parent != parent and again.place != tracker.place
    assert again.publish(DONE, TABLE, retry=earlier) == point
    assert shown(client) == {point: "FINISHED"}
    assert client.get_run(point).data.tags["mlflow.parentRunId"] == again.parent


def test_ended_parent_run_is_running_again_during_a_resume(client: MlflowClient, tmp_path: Path) -> None:
    [parent] = [run.info.run_id for run in runs(client)]
    client.set_terminated(parent, "FAILED")
    tracker, earlier = begin(tmp_path)
    assert earlier and client.get_run(parent).info.status == "RUNNING"
    tracker.finish("FINISHED", {})
    assert client.get_run(parent).info.status == "FINISHED" and tracker.parent_status() == "FINISHED"


def test_a_clock_that_was_set_back_gives_no_negative_durations(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker, _ = begin(tmp_path)
    monkeypatch.setattr("sweep.tracking.tracker.time.time", lambda: 1.0)
    tracker.finish("FINISHED", {"sweep/points": 1.0})
    run = client.get_run(str(tracker.parent))
    assert run.info.end_time == run.info.start_time > 1000


def test_deleted_experiment_is_reported_and_can_be_restored(client: MlflowClient, tmp_path: Path) -> None:
    client.delete_experiment("1")
    tracker = Tracker(TrackingConfig(), tmp_path, "some")
    with pytest.raises(
        ConfigError,
        match=r"the experiment 'sweep' was deleted\. Restore it, or set tracking\.experiment to another name",
    ):
        tracker.connect()
    client.restore_experiment("1")
    assert begin(tmp_path)[1] is True


def test_names_are_masked_and_cut_at_first_and_on_resume(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "hunter22")
    name = f"run-hunter22-{'n' * 300}"
    cut = f"run-***-{'n' * (250 - 8 - 1)}…"
    for _ in range(2):
        tracker, _ = begin(tmp_path, name)
        assert client.get_run(str(tracker.parent)).info.run_name == cut
    point = tracker.publish(replace(DONE, name=name), TABLE, retry=False)
    assert client.get_run(point).info.run_name == cut


def test_values_over_mlflows_limits_are_cut_or_renamed(
    client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRUNCATE_LONG_VALUES", "false")
    tracker, _ = begin(tmp_path)
    parameters = {"a[b": 1, "a=b": 2, "/x": 3, "k" * 300: "v" * 7000, "odd": "\ud800\0"}
    record = replace(FAILED, parameters=parameters, error="e" * 9000, tags=DONE.tags | {"sweep.long": "t" * 9000})
    run = client.get_run(tracker.publish(record, Table(["prompt", "generation"], [["\ud800", "\0"]]), retry=False))
    assert run.data.params == {
        "a_b": "1",
        "a_b_2": "2",
        "_x": "3",
        "k" * 250: "v" * 5999 + "…",
        "odd": "\\ud800\\x00",
    }
    assert (run.data.tags["sweep.error"], run.data.tags["sweep.long"]) == ("e" * 4999 + "…", "t" * 4999 + "…")
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "generations.json", str(tmp_path))).read_text())
    assert table["data"] == [["\ud800", "\0"]]
    tracker.describe("d" * 9000)
    tracker.finish("FINISHED", {}, {"sweep.note": "n" * 9000})
    tags = client.get_run(str(tracker.parent)).data.tags
    assert tags["mlflow.note.content"] == "d" * 7999 + "…" and tags["sweep.note"] == "n" * 4999 + "…"


def test_only_deleted_runs_are_skipped(client: MlflowClient, tmp_path: Path) -> None:
    """MLflow has one error code for a run that was deleted and for a name that it refuses."""
    tracker, _ = begin(tmp_path)
    point = tracker.publish(DONE, TABLE, retry=False)
    (tmp_path / "report").mkdir()
    closing = Closing("named", [], tmp_path / "report", [], [], {point: {"a[b": 1.0}}, 3.0)
    with pytest.raises(TrackingError, match=r"MLflow failed to publish the sweep's report: .*a\[b"):
        tracker.close(closing)
    client.delete_run(point)
    assert set(tracker.close(closing)) == {"side by side", "charts"}


@pytest.mark.parametrize(
    ("key", "kept"),
    [
        ("transform.factor", "transform.factor"),
        ("a/b c:d-e_é", "a/b c:d-e_é"),
        ("a//b", "a__b"),
        ("../b", "___b"),
        ("", "_"),
        (".", "_"),
        ("a%=,@+#~(b", "a________b"),
    ],
)
def test_keys_are_adapted_to_mlflows_rules(client: MlflowClient, tmp_path: Path, key: str, kept: str) -> None:
    assert [own for own, _ in limits.unique_keys([(key, 1)])] == [kept]
    tracker, _ = begin(tmp_path)
    run_id = tracker.publish(replace(DONE, parameters={key: 1}, metrics={key: 1.0}), TABLE, retry=False)
    assert len(client.get_run(run_id).data.params) == 1


def test_a_server_gets_several_points_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = SimpleNamespace(database=SimpleNamespace(is_sql=False), traces=None)
    meeting = threading.Barrier(point_publishing.CONNECTIONS)
    points = [Publication(replace(DONE, index=index), TABLE) for index in range(3 * point_publishing.CONNECTIONS)]

    def publish(at: object, point: Publication, parent: str | None, *, retry: bool) -> str:
        meeting.wait(30)
        if point.record.index == 5:
            raise TrackingError("MLflow failed: no", "no")
        return f"run {point.record.index}"

    monkeypatch.setattr(point_publishing, "publish", publish)
    done = point_publishing.publish_all(at, points, "parent", retry=True)  # type: ignore[arg-type]
    assert done == ["run 0", "run 1", "run 2", "run 3", "run 4", None, "run 6", "run 7"]
