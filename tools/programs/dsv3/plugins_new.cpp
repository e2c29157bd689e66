// dsv3 plugins new: creates a folder with a working plugin as a starting point.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <system_error>
#include <unistd.h>

#include <dsv3/runtime/plugins.h>
#include <dsv3/runtime/prefix.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "commands.h"

namespace {

using std::filesystem::path;

struct Request {
  std::string kind, name, output = ".";
};

[[noreturn]] void reject(const std::string& what) {
  throw dsv3::Error(what, dsv3::ExitCode::usage);
}

/// The name becomes a file name and a CMake target, and is used in experiments.
void check_name(const std::string& name) {
  const auto lower = [](char c) { return c >= 'a' && c <= 'z'; };
  const bool fits = !name.empty() && lower(name[0]) && name.size() <= 64 &&
                    std::all_of(name.begin(), name.end(), [&](char c) {
                      return lower(c) || (c >= '0' && c <= '9') || c == '_';
                    });
  if (!fits)
    reject("invalid plugin name '" + name +
           "'; use at most 64 lower-case letters, digits and underscores, starting with a letter, "
           "e.g. my_attention");
}

/// Fills in the template's placeholders @NAME@ and @KIND@. Replaces @kind:other@ with the new
/// plugin's name if the plugin is of that kind, else with `other`.
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
      throw dsv3::Error("unknown placeholder @" + mark + "@ in a template");
    from = close + 1;
  }
}

/// A folder that its destructor removes unless publish() was called, so that a failure leaves
/// nothing half-written.
class PartialFolder {
 public:
  explicit PartialFolder(const path& target)
      : target_(target),
        partial_(target.parent_path() /
                 ("." + target.filename().string() + ".partial-" + std::to_string(getpid()))) {
    std::error_code error;
    if (!std::filesystem::create_directory(partial_, error))
      throw dsv3::Error("cannot create a folder in " + target.parent_path().string() + ": " +
                        (error ? error.message() : "'" + partial_.string() + "' already exists"));
  }
  ~PartialFolder() {
    std::error_code ignored;
    if (!published_) std::filesystem::remove_all(partial_, ignored);
  }
  const path& folder() const { return partial_; }
  void publish() {
    std::filesystem::rename(partial_, target_);
    published_ = true;
  }

 private:
  path target_, partial_;
  bool published_ = false;
};

path templates_folder() {
  const path folder = dsv3::own_prefix() / "share/dsv3/templates/plugin";
  if (!std::filesystem::is_directory(folder))
    throw dsv3::Error("plugin templates not found at " + folder.string() +
                      "; reinstall dsv3 with cmake --install");
  return folder;
}

/// A third-party plugin with the name of a built-in one can only be used with `library:`.
void check_no_built_in(dsv3::Kind kind, const std::string& name) {
  const dsv3::Plugins plugins({{dsv3::own_prefix() / "registries"}});
  if (plugins.find_entry(kind, name))
    reject(std::string(dsv3::kind_name(kind)) + " '" + name +
           "' is a built-in plugin; choose another name, e.g. my_" + name);
}

void write_plugin(const Request& request) {
  const dsv3::Kind kind = dsv3::kind_from_name(request.kind);
  check_name(request.name);
  check_no_built_in(kind, request.name);
  if (!std::filesystem::is_directory(request.output))
    reject("--output " + request.output + " is not a folder; create it first");
  const path target = std::filesystem::absolute(request.output) / request.name;
  if (std::filesystem::exists(std::filesystem::symlink_status(target)))
    reject(target.string() + " already exists; choose another name or --output");
  const path templates = templates_folder();
  PartialFolder partial(target);
  const auto write = [&](const path& from, const std::string& to) {
    dsv3::fs::write_atomically(partial.folder() / to, filled(dsv3::fs::read(from), request));
  };
  write(templates / request.kind / "plugin.cpp", request.name + ".cpp");
  for (const char* file : {"CMakeLists.txt", "README.md", "experiment.yaml", "text.txt"}) {
    const path of_kind = templates / request.kind / file;
    write(std::filesystem::exists(of_kind) ? of_kind : templates / "common" / file, file);
  }
  partial.publish();
  std::cout << target.string() << ": " << request.kind << " '" << request.name
            << "'; see its README.md for how to build and use it\n";
}

/// "{attention,feed_forward,...}".
std::string kinds() {
  std::string all;
  for (const dsv3::KindRow& kind : dsv3::kinds())
    all += (all.empty() ? "{" : ",") + std::string(kind.name);
  return all + "}";
}

}  // namespace

void add_plugins_new(CLI::App& group) {
  const auto request = std::make_shared<Request>();
  CLI::App* command =
      group.add_subcommand("new", "Create a folder with a working plugin as a starting point");
  command->add_option("kind", request->kind, "Kind of the component")
      ->required()
      ->type_name(kinds());
  command
      ->add_option("name", request->name, "Name of the component in experiments, and of the folder")
      ->required();
  command->add_option("--output", request->output,
                      "Parent folder of the new plugin [the current folder]");
  command->callback([request] { write_plugin(*request); });
}
