#include "checkpoint/damaged.h"

#include <charconv>

#include <dsv3/runtime/checkpoint.h>
#include <dsv3/sdk/error.h>

namespace dsv3 {

namespace stdfs = std::filesystem;

void fail_if_damaged(const stdfs::path& folder) {
  int64_t newest = -1, count = 0;
  std::error_code ignored;
  for (const auto& entry : stdfs::directory_iterator(folder, ignored)) {
    const std::string name = entry.path().filename().string();
    int64_t step = 0;
    if (!name.starts_with("step-")) continue;
    const char* const end = name.data() + name.size();
    const auto [stop, error] = std::from_chars(name.data() + 5, end, step);
    if (error != std::errc() || stop != end) continue;  // such as a temporary folder
    newest = std::max(newest, step);
    ++count;
  }
  if (count == 0) return;
  try {
    verify_checkpoint(folder / ("step-" + std::to_string(newest)));
  } catch (const Error& error) {
    throw Error((count == 1 ? "the only checkpoint in " : "all checkpoints in ") + folder.string() +
                    (count == 1 ? " is damaged: " : " are damaged; the newest: ") + error.what(),
                ExitCode::checkpoint);
  }
}

}  // namespace dsv3
