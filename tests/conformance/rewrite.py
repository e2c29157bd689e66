"""Rewrites C++ source code by matching token patterns.

A pattern is C++ code in which `$name` matches any expression: balanced tokens without a comma or semicolon outside
brackets. If a pattern contains a name twice, both occurrences must match the same tokens. Matching ignores whitespace
and comments. Patterns therefore still match after the source is reformatted or a variable is renamed.
"""

import re

TOKEN = re.compile(r"""//[^\n]* | /\*.*?\*/ | (?P<token>
    "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])+' | \$?\w+ | :: | -> | \+\+ | -- | && | \|\| | [-+*/!<>=]= | \S )""",
                   re.X | re.S)
OPENING, CLOSING = "([{", ")]}"


def tokens_of(text):
    """Return (token, begin, end) for each token."""
    return [(m["token"], m.start(), m.end()) for m in TOKEN.finditer(text) if m["token"]]


def matched(tokens, at, pattern, names):
    """Match the pattern at token `at`. Return the index after the match and the tokens bound to each name, or None."""
    if not pattern:
        return at, names
    first, rest = pattern[0], pattern[1:]
    if not first.startswith("$"):
        return matched(tokens, at + 1, rest, names) if tokens[at:at + 1] == [first] else None
    if first in names:
        end = at + len(names[first])
        return matched(tokens, end, rest, names) if tokens[at:end] == names[first] else None
    depth = 0
    for end in range(at, len(tokens)):
        depth += (tokens[end] in OPENING) - (tokens[end] in CLOSING)
        if depth < 0 or depth == 0 and tokens[end] in ",;":
            return None
        if depth == 0 and (found := matched(tokens, end + 1, rest, {**names, first: tokens[at:end + 1]})):
            return found
    return None


def matches(text, pattern, names):
    """Return (begin, end, names) for each match. If several matches have the same end, keep only the shortest."""
    tokens = tokens_of(text)
    words, pattern = [t[0] for t in tokens], [t[0] for t in tokens_of(pattern)]
    by_end = {}
    for at in range(len(words)):
        if found := matched(words, at, pattern, names):
            by_end[found[0]] = (tokens[at][1], tokens[found[0] - 1][2], found[1])
    return list(by_end.values())


def rewrite(sources, edits):
    """Apply (pattern, replacement) edits to `sources` {file: text} and return the changed files.

    Each pattern must match exactly once across all files. Later edits can use names bound by earlier ones.
    """
    sources, names, changed = dict(sources), {}, {}
    for pattern, replacement in edits:
        found = [(file, *match) for file, text in sources.items() for match in matches(text, pattern, names)]
        places = [f"{file}:{sources[file].count(chr(10), 0, begin) + 1}" for file, begin, *_ in found]
        assert len(found) == 1, f"pattern must match exactly once, but has {len(found)} matches {places}: {pattern}"
        [(file, begin, end, names)] = found
        text = re.sub(r"\$\w+", lambda name: " ".join(names[name[0]]), replacement)
        changed[file] = sources[file] = sources[file][:begin] + text + sources[file][end:]
    return changed
