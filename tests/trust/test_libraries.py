"""No program or plugin loads a library from the current folder."""

import os
import re
import subprocess

import pytest

from stored import fixture
from support import BUILD, dsv3_run, make_tiny, seal

BUILT_IN = BUILD / "lib/dsv3/plugins"


def searched_files(*command, cwd):
    """Return the paths where the dynamic loader looked for libraries."""
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "LD_DEBUG": "libs"}, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return re.findall(r"trying file=(\S+)", done.stderr)


@pytest.mark.promise("plugin-sources")
def test_programs_search_no_library_in_the_current_folder(tmp_path):
    make_tiny(tmp_path)
    for command in (["dsv3", "plugins", "list"], ["dsv3-run", "tiny.yaml", "--check"]):
        files = searched_files(BUILD / "bin" / command[0], *command[1:], cwd=tmp_path)
        assert len(files) > 5 and [file for file in files if not file.startswith("/")] == []


@pytest.mark.promise("plugin-sources")
def test_no_library_of_the_build_names_a_relative_folder():
    libraries = [BUILD / "bin/dsv3", BUILD / "bin/dsv3-run", *(BUILD / "lib").glob("*.so"), *BUILT_IN.glob("*.so")]
    shown = subprocess.run(["readelf", "-d", *libraries], text=True, capture_output=True, check=True).stdout
    paths = re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", shown)
    assert len(paths) == len(libraries) > 20
    assert [path for path in paths if not all(re.match(r"/|\$ORIGIN(/|$)", entry) for entry in path.split(":"))] == []


@pytest.mark.promise("plugin-sources")
@pytest.mark.parametrize("entries", [b"$ORIGIN::$ORIGIN/../..", b"$ORIGIN:libs/ab/../../"])
def test_a_plugin_that_searches_the_current_folder_is_not_loaded(tmp_path, entries):
    make_tiny(tmp_path)
    library = fixture("good", tmp_path / "plugins")
    content = library.read_bytes()
    built = b"$ORIGIN:$ORIGIN/../..:"
    assert content.count(built) == 1 and len(entries) <= len(built)
    library.write_bytes(content.replace(built, entries.ljust(len(built), b":")))
    seal(library)
    words = ["tiny.yaml", f"schedule={{plugin: halving, library: {library}}}", "--check"]
    assert "relative to it" in dsv3_run(*words, cwd=tmp_path, check=3).stderr
    library.write_bytes(content)
    dsv3_run(*words, cwd=tmp_path)
