"""run.py TARGET FOLDER: replays the corpus and the regressions, then fuzzes for 10 s (60 s with DSV3_TEST_FULL=1).

DSV3_FUZZ_SECONDS overrides the duration. An input that crashes the target is written to ./fuzz-findings/. After fixing
the bug, move the input to FOLDER/regressions/<target>/.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

# Limits per input: seconds, MiB for the process (including AddressSanitizer), MiB for a single allocation.
LIMITS = ["-timeout=5", "-rss_limit_mb=1024", "-malloc_limit_mb=128"]


def main():
    target, folder = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    name = target.name.removeprefix("fuzz_")
    seconds = os.environ.get("DSV3_FUZZ_SECONDS") or ("60" if os.environ.get("DSV3_TEST_FULL") == "1" else "10")
    seed = int(os.environ.get("DSV3_TEST_SEED", 1)) % 2**32 or 1
    seeds = folder / "corpus" / name
    stored = sorted(p for kind in ("corpus", "regressions") for p in (folder / kind / name).glob("*"))
    assert len(list(seeds.glob("*"))) > 0, f"no seeds in {seeds}"
    findings = pathlib.Path("fuzz-findings").resolve()
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"TMPDIR": scratch, "UBSAN_OPTIONS": "print_stacktrace=1"}
        options = [*LIMITS, f"-artifact_prefix={findings}/{name}-"]
        subprocess.run([target, *options, *stored], env=environment, check=True)
        new_inputs = pathlib.Path(scratch, "corpus")
        new_inputs.mkdir()
        fuzzer = subprocess.Popen([target, *options, f"-seed={seed}", f"-max_total_time={seconds}", "-max_len=16384",
                                   "-print_final_stats=1", "-print_funcs=0", new_inputs, seeds], env=environment,
                                  stderr=subprocess.PIPE, text=True, errors="replace")
        for line in fuzzer.stderr:
            if "DONE" in line or line[0] not in '#"':  # keep errors and the final coverage, drop progress
                print(line, end="", flush=True)
        assert fuzzer.wait() == 0, f"{name} failed with exit code {fuzzer.returncode} (output above); repeat with DSV3_TEST_SEED={seed}"


main()
