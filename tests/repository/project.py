"""The project's files: those that git tracks, and untracked ones that it does not ignore."""

import functools
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("DSV3_BUILD_DIR", ROOT / "build"))
NOT_OURS = {".git", ".venv", ".cache", "__pycache__", "runs"}


@functools.cache
def files():
    """Return the paths of all files, relative to ROOT."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        names = filter(None, listed.stdout.split("\0"))
        return sorted(path for path in map(pathlib.Path, names) if (ROOT / path).is_file())
    # Without git, e.g. in an unpacked archive, list all files outside build folders and virtual environments.
    found = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [f for f in folders if f not in NOT_OURS and not f.startswith("build")]
        found += [(pathlib.Path(folder) / name).relative_to(ROOT) for name in names]
    return sorted(found)


def is_script(path):
    """Return whether a file is a script without an extension."""
    with (ROOT / path).open("rb") as file:
        return not path.suffix and file.read(2) == b"#!"


def is_source(path):
    """Return whether a file is a C++, Python, CMake, shell, JavaScript, CSS or HTML file."""
    return (path.suffix in {".cpp", ".h", ".cu", ".py", ".cmake", ".sh", ".js", ".css", ".html"} or path.name == "CMakeLists.txt"
            or is_script(path))


def is_text(path):
    return b"\0" not in (ROOT / path).read_bytes()[:4096]
