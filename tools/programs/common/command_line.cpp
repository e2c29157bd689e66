#include "common/command_line.h"

#include <algorithm>
#include <map>
#include <regex>
#include <vector>

#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>

namespace {

std::vector<std::string> flags_of(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
  return flags;
}

void add_declared_flags(const CLI::App& command, std::map<std::string, std::string>& declared) {
  for (const std::string& flag : flags_of(command)) declared[kebab_case(flag)] = flag;
  for (const CLI::App* subcommand : command.get_subcommands({}))
    add_declared_flags(*subcommand, declared);
}

/// Returns the arguments in reverse order, as CLI11 expects them, with each flag spelled as it was
/// declared.
std::vector<std::string> reversed_words(const CLI::App& app, int argc, char** argv) {
  std::map<std::string, std::string> declared;
  add_declared_flags(app, declared);
  std::vector<std::string> words(argv + 1, argv + argc);
  for (std::string& word : words) {
    const size_t length = std::min(word.find('='), word.size());
    const auto flag = declared.find(kebab_case(word.substr(0, length)));
    if (word.starts_with("--") && flag != declared.end()) word.replace(0, length, flag->second);
  }
  std::reverse(words.begin(), words.end());
  return words;
}

/// Returns the subcommand that was being parsed and sets `path` to its name, such as "dsv3 plugins
/// check".
const CLI::App& innermost(const CLI::App& app, std::string& path) {
  path += (path.empty() ? "" : " ") + app.get_name();
  const auto parsed = app.get_subcommands();
  return parsed.empty() ? app : innermost(*parsed.front(), path);
}

std::string did_you_mean(const std::string& word) {
  return word.empty() ? "" : "; did you mean " + word + "?";
}

std::string unknown_flag(const CLI::App& command, const std::string& word) {
  const std::string flag = word.substr(0, word.find('='));
  const std::vector<std::string> known = flags_of(command);
  std::string near = dsv3::nearest(flag, known);
  if (near.empty())  // an abbreviation: --out
    for (const std::string& name : known)
      if (flag.size() > 3 && name.starts_with(flag)) near = name;
  return "unknown flag " + flag + did_you_mean(near);
}

std::string unknown_command(const CLI::App& group, const std::string& path,
                            const std::string& word) {
  std::vector<std::string> known;
  for (const CLI::App* subcommand : group.get_subcommands({}))
    if (!subcommand->get_group().empty()) known.push_back(subcommand->get_name());
  return "unknown command '" + path + " " + word + "'" + did_you_mean(dsv3::nearest(word, known));
}

/// Rewords CLI11's message about an invalid value if it is in a known format.
std::string invalid_value(const CLI::App& command, const std::string& text) {
  std::smatch m;
  const auto matches = [&](const char* form) {
    return std::regex_match(text, m, std::regex(form));
  };
  if (matches("(\\S+): (.*) not in \\{(.*)\\}"))
    return "invalid value '" + m.str(2) + "' for " + m.str(1) + "; expected " + m.str(3);
  if (matches("(\\S+): Value (.*) not in range (\\S+) to (\\S+)")) {
    // If a range has no upper bound, CLI11 prints the largest double, which contains an exponent.
    const bool positive = m.str(4).find('e') != std::string::npos;
    return "invalid value '" + m.str(2) + "' for " + m.str(1) + "; expected " +
           (positive ? "a positive number" : m.str(3) + " to " + m.str(4));
  }
  if (matches("Could not convert: (\\S+) = (.*)")) {
    const CLI::Option* option = command.get_option_no_throw(m.str(1));
    if (option && option->get_items_expected_max() == 0) return m.str(1) + " takes no value";
    return "invalid value '" + m.str(2) + "' for " + m.str(1) + "; expected a number";
  }
  return text;
}

std::string usage_error(const CLI::App& app, const CLI::ParseError& error,
                        const std::string& hint) {
  std::string path;
  const CLI::App& command = innermost(app, path);
  const bool is_group = !command.get_subcommands({}).empty();
  const std::vector<std::string> extra = app.remaining(true);
  const std::string what = error.what();
  std::string text;
  if (!extra.empty() && extra.front().starts_with("-"))
    text = unknown_flag(command, extra.front());
  else if (is_group)
    text = extra.empty() ? path + " requires a command"
                         : unknown_command(command, path, extra.front());
  else if (!extra.empty())
    text = "unexpected argument '" + extra.front() + "'";
  else if (dynamic_cast<const CLI::ArgumentMismatch*>(&error))
    text = what.substr(0, what.find(':')) + " requires a value";
  else
    text = invalid_value(command, what);
  if (text.ends_with("?")) return text;
  const bool unknown = is_group || text.starts_with("unknown");
  return text + (unknown && &command == &app ? hint : "") + "; run '" + path + " --help' for usage";
}

}  // namespace

std::string kebab_case(std::string flag) {
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

void parse_command_line(CLI::App& app, int argc, char** argv, const std::string& hint) {
  add_version_flag(app);
  try {
    app.parse(reversed_words(app, argc, argv));
  } catch (const CLI::Success&) {
    throw;
  } catch (const CLI::ParseError& error) {
    throw dsv3::Error(usage_error(app, error, hint), dsv3::ExitCode::usage);
  }
}
