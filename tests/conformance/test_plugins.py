"""Every built-in plugin passes the conformance checks for its kind under several option settings."""

import json
import os
import pathlib
import struct
import subprocess

import pytest

BUILD = pathlib.Path(os.environ["DSV3_BUILD_DIR"])
DSV3 = BUILD / "bin" / "dsv3"

# Option settings to check; "" selects the defaults. Plugins that are not listed are checked with their defaults.
SETTINGS = {
    "attention/mla": [
        "",
        "heads=3 q_lora_rank=0 decode=naive",
        "heads=2 kv_lora_rank=8 qk_nope_dim=6 qk_rope_dim=4 v_dim=5",
    ],
    "attention/mha": ["heads=4", "heads=4 kv_heads=2 head_dim=8 qk_norm=true rotary_share=0.5"],
    "feed_forward/moe": ["", "routed=4 top_k=2 shared=0 hidden=24"],
    "tokenizer/bpe": ["file={folder}/tokenizer.json"],
    "data/text": ["path={folder}/text.txt"],
    "data/tokens": ["path={folder}/ids.bin format=raw16 eos=256"],
}


def components():
    listed = subprocess.run([DSV3, "plugins", "list", "--json"], capture_output=True, text=True,
                            check=True, cwd="/")
    return [f"{entry['kind']}/{entry['name']}" for entry in json.loads(listed.stdout)]


def cases():
    return [(name, settings) for name in components() for settings in SETTINGS.get(name, [""])]


def byte_level_tokenizer():
    """Return the content of a byte-level tokenizer.json like GPT-2's, with the 256 byte tokens and two merges."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters, spare = {}, 256
    for byte in range(256):
        if byte in visible:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(spare)
            spare += 1
    vocabulary = {letters[byte]: byte for byte in range(256)}
    vocabulary |= {"th": 256, "the": 257, "<|endoftext|>": 258}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 258, "content": "<|endoftext|>", "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                          "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None,
                  "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": vocabulary, "merges": [["t", "h"], ["th", "e"]]},
    }


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conformance")
    lines = [f"line {i} of the text, {'and more ' * (i % 7)}{i * i}" for i in range(400)]
    (folder / "text.txt").write_text("\n\n".join(lines) + "\n")
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer()))
    ids = [id for line in lines for id in [*line.encode(), 256]]
    (folder / "ids.bin").write_bytes(struct.pack(f"<{len(ids)}H", *ids))
    return folder


def check(*arguments):
    return subprocess.run([DSV3, "plugins", "check", *arguments], capture_output=True, text=True,
                          cwd="/", timeout=600)


@pytest.mark.parametrize("component, settings", cases())
def test_keeps_every_promise(component, settings, folder):
    settings = settings.format(folder=folder).split()
    arguments = [word for setting in settings for word in ("--set", setting)]
    result = check(component, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "FAIL" not in result.stdout
