"""Run the commands of docs/writing-a-plugin.md verbatim, and compare docs/plugins.md with the schemas."""

import re

from conftest import BUILD, SOURCE, run


def test_the_tutorial_works_as_written(prefix, tmp_path):
    text = (SOURCE / "docs/writing-a-plugin.md").read_text()
    blocks = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```", text, re.M | re.S)
    assert [b[0] for b in blocks] == ["sh", "cpp", "sh", "sh", "sh", "sh", "cpp", "sh"]
    script = f"set -eu\nexport DSV3_PREFIX={prefix}\n"
    for i, (language, file, body) in enumerate(blocks):
        if language == "cpp":
            (tmp_path / str(i)).write_text(body)
            script += f"cp {tmp_path / str(i)} {file}\n"
        else:
            script += body
    (tmp_path / "work").mkdir()
    output = run("bash", "-c", script, cwd=tmp_path / "work")
    assert "feed_forward/squared" in output and "attention/sliding_window" in output
    paper = SOURCE / "tests/papers/sliding_window.cpp"  # tested there
    assert paper.read_text() in [body for _, _, body in blocks]


def test_the_list_of_plugins_matches_the_schemas(tmp_path):
    run("cmake", f"-DDSV3={BUILD / 'bin/dsv3'}", f"-DREGISTRY={BUILD / 'registries/builtin.toml'}",
        f"-DOUTPUT={tmp_path / 'plugins.md'}", "-P", SOURCE / "tools/programs/dsv3/PluginsMarkdown.cmake")
    assert (SOURCE / "docs/plugins.md").read_text() == (tmp_path / "plugins.md").read_text(), "ninja update_readmes"
