// dsv3 completion bash | zsh | fish: scripts generated from the command lines of both programs.
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include <dsv3/runtime/compare.h>
#include <dsv3/sdk/error.h>

#include "../dsv3-run/arguments.h"
#include "commands.h"
#include "common/command_line.h"

namespace {

// Returns what a shell should offer as an option's value: "file", "component", "format",
// "experiment", "words A B", or nothing.
std::string value_kind(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find('{'), close = type.find('}');
  if (open != type.npos && close != type.npos) {  // the option has a fixed set of values
    std::string words = type.substr(open + 1, close - open - 1);
    for (char& c : words)
      if (c == ',') c = ' ';
    return "words " + words;
  }
  if (type.find("key=value") != type.npos) return "experiment";
  if (type.find("KIND/NAME") != type.npos) return "component";
  if (type.find("FORMAT") != type.npos) return "format";
  for (const char* file : {"FILE", "PATH", "DIR"})
    if (type.find(file) != type.npos) return "file";
  return "";
}

struct Choice {
  std::string word, description;
  bool is_option = false, takes_value = false;
  std::string value;
};

// A program or subcommand, e.g. "dsv3 plugins list".
struct Command {
  std::string path;
  std::vector<Choice> choices;
  std::string positional;  // what a shell should offer for positional arguments
};

void collect(const CLI::App& app, const std::string& path, std::vector<Command>& out) {
  Command command{path, {}, ""};
  const auto subcommands =
      app.get_subcommands([](const CLI::App* a) { return !a->get_group().empty(); });
  for (const CLI::App* sub : subcommands)
    command.choices.push_back({sub->get_name(), sub->get_description(), false, false, ""});
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_positional() && command.positional.empty())
      command.positional = value_kind(*option);
    for (const std::string& name : option->get_lnames())
      command.choices.push_back({"--" + name, option->get_description(), true,
                                 option->get_items_expected_max() > 0, value_kind(*option)});
  }
  out.push_back(std::move(command));
  for (const CLI::App* sub : subcommands) collect(*sub, path + " " + sub->get_name(), out);
}

std::vector<Command> commands_of(const CLI::App& dsv3) {
  std::vector<Command> commands;
  collect(dsv3, "dsv3", commands);
  CLI::App run("", "dsv3-run");
  Arguments arguments;
  declare(run, arguments);
  add_version_flag(run);
  collect(run, "dsv3-run", commands);
  return commands;
}

// Returns lookup functions for bash and zsh: the subcommands and flags of each command, and what to
// offer after a flag. Flags are looked up with '-', whichever spelling was typed.
std::string tables(const std::vector<Command>& commands) {
  std::string words = "_dsv3_words() {\n  case $1 in\n", values = "_dsv3_value() {\n  case $1 in\n";
  for (const Command& command : commands) {
    words += "    '" + command.path + "') echo '";
    for (const Choice& choice : command.choices) {
      words += choice.word + " ";
      if (choice.takes_value)
        values += "    '" + command.path + " " + kebab_case(choice.word) + "') echo 'value " +
                  choice.value + "' ;;\n";
    }
    words.back() = '\'';
    words += " ;;\n";
    values += "    '" + command.path + "') echo '" + command.positional + "' ;;\n";
  }
  return words + "  esac\n}\n" + values + "  esac\n}\n";
}

// Finds the command in the words before the cursor ($@) and prints candidates, one per line; the
// line "<file>" requests file names.
constexpr const char* kCandidates = R"sh(_dsv3_candidates() {
  local at=${1##*/} previous= word kind file=
  shift
  for word; do
    case $word in
      -*) ;;
      *=*) ;;
      *) case " $(_dsv3_words "$at") " in
           *" $word "*) at="$at $word" ;;
           *) case $word in *.yaml) file=$word ;; esac ;;
         esac ;;
    esac
    previous=$word
  done
  kind=$(_dsv3_value "$at ${previous//_/-}")
  case $kind in
    value*) kind=${kind#value }; kind=${kind#value} ;;
    *) _dsv3_words "$at" | tr ' ' '\n'
       kind=$(_dsv3_value "$at") ;;
  esac
  case $kind in
    words*) echo "${kind#words }" | tr ' ' '\n' ;;
    component) dsv3 completion components 2>/dev/null ;;
    format) dsv3 completion components 2>/dev/null | sed -n 's|^format/||p' ;;
    file) echo '<file>' ;;
    experiment) if [ -n "$file" ]; then dsv3 completion overrides "$file" 2>/dev/null; else echo '<file>'; fi ;;
  esac
  return 0
}
)sh";

constexpr const char* kBash = R"sh(_dsv3_complete() {
  # Bash splits words at =, but an override is one word.
  local line=${COMP_LINE:0:COMP_POINT} word candidates
  local -a words
  read -ra words <<<"$line"
  case $line in
    *[[:space:]]) word= ;;
    *) word=${words[-1]}; unset 'words[-1]' ;;
  esac
  candidates=$(_dsv3_candidates "${words[@]}")
  COMPREPLY=($(compgen -W "${candidates//<file>/}" -- "$word"))
  case $candidates in *'<file>'*) COMPREPLY+=($(compgen -f -- "$word")); compopt -o filenames 2>/dev/null ;; esac
  case $word in *=*) COMPREPLY=("${COMPREPLY[@]#"${word%=*}="}") ;; esac
  case ${COMPREPLY[0]-} in *=) compopt -o nospace 2>/dev/null ;; esac
}
complete -F _dsv3_complete dsv3 dsv3-run
)sh";

constexpr const char* kZsh = R"sh(_dsv3_complete() {
  local -a lines
  lines=(${(f)"$(_dsv3_candidates "${(@)words[1,CURRENT-1]}")"})
  if (( ${lines[(Ie)<file>]} )); then
    lines=("${(@)lines:#<file>}")
    _files
  fi
  compadd -S '' -- "${(@M)lines:#*=}"
  compadd -- "${(@)lines:#*=}"
}
compdef _dsv3_complete dsv3 dsv3-run
)sh";

std::string fish_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text)
    quoted += c == '\'' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  return quoted + "'";
}

std::string fish(const std::vector<Command>& commands) {
  std::string out = R"sh(function __dsv3_at -a path has_commands
  set -l expected (string split ' ' -- $path)
  set -l words (string match -v -- '-*' (commandline -opc))
  set words[1] (basename $words[1])
  # The word after a command with subcommands is one of these, or still incomplete.
  test "$words[1..$(count $expected)]" = "$expected"
  and test $has_commands = no -o (count $words) = (count $expected)
end
complete -c dsv3 -f
function __dsv3_has_file
  string match -q -- '*.yaml' (commandline -opc)
end
complete -c dsv3-run -n __dsv3_has_file -f -a '(dsv3 completion overrides (string match -- "*.yaml" (commandline -opc))[1] 2>/dev/null)'
)sh";
  const auto values = [](const std::string& kind) -> std::string {
    if (kind == "file" || kind == "experiment") return " -F";
    if (kind == "component") return " -f -a '(dsv3 completion components 2>/dev/null)'";
    if (kind == "format")
      return " -f -a \"(dsv3 completion components 2>/dev/null | string replace -f format/ '')\"";
    if (kind.starts_with("words ")) return " -f -a " + fish_quoted(kind.substr(6));
    return " -f";
  };
  for (const Command& command : commands) {
    const bool has_commands = !command.choices.empty() && !command.choices.front().is_option;
    const std::string at =
        "complete -c " + command.path.substr(0, command.path.find(' ')) + " -n " +
        fish_quoted("__dsv3_at " + fish_quoted(command.path) + (has_commands ? " yes" : " no"));
    for (const Choice& choice : command.choices) {
      out += at + (choice.is_option ? " -l " + choice.word.substr(2) : " -a " + choice.word);
      if (choice.takes_value) out += " -r" + values(choice.value);
      out += " -d " + fish_quoted(choice.description) + "\n";
    }
    if (command.positional == "experiment")
      out += "complete -c dsv3-run -n 'not __dsv3_has_file' -F\n";
    else if (!command.positional.empty())
      out += at + values(command.positional) + "\n";
  }
  return out;
}

// Prints KEY= for every key of the experiment, and KIND=PLUGIN for every plugin.
void print_overrides(const std::string& file, const PluginOptions& options) {
  dsv3::Plugins plugins = options.open();
  dsv3::ExperimentRequest request;
  request.file = file;
  request.machine_files = options.machine_files();
  for (const dsv3::ResolvedValue& value : dsv3::load_experiment(request, plugins).resolved.values)
    if (value.path != "dsv3") std::cout << value.path << "=\n";
  for (const dsv3::KindRow& kind : dsv3::kinds()) {
    if (kind.path.empty()) continue;  // experiments do not configure this kind
    for (const std::string& name : plugins.names(kind.kind))
      std::cout << kind.name << '=' << name << '\n';
  }
}

void print_components(const PluginOptions& options) {
  const dsv3::Plugins plugins = options.open();
  for (const dsv3::PluginEntry& entry : plugins.entries())
    std::cout << dsv3::kind_name(entry.kind) << '/' << entry.name << '\n';
}

}  // namespace

void add_completion_commands(CLI::App& app, int&) {
  const auto plugins = std::make_shared<PluginOptions>();
  CLI::App* group =
      app.add_subcommand("completion", "Print a shell completion script for dsv3 and dsv3-run");
  group->require_subcommand(1);
  const auto add_script = [&](const char* shell, const char* use, auto generate) {
    group->add_subcommand(shell, std::string("For ") + shell + ": " + use)
        ->callback([&app, generate] { std::cout << generate(commands_of(app)); });
  };
  add_script("bash", "eval \"$(dsv3 completion bash)\"",
             [](const auto& all) { return tables(all) + kCandidates + kBash; });
  add_script("zsh", "eval \"$(dsv3 completion zsh)\", after compinit",
             [](const auto& all) { return tables(all) + kCandidates + kZsh; });
  add_script("fish", "dsv3 completion fish | source", [](const auto& all) { return fish(all); });
  // Called by the completion scripts; hidden from --help.
  CLI::App* components =
      group->add_subcommand("components", "Print the names of all components")->group("");
  components->callback([plugins] { print_components(*plugins); });
  CLI::App* overrides =
      group->add_subcommand("overrides", "Print the overrides of an experiment")->group("");
  const auto file = std::make_shared<std::string>();
  overrides->add_option("FILE", *file, "Experiment file")->required();
  overrides->callback([file, plugins] { print_overrides(*file, *plugins); });
}
