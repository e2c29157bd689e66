"""Compare `dsv3 eval` with Transformers: losses, bits per byte, log-likelihoods and accuracies of a random DeepSeek-V3.

The expected values are computed here from Transformers' logits, one window or ending at a time. The validation loss
that was logged during a run must be reproduced bit for bit.
"""

import json
import math
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))
from support import BUILD, dsv3_run, losses, make_tiny  # noqa: E402

END = "<|endoftext|>"
SHAPE = dict(hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
             num_key_value_heads=2, n_shared_experts=1, n_routed_experts=8, kv_lora_rank=8, q_lora_rank=12,
             qk_rope_head_dim=4, v_head_dim=8, qk_nope_head_dim=6, n_group=4, topk_group=2, num_experts_per_tok=3,
             first_k_dense_replace=1, max_position_embeddings=64, num_nextn_predict_layers=0)
WORDS = "the old miller's naïve daughter walked to München and sang; nobody, not even Ångström, heard a word of it".split()


def sentence(rng, words):
    return " ".join(rng.choices(WORDS, k=words)) + "."


def dsv3(*words, check=0):
    done = subprocess.run([BUILD / "bin/dsv3", *map(str, words)], text=True, capture_output=True, timeout=120)
    assert done.returncode == check, (done.returncode, done.stdout, done.stderr)
    return done


def evaluate(model, *words):
    return json.loads(dsv3("eval", model, *words, "--json").stdout)


def save_model(folder, tokenizer, vocab):
    torch.manual_seed(3)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(vocab_size=vocab, **SHAPE)).float().eval()
    with torch.no_grad():
        for _, values in model.named_parameters():
            values.normal_(0, 0.15) if values.dim() > 1 else values.uniform_(0.5, 1.5)
        for name, values in model.named_buffers():
            if "e_score" in name:
                values.normal_(-1, 0.3)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


class Oracle:
    """The folder's model, loaded with Transformers, and its tokenizer, loaded with the tokenizers wheel."""

    def __init__(self, folder):
        self.folder = folder
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.tokenizer.decoder = decoders.ByteLevel()
        rng = random.Random(1)
        self.tokenizer.train_from_iterator(
            [sentence(rng, 30) for _ in range(50)],
            trainers.BpeTrainer(vocab_size=330, special_tokens=[END], show_progress=False,
                                initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        self.end = self.tokenizer.token_to_id(END)
        self.model = save_model(folder, self.tokenizer, self.tokenizer.get_vocab_size())

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def nats(self, ids):
        """Negative log-likelihood of each of ids[1:], given all ids before it."""
        with torch.no_grad():
            logits = self.model(torch.tensor([ids[:-1]])).logits[0].double()
        return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")

    def score(self, documents, sequence):
        """Return (tokens, bytes, nats per token, bits per byte)."""
        tokens = size = 0
        nats = text_nats = 0.0
        for text in documents:
            ids = [*self.encode(text), self.end]
            every = torch.cat([self.nats(ids[i:i + sequence + 1]) for i in range(0, len(ids) - 1, sequence)])
            tokens += len(every)
            nats += every.sum().item()
            text_nats += every[:-1].sum().item()
            # A byte-level token has one character per byte.
            size += len(text.encode()) - len(self.tokenizer.id_to_token(ids[0]))
        return tokens, size, nats / tokens, text_nats / math.log(2) / size


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    return Oracle(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Create a folder with a .txt and a .jsonl file. Return it and its documents in order. The first document is a
    single token, and the others are shorter or longer than a window."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(2)
    first = ["a", *(sentence(rng, rng.randrange(1, 60)) for _ in range(12))]
    second = [f"{sentence(rng, 5)}\n\n{sentence(rng, 90)}", "日本語のテキスト 🦀", sentence(rng, 3)]
    (folder / "a.txt").write_text("\n\n".join(first) + "\n")
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in second))
    return folder, first + second


def compare(found, documents, expected):
    tokens, size, loss, bits = expected
    assert (found["documents"], found["tokens"], found["bytes"]) == (documents, tokens, size)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-5)


@pytest.mark.parametrize("sequence, batch", [(16, 3), (61, 1), (400, 2)])
def test_text(oracle, corpus, sequence, batch):
    folder, documents = corpus
    found = evaluate(oracle.folder, "--text", folder, "--sequence", sequence, "--batch", batch)
    compare(found["text"][0], len(documents), oracle.score(documents, sequence))


def test_shards_score_like_their_text(oracle, corpus, tmp_path):
    folder, documents = corpus
    dsv3("data", "prepare", folder, "--tokenizer", oracle.folder / "tokenizer.json", "--output", tmp_path / "shards",
         "--shard-tokens", 200)
    assert len(list((tmp_path / "shards").glob("*.tokens"))) > 1
    found = evaluate(oracle.folder, "--shards", tmp_path / "shards", "--sequence", 32)
    compare(found["shards"][0], len(documents), oracle.score(documents, 32))
    limited = evaluate(oracle.folder, "--shards", tmp_path / "shards", "--text", folder, "--sequence", 32, "--limit", 4)
    for found in (limited["shards"][0], limited["text"][0]):
        compare(found, 4, oracle.score(documents[:4], 32))


def test_a_model_without_end_of_text_predicts_text_only(oracle, corpus, tmp_path):
    shutil.copytree(oracle.folder, tmp_path / "model")
    plain = json.loads((tmp_path / "model/tokenizer.json").read_text())
    plain["added_tokens"] = []
    plain["model"]["vocab"] = {("<other>" if key == END else key): value for key, value in plain["model"]["vocab"].items()}
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(plain))
    found = evaluate(tmp_path / "model", "--text", corpus[0], "--sequence", 500)["text"][0]
    nats = [oracle.nats(oracle.encode(text)) for text in corpus[1] if len(oracle.encode(text)) > 1]
    assert found["tokens"] == sum(map(len, nats))
    assert found["loss"] == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(torch.cat(nats).sum().item() / math.log(2) / found["bytes"], rel=1e-5)


def clean(text):
    """Clean text as lm-evaluation-harness does for HellaSwag."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def make_questions(rng):
    questions = []
    for i in range(25):
        question = {"ind": i, "endings": [sentence(rng, rng.randrange(1, 9)) for _ in range(4)],
                    "label": rng.choice([rng.randrange(4), str(rng.randrange(4))])}
        question |= {"ctx": sentence(rng, 12)} if i % 3 == 0 else {"ctx_a": sentence(rng, 9), "ctx_b": "THE miller"}
        if i % 2:
            question["activity_label"] = "Walking home"
        questions.append(question)
    questions[1] |= {"ctx_a": "[header] How to sing [title] Open  it. [step] Then", "ctx_b": "",
                     "endings": [" now [substeps] or later", "never", "Über", "a, b"]}
    questions.append({"ctx": "", "endings": ["yes it is", "no"], "label": 1, "ctx_b": "not used"})
    questions.append({"ctx": "ends in a mark [x]", "endings": ["yes", "no"], "label": 0})
    return questions


def expected_likelihoods(oracle, question, sequence):
    context = question["ctx_a"] + " " + question["ctx_b"].capitalize() if "ctx_a" in question else question["ctx"]
    context = clean((question["activity_label"] + ": " if "activity_label" in question else "") + context)
    result = []
    for ending in map(clean, question["endings"]):
        whole = oracle.encode(context + " " + ending)
        count = len(whole) - len(oracle.encode(context.rstrip()))
        if not context:
            whole = [oracle.end, *whole]
        result.append(-oracle.nats(whole[-(sequence + 1):])[-count:].sum().item())
    return result


@pytest.mark.parametrize("sequence, batch, cut", [(256, 7, False), (20, 1, True)])
def test_choices(oracle, tmp_path, sequence, batch, cut):
    questions = make_questions(random.Random(9))
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(q) + "\n" for q in questions) + "\n")
    found = evaluate(oracle.folder, "--choices", file, "--sequence", sequence, "--batch", batch)["choices"][0]
    assert (found["truncated"] > 0) == cut
    right = right_norm = 0
    for question, answer in zip(questions, found["questions"], strict=True):
        expected = expected_likelihoods(oracle, question, sequence)
        assert answer["log_likelihoods"] == pytest.approx(expected, rel=1e-5)
        sizes = [len(clean(ending).encode()) for ending in question["endings"]]
        assert answer["bytes"] == sizes
        label = int(question["label"])
        right += max(range(len(expected)), key=lambda i: expected[i]) == label
        right_norm += max(range(len(expected)), key=lambda i: expected[i] / sizes[i]) == label
    assert found["accuracy"] == pytest.approx(right / len(questions))
    assert found["acc_norm"] == pytest.approx(right_norm / len(questions))
    assert right != right_norm  # otherwise, the test could not distinguish the two accuracies


def test_the_table_matches_the_json(oracle, corpus, tmp_path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"ctx": "A", "endings": ["b", "c"], "label": 0}))
    words = ["eval", oracle.folder, "--text", corpus[0], "--choices", tmp_path / "q.jsonl", "--sequence", 64]
    found = json.loads(dsv3(*words, "--json").stdout)
    table = dsv3(*words).stdout
    text = found["text"][0]
    row = re.search(rf"^ *(\d+) +(\d+) +(\d+) +([\d.]+) +([\d.]+)  text {corpus[0]}$", table, re.M).groups()
    assert [int(x) for x in row[:3]] == [text["documents"], text["tokens"], text["bytes"]]
    assert row[3:] == (f"{text['loss']:.4f}", f"{text['bits_per_byte']:.4f}")
    assert re.search(rf"^ +1 +0 +{found['choices'][0]['accuracy']:.4f} +[\d.]+  choices {tmp_path}/q.jsonl$", table, re.M)


def last_validation(run):
    return max((step, row["val/loss"]) for step, row in losses(run).items() if "val/loss" in row)


def test_a_runs_own_validation_repeats_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny(tmp_path)
    dsv3_run("tiny.yaml", "--run_name", "a", "train.micro_batch=2", "train.steps=6", cwd=tmp_path)
    step, loss = last_validation(tmp_path / "runs/a")
    found = evaluate("runs/a")
    assert step == found["step"] == 6
    assert found["validation"]["loss"] == loss
    # With the byte tokenizer, every id except the end-of-text id is one byte.
    assert 0 < found["validation"]["bytes"] < found["validation"]["tokens"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_validation_on_one_document_is_the_shards_score(tmp_path, monkeypatch, precision):
    """Rows and windows split a single document at the same positions."""
    monkeypatch.chdir(tmp_path)
    make_tiny(tmp_path)
    (tmp_path / "one.txt").write_text((tmp_path / "text.txt").read_text()[:500].replace("\n\n", "\n"))
    for name in ("text", "one"):
        dsv3("data", "prepare", f"{name}.txt", "--tokenizer", "bytes", "--output", name)
    dsv3_run("tiny.yaml", "--run_name", "b", "train.steps=2", "schedule.warmup=0", "data={plugin: tokens, path: text, validation_path: one}",
             "data.tokenizer=bytes", f"train.precision={precision}", "validation.batches=3", cwd=tmp_path)
    validation_run = evaluate("runs/b")
    assert validation_run["precision"] == precision
    validation_run, shards = validation_run["validation"], evaluate("runs/b", "--shards", "one", "--batch", 4)["shards"][0]
    assert validation_run["loss"] == last_validation(tmp_path / "runs/b")[1]
    size = (tmp_path / "one.txt").stat().st_size
    for found in (validation_run, shards):
        # All bytes except the first are predicted. The end-of-text id has no bytes.
        assert (found["tokens"], found["bytes"]) == (size, size - 1)
    for key in ("loss", "bits_per_byte"):
        assert validation_run[key] == pytest.approx(shards[key], rel=1e-6 if precision == "fp32" else 1e-3)


BAD_LINES = {
    "broken": ('{"ctx": "a", "endings": ["b", }', "q.jsonl:2:", "invalid JSON"),
    "missing": ('{"ctx": "a", "label": 0}', "q.jsonl:2: no field 'endings'"),
    "context": ('{"endings": ["b", "c"], "label": 0}', "q.jsonl:2: no field 'ctx'"),
    "label": ('{"ctx": "a", "endings": ["b", "c"], "label": 2}', "q.jsonl:2: label 2", "0 to 1"),
    "text_label": ('{"ctx": "a", "endings": ["b", "c"], "label": ""}', "q.jsonl:2: label \"\""),
    "ending": ('{"ctx": "a", "endings": ["b", "[x]"], "label": 0}', "q.jsonl:2: an ending is empty"),
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_question_is_named(oracle, tmp_path, bad):
    line, *pieces = BAD_LINES[bad]
    (tmp_path / "q.jsonl").write_text('{"ctx": "a", "endings": ["b", "c"], "label": 0}\n' + line + "\n")
    error = dsv3("eval", oracle.folder, "--choices", tmp_path / "q.jsonl", check=4).stderr
    assert all(text in error for text in pieces), error


def test_errors(oracle, corpus, tmp_path):
    def error(code, *words):
        return dsv3("eval", *words, check=code).stderr

    text = corpus[0]
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "no text in" in error(4, oracle.folder, "--text", tmp_path / "empty.txt")
    assert "has no questions" in error(4, oracle.folder, "--choices", tmp_path / "empty.jsonl")
    assert "validation split" in error(2, oracle.folder)
    assert "--limit requires" in error(2, oracle.folder, "--limit", 3)

    small = tmp_path / "small"  # a model with fewer ids than its tokenizer
    save_model(small, oracle.tokenizer, 270)
    assert "outside the model's vocabulary, 0 to 269" in error(4, small, "--text", text)

    (tmp_path / "bare").mkdir()
    for file in oracle.folder.iterdir():
        if file.name != "tokenizer.json":
            shutil.copy(file, tmp_path / "bare")
    assert "--tokenizer" in error(2, tmp_path / "bare", "--text", text)
    given = evaluate(tmp_path / "bare", "--tokenizer", oracle.folder / "tokenizer.json", "--text", text, "--sequence", 64)
    assert given["text"] == evaluate(oracle.folder, "--text", text, "--sequence", 64)["text"]

    dsv3("data", "prepare", text, "--tokenizer", "bytes", "--output", tmp_path / "bytes")
    assert "a different tokenizer" in error(4, oracle.folder, "--shards", tmp_path / "bytes")
    found = evaluate(tmp_path / "bare", "--shards", tmp_path / "bytes")["shards"][0]
    assert found["bytes"] is None and found["bits_per_byte"] is None and found["loss"] > 0
