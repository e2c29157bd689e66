"""Mistakes in text, tokenizers and token files."""

import json
import struct

from harness import dsv3, dsv3_run, experiment, mistake, quiet_run


def with_data(folder, data, *words):
    """Trains the tiny experiment on other data."""
    experiment(folder)
    return dsv3_run("tiny.yaml", f"data={data}", *words, "--run_name", "new")


TEXT = "{plugin: text, path: %s, tokenizer: {plugin: bytes}}"
TOKENS = "{plugin: tokens, path: %s, tokenizer: {plugin: bytes}}"


@mistake(4)
def data_missing(folder):
    """The text is not there."""
    return with_data(folder, TEXT % "corpus/train.txt")


@mistake(4)
def data_empty_file(folder):
    """The text is empty."""
    (folder / "empty.txt").touch()
    return with_data(folder, TEXT % "empty.txt")


@mistake(4)
def data_empty_folder(folder):
    """The folder of texts holds none."""
    (folder / "corpus").mkdir()
    (folder / "corpus/readme.md").write_text("no text here\n")
    return with_data(folder, TEXT % "corpus")


@mistake(4)
def data_too_small(folder):
    """The text is shorter than one row."""
    (folder / "short.txt").write_text("Too short.\n")
    return with_data(folder, TEXT % "short.txt")


@mistake(4)
def data_nothing_held_out(folder):
    """The text is one document, so that nothing is left to validate on."""
    (folder / "one.txt").write_text("one long line " * 500)
    return with_data(folder, TEXT % "one.txt")


@mistake(4)
def data_compressed(folder):
    """The text is compressed."""
    (folder / "corpus.txt.gz").write_bytes(b"\x1f\x8b\x08\x00")
    return with_data(folder, TEXT % "corpus.txt.gz")


@mistake(4)
def data_parquet(folder):
    """The text is in Parquet."""
    (folder / "part.parquet").write_bytes(b"PAR1")
    return with_data(folder, TEXT % "part.parquet")


@mistake(4)
def data_jsonl_field(folder):
    """The JSON lines have their text in another field."""
    (folder / "docs.jsonl").write_text("".join(json.dumps({"content": "word " * 40, "url": "x"}) + "\n" for _ in range(50)))
    return with_data(folder, TEXT % "docs.jsonl")


@mistake(4)
def data_jsonl_broken(folder):
    """A line of the JSON lines is cut off."""
    lines = [json.dumps({"text": "word " * 40}) for _ in range(50)]
    lines[20] = lines[20][:60]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n")
    experiment(folder)
    return dsv3("data", "prepare", "docs.jsonl", "--tokenizer", "bytes", "--out", "shards")


@mistake(2)
def data_no_tokenizer(folder):
    """The text comes without a tokenizer."""
    return with_data(folder, "{plugin: text, path: text.txt}", "data.tokenizer=null", "model.vocab=512")


@mistake(2)
def data_vocabulary_too_small(folder):
    """model.vocab is smaller than the tokenizer's."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "model.vocab=100", "--run_name", "new")


def tokenizer(name, words, change):
    """A mistake in a tokenizer.json."""
    def prepare(folder):
        letters = [chr(c) for c in range(33, 127)]
        vocabulary = {letter: i for i, letter in enumerate(letters)}
        definition = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                      "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                      "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                      "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
                                "merges": []}}
        (folder / "tokenizer.json").write_text(change(definition))
        return with_data(folder, "{plugin: text, path: text.txt, tokenizer: {plugin: bpe, file: tokenizer.json}}")
    prepare.__name__, prepare.__doc__ = "tokenizer_" + name, words
    mistake(4)(prepare)


def changed(path, value):
    def change(definition):
        inner = definition
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return json.dumps(definition)
    return change


tokenizer("not_json", "tokenizer.json is cut off.", lambda d: json.dumps(d)[:300])
tokenizer("sentencepiece", "tokenizer.json is of a Unigram model.", changed(["model"], {"type": "Unigram", "vocab": []}))
tokenizer("not_byte_level", "tokenizer.json is of a BPE that is not byte-level.", changed(["pre_tokenizer"], {"type": "Whitespace"}))
tokenizer("missing_bytes", "tokenizer.json lacks most of the 256 bytes.", json.dumps)


@mistake(4)
def tokenizer_missing(folder):
    """tokenizer.json is not there."""
    return with_data(folder, "{plugin: text, path: text.txt, tokenizer: {plugin: bpe, file: tokenizer.json}}")


def shards(folder, *words):
    """Shards of the tiny text, of several thousand tokens each."""
    experiment(folder)
    quiet_run(folder, "data", "prepare", "text.txt", "--tokenizer", "bytes", "--out", "shards", "--shard-tokens", "8000",
              program="dsv3")
    return sorted((folder / "shards").glob("*.tokens"))


@mistake(4)
def shard_truncated(folder):
    """A shard was cut off while it was copied."""
    shard = shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:5000])
    return with_data(folder, TOKENS % "shards")


@mistake(4)
def shard_damaged_header(folder):
    """A byte of a shard's header was flipped."""
    shard = shards(folder)[0]
    content = bytearray(shard.read_bytes())
    content[17] ^= 4
    shard.write_bytes(content)
    return with_data(folder, TOKENS % "shards")


@mistake(4)
def shard_damaged_table(folder):
    """A byte of a shard's table of documents was flipped."""
    shard = shards(folder)[0]
    content = bytearray(shard.read_bytes())
    content[-10] ^= 0x40
    shard.write_bytes(content)
    return with_data(folder, TOKENS % "shards")


@mistake(4)
def shard_is_text(folder):
    """A text is named like a shard."""
    (folder / "shards").mkdir()
    (folder / "shards/00000.tokens").write_text("In the beginning\n" * 40)
    return with_data(folder, TOKENS % "shards")


@mistake(4)
def shard_of_another_tokenizer(folder):
    """The shards were made with another tokenizer."""
    for shard in shards(folder):
        header = bytearray(shard.read_bytes())
        header[48:112] = b"0123456789abcdef" * 4
        header[248:256] = struct.pack("<Q", document_hash(bytes(header[:248])))
        shard.write_bytes(header)
    return with_data(folder, TOKENS % "shards")


def document_hash(content):
    """The checksum of a shard's header."""
    mask = 2**64 - 1
    state = len(content)
    for i in range(0, len(content), 8):
        state = (state ^ int.from_bytes(content[i:i + 8], "little")) * 0x9e3779b97f4a7c15 & mask
        state = (state << 29 | state >> 35) & mask

    def mix(x):
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9 & mask
        x = (x ^ x >> 27) * 0x94d049bb133111eb & mask
        return x ^ x >> 31
    return mix((mix(state) ^ 0) + 0x9e3779b97f4a7c15 & mask)


@mistake(4)
def shard_missing(folder):
    """The folder of shards is not there."""
    return with_data(folder, TOKENS % "shards")


@mistake(4)
def tokens_beyond_the_vocabulary(folder):
    """Raw token ids are read whose tokenizer has more ids than the model."""
    (folder / "raw.bin").write_bytes((60_000).to_bytes(2, "little") * 4096)
    return with_data(folder, "{plugin: tokens, path: raw.bin, tokenizer: {plugin: bytes}}", "validation.share=0")


@mistake(4)
def prepare_missing_input(folder):
    """The text to prepare is not there."""
    experiment(folder)
    return dsv3("data", "prepare", "corpus.txt", "--tokenizer", "bytes", "--out", "shards")


@mistake(2)
def prepare_output_exists(folder):
    """The folder to prepare exists and is not empty."""
    shards(folder)
    return dsv3("data", "prepare", "text.txt", "--tokenizer", "bytes", "--out", "shards")


@mistake(4)
def inspect_not_shards(folder):
    """A folder without shards is inspected."""
    experiment(folder)
    return dsv3("data", "inspect", ".")
