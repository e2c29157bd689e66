#include "plugin/library.h"

#include <algorithm>
#include <deque>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <set>

#include <c10/util/Exception.h>
#include <c10/util/Type.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

// The dynamic loader's own file system library would be Boost's compiled one otherwise.
#define BOOST_DLL_USE_STD_FS
#include <boost/dll/shared_library.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/sha256.h>

#include "barrier/call.h"

namespace dsv3 {
namespace {

constexpr const char* kEntryPoint = "dsv3_register_plugin";
constexpr uint64_t kLargestLibrary = uint64_t{512} << 20;

[[noreturn]] void refuse(const std::string& text) {
  throw Error(text, ExitCode::plugin);
}

// All containers and tensors here were compiled for one LibTorch: another one at run time breaks
// them.
void check_libtorch() {
  static const uint64_t loaded = aoti_torch_abi_version();
  if (loaded == TORCH_ABI_VERSION) return;
  const auto part = [](int shift) { return std::to_string(loaded >> shift & 0xff); };
  refuse("this dsv3 was built with LibTorch " TORCH_VERSION " but runs with " + part(56) + "." +
         part(48) + "." + part(40) + "; check LD_LIBRARY_PATH, or build dsv3 again");
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
  std::string text = plugin_label(stamp.name, path) + " cannot be loaded";
  for (const std::string& line : lines) text += "\n  " + line;
  refuse(text + "\n  hint: rebuild it with this dsv3's SDK " + host.sdk + " (find_package(dsv3 " +
         host.sdk + ")), compiler settings and LibTorch " + host.torch);
}

// Static initialisers of a library run inside dlopen. It is declared to throw nothing, so a
// compiler that sees the call would end the process when one of them throws; through this pointer
// it cannot see it.
void run_static_initialisers(const std::filesystem::path& path) {
  void* (*volatile open_library)(const char*, int) = &::dlopen;
  if (open_library(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return;
  std::string cause = ::dlerror();  // in fewer words than Boost's
  if (cause.starts_with(path.string() + ": ")) cause.erase(0, path.string().size() + 2);
  constexpr std::string_view kUndefined = "undefined symbol: ";
  if (!cause.starts_with(kUndefined)) refuse(cause);
  std::string symbol = cause.substr(kUndefined.size());
  // A version may stand behind the name, in brackets.
  refuse("it needs '" + c10::demangle(symbol.substr(0, symbol.find(' ')).c_str()) +
         "', which no loaded library defines; link the library that does with "
         "dsv3_add_plugin(LINK ...), or define it");
}

// Opens the library for good: LibTorch objects, exceptions and threads of a plugin may outlive
// every use that could be counted, and the end of main as well. The caller holds the lock.
const boost::dll::shared_library& open(const Stamp& stamp, const std::filesystem::path& path) {
  using boost::dll::load_mode::type;
  static auto& opened = *new std::deque<boost::dll::shared_library>;
  try {
    run_static_initialisers(path);
    return opened.emplace_back(path, type::rtld_now | type::rtld_local);
  } catch (...) {
    refuse(plugin_label(stamp.name, path) + " cannot be loaded: " + current_exception_text());
  }
}

std::vector<Registration> collect(const boost::dll::shared_library& handle, const Stamp& stamp,
                                  const std::filesystem::path& path) {
  if (!handle.has(kEntryPoint))
    refuse(plugin_label(stamp.name, path) +
           " registers nothing: it has no DSV3_PLUGIN(registrar) { ... }");
  Registrar registrar;
  try {
    handle.get<void(Registrar&)>(kEntryPoint)(registrar);
  } catch (...) {
    refuse(plugin_label(stamp.name, path) +
           " failed while it registered its components: " + current_exception_text());
  }
  return registrar.registrations();
}

// What the library registered must be what its build said it provides: registries are made from
// that.
void check_provides(const std::vector<Registration>& registrations, const Stamp& stamp,
                    const std::filesystem::path& path) {
  std::set<std::string> registered;
  for (const Registration& one : registrations) {
    const std::string component = kind_name(one.kind) + ("/" + one.name);
    if (!registered.insert(component).second)
      refuse(plugin_label(stamp.name, path) + " registers " + component +
             " twice; remove one, or give it another name");
  }
  if (registered == std::set<std::string>(stamp.provides.begin(), stamp.provides.end())) return;
  refuse(plugin_label(stamp.name, path) + " registers " +
         component_list({registered.begin(), registered.end()}) +
         " in DSV3_PLUGIN, but dsv3_add_plugin(PROVIDES) says " + component_list(stamp.provides) +
         "; make them agree");
}

std::unique_ptr<Library> load(const std::filesystem::path& path) {
  check_libtorch();
  auto library = std::make_unique<Library>();
  library->path = path;
  {
    const std::string bytes = fs::read(path, kLargestLibrary);
    try {
      library->stamp = read_stamp(bytes);
    } catch (const Error& e) {
      refuse(path.string() + ": " + e.what());
    }
    check_stamp(library->stamp, path);
    library->sha256 = sha256(bytes);
  }
  barrier::Callee callee;
  callee.label = "plugin '" + library->stamp.name + "'";
  callee.check = callee.library = path.string();
  const barrier::InCall call(barrier::remember(std::move(callee)), "loading");
  const auto& handle = open(library->stamp, path);
  library->registrations = collect(handle, library->stamp, path);
  check_provides(library->registrations, library->stamp, path);
  return library;
}

constexpr const char* kMakeSmaller =
    "; make train.micro_batch, train.sequence or the model smaller (--dry-run says what an "
    "experiment needs)";

/// LibTorch's text, or plain words when it is about memory.
std::string memory_text(const std::string& text) {
  constexpr std::string_view kWanted = "you tried to allocate ";
  if (text.find("CUDA out of memory") != std::string::npos) return text + kMakeSmaller;
  const size_t at = text.find(kWanted);
  if (at == std::string::npos) return text;
  const size_t begin = at + kWanted.size();
  return "out of memory: " + text.substr(begin, text.find(' ', begin) - begin) +
         " more bytes were asked for" + kMakeSmaller;
}

// All libraries of the process, good and bad. A second dlopen of a file whose static initialisers
// threw hands out the half-initialised library as if all were well: failures are final.
struct Libraries {
  struct Entry {
    std::unique_ptr<Library> library;
    std::string error;  // when there is no library
  };
  std::mutex mutex;
  std::map<std::filesystem::path, Entry> by_path;
  std::vector<const Library*> in_order;
};

Libraries& all() {
  static Libraries& instance = *new Libraries;  // never destroyed, as the libraries
  return instance;
}

}  // namespace

const Registration* Library::find(Kind kind, const std::string& name) const {
  for (const Registration& one : registrations)
    if (one.kind == kind && one.name == name) return &one;
  return nullptr;
}

const Library& load_library(const std::filesystem::path& path) {
  std::error_code failed;
  const std::filesystem::path canonical = std::filesystem::canonical(path, failed);
  if (failed)
    refuse("plugin library " + path.string() + " cannot be opened: " + failed.message() +
           "; build it, or correct `library:` (relative to the file that holds it)");
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
  if (!entry.library) refuse(entry.error);
  return *entry.library;
}

const Library& library_of(const Registration& registration) {
  for (const Library* library : libraries())
    for (const Registration& one : library->registrations)
      if (&one == &registration) return *library;
  throw Error("a component of no library: " + registration.name);
}

std::vector<const Library*> libraries() {
  Libraries& libraries = all();
  std::lock_guard lock(libraries.mutex);
  return libraries.in_order;
}

std::string component_list(const std::vector<std::string>& components) {
  std::string text;
  for (const std::string& one : components) text += (text.empty() ? "" : ", ") + one;
  return text.empty() ? "nothing" : text;
}

bool current_exception_is_out_of_memory() {
  try {
    throw;
  } catch (const c10::Error& e) {
    // LibTorch's CPU allocator has no type of its own for it.
    const std::string text = e.what_without_backtrace();
    return memory_text(text) != text;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (...) {
    return false;
  }
}

std::string current_exception_text() {
  try {
    throw;
  } catch (const c10::Error& e) {
    return memory_text(e.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return std::string("out of memory") + kMakeSmaller;
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "it threw something that is no std::exception; throw dsv3::Error with a text";
  }
}

}  // namespace dsv3
