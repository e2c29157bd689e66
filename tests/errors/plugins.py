"""Mistakes in registries and plugins. The faulty libraries are those of tests/bad_plugins."""

import shutil

from harness import FIXTURES, dsv3_run, experiment, mistake

NAMES = {"broken_word": "quarters", "throws_making": "thrower"}  # others register schedule/halving


def fixture(name, words, exit_code=3, options=""):
    """A mistake that is a schedule of one faulty library."""
    def prepare(folder):
        experiment(folder, ("{plugin: cosine, warmup: 5}", f"{{plugin: {NAMES.get(name, 'halving')}{options}}}"))
        return dsv3_run("tiny.yaml", "--plugin-path", FIXTURES / "registries" / f"{name}.toml", "--run_name", "new")
    prepare.__name__ = "plugin_" + name + options.replace(", what: ", "_").replace(", ", "_")
    prepare.__doc__ = words
    mistake(exit_code)(prepare)


fixture("other_sdk", "A plugin was built with another SDK.")
fixture("other_headers", "A plugin was built with changed headers of the SDK.")
fixture("other_cxx_abi", "A plugin was built with another C++ ABI.")
fixture("other_debug", "A plugin was built with debug iterators.")
fixture("other_torch", "A plugin was built with another LibTorch.")
fixture("other_cuda", "A plugin was built for another CUDA.")
fixture("other_all", "A plugin was built with another everything.")
fixture("throws_registering", "A plugin throws while it registers.")
fixture("throws_a_number", "A plugin throws something that is no exception.")
fixture("throws_statically", "A plugin throws while it is loaded.")
fixture("throws_making", "A component's constructor throws its own error.", 4)
fixture("throws_making", "A component's constructor throws a standard exception.", options=", what: standard")
fixture("throws_making", "A component's constructor throws a number.", options=", what: number")
fixture("broken_word", "A plugin registers another name than its build said.")
fixture("registers_twice", "A plugin registers a name twice.")
fixture("no_entry_point", "A plugin registers nothing.")
fixture("missing_symbol", "A plugin needs a function that is nowhere.")


def own_library(folder, name):
    """Copies a fixture's library into the folder and names it in the experiment."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: mine.so}"))
    shutil.copyfile(FIXTURES / f"lib/dsv3/plugins/libdsv3_fixture_{name}.so", folder / "mine.so")
    return folder / "mine.so"


@mistake(3)
def plugin_no_stamp(folder):
    """A plugin was built without dsv3_add_plugin."""
    own_library(folder, "no_stamp")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_damaged_stamp(folder):
    """A byte of a plugin's stamp was flipped."""
    library = own_library(folder, "good")
    content = library.read_bytes()
    assert content.count(b"@dsv3-plugin@ sdk=") == 1
    library.write_bytes(content.replace(b"@dsv3-plugin@ sdk=", b"@dsv3-plugin@ sdk?"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_truncated(folder):
    """A plugin's library was cut off while it was copied."""
    library = own_library(folder, "good")
    library.write_bytes(library.read_bytes()[:6000])
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_empty_library(folder):
    """A plugin's library is empty."""
    own_library(folder, "good").write_bytes(b"")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_is_a_python_file(folder):
    """A Python module is named as the plugin's library."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: halving.py}"))
    (folder / "halving.py").write_text("def factor(step, total):\n    return 0.5 ** (step / 10)\n")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_library_missing(folder):
    """The library that the experiment names is not there."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: build/libhalving.so}"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_library_of_another_kind(folder):
    """A library of a schedule is named as an attention."""
    own_library(folder, "good")
    experiment(folder, ("{plugin: mla,", "{library: mine.so, plugin: halving,"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(2)
def plugin_option_unknown(folder):
    """An option of a third party's plugin is misspelled."""
    own_library(folder, "good")
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("library: mine.so", "library: mine.so, stpes: 5"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@mistake(3)
def plugin_path_missing(folder):
    """The folder of --plugin-path is not there."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--plugin-path", "my_plugins")


@mistake(3)
def plugin_path_without_registry(folder):
    """The folder of --plugin-path holds no registry."""
    experiment(folder)
    (folder / "my_plugins/src").mkdir(parents=True)
    return dsv3_run("tiny.yaml", "--plugin-path", "my_plugins")


@mistake(3)
def plugin_path_of_the_environment(folder):
    """DSV3_PLUGIN_PATH names a folder that is gone."""
    experiment(folder)
    return dsv3_run("tiny.yaml", environment={"DSV3_PLUGIN_PATH": "old_plugins"})


@mistake(3)
def registry_two_hits(folder):
    """Two registries of one search level have the plugin."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving}"))
    return dsv3_run("tiny.yaml", *[word for name in ("good", "other_compiler")
                                   for word in ("--plugin-path", FIXTURES / "registries" / f"{name}.toml")])


GOOD_ENTRY = """registry = 1
[[plugin]]
kind = "schedule"
name = "halving"
library = "libhalving.so"
version = "1.0"
status = "stable"
summary = "Halves"
"""


def registry(name, words, old, new):
    """A mistake in a registry file."""
    def prepare(folder):
        assert old in GOOD_ENTRY
        experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving}"))
        (folder / "mine.toml").write_text(GOOD_ENTRY.replace(old, new, 1))
        return dsv3_run("tiny.yaml", "--plugin-path", "mine.toml")
    prepare.__name__, prepare.__doc__ = "registry_" + name, words
    mistake(3)(prepare)


registry("library_missing", "A registry names a library that was not built.", "stable", "stable")
registry("unknown_key", "A registry has an unknown key.", 'summary =', 'sumary =')
registry("missing_key", "A registry's entry has no library.", 'library = "libhalving.so"\n', "")
registry("not_toml", "A registry is no TOML.", '"halving"', "halving")
registry("aborting_toml", "A registry has the brackets that toml++ asserts on.", 'version = "1.0"', "version = [1, 2.5,}")
registry("unknown_kind", "A registry's entry has a kind that dsv3 does not know.", '"schedule"', '"scheduler"')
registry("other_version", "A registry is of a later format.", "registry = 1", "registry = 2")
registry("single_brackets", "A registry's entry has single brackets.", "[[plugin]]", "[plugin]")
