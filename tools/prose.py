"""Finds the prose in source files: comments and messages, with their line numbers.

A passage is one comment, however many lines it spans, or one message, however many adjacent literals it is written as.
`"cannot read " + path + ": no such file"` is a single message, "cannot read {path}: no such file".
"""

import ast
import bisect
import io
import pathlib
import re
import tokenize

CPP = {".cpp", ".h", ".cu"}


class Passage:
    """A comment or message. `pieces` are (line, text) pairs in order."""

    def __init__(self, path, kind, pieces):
        self.path, self.kind = path, kind
        self.text, self._starts, self._lines = "", [], []
        for line, text in pieces:
            self._starts.append(len(self.text))
            self._lines.append(line)
            self.text += text
        self.line = self._lines[0]

    def line_at(self, offset):
        """Returns the number of the source line that contains `text[offset]`."""
        return self._lines[bisect.bisect_right(self._starts, offset) - 1]

    def __repr__(self):
        return f"{self.path}:{self.line}: {self.kind}: {self.text}"


def passages(path):
    """Returns all passages in a source file, in line order."""
    text = path.read_text(errors="replace")
    language = path.with_suffix("").suffix if path.suffix == ".in" else path.suffix
    if path.name == "CMakeLists.txt":
        language = ".cmake"
    elif not language and text.startswith("#!"):
        language = ".py" if "python" in text.partition("\n")[0] else ".sh"
    if language == ".py":
        return _python(path, text)
    if language in CPP:
        return _cpp(path, text)
    return _hash_comments(path, text, language in {".sh", ".cmake"})


def _line_counter(text):
    starts = [0] + [m.end() for m in re.finditer("\n", text)]
    return lambda offset: bisect.bisect_right(starts, offset)


# --- C++ --------------------------------------------------------------------------------------------------------------

_CPP_TOKEN = re.compile(r"""
    (?P<line_comment> //[^\n]*)
  | (?P<block_comment> /\*.*?\*/)
  | (?P<raw> (?:u8|[uUL])?R"(?P<delimiter>[^()\\\s]{0,16})\((?P<content>.*?)\)(?P=delimiter)")
  | (?P<string> (?:u8|[uUL])?"(?:[^"\\\n]|\\.)*")
  | (?P<char> '(?:[^'\\\n]|\\.)+')
  | (?P<include> ^[ ]*\#[ ]*include[^\n]*)
""", re.X | re.S | re.M)
_DIGIT_SEPARATOR = re.compile(r"(?<=\d)'(?=\d)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", '"': '"', "'": "'", "\\": "\\"}


def _unescape(text):
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), text, flags=re.S)


def _cpp(path, text):
    text = _DIGIT_SEPARATOR.sub("_", text)  # the quote in 1'000 does not start a character literal
    line_of = _line_counter(text)
    comments, literals = [], []
    for token in _CPP_TOKEN.finditer(text):
        start, line = token.start(), line_of(token.start())
        if token["line_comment"] or token["block_comment"]:
            line_start = text.rfind("\n", 0, start) + 1
            comments.append((line, start - line_start, not text[line_start:start].strip(), token[0]))
        elif token["raw"]:
            first = line_of(token.start("content"))
            lines = token["content"].splitlines(keepends=True) or [""]
            literals.append((start, token.end(), [(first + i, text) for i, text in enumerate(lines)]))
        elif token["string"]:
            literals.append((start, token.end(), [(line, _unescape(token[0].partition('"')[2][:-1]))]))
    # Comments between a message's literals are not part of the message.
    code = _CPP_TOKEN.sub(lambda m: " " * len(m[0]) if m["line_comment"] or m["block_comment"] else m[0], text)
    found = [Passage(path, "comment", pieces) for pieces in _joined_comments(comments, _cpp_comment)]
    found += [Passage(path, "message", pieces) for pieces in _joined_literals(literals, code)]
    return sorted(found, key=lambda p: p.line)


def _cpp_comment(text):
    if text.startswith("/*"):
        return [re.sub(r"^\s*\*+ ?", "", line).strip() for line in text[2:-2].split("\n")]
    return [re.sub(r"^//+[!<]*", "", text).strip()]


def _joined_comments(comments, clean):
    """Merges comments on consecutive lines that start in the same column, and yields the pieces of each.

    A comment after code starts a new passage, because aligned comments on a struct's fields are separate passages.
    """
    groups, last_line, last_column = [], None, None
    for line, column, alone, text in comments:
        pieces = [(line + i, part + " ") for i, part in enumerate(clean(text))]
        if alone and last_line == line - 1 and last_column == column:
            groups[-1] += pieces
        else:
            groups.append(pieces)
        last_line, last_column = pieces[-1][0], column
    for pieces in groups:
        pieces = [(line, text) for line, text in pieces if text.strip()]
        if pieces:
            yield pieces


def _joined_literals(literals, code):
    """Merges literals that one expression concatenates; replaces computed parts with {placeholders}."""
    pieces, end = [], None
    for start, stop, parts in literals:
        line = parts[0][0]
        placeholder = _concatenation(code[end:start]) if pieces else None
        if placeholder is None:
            if pieces:
                yield _completed(pieces, code, end)
            pieces = [(line, "{...}")] if code[:start].rstrip().endswith("+") else []
        elif placeholder:
            pieces.append((line, "{" + placeholder + "}"))
        pieces += parts
        end = stop
    if pieces:
        yield _completed(pieces, code, end)


def _completed(pieces, code, end):
    """Appends {...} to a message that ends with a computed part."""
    return pieces + ([(pieces[-1][0], "{...}")] if re.match(r"\s*\+", code[end:end + 200]) else [])


def _concatenation(code):
    """Returns the expression between two literals, or None if they belong to different messages.

    `+ name +` joins two literals into one message. So do `+ (many ?` and `:`, which choose between two literals. A
    comma or semicolon separates messages.
    """
    code = code.strip()
    joins = re.fullmatch(r"(?:\)*\s*[+:]|\?)(.*?)(?:[+?:]\s*\(*)?", code, re.S)
    if code and (not joins or (joins[1].strip() and code[-1] not in "+?:(")):
        return None
    depth = 0
    for c in code:
        depth += (c in "([") - (c in ")]")
        if c in ";{}" or (c == "," and depth <= 0):
            return None
    return "|" if code == ":" else " ".join(code.strip("+?:() ").split())


# --- Python -----------------------------------------------------------------------------------------------------------

def _python(path, text):
    tree = ast.parse(text)
    found = []
    docstrings = {id(node) for node in _docstrings(tree)}
    inside = set()  # strings that belong to a message already found
    for node in ast.walk(tree):  # yields parents before their children
        if id(node) in inside or not (_is_string(node) or _is_concatenation(node)):
            continue
        inside.update(id(child) for child in ast.walk(node))
        kind = "comment" if id(node) in docstrings else "message"
        lines = re.findall(r".*\n|.+", _rendered(node))
        # A string that spans several source lines is triple-quoted, or joined from literals without line breaks.
        pieces = [(min(node.lineno + i, node.end_lineno), line) for i, line in enumerate(lines)]
        if pieces:
            found.append(Passage(path, kind, pieces))
    comments = [(*token.start, not token.line[:token.start[1]].strip(), token.string)
                for token in tokenize.generate_tokens(io.StringIO(text).readline)
                if token.type == tokenize.COMMENT and not token.string.startswith("#!")]
    found += [Passage(path, "comment", pieces) for pieces in _joined_comments(comments, _hash_comment)]
    return sorted(found, key=lambda p: p.line)


def _is_string(node):
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_concatenation(node):
    return isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)) and any(
        _is_string(side) or _is_concatenation(side) for side in (node.left, node.right))


def _rendered(node):
    """Returns the text of a string expression, with {placeholders} for the computed parts."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_rendered(part.value if isinstance(part, ast.FormattedValue) else part) for part in node.values)
    if _is_concatenation(node):
        return _rendered(node.left) + (_rendered(node.right) if isinstance(node.op, ast.Add) else "")
    return "{" + ast.unparse(node) + "}"


def _docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and _is_string(first.value):
                yield first.value


# --- shell, CMake, YAML, TOML, requirements --------------------------------------------------------------------------

_QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*\"""")
# Outside quotes, a '#' starts a comment at the start of a line or after whitespace.
_QUOTED_OR_COMMENT = re.compile(_QUOTED.pattern + r"|(?:^|(?<=\s))#")


def _hash_comments(path, text, has_messages):
    comments, found, here_document = [], [], None
    for line, content in enumerate(text.split("\n"), 1):
        if here_document:
            if content.strip() == here_document:
                here_document = None
            elif content.strip():
                found.append(Passage(path, "message", [(line, content)]))
            continue
        code = content
        for token in _QUOTED_OR_COMMENT.finditer(content):
            if token[0] == "#":
                if not content.startswith("#!"):
                    comments.append((line, token.start(), not content[:token.start()].strip(), content[token.start():]))
                code = content[:token.start()]
                break
        if has_messages:
            found += [Passage(path, "message", [(line, token[0][1:-1])]) for token in _QUOTED.finditer(code)]
            if start := re.search(r"(?<!<)<<-?\s*['\"]?([A-Z_]+)\b", code):
                here_document = start[1]
    found += [Passage(path, "comment", pieces) for pieces in _joined_comments(comments, _hash_comment)]
    return sorted(found, key=lambda p: p.line)


def _hash_comment(text):
    return [text.lstrip("# ").strip()]
