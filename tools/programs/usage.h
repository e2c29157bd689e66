// Mistakes on the command line in plain words, for both programs.
#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <dsv3/runtime/suggest.h>

template <class T>
bool is(const CLI::ParseError& error) {
  return dynamic_cast<const T*>(&error);
}

/// The subcommand that was being read, and how it is typed: "dsv3 plugins check".
inline const CLI::App& innermost(const CLI::App& app, std::string& path) {
  path += (path.empty() ? "" : " ") + app.get_name();
  const auto inside = app.get_subcommands();
  return inside.empty() ? app : innermost(*inside.front(), path);
}

/// What was typed that nobody asked for.
inline std::string unexpected(const CLI::App& command, const std::string& word) {
  if (!word.starts_with("-")) return "one argument too many: " + word;
  const std::string flag = word.substr(0, word.find('='));
  std::vector<std::string> known;
  for (const CLI::Option* option : command.get_options())
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  const std::string near = dsv3::nearest(flag, known);
  return "there is no flag " + flag + (near.empty() ? "" : "; did you mean " + near + "?");
}

/// CLI11's text of a mistake, or our own for what it says badly, and where to look.
inline std::string usage_text(const CLI::App& app, const CLI::ParseError& error) {
  std::string path;
  const CLI::App& command = innermost(app, path);
  const std::string what = error.what();
  const std::vector<std::string> extra = app.remaining(true);
  std::string text = what;
  const bool has_commands = !command.get_subcommands({}).empty();
  if (!extra.empty() && (!has_commands || extra.front().starts_with("-"))) {
    text = unexpected(command, extra.front());
  } else if (has_commands) {
    text = extra.empty() ? path + " needs a command"
                         : "there is no command '" + path + " " + extra.front() + "'";
  } else if (is<CLI::ArgumentMismatch>(error)) {
    text = what.substr(0, what.find(':')) + " needs a value";
  } else if (const size_t not_in = what.find(" not in {"); not_in != what.npos) {
    const size_t colon = what.find(": ");  // "--resume: tiny not in {auto}"
    text = what.substr(0, colon) + " takes " +
           what.substr(not_in + 9, what.rfind('}') - not_in - 9) + ", not '" +
           what.substr(colon + 2, not_in - colon - 2) + "'";
  }
  return text + "; " + path + " --help lists what there is";
}
