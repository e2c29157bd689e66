"""The phrases that this project does not use, as regular expressions, each with sentences that test it."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True)
class Entry:
    instead: str  # what to write
    pattern: re.Pattern
    allowed: re.Pattern  # idioms: a match of `pattern` inside one is fine
    wrong: tuple  # texts that the pattern must match
    right: tuple  # texts that it must not match

    def matches(self, text):
        idioms = [match.span() for match in self.allowed.finditer(text)]
        return [match for match in self.pattern.finditer(text)
                if not any(start <= match.start() and match.end() <= end for start, end in idioms)]


def entry(instead, *alternatives, wrong, right=(), allowed=()):
    def compiled(patterns):
        # A space in a pattern also matches the line break of a wrapped paragraph.
        return re.compile("|".join(patterns).replace(" ", r"\s+") or r"(?!)", re.I)
    return Entry(instead, compiled(alternatives), compiled(allowed), tuple(wrong), tuple(right))


BE = r"(?:is|are|was|were|be|been|being)"
RUNS = r"(?:runs?|process|processes|programs?|ranks?|child|children)"

GLOSSARY = [
    entry("resumes, resume a run",
          r"\b(?:go|goes|going|went|gone) on\b(?! (?:the|a|an|top|disk|one)\b)",
          wrong=["dsv3-run --run_id RUN to go on", "a run goes on with its settings", "Going on would repeat text"],
          right=["the label goes on the axis", "what goes on top of the stack"]),
    entry("initial weights (or values)",
          r"\bfirst (?:values|weights)\b",
          wrong=["the seed of first weights", "first values are drawn"],
          right=["the first value", "the first weight of a group"]),
    entry("synthetic data",
          r"\bmade (?:data|tokens|texts?|documents)\b",
          wrong=["trains on made data", "made tokens"],
          right=["made of data"]),
    entry("is reported, reports, prints",
          r"\btells\b", rf"\b{BE} told\b",
          wrong=["every mistake is told at once", "the log tells when"],
          right=["tell the loader", "as told"],
          allowed=[rf"\b{BE} told (?:to|apart)\b"]),
    entry("after",
          r"\bbehind\b",
          wrong=["MTP modules behind them", "a space behind its =", "a group comes behind one that takes all"],
          right=["files left behind", "leaves no process behind", "a fix behind a flag", "behind the scenes",
                 "ranks fall behind", "behind a proxy"],
          allowed=[r"\b(?:leave|leaves|leaving|left|fall|falls|falling|fell|lag|lags|lagging|stay|stays)"
                   r" (?:\S+ ){0,3}behind\b",
                   r"\bbehind (?:(?:a|an|the|its|their) )?(?:call |load )?(?:guards?|flags?|proxy|firewall|balancer"
                   r"|locks?|mutex|interfaces?|switch|scenes|wrappers?)\b"]),
    entry("already exists, not found",
          rf"\b(?:{BE} not|isn't|aren't|already) there\b", r"\bthere already\b",
          rf"\b(?:if|when|where|once|unless|until) (?:it|they|one|the \w+|a \w+) {BE} there\b",
          wrong=["hf is there already; name a new folder", "library libx.so is not there", "go on if it is there"],
          right=["there is not enough memory", "is there a GPU?", "already exists"]),
    entry("cannot determine, unspecified",
          r"\bnobody (?:can|could) (?:say|tell|know)\b", r"\bno word (?:about|of|on)\b",
          wrong=["nobody can say which", "no word about the layout"],
          right=["nobody can read it", "no words"]),
    entry("is in, belongs to",
          r"\b(?:stand|stands|stood|standing) in\b(?! (?:for|the way)\b)",
          wrong=["texts stand in quotes", "a machine default stands in an experiment"],
          right=["stands in for a real server", "a stand-in"]),
    entry("rewrites, permutes",
          r"\b(?:lay|lays|laid|laying) (?:\w+ ){0,3}(?:down|anew)\b",
          wrong=["lays down anew", "weights are laid down", "lays the matrix anew"],
          right=["laid out", "layers down"]),
    entry("rejects",
          r"\b(?:say|says|said|saying) no\b(?=\s*(?:$|[.,;:)]|(?:to|and|or)\b))", r"\brefus(?:e|es|ed|ing|als?)\b",
          wrong=["a format says no to all that it cannot express", "the loader refuses it", "refusals"],
          right=["connection refused", "dsv3 refuses to start", "says nothing", "says no more"],
          allowed=[r"\bconnections? (?:is |was )?refused\b", r"\brefus(?:e|es|ed|ing) to\b"]),
    entry("must be at most (at least)",
          r"\bmust not be (?:more|less|larger|smaller|greater|longer|shorter|fewer|higher|lower) than\b",
          wrong=["must not be more than 4"],
          right=["must be at most 4"]),
    entry("its own number (word, id, ...)",
          r"\ba (?:number|word|fate|text|log|block) of (?:its|their|his|her) own\b", r"\ban id of their own\b",
          wrong=["has a number of its own", "a log of their own"],
          right=["its own number", "on its own", "a plugin of your own"]),
    entry("bit-identical",
          r"\bsame bits\b",
          wrong=["gives the same bits"],
          right=["bit-identical", "the same bit width"]),
    entry("installs missing packages",
          r"\bwhat is missing is\b",
          wrong=["what is missing is installed"],
          right=["what is missing"]),
    entry("a user error, an invalid configuration",
          r"\bmistakes? (?:of (?:the|a) users?|that users? makes?)\b", r"\busers?['\u2019]s? mistakes?\b",
          wrong=["a mistake of the user", "the user's mistake", "mistakes that users make"],
          right=["by mistake"]),
    entry("change one word",
          r"\b(?:swap|swaps|swapped|swapping) (?:a|one|the|that|another) words?\b",
          wrong=["swap a word"],
          right=["swaps a layer"]),
    entry("held-out set, saved",
          r"\b(?:hold|holds|holding|held) out\b", r"\bkept (?:checkpoints?|runs?|files?)\b",
          rf"\b(?:checkpoints?|runs?|files?|weights) {BE} kept\b",
          wrong=["documents are held out", "the kept checkpoints", "two checkpoints are kept"],
          right=["the held-out set", "is kept in memory"]),
    entry("a run that crashed (or was killed)",
          rf"\b{RUNS}(?: that| which)? (?:died|dies|die)\b",
          wrong=["a run that died", "when the process dies"],
          right=["a run that crashed"]),
    # Odd phrases outside the glossary that were as common.
    entry("requested by, named in",
          r"\basked for by\b",
          wrong=["asked for by tiny.yaml"],
          right=["asked for"]),
    entry("returned",
          r"\bgave back\b",
          wrong=["the plugin gave back an empty tensor"],
          right=["gives memory back"]),
    entry("is not a",
          rf"\b{BE} no\b(?! (?:more|less|longer|other|such|need|way|doubt|matter|better|worse|different|larger|smaller"
          r"|slower|faster|reason|conflict|fault|change)\b)",
          wrong=["match is no regular expression", "that is no std::exception"],
          right=["there is no command", "is no longer read", "there were no such file"],
          allowed=[r"\bthere (?:is|are|was|were|will be|can be|must be) no\b", rf"\b{BE} no(?:$|[.,;:)])"]),
]


def findings(text):
    """(offset, matched words, what to write instead) of each match, in order."""
    return sorted((match.start(), " ".join(match[0].split()), one.instead)
                  for one in GLOSSARY for match in one.matches(text))
