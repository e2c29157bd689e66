"""Errors in registries and plugins. The faulty libraries are in tests/bad_plugins."""

import shutil

from harness import FIXTURES, GOLDEN, case, dsv3_run, experiment

BY = ("tiny.yaml:17:20",)  # location of the plugin's name in the experiment

FIXTURE_CASES = [
    # name, title, faulty library, component, exit code, expected phrases
    ("other_sdk", "A plugin built with a different SDK version.", "other_sdk", "halving", 3, "SDK:", "9.9.9",
     "this dsv3 0.1.0", *BY),
    ("other_headers", "A plugin built with modified SDK headers.", "other_headers", "halving", 3, "SDK:",
     "headers DIGEST", *BY),
    ("other_cxx_abi", "A plugin built with a different C++ ABI.", "other_cxx_abi", "halving", 3, "C++ ABI:",
     "libcpp_abi1", "this dsv3 CXX_ABI", *BY),
    ("other_debug", "A plugin built with debug iterators.", "other_debug", "halving", 3, "debug iterators:",
     "plugin on", "this dsv3 off", *BY),
    ("other_torch", "A plugin built with a different LibTorch version.", "other_torch", "halving", 3, "LibTorch:",
     "2.9.1", "TORCH", *BY),
    ("other_cuda", "A plugin built with a different CUDA version.", "other_cuda", "halving", 3, "CUDA:",
     "plugin 12", "none", *BY),
    ("several_differences", "A plugin built with a different SDK, ABI and LibTorch.", "other_all", "halving", 3,
     GOLDEN),
    ("registration_throws", "A plugin that throws in its registration function.", "throws_registering", "halving", 3,
     GOLDEN),
    ("registration_throws_number", "A plugin that throws a number in its registration function.", "throws_a_number",
     "halving", 3, "'fixture_throws_a_number'", "std::exception", "dsv3::Error", *BY),
    ("static_initialiser_throws", "A plugin that throws in a static initialiser.", "throws_statically", "halving", 3,
     "'fixture_throws_statically'", "static initialiser", *BY),
    ("constructor_throws_error", "A constructor that throws a dsv3::Error.", "throws_making", "thrower", 4, GOLDEN),
    ("constructor_throws_std", "A constructor that throws a standard exception.", "throws_making",
     "thrower, what: standard", 3,
     "schedule 'thrower'", "constructor", "libdsv3_fixture_throws_making.so", "index 7", *BY),
    ("constructor_throws_number", "A constructor that throws a number.", "throws_making", "thrower, what: number", 3,
     GOLDEN),
    ("provides_mismatch", "A plugin that registers a component not listed in PROVIDES.", "broken_word",
     "quarters", 3,
     "schedule/halving", "DSV3_PLUGIN", "dsv3_add_plugin(PROVIDES)", "schedule/quarters", *BY),
    ("registers_twice", "A plugin that registers a component name twice.", "registers_twice", "halving", 3,
     "'fixture_registers_twice'", "schedule/halving", "twice", *BY),
    ("no_entry_point", "A plugin that registers no component.", "no_entry_point", "halving", 3,
     "'fixture_no_entry_point'", "DSV3_PLUGIN(registrar)", *BY),
    ("missing_symbol", "A plugin that needs an undefined function.", "missing_symbol", "halving", 3, GOLDEN),
]


def fixture_case(name, title, library, component, exit_code, phrases):
    @case(exit_code, *phrases, name="plugin_" + name, title=title)
    def prepare(folder):
        experiment(folder, ("{plugin: cosine, warmup: 5}", f"{{plugin: {component}}}"))
        return dsv3_run("tiny.yaml", "--plugin-path", FIXTURES / "registries" / f"{library}.toml", "--run_name", "new")


for name, title, library, component, exit_code, *phrases in FIXTURE_CASES:
    fixture_case(name, title, library, component, exit_code, phrases)


def copied_library(folder, name):
    """Copy a faulty plugin library into the folder, and write an experiment that uses it. Return the library's path."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: mine.so}"))
    shutil.copyfile(FIXTURES / f"lib/dsv3/plugins/libdsv3_fixture_{name}.so", folder / "mine.so")
    return folder / "mine.so"


@case(3, "FOLDER/mine.so", "dsv3_add_plugin()", *BY)
def plugin_no_stamp(folder):
    """A library that was built without dsv3_add_plugin."""
    copied_library(folder, "no_stamp")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "FOLDER/mine.so", "stamp", ".note.dsv3", *BY)
def plugin_damaged_stamp(folder):
    """A flipped bit in a plugin's stamp."""
    library = copied_library(folder, "good")
    content = library.read_bytes()
    assert content.count(b"@dsv3-plugin@ sdk=") == 1
    library.write_bytes(content.replace(b"@dsv3-plugin@ sdk=", b"@dsv3-plugin@ sdk?"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "FOLDER/mine.so", "damaged", *BY)
def plugin_truncated(folder):
    """An incomplete copy of a plugin."""
    library = copied_library(folder, "good")
    library.write_bytes(library.read_bytes()[:6000])
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "FOLDER/mine.so", "ELF", "dsv3_add_plugin()", *BY)
def plugin_empty_library(folder):
    """An empty plugin library."""
    copied_library(folder, "good").write_bytes(b"")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "FOLDER/halving.py", "ELF", "dsv3_add_plugin()", *BY)
def plugin_python_file(folder):
    """A Python module instead of a plugin library."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: halving.py}"))
    (folder / "halving.py").write_text("def factor(step, total):\n    return 0.5 ** (step / 10)\n")
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "FOLDER/build/libhalving.so", "No such file or directory", "`library:`", *BY)
def plugin_library_missing(folder):
    """A plugin library that does not exist."""
    experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving, library: build/libhalving.so}"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, GOLDEN)
def plugin_library_of_another_kind(folder):
    """A schedule's library requested as an attention layer."""
    copied_library(folder, "good")
    experiment(folder, ("{plugin: mla,", "{library: mine.so, plugin: halving,"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(2, GOLDEN)
def plugin_option_unknown(folder):
    """A misspelled option of a third-party plugin."""
    copied_library(folder, "good")
    (folder / "tiny.yaml").write_text((folder / "tiny.yaml").read_text().replace("library: mine.so", "library: mine.so, stpes: 5"))
    return dsv3_run("tiny.yaml", "--run_name", "new")


@case(3, "my_plugins")
def plugin_path_missing(folder):
    """A --plugin-path that does not exist."""
    experiment(folder)
    return dsv3_run("tiny.yaml", "--plugin-path", "my_plugins")


@case(3, "my_plugins")
def plugin_path_without_registry(folder):
    """A --plugin-path without a registry."""
    experiment(folder)
    (folder / "my_plugins/src").mkdir(parents=True)
    return dsv3_run("tiny.yaml", "--plugin-path", "my_plugins")


@case(3, GOLDEN)
def plugin_path_of_the_environment(folder):
    """A DSV3_PLUGIN_PATH that does not exist."""
    experiment(folder)
    return dsv3_run("tiny.yaml", environment={"DSV3_PLUGIN_PATH": "old_plugins"})


@case(3, GOLDEN)
def registry_duplicate_plugin(folder):
    """The same plugin in two registries at the same search level."""
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


@case(3, "schedule 'cosine' of FOLDER/libmine.so", "built-in plugin (BUILD/lib/dsv3/plugins/libdsv3_schedule_cosine.so)",
      "`library: FOLDER/libmine.so`", "tiny.yaml:17:20")
def registry_built_in_name(folder):
    """A plugin on a search path with the name of a built-in plugin."""
    experiment(folder)
    (folder / "mine.toml").write_text(GOOD_ENTRY.replace('"halving"', '"cosine"').replace("libhalving.so", "libmine.so"))
    return dsv3_run("tiny.yaml", "--plugin-path", "mine.toml")


REGISTRIES = [
    # name, title, text in the registry, its replacement, expected phrases
    ("library_missing", "A registry entry for a library that was not built.", "stable", "stable", GOLDEN),
    ("unknown_key", "An unknown key.", "summary =", "sumary =", GOLDEN),
    ("missing_key", "A registry entry without a library.", 'library = "libhalving.so"\n', "", "FOLDER/mine.toml:2:1",
     "'library'"),
    ("not_toml", "A registry that is not valid TOML.", '"halving"', "halving", "FOLDER/mine.toml:4:8", "TOML",
     'name = "adamw"'),
    ("toml_assertion", "Nested brackets that would make toml++ abort.", 'version = "1.0"', "version = [1, 2.5,}",
     "FOLDER/mine.toml:6:19", "TOML"),
    ("unknown_kind", "An unknown kind.", '"schedule"', '"scheduler"', "FOLDER/mine.toml:3:8",
     "'scheduler'", "'schedule'", "attention"),
    ("other_version", "A registry in a later format version.", "registry = 1", "registry = 2", "FOLDER/mine.toml:1:12",
     "`registry = 1`"),
    ("single_brackets", "A registry entry in single brackets.", "[[plugin]]", "[plugin]",
     "FOLDER/mine.toml:2:1", "[[plugin]]"),
]


def registry_case(name, title, old, new, phrases):
    @case(3, *phrases, name="registry_" + name, title=title)
    def prepare(folder):
        assert old in GOOD_ENTRY
        experiment(folder, ("{plugin: cosine, warmup: 5}", "{plugin: halving}"))
        (folder / "mine.toml").write_text(GOOD_ENTRY.replace(old, new, 1))
        return dsv3_run("tiny.yaml", "--plugin-path", "mine.toml")


for name, title, old, new, *phrases in REGISTRIES:
    registry_case(name, title, old, new, phrases)
