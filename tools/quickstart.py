"""Prepare the quick start's data: the King James Bible and a small byte-level BPE trained on it.

    quickstart.py FOLDER

Writes FOLDER/kjv.txt (one line per verse, one document per chapter, blank lines between documents),
FOLDER/tokenizer.json (2,048 tokens, GPT-2's split pattern) and FOLDER/about.json. Prints the text's unigram entropy
under that tokenizer: the loss of a model that predicts only token frequencies. Does nothing if the files are complete.
An interrupted run leaves no incomplete file.
"""

import collections
import hashlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys

VOCAB = 2048
END_OF_TEXT = "<|endoftext|>"
RECIPE = 1  # increase when this script's output changes
REFERENCE = re.compile(r"^(\S+?)(\d+):\d+ (.*)$")  # "1Sm12:3 And the ..."


def read_chapters():
    """Return the chapters in order, each a string with one verse per line."""
    if not pathlib.Path("/usr/bin/bible").exists():
        sys.exit("quickstart: error: /usr/bin/bible not found; run `tools/dev setup` to install Debian's bible-kjv")
    text = subprocess.run(["/usr/bin/bible", "-f", "gen1:1-rev22:21"], check=True, capture_output=True,
                          text=True, encoding="utf-8").stdout
    chapters = collections.OrderedDict()
    for line in text.splitlines():
        match = REFERENCE.match(line)
        if not match:
            sys.exit(f"quickstart: error: `bible` printed an unexpected line: {line[:80]!r}")
        book, chapter, verse = match.groups()
        chapters.setdefault((book, int(chapter)), []).append(verse.strip() + "\n")
    if len(chapters) != 1189:
        sys.exit(f"quickstart: error: `bible` printed {len(chapters)} chapters, not 1189")
    return ["".join(verses) for verses in chapters.values()]


def train_tokenizer(chapters):
    """Train a byte-level BPE. The same text and `tokenizers` wheel produce the same file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[END_OF_TEXT], show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(chapters, trainer)
    if tokenizer.get_vocab_size() != VOCAB:
        sys.exit(f"quickstart: error: the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCAB}")
    return tokenizer


def unigram_entropy(tokenizer, chapters):
    """Return the token count and the unigram entropy in nats per token, with an end-of-text token per document."""
    counts = collections.Counter()
    for encoding in tokenizer.encode_batch(chapters):
        counts.update(encoding.ids)
    counts[tokenizer.token_to_id(END_OF_TEXT)] += len(chapters)
    total = sum(counts.values())
    return total, -sum(n / total * math.log(n / total) for n in counts.values())


def write_atomically(path, text):
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def is_done(folder):
    """Return whether the files match the digests in about.json, which is written last."""
    try:
        about = json.loads((folder / "about.json").read_text())
        return about["recipe"] == RECIPE and all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
            for name, digest in about["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def prepare(folder):
    chapters = read_chapters()
    tokenizer = train_tokenizer(chapters)
    tokens, entropy = unigram_entropy(tokenizer, chapters)
    files = {"kjv.txt": "\n".join(chapters), "tokenizer.json": tokenizer.to_str(pretty=True) + "\n"}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_atomically(folder / name, text)
    about = {"recipe": RECIPE, "documents": len(chapters), "tokens": tokens, "unigram_entropy": entropy,
             "sha256": {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}}
    write_atomically(folder / "about.json", json.dumps(about, indent=2) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    if not is_done(folder):
        print(f"quickstart: preparing the King James text and its tokenizer in {folder}", file=sys.stderr)
        prepare(folder)
    about = json.loads((folder / "about.json").read_text())
    print(f"quickstart: {about['documents']} documents, {about['tokens']} tokens, "
          f"unigram entropy {about['unigram_entropy']:.4f} nats per token", file=sys.stderr)


if __name__ == "__main__":
    main()
