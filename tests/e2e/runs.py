"""Shorten a finished run as if it had been killed, and resume it."""

import json
import shutil

from support import dsv3_run, last_checkpoint, losses, tensors


def manifest(run, step):
    return json.loads((run / f"checkpoints/step-{step}/manifest.json").read_text())


def cut(run, step, name):
    """Copy a run to `name`, without everything that it wrote after the checkpoint of `step`, and return the copy."""
    copy = run.parent / name
    shutil.copytree(run, copy)
    for folder in copy.glob("checkpoints/step-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    lines = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copy / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))
    assert last_checkpoint(copy).name == f"step-{step}"
    return copy


def assert_exact_resume(run, step, *arguments):
    """Resume a copy of a finished run from the checkpoint of `step`, and compare the results with those of the run."""
    resumed = cut(run, step, f"{run.name}-from-{step}")
    done = dsv3_run("--run_id", resumed.name, *arguments, cwd=run.parent.parent)
    assert f"resuming from step {step}" in done.stderr
    assert losses(resumed) == losses(run)
    assert tensors(last_checkpoint(resumed)) == tensors(last_checkpoint(run))
    hashes = [json.loads((folder / "provenance.json").read_text())["data_hash"] for folder in (resumed, run)]
    assert hashes[0] == hashes[1]
