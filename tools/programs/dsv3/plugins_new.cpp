// dsv3 plugins new: a folder with a plugin that builds and trains, to start one's own from.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>
#include <unistd.h>

#include <dsv3/runtime/prefix.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "commands.h"

namespace {

using std::filesystem::path;

struct Request {
  std::string kind, name, output = ".";
};

[[noreturn]] void refuse(const std::string& what) {
  throw dsv3::Error(what, dsv3::ExitCode::usage);
}

/// The name becomes a file's, a CMake target's and a word in experiments.
void check_name(const std::string& name) {
  const auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const bool fits = !name.empty() && lower(name[0]) && name.size() <= 64 &&
                    std::all_of(name.begin(), name.end(), [&](char c) {
                      return lower(c) || (c >= '0' && c <= '9') || c == '_';
                    });
  if (!fits)
    refuse("'" + name +
           "' cannot name a plugin: take lower-case letters, digits and underscores, " +
           "a letter first, at most 64, e.g. my_attention");
}

/// Fills the template's marks: @NAME@, @KIND@, and @kind:other@, which is the new plugin's name
/// where its kind is asked for and `other` elsewhere.
std::string filled(const std::string& text, const Request& request) {
  std::string result;
  size_t from = 0;
  while (true) {
    const size_t open = text.find('@', from);
    const size_t close = open == std::string::npos ? open : text.find('@', open + 1);
    if (close == std::string::npos) return result + text.substr(from);
    result += text.substr(from, open - from);
    const std::string mark = text.substr(open + 1, close - open - 1);
    const size_t colon = mark.find(':');
    if (mark == "NAME")
      result += request.name;
    else if (mark == "KIND")
      result += request.kind;
    else if (colon != std::string::npos)
      result += mark.substr(0, colon) == request.kind ? request.name : mark.substr(colon + 1);
    else
      throw dsv3::Error("a template holds the unknown mark @" + mark + "@");
    from = close + 1;
  }
}

/// A folder that is removed unless it was kept: a failure leaves nothing half-written behind.
class PartialFolder {
 public:
  explicit PartialFolder(const path& target)
      : target_(target),
        partial_(target.parent_path() /
                 ("." + target.filename().string() + ".partial-" + std::to_string(getpid()))) {
    std::error_code error;
    if (!std::filesystem::create_directory(partial_, error))
      throw dsv3::Error("cannot make a folder in " + target.parent_path().string() + ": " +
                        (error ? error.message() : "'" + partial_.string() + "' is in the way"));
  }
  ~PartialFolder() {
    std::error_code ignored;
    if (!kept_) std::filesystem::remove_all(partial_, ignored);
  }
  const path& folder() const { return partial_; }
  void keep() {
    std::filesystem::rename(partial_, target_);
    kept_ = true;
  }

 private:
  path target_, partial_;
  bool kept_ = false;
};

path templates_folder() {
  const path folder = dsv3::own_prefix() / "share/dsv3/templates/plugin";
  if (!std::filesystem::is_directory(folder))
    throw dsv3::Error("the templates are not at " + folder.string() +
                      "; install dsv3 again with cmake --install");
  return folder;
}

void write_plugin(const Request& request) {
  dsv3::kind_from_name(request.kind);  // throws, naming the kinds
  check_name(request.name);
  if (!std::filesystem::is_directory(request.output))
    refuse("--output " + request.output + " is not a folder: make it first");
  const path target = std::filesystem::absolute(request.output) / request.name;
  if (std::filesystem::exists(std::filesystem::symlink_status(target)))
    refuse(target.string() + " is there already: choose another name or --output");
  const path templates = templates_folder();
  PartialFolder partial(target);
  const auto write = [&](const path& from, const std::string& to) {
    dsv3::fs::write_atomically(partial.folder() / to, filled(dsv3::fs::read(from), request));
  };
  write(templates / request.kind / "plugin.cpp", request.name + ".cpp");
  for (const char* file : {"CMakeLists.txt", "README.md", "experiment.yaml", "text.txt"}) {
    const path own = templates / request.kind / file;
    write(std::filesystem::exists(own) ? own : templates / "common" / file, file);
  }
  partial.keep();
  std::cout << target.string() << ": " << request.kind << " '" << request.name
            << "'; its README.md says how to build it and use it\n";
}

/// "{attention,feed_forward,...}".
std::string kinds() {
  std::string all;
  for (int kind = 1; kind <= static_cast<int>(dsv3::Kind::format); ++kind)
    all += (all.empty() ? "{" : ",") + std::string(dsv3::kind_name(static_cast<dsv3::Kind>(kind)));
  return all + "}";
}

}  // namespace

void add_plugins_new(CLI::App& group) {
  const auto request = std::make_shared<Request>();
  CLI::App* command =
      group.add_subcommand("new", "start a plugin: a folder that builds and trains as it is");
  command->add_option("kind", request->kind, "what it is")->required()->type_name(kinds());
  command->add_option("name", request->name, "its name in experiments, and the folder's")
      ->required();
  command->add_option("--output", request->output, "where the folder goes; default: here");
  command->callback([request] { write_plugin(*request); });
}
