// The file that a user names for a command's output, as in `--output FILE`.
#pragma once

#include <filesystem>
#include <functional>
#include <vector>

class OutputFile {
 public:
  using Path = std::filesystem::path;

  /// Throws dsv3::Error (ExitCode::usage) if `path` is a folder, or one of the `inputs` that the
  /// command reads or a file inside them.
  OutputFile(const Path& path, const std::vector<Path>& inputs);

  /// Calls `write` with the path of the file that it must write. A regular file, or the
  /// target of a symbolic link, is replaced when `write` returns, so that it is never half-written.
  /// A device or FIFO is written to directly.
  void write(const std::function<void(const Path&)>& write) const;

  /// Whether the file is this process's standard output, as for /dev/stdout. Messages must then go
  /// to standard error.
  bool is_standard_output() const { return kind_ == Kind::standard_output; }

 private:
  enum class Kind { regular, special, standard_output };
  Path path_;  // with symbolic links resolved if it is a regular file
  Kind kind_ = Kind::regular;
};
