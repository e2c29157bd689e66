#include "common/output_file.h"

#include <algorithm>
#include <iostream>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

#include "common/standard_streams.h"

namespace {

namespace stdfs = std::filesystem;
using stdfs::path;

constexpr int kMaxLinks = 40;  // as in Linux

[[noreturn]] void reject(const std::string& what) {
  throw dsv3::Error(what, dsv3::ExitCode::usage);
}

bool is_open_as(int descriptor, const path& file) {
  struct stat opened {
  }, named{};
  return ::fstat(descriptor, &opened) == 0 && ::stat(file.c_str(), &named) == 0 &&
         opened.st_dev == named.st_dev && opened.st_ino == named.st_ino;
}

/// Resolves symbolic links, also those whose target does not exist.
path followed(path file) {
  std::error_code error;
  for (int links = 0; stdfs::is_symlink(stdfs::symlink_status(file, error)); ++links) {
    if (links == kMaxLinks) reject("cannot write " + file.string() + ": too many symbolic links");
    file = file.parent_path() / stdfs::read_symlink(file);
  }
  return stdfs::weakly_canonical(file, error);
}

/// Whether `file` is `input` or, if that is a folder, is inside it. Both are resolved.
bool is_part_of(const path& file, const path& input) {
  const auto end = std::mismatch(input.begin(), input.end(), file.begin(), file.end()).first;
  std::error_code error;
  return end == input.end() || stdfs::equivalent(file, input, error);
}

/// Calls `write` with a temporary name next to `file`, then `use` with the same name, and removes
/// the temporary file if it still exists.
void write_temporary(const path& file, const std::function<void(const path&)>& write,
                     const std::function<void(const path&)>& use) {
  const path temporary = dsv3::fs::temporary_name(file);
  try {
    write(temporary);
    use(temporary);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  ::unlink(temporary.c_str());
}

}  // namespace

OutputFile::OutputFile(const Path& path, const std::vector<Path>& inputs) : path_(path) {
  std::error_code error;
  const stdfs::file_status status = stdfs::status(path, error);
  if (path.empty() || stdfs::is_directory(status) || !path.has_filename())
    reject("cannot write '" + path.string() + "': expected the name of a file, not a folder");
  if (is_open_as(STDOUT_FILENO, path))
    kind_ = Kind::standard_output;
  else if (stdfs::exists(status) && !stdfs::is_regular_file(status))
    kind_ = Kind::special;
  if (stdfs::exists(status) && !stdfs::is_regular_file(status)) return;
  path_ = followed(stdfs::absolute(path));
  for (const Path& input : inputs)
    if (const Path resolved = stdfs::canonical(input, error); !error && is_part_of(path_, resolved))
      reject("cannot write " + path.string() + ": it is part of the command's input " +
             input.string() + "; choose another file");
}

void OutputFile::write(const std::function<void(const Path&)>& write) const {
  if (kind_ == Kind::special) return write(path_);
  if (kind_ == Kind::standard_output)
    return write_temporary(
        stdfs::temp_directory_path() / "dsv3-output", write, [](const Path& temporary) {
          std::cout.flush();
          set_output(Output::raw);
          dsv3::fs::read_pieces(temporary, [](std::string_view piece) { std::cout << piece; });
          std::cout.flush();
        });
  dsv3::fs::make_folders(path_.parent_path());
  write_temporary(path_, write, [this](const Path& temporary) {
    std::error_code ignored;
    if (const auto status = stdfs::status(path_, ignored); stdfs::exists(status))
      stdfs::permissions(temporary, status.permissions(), ignored);
    dsv3::fs::rename(temporary, path_);
    dsv3::fs::sync_folder(path_.parent_path());
  });
}
