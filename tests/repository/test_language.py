"""No text that a reader sees uses a phrase of the glossary's left column: documents, help, messages, comments."""

import re
import subprocess
import sys

import pytest

import glossary
import project
from project import BUILD, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import prose  # noqa: E402

COMMENTED = {".yaml", ".toml", ".txt", ".in"}  # only their comments are prose
FOLDERS = ["core", "plugins", "tools", "tests", "experiments", "documents", "others"]


def test_every_pattern_finds_what_it_is_for():
    for entry in glossary.GLOSSARY:
        for text in entry.wrong:
            assert entry.matches(text), f"'{text}' should be replaced: {entry.instead}"
        for text in entry.right:
            assert not entry.matches(text), f"'{text}' is fine, but was found: {entry.instead}"


def test_passages_are_whole_texts(tmp_path):
    source = tmp_path / "a.cpp"
    source.write_text('// one\n// comment\nint a;  ///< x\nint b;  ///< y\n'
                      'Error("cannot read " + path +\n      ": no such"  // a remark\n'
                      '      " file", "next: \\"b\\"");\n'
                      'f(R"(raw // text\nof two lines)", 1\'000, \'"\');\n')
    assert [(p.line, p.kind, p.text.strip()) for p in prose.passages(source)] == [
        (1, "comment", "one comment"), (3, "comment", "x"), (4, "comment", "y"),
        (5, "message", "cannot read {path}: no such file"), (6, "comment", "a remark"),
        (7, "message", 'next: "b"'), (8, "message", "raw // text\nof two lines")]
    (message,) = [p for p in prose.passages(source) if p.text.startswith("cannot")]
    assert message.line_at(message.text.index("no such")) == 6
    assert prose.passages(source)[-1].line_at(12) == 9
    script = tmp_path / "a.py"
    script.write_text('"""What\nit does."""\nfail(f"cannot read {path}: "\n     "no such file")  # why\n# because\n')
    assert [(p.line, p.kind, p.text.strip()) for p in prose.passages(script)] == [
        (1, "comment", "What\nit does."), (3, "message", "cannot read {path}: no such file"), (4, "comment", "why"),
        (5, "comment", "because")]


def without_glossary_tables(text):
    """A Markdown text without tables that list words to avoid; lines stay where they are."""
    lines, avoids = text.split("\n"), False
    for i, line in enumerate(lines):
        if not line.lstrip().startswith("|"):
            avoids = False
            continue
        first = re.sub(r"[*_`]", "", line.strip().strip("|").split("|")[0]).strip().lower()
        if re.match(r"\|[\s:|-]+\|$", (lines[i + 1] if i + 1 < len(lines) else "").strip()):
            avoids = first in {"not", "instead of", "avoid", "do not write", "don't write", "rather than"}
        if avoids:
            lines[i] = ""
    return "\n".join(lines)


def test_only_glossary_tables_are_exempt():
    text = without_glossary_tables("goes on\n"
                                   "| not | but |\n| --- | --- |\n| goes on | resumes |\n\n"
                                   "| key | text |\n| --- | --- |\n| a | tells |\n")
    assert [words for _, words, _ in glossary.findings(text)] == ["goes on", "tells"]


def findings_of_text(name, text):
    return [report(f"{name}:{text.count(chr(10), 0, start) + 1}", text, start, words, instead)
            for start, words, instead in glossary.findings(text)]


def report(place, text, start, words, instead):
    before, after = text[max(0, start - 40):start], text[start:start + 60]
    return f"{place}: '{words}': write: {instead}\n      ...{' '.join((before + after).split())}..."


def findings_of_file(path):
    if path.suffix == ".md":
        return findings_of_text(path, without_glossary_tables((ROOT / path).read_text()))
    found = []
    for passage in prose.passages(ROOT / path):
        if passage.kind == "message" and path.suffix in COMMENTED:
            continue
        found += [report(f"{path}:{passage.line_at(start)}", passage.text, start, words, instead)
                  for start, words, instead in glossary.findings(passage.text)]
    return found


def folder_of(path):
    if path.suffix == ".md":
        return "documents"
    return path.parts[0] if path.parts[0] in FOLDERS else "others"


def has_prose(path):
    name = path.as_posix()
    if name in {"tests/repository/glossary.py", "tests/repository/test_language.py"}:
        return False
    if name.startswith(("tests/errors/golden/", "tests/fuzz/corpus/", "tests/fuzz/regressions/")):
        return False  # messages that are in the source as well, and random input
    return project.is_source(path) or path.suffix in COMMENTED | {".md"}


def fail_on(found):
    if found:
        title = f"{len(found)} phrases that the glossary replaces (tests/repository/glossary.py)"
        pytest.fail(title + "\n" + "\n".join(found), pytrace=False)


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_follow_the_glossary(folder):
    paths = [path for path in project.files() if folder_of(path) == folder and has_prose(path)]
    assert paths, f"no file in {folder}"
    fail_on([line for path in paths for line in findings_of_file(path)])


def help_pages(*words):
    """(command, its help) of a program and all its subcommands."""
    command = [BUILD / "bin" / words[0], *words[1:], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(words)} --help failed: {done.stderr}"
    yield " ".join(words), done.stdout
    section = ""
    for line in done.stdout.splitlines():
        if heading := re.fullmatch(r"(\w[\w ]*):", line):
            section = heading[1].lower()
        elif "command" in section and (name := re.match(r"  ([a-z][\w-]*)(?:  |$)", line)):
            yield from help_pages(*words, name[1])


def test_help_follows_the_glossary():
    pages = dict([*help_pages("dsv3-run"), *help_pages("dsv3")])
    assert len(pages) >= 10, f"help pages were not found, only {', '.join(pages)}"
    fail_on([line for command, text in pages.items() for line in findings_of_text(f"{command} --help", text)])


def test_sample_language_draws_passages():
    command = [sys.executable, ROOT / "tools/sample-language", "--seed", "1", "--count", "6"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    places = re.findall(r"^ +\d\. (\S+):(\d+) \((?:comment|message)\)$", done.stdout, re.M)
    assert len(places) == 6, done.stdout
    for file, line in places:
        assert int(line) <= len((ROOT / file).read_text().splitlines())
