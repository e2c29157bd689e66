"""Errors in the experiment file."""

from harness import GOLDEN, case, dsv3_run, experiment

CHECK = ("tiny.yaml", "--check")
HEAD = "dsv3: 1\n"
TRAIN = "steps: 30, batch: 4, sequence: 48, precision: fp32, seed: 7, log_every: 1, threads: 1}"

REPLACEMENTS = [
    # name, title, text in the tiny experiment, its replacement, expected phrases
    ("unknown_key", "A misspelled option.", "kv_lora_rank: 16", "kv_lora_rnk: 16", GOLDEN),
    ("pytorch_key", "An option name from PyTorch.", "plugin: muon, lr", "plugin: muon, learning_rate",
     "tiny.yaml:16:34", "'learning_rate'", "'muon'", "lr, momentum"),
    ("unknown_section", "A section with the wrong name.", "validation:", "evaluation:", "tiny.yaml:21:1",
     "'evaluation'", "'validation'"),
    ("options_of_another_plugin", "A changed plugin with the previous plugin's options.", "plugin: mla",
     "plugin: mha", GOLDEN),
    ("key_of_another_section", "A key in the wrong section.", "{steps: 30", "{vocab: 256, steps: 30", "tiny.yaml:20:9",
     "model.vocab"),
    ("wrong_type", "A string instead of a number.", "hidden: 32", "hidden: thirty-two", GOLDEN),
    ("quoted_number", "A number in quotes.", "heads: 2", "heads: '2'", "tiny.yaml:8:35", "'heads'", "integer",
     "quotes"),
    ("fraction_for_integer", "A fraction instead of an integer.", "layers: 3\n", "layers: 3.5\n", "tiny.yaml:5:11",
     "'layers'", "integer", "3.5"),
    ("list_for_number", "A list instead of a number.", "hidden: 32", "hidden: [32, 32]", "tiny.yaml:4:11", "'hidden'",
     "integer", "list"),
    ("number_for_section", "A number instead of a section.", "validation: {every: 10, batches: 2, share: 0.1}",
     "validation: 10", "tiny.yaml:21:13", "validation: {KEY: VALUE}"),
    ("out_of_range", "A percentage for validation.share.", "share: 0.1", "share: 10", "tiny.yaml:21:44", "'share'",
     "at most 1"),
    ("negative_size", "A negative size.", "heads: 2", "heads: -2", "tiny.yaml:8:35", "'heads'", "at least 1", "-2"),
    ("not_a_choice", "A value that is not one of the choices.", "precision: fp32", "precision: fp16",
     "tiny.yaml:20:55", "auto, fp32, bf16", "'fp16'"),
    ("old_conventions", "The key that selected conventions in older versions.", "  layers: 3\n",
     "  layers: 3\n  conventions: torchtitan\n", "tiny.yaml:6:16",
     "'model.conventions'", "extends: conventions/torchtitan.yaml"),
    ("unknown_convention", "An unknown convention.", "dsv3: 1\n",
     "dsv3: 1\nconventions: {model.mtp.inputs: raw}\n", "tiny.yaml:2:15", "'model.mtp.input'"),
    ("csv_over_the_journal", "A CSV table with the same name as the run's metrics file.", "tracker: [{plugin: csv}]",
     "tracker: [{plugin: csv, file: metrics.jsonl}]", "tracker.0 (plugin 'csv')", "'metrics.jsonl'", ".csv"),
    ("nan", "The value .nan for a number.", "weight: 0.3", "weight: .nan", "tiny.yaml:13:27", "'weight'", ".nan",
     "finite"),
    ("empty_value", "A key without a value.", "seed: 7", "seed: ", "tiny.yaml:20:61", "'seed'"),
    ("duplicate_key", "A key given twice.", "  layers: 3", "  layers: 3\n  hidden: 64", GOLDEN),
    ("tab", "A line indented with a tab.", "  layers: 3", "\tlayers: 3", "tiny.yaml:5:1", "tab"),
    ("unclosed_bracket", "An unclosed bracket.", TRAIN, "steps: 30, batch: 4", "tiny.yaml:20:8", "'{'", "'}'"),
    ("merge_key", "A merge key.", "  hidden: 32", "  <<: {hidden: 32}", "tiny.yaml:4:3", "'<<'", "'extends'"),
    ("python_tag", "A PyYAML tag.", "hidden: 32", "hidden: !!python/object:os.system 32", "tiny.yaml:4:11",
     "!!python/object:os.system"),
    ("no_version", "No format version.", HEAD, "", "tiny.yaml:1:1", "'dsv3: 1'"),
    ("future_version", "A later format version.", HEAD, "dsv3: 2\n", "tiny.yaml:1:7", "format 1", "'dsv3: 1'"),
    ("unknown_plugin", "A misspelled plugin.", "plugin: moe", "plugin: mow", GOLDEN),
    ("plugin_of_another_kind", "A plugin of the wrong kind.", "schedule: {plugin: cosine, warmup: 5}",
     "schedule: adamw", "tiny.yaml:17:11", "'adamw'", "optimizer", "constant, cosine, wsd"),
    ("no_plugin", "A component without a plugin.", "{plugin: single}", "{stage: 1}", "tiny.yaml:18:11", "plugin: NAME",
     "single"),
    ("no_strategy", "An experiment without a strategy.", "strategy: {plugin: single}\n", "", "tiny.yaml:1:1",
     "strategy: NAME", "single"),
    ("layer_without_component", "A layer without feed_forward.", "layers: 1-,", "layers: 2-,", "tiny.yaml:12:16",
     "model.feed_forward", "layer 1"),
    ("layer_with_two_components", "Two components for the same layer.", "layers: 1-,", "layers: 0-,", "tiny.yaml:12:16",
     "model.feed_forward", "layer 0"),
    ("layer_out_of_range", "A layer that the model does not have.", "layers: 1-,", "layers: 1-3,", GOLDEN),
    ("steps_and_tokens", "Both train.steps and train.tokens.", "steps: 30", "steps: 30, tokens: 1e6", GOLDEN),
    ("no_length", "Neither train.steps nor train.tokens.", "steps: 30, ", "", "tiny.yaml:20:8", "'steps'", "'tokens'"),
    ("micro_batch", "A micro-batch that does not divide the batch.", "batch: 4", "batch: 4, micro_batch: 3",
     "tiny.yaml:20:27", "batch", "micro_batch", "multiple"),
    ("unknown_role", "A misspelled parameter role.", "role: matrix", "role: matrices", "tiny.yaml:16:12",
     "'matrices'", "'matrix'", "embedding"),
    ("bad_regex", "A `match` that is not a valid regular expression.", "role: matrix", "match: 'layers.(0'",
     "tiny.yaml:16:13", "'match'", "optimizer.1"),
    ("missing_environment", "An environment variable that is not set.", "name: tiny", "name: ${env:EXPERIMENT_NAME}",
     "tiny.yaml:2:7", "EXPERIMENT_NAME=... dsv3-run"),
    ("unknown_reference", "A reference to a key that is not set.", "name: tiny", "name: ${train.sed}", "tiny.yaml:2:7",
     "'train.sed'", "${env:NAME}"),
    ("reference_to_itself", "A key that refers to itself.", "name: tiny", "name: ${name}", "tiny.yaml:2:7",
     "'${name}'"),
    ("missing_base", "A base file that does not exist.", HEAD, HEAD + "extends: [base/tiny.yaml]\n", "tiny.yaml:2:11",
     "'base/tiny.yaml'", "'extends'"),
    ("extends_itself", "A file that extends itself.", HEAD, HEAD + "extends: tiny.yaml\n", GOLDEN),
    ("plugin_paths", "A machine default in an experiment.", HEAD, HEAD + "plugin_paths: [plugins]\n",
     "tiny.yaml:2:1", "'plugin_paths'", "config.yaml", "--plugin-path", "DSV3_PLUGIN_PATH"),
    ("name_with_slash", "An experiment name that is not a valid folder name.", "name: tiny", "name: tiny/muon",
     "tiny.yaml:2:7", "name", "128"),
]


def replacement_case(name, title, old, new, phrases):
    @case(2, *phrases, name="yaml_" + name, title=title)
    def prepare(folder):
        experiment(folder, (old, new))
        return dsv3_run(*CHECK)


for name, title, old, new, *phrases in REPLACEMENTS:
    replacement_case(name, title, old, new, phrases)


@case(2, GOLDEN)
def yaml_several_errors(folder):
    """Five errors in one file."""
    experiment(folder, ("hidden: 32", "hiden: 32"), ("kv_lora_rank: 16", "kv_lora_rank: lots"), ("plugin: muon", "plugin: mion"),
               ("every: 3", "every: -3"), ("warmup: 5", "warmup: 5, cooldown: 5"))
    return dsv3_run(*CHECK)


@case(2, GOLDEN)
def yaml_errors_in_two_files(folder):
    """One error in an experiment and another in the file that it extends."""
    experiment(folder, ("hidden: 32", "hiden: 32"))
    (folder / "mine.yaml").write_text("dsv3: 1\nextends: [tiny.yaml]\nmodel: {layers: 0}\n")
    return dsv3_run("mine.yaml", "--check")


@case(2, "sizes.yaml:1:1", "dsv3: 1")
def yaml_base_is_a_list(folder):
    """A base file that contains a list."""
    experiment(folder, ("dsv3: 1\n", "dsv3: 1\nextends: sizes.yaml\n"))
    (folder / "sizes.yaml").write_text("- hidden: 32\n- layers: 3\n")
    return dsv3_run(*CHECK)


@case(2, GOLDEN)
def yaml_alias_bomb(folder):
    """Nested aliases that expand to a billion values."""
    lines = ["dsv3: 1", "a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, after in zip("abcdefgh", "bcdefghi"):
        lines.append(f"{after}: &{after} [" + ", ".join([f"*{before}"] * 10) + "]")
    (folder / "bomb.yaml").write_text("\n".join(lines) + "\n")
    return dsv3_run("bomb.yaml", "--check")


@case(2, "corpus.yaml:1:1", "1048576", "data.path")
def yaml_too_large(folder):
    """A data file instead of an experiment file."""
    (folder / "corpus.yaml").write_text("- some text of a corpus\n" * 100_000)
    return dsv3_run("corpus.yaml")


@case(2, "weights.bin", "binary", "dsv3: 1")
def yaml_binary(folder):
    """A binary file instead of an experiment file."""
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 4)
    return dsv3_run("weights.bin")


@case(2, "empty.yaml", "empty", "dsv3: 1")
def yaml_empty_file(folder):
    """An empty experiment file."""
    (folder / "empty.yaml").touch()
    return dsv3_run("empty.yaml")


@case(2, GOLDEN)
def yaml_missing_file(folder):
    """A misspelled experiment file name."""
    experiment(folder)
    return dsv3_run("tyni.yaml")


@case(2, GOLDEN)
def yaml_experiment_key_in_machine_config(folder):
    """An experiment key in the machine defaults."""
    experiment(folder)
    (folder / "machine.yaml").write_text("train: {device: cpu}\noutput: runs\n")
    return dsv3_run("tiny.yaml", "--config", "machine.yaml", "--check")


@case(2, GOLDEN)
def optimizer_empty_match(folder):
    """An optimizer group that matches no parameter."""
    experiment(folder, ("role: matrix,", "match: 'blocks\\.',"))
    return dsv3_run("tiny.yaml", "--dry-run")


@case(2, "tiny.yaml:16:28", "'muon'", "role matrix")
def optimizer_shadowed_group(folder):
    """An optimizer group after one that matches every parameter."""
    experiment(folder, ("{role: [embedding, head, norm, router, bias], plugin", "{plugin"))
    return dsv3_run("tiny.yaml", "--dry-run")


@case(2, "tiny.yaml:16:28", "{role: norm, plugin: NAME, lr: NUMBER}", "layers.0.attention_norm.weight", "10 more")
def optimizer_unowned_parameter(folder):
    """No optimizer group for the norms."""
    experiment(folder, ("head, norm, router", "head, router"))
    return dsv3_run("tiny.yaml", "--dry-run")


@case(2, "tiny.yaml:16:36", "'muon'", "layers.0.attention_norm.weight", "10 more")
def optimizer_muon_for_vectors(folder):
    """Vectors in Muon's optimizer group."""
    experiment(folder, ("role: matrix,", "role: [matrix, norm],"), ("head, norm, router", "head, router"))
    return dsv3_run("tiny.yaml", "--dry-run")


@case(2, GOLDEN)
def yaml_odd_rope_dim(folder):
    """An odd rotary dimension, reported by the positional encoding inside an attention layer."""
    experiment(folder, ("qk_rope_dim: 8", "qk_rope_dim: 7"))
    return dsv3_run("tiny.yaml", "--dry-run")


@case(2, "model.vocab", "auto", "tokenizer")
def vocabulary_without_tokenizer(folder):
    """model.vocab: auto without a tokenizer."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "data={plugin: synthetic}", "data.tokenizer=null", "--run_name", "novocab")
