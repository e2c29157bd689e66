"""Errors on the command line."""

from harness import GOLDEN, case, dsv3, dsv3_run, experiment, trained

DSV3_RUN = [
    # name, title, arguments of dsv3-run, expected phrases
    ("nothing", "No arguments.", [], GOLDEN),
    ("unknown_flag", "A misspelled flag.", ["tiny.yaml", "--dryrun"], GOLDEN),
    ("flag_of_another_program", "A flag that dsv3-run does not support.", ["tiny.yaml", "--lr", "0.1"], "--lr",
     "--help", "train.steps=100"),
    ("two_files", "Two experiment files.", ["tiny.yaml", "other.yaml"], "tiny.yaml", "other.yaml"),
    ("spaces_around_equals", "Spaces around the = in an override.", ["tiny.yaml", "train.steps", "=", "5"],
     "train.steps=VALUE"),
    ("space_after_equals", "A space after the = in an override.", ["tiny.yaml", "train.steps=", "5"],
     "train.steps=VALUE"),
    ("flag_without_value", "A flag without its value.", ["tiny.yaml", "--run_name"], "--run_name", "value", "--help"),
    ("override_unknown_key", "A misspelled key in an override.", ["tiny.yaml", "train.stesp=5"], GOLDEN),
    ("override_wrong_type", "An override with a value of the wrong type.", ["tiny.yaml", "train.steps=many"],
     "command line", "train.steps=many\n              ^~~~", "integer"),
    ("override_bad_yaml", "An override that is not valid YAML.", ["tiny.yaml", "samples.prompts=[The"],
     "command line", "samples.prompts=[The\n                  ^", "']'"),
    ("override_list_element", "An override of a list without an element index.", ["tiny.yaml", "optimizer.lr=0.1"],
     GOLDEN),
    ("override_no_such_element", "An override of a list element that does not exist.",
     ["tiny.yaml", "optimizer.2.lr=0.1"], "command line", "optimizer.2.lr=0.1\n            ^",
     "optimizer.0 (adamw), optimizer.1 (muon)"),
    ("unknown_optimizer", "An unknown optimizer in --optimizer.", ["tiny.yaml", "--optimizer", "adam"],
     "'adam'", "optimizer=adam\n            ^~~~", "'adamw'", "adamw, muon", "BUILD/registries"),
    ("unknown_strategy", "A strategy from another framework.", ["tiny.yaml", "--strategy", "deepspeed"],
     "'deepspeed'", "strategy=deepspeed\n           ^~~~~~~~~", "single", "BUILD/registries"),
    ("unknown_device", "An unknown device.", ["tiny.yaml", "--device", "gpu"], "train.device=gpu\n               ^~~",
     "auto, cpu, cuda"),
    ("bad_memory", "A memory size without a unit.", ["tiny.yaml", "--dry-run", "--gpu-memory", "8"], "'8'", "8G"),
    ("memory_without_dry_run", "--gpu-memory without --dry-run.", ["tiny.yaml", "--gpu-memory", "8G"], "memory",
     "--dry-run"),
    ("resume_without_name", "--resume auto without a run name.", ["tiny.yaml", "--resume", "auto"], "--resume",
     "--run_name"),
    ("resume_value", "A run name as the value of --resume.", ["tiny.yaml", "--resume", "tiny"], "--resume", "auto",
     "'tiny'"),
    ("bad_run_name", "A run name that is a path.", ["tiny.yaml", "--run_name", "../elsewhere"], "'../elsewhere'",
     "128"),
    ("missing_machine_config", "A machine-defaults file that does not exist.",
     ["tiny.yaml", "--config", "mine.yaml"],
     "mine.yaml", "no such file"),
]

DSV3 = [
    # name, title, arguments of dsv3, exit code, expected phrases
    ("dsv3_nothing", "dsv3 without a command.", [], 2, "dsv3 --help", "dsv3-run"),
    ("dsv3_unknown_flag", "A misspelled flag for a dsv3 command.", ["plugins", "check", "mine.so", "--memroy", "4G"], 2,
     "--memroy", "dsv3 plugins check --help"),
    ("dsv3_too_many", "One argument too many.", ["data", "inspect", "shards", "more"], 2, "more",
     "dsv3 data inspect --help"),
    ("dsv3_unknown_subcommand", "A misspelled subcommand.", ["plugins", "lst"], 2, "dsv3 plugins lst",
     "list"),
    ("dsv3_unknown_command", "Training with dsv3 instead of dsv3-run.", ["train", "tiny.yaml"], 2, GOLDEN),
    ("describe_without_kind", "A component name without its kind.", ["plugins", "describe", "mla"], 2, "KIND/NAME",
     "'mla'"),
    ("describe_unknown_kind", "A misspelled kind.", ["plugins", "describe", "optimiser/adamw"], 2, GOLDEN),
    ("describe_unknown_plugin", "A misspelled plugin.", ["plugins", "describe", "attention/mlaa"], 3,
     "'mlaa'", "'mla'", "mha, mla", "BUILD/registries"),
]


def command_case(name, title, program, words, exit_code, phrases):
    @case(exit_code, *phrases, name="cli_" + name, title=title)
    def prepare(folder):
        experiment(folder)
        return program(*words)


for name, title, words, *phrases in DSV3_RUN:
    command_case(name, title, dsv3_run, words, 2, phrases)
for name, title, words, exit_code, *phrases in DSV3:
    command_case(name, title, dsv3, words, exit_code, phrases)


@case(2, GOLDEN)
def cli_unknown_run(folder):
    """Resuming a run with a misspelled name."""
    trained(folder, "nano-first")
    return dsv3_run("--run_id", "nano-frist")


@case(2, "'nano-first'", "--run_id nano-first", "--resume auto")
def cli_run_exists(folder):
    """A new run with the name of an existing run."""
    trained(folder, "nano-first")
    return dsv3_run("tiny.yaml", "--run_name", "nano-first")


@case(2, "train.steps: 3 in the run, 2 now", "a run can only become longer", "--branch", "--from")
def cli_setting_of_a_resumed_run(folder):
    """Resuming a run with --run_id and an override."""
    trained(folder, "nano-first")
    return dsv3_run("--run_id", "nano-first", "train.steps=2")


@case(2, GOLDEN)
def cli_run_in_use(folder):
    """Resuming a run that another process is training."""
    trained(folder, "busy")
    return dsv3_run("--run_id", "busy", shell='exec 9<>runs/busy/lock; flock -x 9; "$@"')
