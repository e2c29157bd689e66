"""Runs record what the programs of their machine use."""

import json
import shutil

import pytest

from support import dsv3_run, losses, make_tiny, metrics

NAMES = {f"system/{name}" for name in (
    "cpu_utilization_percentage", "system_memory_usage_megabytes", "system_memory_usage_percentage", "disk_usage_percentage",
    "disk_usage_megabytes", "disk_available_megabytes", "network_receive_megabytes", "network_transmit_megabytes")}


SETTINGS = ["schedule={plugin: constant}", "validation.every=15"]  # a longer run takes the same steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    make_tiny(folder)
    dsv3_run("tiny.yaml", "--run_name", "often", *SETTINGS, "log.system_interval=0.001", cwd=folder)
    dsv3_run("tiny.yaml", "--run_name", "never", *SETTINGS, "log.system_interval=0", cwd=folder)
    return folder


def system(row):
    return {name: value for name, value in row.items() if name.startswith("system/") and "/gpu_" not in name}


def test_a_run_records_its_machine(folder):
    rows = [system(row) for row in metrics(folder / "runs/often").values()]
    assert sum(bool(row) for row in rows) > 1 and set().union(*rows) == NAMES
    for row in filter(None, rows):
        assert all(0 <= value <= 100 for name, value in row.items() if "percentage" in name), row
    sent = [row["system/network_transmit_megabytes"] for row in rows if row]
    assert sent == sorted(sent)


def test_values_are_those_of_other_programs(folder):
    last = metrics(folder / "runs/often")[30]
    disk = shutil.disk_usage(folder)
    assert last["system/disk_usage_megabytes"] == pytest.approx(disk.used / 1e6, rel=0.1)
    assert last["system/disk_available_megabytes"] == pytest.approx(disk.free / 1e6, rel=0.1)
    assert last["system/disk_usage_percentage"] == pytest.approx(100 * disk.used / (disk.used + disk.free), abs=10)
    megabytes, percentage = last["system/system_memory_usage_megabytes"], last["system/system_memory_usage_percentage"]
    with open("/proc/meminfo") as file:
        total = int(next(line for line in file if line.startswith("MemTotal:")).split()[1]) * 1024 / 1e6
    assert percentage == pytest.approx(100 * megabytes / total, abs=0.1)


def test_every_run_records_its_machine_at_its_end(folder):
    """Even if it is shorter than the interval, whose default is 10 s."""
    dsv3_run("tiny.yaml", "--run_name", "short", "train.steps=3", "schedule.warmup=1", cwd=folder)
    assert set(system(metrics(folder / "runs/short")[3])) == NAMES


def test_system_metrics_change_no_lines(folder):
    """A step still has one line, and a resumed run may have another interval."""
    often, never = ([json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
                    for name in ("often", "never"))
    assert [row["step"] for row in often] == [row["step"] for row in never]
    assert not any(map(system, never))
    assert losses(folder / "runs/often") == losses(folder / "runs/never")
    dsv3_run("tiny.yaml", "--run_name", "longer", *SETTINGS, "train.steps=15", "log.system_interval=0", cwd=folder)
    dsv3_run("--run_id", "longer", "train.steps=30", "log.system_interval=60", cwd=folder)
    rows = metrics(folder / "runs/longer")
    assert losses(folder / "runs/longer") == losses(folder / "runs/never")
    assert not any(system(rows[step]) for step in range(16)) and set(system(rows[30])) == NAMES


