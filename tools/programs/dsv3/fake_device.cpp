#include "fake_device.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>
#include <vector>

#include <dsv3/runtime/prefix.h>
#include <dsv3/sdk/error.h>

namespace {

using std::filesystem::path;

constexpr const char* kDevice = "libtorch_cuda.so";
constexpr const char* kInBuild = "tests/fake_cuda/lib";
constexpr const char* kInstalled = "lib/dsv3/fake_cuda";

// Returns the folder that contains the device and its driver, libcuda.so.1.
path device_folder() {
  const path prefix = dsv3::own_prefix();
  for (const char* folder : {kInBuild, kInstalled})
    if (std::filesystem::exists(prefix / folder / kDevice)) return prefix / folder;
  throw dsv3::Error("fake CUDA device not found: neither " + (prefix / kInBuild).string() +
                        " nor " + (prefix / kInstalled).string() + " contains " + kDevice +
                        "; build it with `ninja -C build fake_cuda`, and install dsv3 again if "
                        "this is an installation",
                    dsv3::ExitCode::data);
}

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// Adds `entry` to the environment variable `name`, a list that is separated by colons, before or
// after its other entries.
void add_to_list(const char* name, const std::string& entry, bool before) {
  const std::string list = variable(name);
  const std::string joined = before ? entry + ":" + list : list + ":" + entry;
  ::setenv(name, list.empty() ? entry.c_str() : joined.c_str(), /*overwrite=*/1);
}

std::vector<std::string> command_line() {
  std::vector<std::string> words;
  std::ifstream file("/proc/self/cmdline");
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  return words;
}

}  // namespace

void use_fake_device() {
  // The device exports this function.
  if (::dlsym(RTLD_DEFAULT, "fake_cuda_mark")) return;
  const path folder = device_folder();
  const std::string device = (folder / kDevice).string();
  if (variable("LD_PRELOAD").find(device) != std::string::npos)
    throw dsv3::Error("the dynamic linker did not load the fake CUDA device " + device +
                          "; see its message above, and move the folder if its path contains a "
                          "space or a colon",
                      dsv3::ExitCode::data);
  add_to_list("LD_PRELOAD", device, /*before=*/false);
  add_to_list("LD_LIBRARY_PATH", folder.string(), /*before=*/true);
  // They select among the machine's own GPUs.
  ::unsetenv("CUDA_VISIBLE_DEVICES");
  ::unsetenv("LOCAL_RANK");
  std::vector<std::string> words = command_line();
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const path program = std::filesystem::read_symlink("/proc/self/exe");
  ::execv(program.c_str(), arguments.data());
  throw dsv3::Error("cannot restart " + program.string() +
                    " with the fake CUDA device: " + std::strerror(errno));
}
