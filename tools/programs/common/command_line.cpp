#include "common/command_line.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <vector>

#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>

namespace {

constexpr size_t kMaxShown = 200;  // bytes of an invalid value

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

using Parts = std::vector<std::string>;

/// Splits `text` at the separators, the first one from the left and the others from the right,
/// because a value before them may contain them. Returns nothing if one is missing.
Parts split(std::string text, const Parts& separators) {
  Parts parts;
  for (size_t i = separators.size(); i-- > 0;) {
    const size_t at = i == 0 ? text.find(separators[0]) : text.rfind(separators[i]);
    if (at == text.npos) return {};
    parts.insert(parts.begin(), text.substr(at + separators[i].size()));
    text.resize(at);
  }
  parts.insert(parts.begin(), text);
  return parts;
}

/// Rewords CLI11's message about an invalid value if it is in a known format.
std::string invalid_value(const CLI::App& command, const std::string& text) {
  const auto invalid = [](const std::string& option, std::string value, const std::string& wanted) {
    if (value.size() > kMaxShown) value = value.substr(0, kMaxShown) + "...";
    return "invalid value '" + value + "' for " + option + "; expected " + wanted;
  };
  if (const Parts p = split(text, {": Value ", " not in range ", " to "}); !p.empty())
    return invalid(p[0], p[1], p[2] + " to " + p[3]);
  if (const Parts p = split(text, {": ", " not in {", "}"}); !p.empty())
    return invalid(p[0], p[1], p[2]);
  if (const Parts p = split(text, {"Could not convert: ", " = "}); !p.empty()) {
    const CLI::Option* option = command.get_option_no_throw(p[1]);
    if (option && option->get_items_expected_max() == 0) return p[1] + " takes no value";
    return invalid(p[1], p[2], "a number");
  }
  return text;
}

/// Rewords CLI11's message about a flag with too few or too many values.
std::string wrong_count(const CLI::App& command, const std::string& text) {
  const std::string flag = text.substr(0, text.find(':'));
  const CLI::Option* option = command.get_option_no_throw(flag);
  return flag + (option && option->count() > 1 ? " may be given only once" : " requires a value");
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
    text = wrong_count(command, what);
  else
    text = invalid_value(command, what);
  if (text.ends_with("?")) return text;
  const bool unknown = is_group || text.starts_with("unknown");
  return text + (unknown && &command == &app ? hint : "") + "; run '" + path + " --help' for usage";
}

/// In the format of CLI11, which invalid_value() rewords.
std::string out_of_range(const std::string& text, int64_t min, int64_t max) {
  return "Value " + text + " not in range " + std::to_string(min) + " to " + std::to_string(max);
}

}  // namespace

std::string kebab_case(std::string flag) {
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

CLI::Validator integer_between(int64_t min, int64_t max) {
  return CLI::Validator(
      [=](std::string& text) {
        int64_t number = 0;
        std::from_chars(text.data(), text.data() + text.size(), number);
        const bool fits = std::to_string(number) == text && number >= min && number <= max;
        return fits ? std::string() : out_of_range(text, min, max);
      },
      "");
}

CLI::Validator number_between(int64_t min, int64_t max) {
  return CLI::Validator(
      [=](std::string& text) {
        double number = NAN;
        const char* const end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, number);
        if (error == std::errc() && stop == end && number >= double(min) && number <= double(max))
          return std::string();
        return out_of_range(text, min, max);
      },
      "");
}

std::optional<int64_t> parse_bytes(const std::string& text) {
  static const std::map<std::string, double> kUnits{{"", 1},
                                                    {"K", 1e3},
                                                    {"KB", 1e3},
                                                    {"M", 1e6},
                                                    {"MB", 1e6},
                                                    {"G", 1e9},
                                                    {"GB", 1e9},
                                                    {"T", 1e12},
                                                    {"TB", 1e12},
                                                    {"Ki", 1 << 10},
                                                    {"KiB", 1024},
                                                    {"Mi", 1 << 20},
                                                    {"MiB", 1 << 20},
                                                    {"Gi", 1 << 30},
                                                    {"GiB", 1 << 30},
                                                    {"Ti", double(int64_t{1} << 40)},
                                                    {"TiB", double(int64_t{1} << 40)}};
  double number = NAN;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, number);
  const auto unit = kUnits.find(std::string(stop, end));
  if (error != std::errc() || unit == kUnits.end()) return std::nullopt;
  const double bytes = number * unit->second;
  if (!(bytes >= 0 && bytes <= double(int64_t{1} << 60))) return std::nullopt;
  return int64_t(bytes);
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
