"""Tests that the documentation matches the source tree."""

import re
import subprocess

from support import BUILD, RUN, SOURCE


def test_every_path_of_the_design_exists():
    map_of_the_tree = (SOURCE / "docs/design.md").read_text().split("## Where things are")[1].split("\n## ")[0]
    paths = re.findall(r"^\| [^|]+ \| ([\w/.]+) \|$", map_of_the_tree, re.M)[1:]
    assert len(paths) > 20
    assert [path for path in paths if not (SOURCE / path).exists()] == []


def test_the_design_names_every_folder_of_the_core():
    text = (SOURCE / "docs/design.md").read_text()
    folders = [folder for folder in (SOURCE / "core/src").iterdir() if any(folder.glob("*.cpp"))]
    assert [folder.name for folder in folders if f" core/src/{folder.name} |" not in text] == []


def test_every_link_in_the_documents_resolves():
    for document in [*SOURCE.glob("*.md"), *(SOURCE / "docs").glob("*.md"), *(SOURCE / "plugins").glob("*/*/README.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)


def test_the_readme_names_every_plugin():
    text = (SOURCE / "README.md").read_text()
    for folder in (SOURCE / "plugins").glob("*/*/"):
        assert f"(plugins/{folder.parent.name}/{folder.name}/README.md)" in text


def test_every_path_in_the_readmes_tree_exists():
    folders, paths = [], []
    for line in (SOURCE / "README.md").read_text().splitlines():
        if entry := re.fullmatch(r"((?:│   |    )*)[├└]── (\S+) *(?:#.*)?", line):
            folders[len(entry[1]) // 4:] = [entry[2]]
            paths.append("/".join(folders))
    assert len(paths) > 15
    assert [path for path in paths if not path.endswith("...") and not (SOURCE / path).exists()] == []


def test_the_readmes_commands_run(tmp_path):
    """Run the README's commands that neither install nor train."""
    text = (SOURCE / "README.md").read_text()
    lines = [line.split("#")[0].split() for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    commands = [words for words in lines if words and words[-1] in ("--dry-run", "--print-config", "list")]
    assert len(commands) == 3
    for words in commands:
        program = RUN if words[0] == "dsv3-run" else BUILD / "bin" / words[0]
        subprocess.run([program, *words[1:]], cwd=SOURCE, check=True, capture_output=True)


def test_the_readmes_plugin_builds(tmp_path):
    text = (SOURCE / "README.md").read_text()
    source = re.search(r"```cpp\n(.*?)```", text, re.S)[1]
    (tmp_path / "halving.cpp").write_text(source)
    include = [f"-I{SOURCE / 'core/include'}", f"-I{BUILD / 'include'}"]
    subprocess.run(["g++", "-std=c++20", "-fsyntax-only", *include, tmp_path / "halving.cpp"], check=True)


def test_no_dependency_points_the_wrong_way():
    """Plugins include only the SDK, and the core refers to no plugin by name."""
    for file in (SOURCE / "plugins").rglob("*.[ch]*"):
        for header in re.findall(r"#include [<\"](dsv3/\w+)/", file.read_text()) if file.suffix in (".h", ".cpp") else []:
            assert header in ("dsv3/sdk", "dsv3/support"), (file, header)
    names = {f.name for f in (SOURCE / "plugins").glob("*/*/")} - {"none", "text", "tokens", "bytes", "constant", "single"}
    for file in [*(SOURCE / "core/src").rglob("*.cpp"), *(SOURCE / "core/src").rglob("*.h")]:
        quoted = set(re.findall(r'"(\w+)["/]', file.read_text()))  # matches "mla" and metrics such as "moe/load_max"
        assert not quoted & names, (file, quoted & names)


def test_the_core_calls_components_through_the_wrapper():
    """call() adds the component's name to exceptions from a plugin. A direct call would not."""
    rows = re.findall(r"^  ROW\((\w+), (\w+),", (SOURCE / "core/include/dsv3/sdk/kinds.h").read_text(), re.M)
    wrapped = {"position", "tokenizer"}  # core/src/call/guarded.cpp
    assert len(rows) > 9 and wrapped < {kind for kind, _ in rows}
    for kind, interface in rows:
        header = (SOURCE / f"core/include/dsv3/sdk/{kind}.h").read_text()
        body = header[re.search(rf"^class {interface} ", header, re.M).start():]
        methods = set(re.findall(r"^  virtual [^~(]*?(\w+)\(", body, re.M))
        assert methods, kind
        direct = re.compile(rf"\b(?:{kind}|layer)_?(?:\.|->)(?:{'|'.join(methods)})\(")
        for file in (SOURCE / "core/src").rglob("*.cpp"):
            if kind not in wrapped and file.parent.name not in ("call", "conformance"):
                assert not (found := direct.findall(file.read_text())), (file, found)
