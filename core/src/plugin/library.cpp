#include "plugin/library.h"

#include <algorithm>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include <c10/util/Type.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

// Avoids linking Boost.Filesystem.
#define BOOST_DLL_USE_STD_FS
#include <boost/dll/shared_library.hpp>

#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

#include "call/call.h"
#include "plugin/image.h"
#include "plugin/owner.h"

namespace dsv3 {
namespace {

constexpr const char* kEntryPoint = "dsv3_register_plugin";
constexpr uint64_t kLargestLibrary = uint64_t{512} << 20;

[[noreturn]] void fail(const std::string& text) {
  throw Error(text, ExitCode::plugin);
}

// This code was compiled for one version of LibTorch. A different version at run time is not
// binary-compatible with it.
void check_libtorch() {
  static const uint64_t loaded = aoti_torch_abi_version();
  if (loaded == TORCH_ABI_VERSION) return;
  const auto part = [](int shift) { return std::to_string(loaded >> shift & 0xff); };
  fail("this dsv3 was built with LibTorch " TORCH_VERSION " but runs with " + part(56) + "." +
       part(48) + "." + part(40) + "; check LD_LIBRARY_PATH, or rebuild dsv3");
}

std::string plugin_label(const std::string& name, const std::filesystem::path& path) {
  return "plugin '" + name + "' (" + path.string() + ")";
}

void check_stamp(const Stamp& stamp, const std::filesystem::path& path) {
  const Stamp host = host_stamp();
  const auto lines = stamp_differences(stamp, host);
  if (lines.empty()) {
    if (stamp.compiler != host.compiler)
      log::debug("plugin '" + stamp.name + "' was built with " + stamp.compiler +
                 ", this dsv3 with " + host.compiler);
    return;
  }
  std::string text = "cannot load " + plugin_label(stamp.name, path);
  for (const std::string& line : lines) text += "\n  " + line;
  fail(text + "\n  hint: rebuild it with this dsv3's SDK " + host.sdk + " (find_package(dsv3 " +
       host.sdk + ")), compiler settings and LibTorch " + host.torch);
}

// dlopen runs the library's static initialisers. It is declared noexcept, so calling it directly
// would end the process if an initialiser threw. The volatile pointer hides the declaration.
void run_static_initialisers(const std::filesystem::path& image) {
  void* (*volatile open_library)(const char*, int) = &::dlopen;
  if (open_library(image.c_str(), RTLD_NOW | RTLD_LOCAL)) return;
  std::string cause = ::dlerror();  // shorter than Boost's message
  if (cause.starts_with(image.string() + ": ")) cause.erase(0, image.string().size() + 2);
  constexpr std::string_view kUndefined = "undefined symbol: ";
  if (!cause.starts_with(kUndefined)) fail(cause);
  std::string symbol = cause.substr(kUndefined.size());
  // A version in brackets may follow the symbol.
  fail(
      "no loaded library defines '" + c10::demangle(symbol.substr(0, symbol.find(' ')).c_str()) +
      "', which it needs; define it, or link the library that does with dsv3_add_plugin(LINK ...)");
}

// Opens the library and never closes it, because a plugin's LibTorch objects, exceptions and
// threads may outlive every reference to the library, and even main. The caller must hold the lock.
const boost::dll::shared_library& open(const Library& library) {
  using boost::dll::load_mode::type;
  static auto& opened = *new std::deque<boost::dll::shared_library>;
  try {
    run_static_initialisers(library.image);
    return opened.emplace_back(library.image, type::rtld_now | type::rtld_local);
  } catch (...) {
    fail("cannot load " + plugin_label(library.stamp.name, library.path) + ": " +
         current_exception_text());
  }
}

std::vector<Registration> collect(const boost::dll::shared_library& handle, const Stamp& stamp,
                                  const std::filesystem::path& path) {
  if (!handle.has(kEntryPoint))
    fail(plugin_label(stamp.name, path) +
         " registers no component; define DSV3_PLUGIN(registrar) { ... }");
  Registrar registrar;
  try {
    handle.get<void(Registrar&)>(kEntryPoint)(registrar);
  } catch (...) {
    fail(plugin_label(stamp.name, path) +
         " failed to register its components: " + current_exception_text());
  }
  return registrar.registrations();
}

// The library must register exactly the components that its build declared, because registries are
// generated from that declaration.
void check_provides(const std::vector<Registration>& registrations, const Stamp& stamp,
                    const std::filesystem::path& path) {
  std::set<std::string> registered;
  for (const Registration& one : registrations) {
    const std::string component = kind_name(one.kind) + ("/" + one.name);
    if (!registered.insert(component).second)
      fail(plugin_label(stamp.name, path) + " registers " + component +
           " twice; remove or rename one");
  }
  if (registered == std::set<std::string>(stamp.provides.begin(), stamp.provides.end())) return;
  fail(plugin_label(stamp.name, path) + " registers " +
       component_list({registered.begin(), registered.end()}) +
       " in DSV3_PLUGIN, but dsv3_add_plugin(PROVIDES) lists " + component_list(stamp.provides) +
       "; make the two lists match");
}

// Calls `check` and adds the path to its error.
template <class Check>
auto checked(const std::filesystem::path& path, const Check& check) {
  try {
    return check();
  } catch (const Error& error) {
    fail(path.string() + ": " + error.what());
  }
}

std::unique_ptr<Library> load(const std::filesystem::path& path) {
  check_libtorch();
  require_safe_owner(path, "plugin library");
  auto library = std::make_unique<Library>();
  library->path = path;
  const std::string bytes = fs::read(path, kLargestLibrary);
  library->stamp = checked(path, [&] { return read_stamp(bytes); });
  check_stamp(library->stamp, path);
  checked(path, [&] { check_seal(bytes); });
  library->sha256 = sha256(bytes);
  library->image = sealed_copy(path, bytes, library->sha256);
  name_image(library->image.string(), path.string());
  Callee callee;
  callee.label = "plugin '" + library->stamp.name + "'";
  callee.check = callee.library = path.string();
  const CallRecord call(remember(std::move(callee)), "loading");
  load_dependencies(path, bytes);
  const auto& handle = open(*library);
  library->registrations = collect(handle, library->stamp, path);
  check_provides(library->registrations, library->stamp, path);
  return library;
}

// All libraries that the process has loaded or failed to load. Failures are final, because a second
// dlopen of a file whose static initialisers threw returns the half-initialised library without an
// error.
struct Libraries {
  struct Entry {
    std::unique_ptr<Library> library;
    std::string error;  // set if the library could not be loaded
  };
  std::mutex mutex;
  std::map<std::filesystem::path, Entry> by_path;
  std::vector<const Library*> in_order;
};

Libraries& all() {
  static Libraries& instance = *new Libraries;  // never destroyed, like the libraries
  return instance;
}

}  // namespace

const Registration* Library::find(Kind kind, const std::string& name) const {
  for (const Registration& one : registrations)
    if (one.kind == kind && one.name == name) return &one;
  return nullptr;
}

Stamp stamp_of(const std::filesystem::path& path) {
  const std::string bytes = fs::read(path, kLargestLibrary);
  return checked(path, [&] { return read_stamp(bytes); });
}

const Library& load_library(const std::filesystem::path& path) {
  std::error_code failed;
  const std::filesystem::path canonical = std::filesystem::canonical(path, failed);
  if (failed)
    fail("cannot open plugin library " + path.string() + ": " + failed.message() +
         "; build it, or correct `library:` (relative to the file that sets it)");
  Libraries& libraries = all();
  std::lock_guard lock(libraries.mutex);
  const auto [it, is_new] = libraries.by_path.try_emplace(canonical);
  Libraries::Entry& entry = it->second;
  if (is_new) {
    try {
      entry.library = load(canonical);
      libraries.in_order.push_back(entry.library.get());
    } catch (...) {
      entry.error = current_exception_text();
    }
  }
  if (!entry.library) fail(entry.error);
  return *entry.library;
}

const Library& library_of(const Registration& registration) {
  for (const Library* library : libraries())
    for (const Registration& one : library->registrations)
      if (&one == &registration) return *library;
  throw Error("no library registered component '" + registration.name + "'");
}

std::vector<const Library*> libraries() {
  Libraries& libraries = all();
  std::lock_guard lock(libraries.mutex);
  return libraries.in_order;
}

std::string component_list(const std::vector<std::string>& components) {
  return components.empty() ? "nothing" : comma_list(components);
}

}  // namespace dsv3
