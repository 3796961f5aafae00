"""Share of time spent waiting for data, and files of records on a full or damaged disk."""

import contextlib
import json
import logging
import resource
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from flaxnets.training.metric_writer import MetricsWriter, RecordFile, Window, read_metrics
from launch import program


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets every write beyond ``size`` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read_events(path: Path) -> list[Event]:
    """Returns the events of a TensorBoard file; fails if a checksum is wrong."""
    data, events = path.read_bytes(), []
    while data:
        length, checksum = data[:8], data[8:12]
        size = struct.unpack("<Q", length)[0]
        event, checksum_of_event = data[12 : 12 + size], data[12 + size : 16 + size]
        assert struct.pack("<I", masked_crc32c(length)) == checksum
        assert struct.pack("<I", masked_crc32c(event)) == checksum_of_event
        events.append(Event.FromString(event))
        data = data[16 + size :]
    return events


@pytest.mark.parametrize("is_busy", [False, True])
def test_waiting_counts_where_the_device_has_run_out_of_work(is_busy: bool) -> None:
    window = Window(4)
    matrix = jnp.eye(1_500)

    @partial(jax.jit, static_argnums=0)
    def compute(matmuls: int) -> jax.Array:
        """Returns the result of matmuls; twenty take the device half a second or more."""
        return jax.lax.fori_loop(0, matmuls, lambda _, x: x @ matrix, matrix)[0, 0]

    num_matmuls = 20 if is_busy else 0
    jax.block_until_ready(compute(num_matmuls))
    one = jnp.ones(())
    sums = {name: (compute(num_matmuls), one) for name in ("loss", "gradient_norm")}
    if not is_busy:
        jax.block_until_ready(sums)
    with window.waiting():  # Nothing is pending before the first step.
        time.sleep(0.01)
    window.add(1, sums)
    with window.waiting():
        time.sleep(0.1)
    record = window.close()
    seconds = 1 / record["steps_per_second"]
    waited = record["data_wait_share"] * seconds
    if is_busy:
        assert 0.01 <= waited < 0.1 < seconds
    else:
        assert 0.1 <= waited <= seconds


def test_a_record_that_does_not_fit_waits_and_nothing_of_it_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "folder" / "records"
    file = RecordFile(path)
    file.append(b"first\n")
    with largest_file(10):
        for record in (b"second\n", b"third\n", b"fourth\n"):
            file.append(record)
        assert path.read_bytes().startswith(b"first\n")
        assert len(path.read_bytes()) <= 10
    file.append(b"fifth\n")
    file.close()
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\nfifth\n"
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{path}: cannot be written: File too large; training goes on")


def test_of_many_records_that_cannot_be_written_the_newest_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RecordFile, "MOST_WAITING", 3)
    path = tmp_path / "folder" / "records"
    path.parent.write_text("no folder")
    file = RecordFile(path)
    for number in range(10):
        file.append(b"%d\n" % number)
    path.parent.unlink()
    file.close()
    assert path.read_bytes() == b"7\n8\n9\n"


def test_a_full_disk_is_told_once_by_each_file_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    program.log_to(tmp_path / "log.txt")
    (log,) = set(root.handlers) - set(before)
    writer = MetricsWriter(tmp_path, resume_step=0)
    start = time.monotonic()
    try:
        with largest_file(0):
            for step in range(1, 201):
                writer.write(step, "train", {"loss": 1.0, "accuracy": 0.5})
                logging.getLogger("test").warning("step %d", step)
        told = [r.getMessage() for r in caplog.records if "cannot be written" in r.getMessage()]
        assert time.monotonic() - start < 10
        assert sorted(message.split(":")[0].rpartition("/")[2][:6] for message in told) == [
            "events",
            "log.tx",
            "metric",
        ]
        writer.close()
    finally:
        root.removeHandler(log)
        log.close()
    # Nothing is lost once there is space.
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 201))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert len(read_events(events)) == 2 + 2 * 200
    assert (tmp_path / "log.txt").read_text().count("WARNING test: step") == 200


def test_tensorboard_gets_every_value_and_drops_what_is_computed_again(tmp_path: Path) -> None:
    for resume in (0, 2):
        writer = MetricsWriter(tmp_path, resume_step=resume)
        for step in range(resume + 1, 4):
            writer.write(step, "train", {"loss": 1 / step, "accuracy": float("nan")})
        writer.close()
    events = [e for f in sorted((tmp_path / "tensorboard").iterdir()) for e in read_events(f)]
    assert events[0].file_version == "brain.Event:2"
    starts = [e.step for e in events if e.session_log.status == SessionLog.START]
    assert starts == [1, 3]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert [step for step, tag, _ in values if tag == "train/loss"] == [1, 2, 3, 3]
    assert values[0][2] == 1.0
    assert values[1][1] == "train/accuracy"
    assert values[1][2] != values[1][2]


@pytest.mark.parametrize(
    "bad",
    [
        b"\x00" * 300,
        b'{"step": 2, "split": "tr',
        b'{"step": "2", "split": "train", "loss": 0.5}',
        b'{"step": 2, "split": "train", "loss": "0.5"}',
        b'{"step": 2}',
        b"\xff\xfe\xfa",
        b"[" * 100_000,
        b"[1, 2]",
        b"",
    ],
)
def test_a_bad_line_is_told_and_left_out_and_does_not_block_a_resume(
    bad: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps({"step": s, "split": "train", "loss": 1.0}).encode() for s in (1, 2, 3, 4)]
    lines[1] = bad
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 3, 4]
    assert f"{path}: damaged" in caplog.text
    assert caplog.text.rstrip().endswith("line 2")
    writer = MetricsWriter(tmp_path, resume_step=3)
    writer.write(4, "train", {"loss": 2.0})
    writer.close()
    assert path.read_bytes().splitlines()[:2] == [lines[0], lines[2]]
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1), (3, 1), (4, 2)]


def test_records_are_dropped_on_a_full_disk_too(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": 1.0})
        writer.write(step, "validation", {"loss": 1.0})
    writer.close()
    with largest_file(0):
        writer = MetricsWriter(tmp_path, resume_step=2, evaluates="validation")
    assert [(r["step"], r["split"]) for r in read_metrics(tmp_path)] == [
        (1, "train"),
        (1, "validation"),
        (2, "train"),
    ]
    writer.close()


def test_tensorboard_names_the_data_of_the_run(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, resume_step=0, description="CRNN on my_videos")
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = [value for event in read_events(file) for value in event.summary.value]
    assert [value.metadata.plugin_data.plugin_name for value in found] == ["text"]
    assert found[0].tensor.string_val == [b"CRNN on my_videos"]
