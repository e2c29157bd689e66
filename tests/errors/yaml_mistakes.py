"""Mistakes in the experiment file."""

from harness import dsv3_run, experiment, mistake

CHECK = ("tiny.yaml", "--check")


def replaced(name, words, old, new, add=""):
    """A mistake that is one replacement in the tiny experiment."""
    def prepare(folder):
        experiment(folder, (old, new), add=add)
        return dsv3_run(*CHECK)
    prepare.__name__, prepare.__doc__ = name, words
    mistake(2)(prepare)


replaced("yaml_unknown_key", "An option's name is misspelled.", "kv_lora_rank: 16", "kv_lora_rnk: 16")
replaced("yaml_unknown_section_key", "A key of PyTorch is used: learning_rate.", "plugin: muon, lr", "plugin: muon, learning_rate")
replaced("yaml_unknown_section", "A whole section has another name.", "validation:", "evaluation:")
replaced("yaml_siblings_key", "The plugin was swapped in the file, its options were not.", "plugin: mla", "plugin: mha")
replaced("yaml_key_of_another_section", "A key stands in the wrong section.", "{steps: 30", "{vocab: 256, steps: 30")
replaced("yaml_wrong_type", "A number is written as a word.", "hidden: 32", "hidden: thirty-two")
replaced("yaml_quoted_number", "A number is written in quotes.", "heads: 2", "heads: '2'")
replaced("yaml_fraction_for_integer", "An integer has a fraction.", "layers: 3\n", "layers: 3.5\n")
replaced("yaml_list_for_number", "A list is given where one number belongs.", "hidden: 32", "hidden: [32, 32]")
replaced("yaml_number_for_section", "A number is given where a section belongs.", "validation: {every: 10, batches: 2, share: 0.1}",
         "validation: 10")
replaced("yaml_out_of_range", "A share is given in percent.", "share: 0.1", "share: 10")
replaced("yaml_negative_size", "A size is negative.", "heads: 2", "heads: -2")
replaced("yaml_not_a_choice", "A word is none of the choices.", "precision: fp32", "precision: fp16")
replaced("yaml_unknown_implementation", "The conventions of an unknown implementation are asked for.", "  layers: 3\n",
         "  layers: 3\n  conventions: torchtitn\n")
replaced("yaml_nan", "A number is .nan.", "weight: 0.3", "weight: .nan")
replaced("yaml_empty_value", "A key has no value.", "seed: 7", "seed: ")
replaced("yaml_duplicate_key", "A key is given twice.", "  layers: 3", "  layers: 3\n  hidden: 64")
replaced("yaml_tab", "A line is indented by a tab.", "  layers: 3", "\tlayers: 3")
replaced("yaml_unclosed_bracket", "A bracket is not closed.", "steps: 30, batch: 4, sequence: 48, precision: fp32, seed: 7, log_every: 1, threads: 1}",
         "steps: 30, batch: 4")
replaced("yaml_merge_key", "A merge key is used.", "  hidden: 32", "  <<: {hidden: 32}")
replaced("yaml_python_tag", "A tag of PyYAML is used.", "hidden: 32", "hidden: !!python/object:os.system 32")
replaced("yaml_no_version", "The format's version is missing.", "dsv3: 1\n", "")
replaced("yaml_future_version", "The format's version is a later one.", "dsv3: 1\n", "dsv3: 2\n")
replaced("yaml_unknown_plugin", "A plugin's name is misspelled.", "plugin: moe", "plugin: mow")
replaced("yaml_plugin_of_another_kind", "A plugin of another kind is named.", "schedule: {plugin: cosine, warmup: 5}", "schedule: adamw")
replaced("yaml_no_plugin", "A component names no plugin.", "{plugin: single}", "{stage: 1}")
replaced("yaml_no_strategy", "A component that every experiment needs is missing.", "strategy: {plugin: single}\n", "")
replaced("yaml_layers_left_out", "The layers of feed_forward leave one out.", "layers: 1-,", "layers: 2-,")
replaced("yaml_layers_twice", "Two components are given for one layer.", "layers: 1-,", "layers: 0-,")
replaced("yaml_layer_beyond", "A layer is named that the model does not have.", "layers: 1-,", "layers: 1-3,")
replaced("yaml_steps_and_tokens", "Both steps and tokens are given.", "steps: 30", "steps: 30, tokens: 1e6")
replaced("yaml_no_length", "Neither steps nor tokens are given.", "steps: 30, ", "")
replaced("yaml_micro_batch", "The micro-batch does not divide the batch.", "batch: 4", "batch: 4, micro_batch: 3")
replaced("yaml_unknown_role", "A role of parameters is misspelled.", "role: matrix", "role: matrices")
replaced("yaml_bad_regex", "match is no regular expression.", "role: matrix", "match: 'layers.(0'")
replaced("yaml_missing_environment", "An environment variable is not set.", "name: tiny", "name: ${env:EXPERIMENT_NAME}")
replaced("yaml_unknown_reference", "A reference names nothing.", "name: tiny", "name: ${train.sed}")
replaced("yaml_reference_circle", "A reference names itself.", "name: tiny", "name: ${name}")
replaced("yaml_missing_base", "A base file is missing.", "dsv3: 1\n", "dsv3: 1\nextends: [base/tiny.yaml]\n")
replaced("yaml_extends_itself", "A file extends itself.", "dsv3: 1\n", "dsv3: 1\nextends: tiny.yaml\n")
replaced("yaml_plugin_paths", "A machine default stands in an experiment.", "dsv3: 1\n", "dsv3: 1\nplugin_paths: [plugins]\n")
replaced("yaml_name_with_slash", "The name cannot be a folder's.", "name: tiny", "name: tiny/muon")


@mistake(2)
def yaml_several_mistakes(folder):
    """Five mistakes at once."""
    experiment(folder, ("hidden: 32", "hiden: 32"), ("kv_lora_rank: 16", "kv_lora_rank: lots"), ("plugin: muon", "plugin: mion"),
               ("every: 3", "every: -3"), ("warmup: 5", "warmup: 5, cooldown: 5"))
    return dsv3_run(*CHECK)


@mistake(2)
def yaml_mistake_in_base(folder):
    """A file that the experiment extends has a misspelled key, and the experiment another mistake."""
    experiment(folder, ("hidden: 32", "hiden: 32"))
    (folder / "mine.yaml").write_text("dsv3: 1\nextends: [tiny.yaml]\nmodel: {layers: 0}\n")
    return dsv3_run("mine.yaml", "--check")


@mistake(2)
def yaml_base_is_no_experiment(folder):
    """The file that the experiment extends is a list."""
    experiment(folder, ("dsv3: 1\n", "dsv3: 1\nextends: sizes.yaml\n"))
    (folder / "sizes.yaml").write_text("- hidden: 32\n- layers: 3\n")
    return dsv3_run(*CHECK)


@mistake(2)
def yaml_alias_bomb(folder):
    """Aliases of aliases expand to a billion values."""
    lines = ["dsv3: 1", "a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for before, now in zip("abcdefgh", "bcdefghi"):
        lines.append(f"{now}: &{now} [" + ", ".join([f"*{before}"] * 10) + "]")
    (folder / "bomb.yaml").write_text("\n".join(lines) + "\n")
    return dsv3_run("bomb.yaml", "--check")


@mistake(2)
def yaml_too_large(folder):
    """A data file is given as the experiment."""
    (folder / "corpus.yaml").write_text("- some text of a corpus\n" * 100_000)
    return dsv3_run("corpus.yaml")


@mistake(2)
def yaml_binary(folder):
    """A binary file is given as the experiment."""
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 4)
    return dsv3_run("weights.bin")


@mistake(2)
def yaml_empty_file(folder):
    """The experiment's file is empty."""
    (folder / "empty.yaml").touch()
    return dsv3_run("empty.yaml")


@mistake(2)
def yaml_missing_file(folder):
    """The experiment's file is not there."""
    experiment(folder)
    return dsv3_run("tyni.yaml")


@mistake(2)
def yaml_unreadable_machine_config(folder):
    """A key of experiments stands in the machine defaults."""
    experiment(folder)
    (folder / "machine.yaml").write_text("train: {device: cpu}\noutput: runs\n")
    return dsv3_run("tiny.yaml", "--config", "machine.yaml", "--check")


@mistake(2)
def optimizer_empty_match(folder):
    """An optimizer group matches no parameter."""
    experiment(folder, ("role: matrix,", "match: 'blocks\\.',"))
    return dsv3_run("tiny.yaml", "--dry-run")


@mistake(2)
def optimizer_shadowed_group(folder):
    """A group comes behind one that takes everything."""
    experiment(folder, ("{role: [embedding, head, norm, router, bias], plugin", "{plugin"))
    return dsv3_run("tiny.yaml", "--dry-run")


@mistake(2)
def optimizer_unowned_parameter(folder):
    """No group is for the norms."""
    experiment(folder, ("head, norm, router", "head, router"))
    return dsv3_run("tiny.yaml", "--dry-run")


@mistake(2)
def optimizer_muon_for_vectors(folder):
    """Muon is given vectors."""
    experiment(folder, ("role: matrix,", "role: [matrix, norm],"), ("head, norm, router", "head, router"))
    return dsv3_run("tiny.yaml", "--dry-run")


@mistake(2)
def yaml_odd_rope_dim(folder):
    """A rotary dimension is odd."""
    experiment(folder, ("qk_rope_dim: 8", "qk_rope_dim: 7"))
    return dsv3_run("tiny.yaml", "--dry-run")


@mistake(2)
def vocabulary_without_tokenizer(folder):
    """The vocabulary is to be the tokenizer's, but there is none."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "data={plugin: synthetic}", "data.tokenizer=null", "--run_name", "novocab")
