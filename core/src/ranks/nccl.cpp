#include "ranks/nccl.h"

#include <dlfcn.h>
#include <filesystem>

#include <dsv3/runtime/prefix.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

[[noreturn]] void fail(const std::string& problem, const std::string& cure) {
  throw Error("several ranks on GPUs need NCCL, but " + problem + "; " + cure +
                  ", or set DSV3_RANKS=gloo to copy tensors through host memory",
              ExitCode::data);
}

MakeNcclGroup* load() {
  const auto file = own_prefix() / "lib/dsv3/libdsv3_nccl.so";
  if (!std::filesystem::exists(file))
    fail(file.string() + " does not exist",
         "run `tools/dev setup --cuda` and `tools/dev build` (and install dsv3 again if this is an "
         "installation)");
  void* const library = ::dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    fail("its library does not load: " + std::string(::dlerror()),
         "run `tools/dev setup --cuda` and `tools/dev build`");
  return reinterpret_cast<MakeNcclGroup*>(::dlsym(library, kMakeNcclGroup));
}

}  // namespace

MakeNcclGroup& nccl_library() {
  static MakeNcclGroup* const function = load();
  return *function;
}

}  // namespace dsv3
