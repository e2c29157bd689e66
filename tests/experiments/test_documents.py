"""What the documents say of the tree is true."""

import re
import subprocess

from support import BUILD, RUN, SOURCE


def test_every_file_of_the_design_is_there():
    table = re.findall(r"^\| [^|]+ \| ([\w/.]+\.\w+) \|$", (SOURCE / "docs/design.md").read_text(), re.M)
    assert len(table) > 20
    assert [f for f in table if not (SOURCE / f).is_file()] == []


def test_every_link_of_the_documents_leads_somewhere():
    for document in [SOURCE / "README.md", SOURCE / "CONTRIBUTING.md", *(SOURCE / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)


def test_the_readme_names_every_plugin():
    text = (SOURCE / "README.md").read_text()
    for folder in (SOURCE / "plugins").glob("*/*/"):
        assert f"(plugins/{folder.parent.name}/{folder.name}/README.md)" in text


def test_the_readmes_commands_run(tmp_path):
    """Those that neither install nor train for long; the rest is what this suite and its build are."""
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
    """Plugins see the SDK only; the core names no plugin."""
    for file in (SOURCE / "plugins").rglob("*.[ch]*"):
        for header in re.findall(r"#include [<\"](dsv3/\w+)/", file.read_text()) if file.suffix in (".h", ".cpp") else []:
            assert header in ("dsv3/sdk", "dsv3/support"), (file, header)
    names = {f.name for f in (SOURCE / "plugins").glob("*/*/")} - {"none", "text", "tokens", "bytes", "constant", "single"}
    for file in (SOURCE / "core/src").rglob("*.cpp"):
        quoted = set(re.findall(r'"(\w+)"', file.read_text()))
        assert not quoted & names, (file, quoted & names)
