"""Mistakes on the command line."""

from harness import dsv3, dsv3_run, experiment, mistake, trained


def typed(name, words, exit_code, *arguments, program=dsv3_run):
    """A mistake that is only its command, next to the tiny experiment."""
    def prepare(folder):
        experiment(folder)
        return program(*arguments)
    prepare.__name__, prepare.__doc__ = name, words
    mistake(exit_code)(prepare)


typed("cli_nothing", "The program is started without anything.", 2)
typed("cli_unknown_flag", "A flag is misspelled.", 2, "tiny.yaml", "--dryrun")
typed("cli_flag_of_pytorch", "A flag of another program is used.", 2, "tiny.yaml", "--lr", "0.1")
typed("cli_two_files", "Two experiment files are given.", 2, "tiny.yaml", "other.yaml")
typed("cli_spaces_around_equals", "An override has spaces around its =.", 2, "tiny.yaml", "train.steps", "=", "5")
typed("cli_space_behind_equals", "An override has a space behind its =.", 2, "tiny.yaml", "train.steps=", "5")
typed("cli_flag_without_value", "A flag lacks its value.", 2, "tiny.yaml", "--run_name")
typed("cli_override_unknown_key", "An override's key is misspelled.", 2, "tiny.yaml", "train.stesp=5")
typed("cli_override_wrong_type", "An override's value has the wrong type.", 2, "tiny.yaml", "train.steps=many")
typed("cli_override_bad_yaml", "An override's value is no YAML.", 2, "tiny.yaml", "samples.prompts=[The")
typed("cli_override_list_element", "An override does not say which element of a list it means.", 2, "tiny.yaml", "optimizer.lr=0.1")
typed("cli_override_no_such_element", "An override names an element that the list does not have.", 2, "tiny.yaml", "optimizer.2.lr=0.1")
typed("cli_unknown_optimizer", "The optimizer named by --optimizer is unknown.", 2, "tiny.yaml", "--optimizer", "adam")
typed("cli_unknown_strategy", "A strategy of another program is named.", 2, "tiny.yaml", "--strategy", "deepspeed")
typed("cli_unknown_device", "The device is unknown.", 2, "tiny.yaml", "--device", "gpu")
typed("cli_bad_memory", "A memory size has no unit.", 2, "tiny.yaml", "--dry-run", "--gpu_memory", "8")
typed("cli_memory_without_dry_run", "--gpu_memory is given without --dry-run.", 2, "tiny.yaml", "--gpu_memory", "8G")
typed("cli_resume_without_name", "--resume auto does not say which run.", 2, "tiny.yaml", "--resume", "auto")
typed("cli_resume_value", "--resume gets a run's name.", 2, "tiny.yaml", "--resume", "tiny")
typed("cli_bad_run_name", "The run's name is a path.", 2, "tiny.yaml", "--run_name", "../elsewhere")
typed("cli_missing_machine_config", "The file of machine defaults is not there.", 2, "tiny.yaml", "--config", "mine.yaml")
typed("cli_dsv3_nothing", "dsv3 is started without a command.", 2, program=dsv3)
typed("cli_dsv3_unknown_flag", "A flag of a command is misspelled.", 2, "plugins", "check", "mine.so", "--memroy", "4G", program=dsv3)
typed("cli_dsv3_too_many", "A command gets one argument too many.", 2, "data", "inspect", "shards", "more", program=dsv3)
typed("cli_dsv3_unknown_subcommand", "A command of a command is misspelled.", 2, "plugins", "lst", program=dsv3)
typed("cli_dsv3_unknown_command", "dsv3 is asked to train.", 2, "train", "tiny.yaml", program=dsv3)
typed("cli_describe_without_kind", "A component is named without its kind.", 2, "plugins", "describe", "mla", program=dsv3)
typed("cli_describe_unknown_kind", "A kind is misspelled.", 2, "plugins", "describe", "optimiser/adamw", program=dsv3)
typed("cli_describe_unknown_plugin", "A plugin to describe is misspelled.", 3, "plugins", "describe", "attention/mlaa", program=dsv3)


@mistake(2)
def cli_unknown_run(folder):
    """The run to go on with is misspelled."""
    trained(folder, "nano-first")
    return dsv3_run("--run_id", "nano-frist")


@mistake(2)
def cli_run_exists(folder):
    """A run of that name exists."""
    trained(folder, "nano-first")
    return dsv3_run("tiny.yaml", "--run_name", "nano-first")


@mistake(2)
def cli_setting_on_resume(folder):
    """A run that goes on is given another setting."""
    trained(folder, "nano-first")
    return dsv3_run("--run_id", "nano-first", "train.steps=100")


@mistake(2)
def cli_run_in_use(folder):
    """The run is still training in another process."""
    trained(folder, "busy")
    return dsv3_run("--run_id", "busy", shell='exec 9<>runs/busy/lock; flock -x 9; "$@"')
