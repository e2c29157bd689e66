"""Finds which folders in core/src include each other. A public header belongs to the folder that implements it.

"config/layers.h" belongs to folder config. <dsv3/sdk/error.h> belongs to folder sdk, as does every SDK header, because
plugins and the core share the SDK no matter which folder implements it. <dsv3/runtime/plugins.h> and
<dsv3/support/fs.h> belong to the folder with the .cpp files that define the functions they declare. The graph compares
declarations with definitions to find that folder, so new headers need no registration. A header without functions that
are defined elsewhere (structs, interfaces, templates) belongs to no folder and adds no edge.
"""

import collections
import functools
import pathlib
import re

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([\w./]+)"|<(dsv3/[\w./]+)>)', re.M)
NOT_CODE = re.compile(r"""//[^\n]*|/\*.*?\*/|(?<!\w)R"\w*\(.*?\)\w*"|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)+'"""
                      r"|^[ \t]*#(?:\\\n|[^\n])*", re.S | re.M)
GENERATED = "dsv3/sdk/version.h"
NAME_BEFORE_PARENTHESIS = re.compile(r"(~?\b\w+|operator\W{1,3})\s*\(")
QUALIFIED_BEFORE_PARENTHESIS = re.compile(r"((?:\w+::)*(?:~?\b\w+|operator\W{1,3}))\s*\(")


def blanked(text):
    """Remove comments, literals and preprocessor lines from the code, but keep its line breaks."""
    return NOT_CODE.sub(lambda m: "\n" * m[0].count("\n") or " ", re.sub(r"(?<=\d)'(?=\d)", "", text))


def statements(text):
    """Yield (scope, text, ending) for every statement outside function bodies. `scope` is the innermost class or ''."""
    scopes, start, depth = [], 0, 0  # depth: of parentheses
    for token in re.finditer(r"[(){};]", text):
        c, head = token[0], text[start:token.start()].strip()
        if c in "()":
            depth += 1 if c == "(" else -1
            continue
        if depth:
            continue  # a default argument such as std::vector<int>{}
        scope = next((s for s in reversed(scopes) if s is not None), "")
        outside = None not in scopes
        if outside and head:
            yield scope, head, c
        if c == "{":
            named = re.search(r"\b(?:class|struct|union)\s+(?:\[\[\w+\]\]\s*)?(\w+)[^()]*$", head)
            inside_namespace = re.search(r"\b(?:namespace\b|extern\b)[^()]*$", head)
            scopes.append(named[1] if named and "enum" not in head else "" if inside_namespace else None)
        elif c == "}" and scopes:
            scopes.pop()
        start = token.end()


def declared(text):
    """Return the functions declared without a body, as 'name' or 'Class::name'."""
    names = set()
    for scope, head, ending in statements(blanked(text)):
        if ending != ";" or re.search(r"=\s*(?:0|default|delete)$|^\s*(?:using|friend|typedef|template)\b", head):
            continue
        head = re.sub(r"^(?:public|private|protected)\s*:", "", head).strip()
        name = NAME_BEFORE_PARENTHESIS.search(head)
        if name and "=" not in head[:name.start()]:
            names.add(f"{scope}::{name[1]}" if scope else name[1])
    return names


def defined(text):
    """Return the functions that a .cpp file defines, as 'name' or 'Class::name'."""
    names = set()
    for scope, head, ending in statements(blanked(text)):
        name = QUALIFIED_BEFORE_PARENTHESIS.search(head)
        if not name or not (ending == "{" or re.search(r"::.*=\s*default$", head, re.S)):
            continue
        *qualifiers, function = name[1].split("::")
        owner = scope or (qualifiers[-1] if qualifiers and qualifiers[-1][0].isupper() else "")  # not a namespace
        names.add(f"{owner}::{function}" if owner else function)
    return names


class Graph:
    def __init__(self, core):
        self.source = core / "src"
        self.public = core / "include"
        self.files = sorted(p for p in [*self.source.rglob("*"), *self.public.rglob("*")] if p.suffix in {".h", ".cpp"})
        self.text = {p: p.read_text() for p in self.files}
        self.outside = []  # includes of project files that are not below core/src or core/include
        self.shared = {}  # public header -> the folders that implement it, for headers implemented in several
        self.owner = {p: self._owner(p) for p in self.files}
        self.edges = self._edges()

    def _folder(self, path):
        parts = path.relative_to(self.source).parts
        return parts[0] if len(parts) > 1 else None

    @functools.cached_property
    def _definitions(self):
        """Map each function name to the .cpp files that define it."""
        found = collections.defaultdict(set)
        for path in self.files:
            if path.suffix == ".cpp":
                for name in defined(self.text[path]):
                    found[name].add(path)
        return found

    @functools.cache
    def _includes(self, path):
        """Return (line, file) for every core file that a file includes directly."""
        found = []
        for match in INCLUDE.finditer(self.text[path]):
            candidates = [self.source / match[1], path.parent / match[1]] if match[1] else [self.public / match[2]]
            line = self.text[path].count("\n", 0, match.end()) + 1
            included = next((candidate for candidate in candidates if candidate in self.text), None)
            if included:
                found.append((line, included))
            elif match[2] != GENERATED:
                self.outside.append(f"{self._name(path)}:{line} includes {match[1] or match[2]}")
        return found

    @functools.cache
    def _reachable(self, path):
        """Return all core files that a file includes, directly or indirectly."""
        found, open_files = set(), [path]
        while open_files:
            for _, file in self._includes(open_files.pop()):
                if file not in found:
                    found.add(file)
                    open_files.append(file)
        return found

    def _implementers(self, header):
        """Count how many functions of a public header each folder defines."""
        votes = collections.Counter()
        for name in declared(self.text[header]):
            # Two folders may define functions with the same name. Only a file that includes the header can define the
            # header's functions.
            files = [f for f in self._definitions[name] if header in self._reachable(f)]
            direct = [f for f in files if header in {file for _, file in self._includes(f)}]
            votes.update({self._folder(f) for f in direct or files})
        return votes

    def _owner(self, path):
        """Return the folder that a file belongs to, or None for a public header without functions defined elsewhere."""
        if path.is_relative_to(self.source):
            return self._folder(path)
        if path.parent.name == "sdk":
            return "sdk"
        votes = self._implementers(path).most_common()
        if len(votes) > 1:
            self.shared[path] = ", ".join(f"{folder} ({count})" for folder, count in votes)
        return votes[0][0] if votes else None

    def _edges(self):
        """Return source folder -> target folder -> lines 'file:line includes file' that form the edge."""
        edges = collections.defaultdict(lambda: collections.defaultdict(list))
        for path in self.files:
            source = self.owner[path]
            for line, file in self._includes(path):
                target = self.owner[file]
                if source and target and source != target:
                    edges[source][target].append(f"{self._name(path)}:{line} includes {self._name(file)}")
        return edges

    def _name(self, path):
        return str(path.relative_to(self.source.parents[1]))

    def cycles(self):
        """Return the shortest cycle through each folder, without duplicates, sorted by length."""
        found = {}
        for start in sorted(self.edges):
            cycle = self._shortest(start, start)
            if cycle:
                first = cycle.index(min(cycle))
                found[tuple(cycle[first:] + cycle[:first])] = None
        return sorted(found, key=lambda cycle: (len(cycle), cycle))

    def _shortest(self, start, goal):
        queue, before = collections.deque([start]), {}
        while queue:
            folder = queue.popleft()
            for target in sorted(self.edges.get(folder, ())):
                if target == goal:
                    path = [folder]
                    while path[-1] != start:
                        path.append(before[path[-1]])
                    return path[::-1]
                if target not in before and target != start:
                    before[target] = folder
                    queue.append(target)
        return None

    def described(self, cycle):
        """Format a cycle edge by edge, with the includes that form each edge."""
        lines = []
        for source, target in zip(cycle, cycle[1:] + cycle[:1]):
            includes = self.edges[source][target]
            lines.append(f"  {source} -> {target} by {len(includes)} include{'s' if len(includes) > 1 else ''}:")
            lines += [f"      {include}" for include in includes[:5]]
            lines += [f"      and {len(includes) - 5} more"] if len(includes) > 5 else []
        return "\n".join(lines)

    def drawing(self):
        """Format each folder on a line, followed by the folders that it includes."""
        return "\n".join(f"  {source:12} -> {' '.join(sorted(targets))}"
                         for source, targets in sorted(self.edges.items(), key=lambda item: -len(item[1])))
