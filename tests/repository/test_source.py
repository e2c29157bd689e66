"""Rules about the source tree that no compiler checks: folders, file sizes, pinned versions, machine names."""

import collections
import re

import pytest

import folder_graph
import project
from project import ROOT

LINE_LIMIT = 500


def fail(title, lines):
    pytest.fail(f"{title}\n" + "\n".join(lines), pytrace=False)


def test_folders_of_the_core_include_each_other_in_one_direction():
    graph = folder_graph.Graph(ROOT / "core")
    cycles = graph.cycles()
    if cycles:
        fail(f"{len(cycles)} cycles between folders in core/src; move shared code to a folder that both can include",
             [f"\ncycle {number}:\n{graph.described(cycle)}" for number, cycle in enumerate(cycles, 1)]
             + ["\nall includes between folders:", graph.drawing()])


def test_the_core_includes_only_the_core():
    graph = folder_graph.Graph(ROOT / "core")
    if graph.outside:
        fail("files in core/src include project files outside core/src and core/include",
             [f"  {include}" for include in sorted(set(graph.outside))])


def test_the_folder_graph_covers_every_public_header():
    graph = folder_graph.Graph(ROOT / "core")
    headers = [path for path in graph.files if path.is_relative_to(graph.public)]
    without_folder = [path for path in headers
                      if graph.owner[path] is None and folder_graph.declared(graph.text[path])]
    if without_folder:
        fail("public headers declare functions that no file in core/src defines",
             [f"  {path.relative_to(ROOT)}: {', '.join(sorted(folder_graph.declared(graph.text[path])))}"
              for path in without_folder])


def test_the_folder_graph_finds_a_cycle(tmp_path):
    """a/ uses a public header that b/ implements, and b/ includes a file in a/."""
    for name, text in {
            "src/a/a.h": "int a();\n",
            "src/a/a.cpp": '#include "a/a.h"\n#include <dsv3/runtime/b.h>\nint a() { return b() + 1\'000; }\n',
            "src/b/b.cpp": '#include <dsv3/runtime/b.h>\n// int c() {\n#include "a/a.h"\nint b() { return 1; }\n',
            "include/dsv3/runtime/b.h": "#include <dsv3/runtime/plain.h>\nint b();\n",
            "include/dsv3/runtime/plain.h": "struct Plain { int x = 0; int twice() const { return 2 * x; } };\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = folder_graph.Graph(tmp_path)
    assert graph.owner[tmp_path / "include/dsv3/runtime/b.h"] == "b"
    assert graph.owner[tmp_path / "include/dsv3/runtime/plain.h"] is None
    assert graph.cycles() == [("a", "b")]
    assert "src/a/a.cpp:2 includes" in graph.described(("a", "b"))


def test_no_source_file_is_longer_than_500_lines():
    long = [(path, count) for path in project.files() if project.is_source(path)
            if (count := len((ROOT / path).read_bytes().splitlines())) > LINE_LIMIT]
    if long:
        fail(f"files with more than {LINE_LIMIT} lines", [f"  {path}: {count} lines" for path, count in long])


def test_a_package_pinned_twice_has_one_version():
    pins = collections.defaultdict(list)
    for path in project.files():
        if re.fullmatch(r"requirements[\w-]*\.txt", path.name):
            for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
                pin = re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*==\s*([^\s;#]+)", line)
                assert pin or re.fullmatch(r"\s*(?:#.*|-r .*)?", line), f"{path}:{number}: not a pinned version: {line}"
                if pin:
                    pins[re.sub(r"[-_.]+", "-", pin[1]).lower()].append((f"{path}:{number}", pin[2]))
    assert len(pins) > 20, "requirements files not found"
    different = {name: places for name, places in pins.items() if len({version for _, version in places}) > 1}
    if different:
        fail("packages are pinned to different versions",
             [f"  {name}: " + ", ".join(f"{version} in {place}" for place, version in places)
              for name, places in different.items()])


# Text that is specific to one machine or workplace.
FOREIGN = {
    "a path that exists only on one machine": r"(?<![\w.~$}/-])/(?:work|wt|root|workspace|home/\w+|mnt/\w+)/",
    "the address of a package index": r"\b(?:extra-)?index-url\b|\btrusted-host\b"
                                      r"|https?://(?!pypi\.org\b)[\w.-]*(?:artifactory|nexus|devpi|pypi|\.internal)[\w.-]*",
    "a reference to an AI assistant or its session":
        r"(?i)\b(?:this|another|an? earlier|the (?:previous|next|last)|helper) sessions?\b"
        r"|\bsub-?agents?\b|\bclaude\b|\bchatgpt\b",
    "an issue number": r"(?i)\bissue #?\d+\b",
}


def test_no_file_names_a_machine_an_index_or_a_session():
    found = []
    for path in project.files():
        if path.name == "test_source.py" or not project.is_text(path):
            continue
        for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), 1):
            found += [f"  {path}:{number}: {what}: {match[0]}"
                      for what, pattern in FOREIGN.items() for match in re.finditer(pattern, line)]
    if found:
        fail("text that is specific to one machine or workplace", found)
