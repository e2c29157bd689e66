"""Errors in text, tokenizers and token files."""

import json
import struct

from harness import GOLDEN, case, dsv3, dsv3_run, experiment, prepare_with
from support import header_hash


def with_data(folder, data, *words):
    """Train the tiny experiment on different data."""
    experiment(folder)
    return dsv3_run("tiny.yaml", f"data={data}", *words, "--run_name", "new")


TEXT = "{plugin: text, path: %s, tokenizer: {plugin: bytes}}"
TOKENS = "{plugin: tokens, path: %s, tokenizer: {plugin: bytes}}"


@case(4, "corpus/train.txt")
def data_missing(folder):
    """A text file that does not exist."""
    return with_data(folder, TEXT % "corpus/train.txt")


@case(4, "empty.txt", "empty")
def data_empty_file(folder):
    """An empty text file."""
    (folder / "empty.txt").touch()
    return with_data(folder, TEXT % "empty.txt")


@case(4, "corpus", ".txt", ".jsonl")
def data_empty_folder(folder):
    """A folder without text files."""
    (folder / "corpus").mkdir()
    (folder / "corpus/readme.md").write_text("no text here\n")
    return with_data(folder, TEXT % "corpus")


@case(4, "short.txt", "11 tokens", "sequence 48", "49", "train.sequence")
def data_too_small(folder):
    """A text file with fewer tokens than one row."""
    (folder / "short.txt").write_text("Too short.\n")
    return with_data(folder, TEXT % "short.txt")


@case(4, GOLDEN)
def data_empty_validation_split(folder):
    """A text file with a single document, which leaves none for validation."""
    (folder / "one.txt").write_text("one long line " * 500)
    return with_data(folder, TEXT % "one.txt")


@case(4, "corpus.txt.gz")
def data_compressed(folder):
    """A compressed text file."""
    (folder / "corpus.txt.gz").write_bytes(b"\x1f\x8b\x08\x00")
    return with_data(folder, TEXT % "corpus.txt.gz")


@case(4, "part.parquet", ".jsonl")
def data_parquet(folder):
    """Text in a Parquet file."""
    (folder / "part.parquet").write_bytes(b"PAR1")
    return with_data(folder, TEXT % "part.parquet")


@case(4, "docs.jsonl:10:1: no field", "50 of 50 documents", "'text'", "content, url", "`field`")
def data_jsonl_field(folder):
    """A JSON Lines file with the text in a different field."""
    (folder / "docs.jsonl").write_text("".join(json.dumps({"content": "word " * 40, "url": "x"}) + "\n" for _ in range(50)))
    return with_data(folder, TEXT % "docs.jsonl")


@case(4, GOLDEN)
def data_jsonl_broken(folder):
    """A JSON Lines file with an incomplete line."""
    lines = [json.dumps({"text": "word " * 40}) for _ in range(50)]
    lines[20] = lines[20][:60]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    experiment(folder)
    return dsv3("data", "prepare", "docs.jsonl", "--tokenizer", "bytes", "--output", "shards")


@case(2, "tokenizer: {plugin: bytes}", "`data`")
def data_no_tokenizer(folder):
    """Text without a tokenizer."""
    return with_data(folder, "{plugin: text, path: text.txt}", "data.tokenizer=null", "model.vocab=512")


@case(2, "model.vocab", "100", "257", "auto")
def data_vocabulary_too_small(folder):
    """A model.vocab smaller than the tokenizer's vocabulary."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "model.vocab=100", "--run_name", "new")


LETTERS = [chr(c) for c in range(33, 127)]
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": False, "byte_fallback": False, "vocab": {letter: i for i, letter in enumerate(LETTERS)}, "merges": []}}

TOKENIZERS = [
    # name, title, content of tokenizer.json, expected phrases
    ("not_json", "An incomplete tokenizer.json.", json.dumps(TOKENIZER)[:300], GOLDEN),
    ("sentencepiece", "A tokenizer.json with a Unigram model.",
     json.dumps(TOKENIZER | {"model": {"type": "Unigram", "vocab": []}}),
     "tokenizer.json", "model.type", "'Unigram'", "BPE"),
    ("not_byte_level", "A tokenizer.json with a BPE model that is not byte-level.",
     json.dumps(TOKENIZER | {"pre_tokenizer": {"type": "Whitespace"}}), "tokenizer.json", "pre_tokenizer.type", "'Whitespace'", "ByteLevel"),
    ("missing_bytes", "A tokenizer.json that lacks most of the 256 byte tokens.", json.dumps(TOKENIZER),
     "tokenizer.json", "model.vocab", "byte 0", "256"),
]


def tokenizer_case(name, title, content, phrases):
    @case(4, *phrases, name="tokenizer_" + name, title=title)
    def prepare(folder):
        (folder / "tokenizer.json").write_text(content)
        return with_data(folder, "{plugin: text, path: text.txt, tokenizer: {plugin: bpe, file: tokenizer.json}}")


for name, title, content, *phrases in TOKENIZERS:
    tokenizer_case(name, title, content, phrases)


@case(4, "data.tokenizer.file", "no such file", "tokenizer.json")
def tokenizer_missing(folder):
    """A tokenizer.json that does not exist."""
    return with_data(folder, "{plugin: text, path: text.txt, tokenizer: {plugin: bpe, file: tokenizer.json}}")


def shards(folder, *words):
    """Prepare shards with several thousand tokens each from the tiny experiment's text. Return their paths."""
    experiment(folder)
    prepare_with(folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "shards", "--shard-tokens", "8000",
              program="dsv3")
    return sorted((folder / "shards").glob("*.tokens"))


@case(4, GOLDEN)
def shard_truncated(folder):
    """An incomplete copy of a shard."""
    shard = shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:5000])
    return with_data(folder, TOKENS % "shards")


@case(4, "shards/shard-00000.tokens", "header")
def shard_damaged_header(folder):
    """A flipped bit in a shard's header."""
    shard = shards(folder)[0]
    content = bytearray(shard.read_bytes())
    content[17] ^= 4
    shard.write_bytes(content)
    (folder / "shards/index.json").unlink()  # otherwise its digest differs
    return with_data(folder, TOKENS % "shards")


@case(4, "shards/shard-00000.tokens", "document table", "SHA-256")
def shard_damaged_table(folder):
    """A flipped bit in a shard's document table."""
    shard = shards(folder)[0]
    content = bytearray(shard.read_bytes())
    content[-10] ^= 0x40
    shard.write_bytes(content)
    return with_data(folder, TOKENS % "shards")


@case(4, "shards/00000.tokens", "`format`")
def shard_is_text(folder):
    """A text file with a shard's file name."""
    (folder / "shards").mkdir()
    (folder / "shards/00000.tokens").write_text("In the beginning\n" * 40)
    return with_data(folder, TOKENS % "shards")


@case(4, "shards/shard-00000.tokens", "tokenizer", "DIGEST")
def shard_of_another_tokenizer(folder):
    """Shards prepared with a different tokenizer."""
    for shard in shards(folder):
        header = bytearray(shard.read_bytes())
        header[48:112] = b"0123456789abcdef" * 4
        header[248:256] = struct.pack("<Q", header_hash(bytes(header[:248])))
        shard.write_bytes(header)
    (folder / "shards/index.json").unlink()  # otherwise its digest differs
    return with_data(folder, TOKENS % "shards")


@case(4, "shards")
def shard_missing(folder):
    """A shard folder that does not exist."""
    return with_data(folder, TOKENS % "shards")


@case(4, GOLDEN)
def tokens_out_of_vocabulary(folder):
    """Raw token ids outside the model's vocabulary."""
    (folder / "raw.bin").write_bytes((60_000).to_bytes(2, "little") * 4096)
    return with_data(folder, "{plugin: tokens, path: raw.bin, tokenizer: {plugin: bytes}}", "validation.share=0")


@case(4, "corpus.txt")
def prepare_missing_input(folder):
    """Preparing shards from a text file that does not exist."""
    experiment(folder)
    return dsv3("data", "prepare", "corpus.txt", "--tokenizer", "bytes", "--output", "shards")


@case(2, "shards", "empty")
def prepare_output_exists(folder):
    """Preparing shards in an output folder that is not empty."""
    shards(folder)
    return dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--output", "shards")


@case(4, ".tokens", ".bin")
def inspect_without_shards(folder):
    """Inspecting a folder that contains no shards."""
    experiment(folder)
    return dsv3("data", "inspect", ".")
