#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <dsv3/runtime/crash.h>
#include <dsv3/runtime/prefix.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/runtime/run_folder.h>
#include <dsv3/runtime/suggest.h>
#include <dsv3/sdk/error.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>

#include "support/host.h"

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// "<experiment>-<date>-" with characters that run names may contain.
std::string name_prefix(const std::string& experiment) {
  std::string prefix = experiment.substr(0, 100);
  for (char& c : prefix)
    if (!is_run_name(std::string("a") + c)) c = '-';
  const std::string day = utc_text(wall_seconds()).data();
  return (prefix.empty() ? "run" : prefix) + "-" + day.substr(0, day.find('T')) + "-";
}

[[noreturn]] void fail_existing(const stdfs::path& output, const std::string& name) {
  throw Error("run '" + name + "' already exists in " + output.string() +
                  "; choose another name, resume it with --run_id " + name + " --output " +
                  shell_quoted(output.string()) + ", or add --resume auto",
              ExitCode::usage);
}

/// If `name` is the path of a run, returns the flags to pass instead.
std::string advice_for_path(const std::string& name) {
  stdfs::path path = stdfs::path(name).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_parent_path() || !is_run_name(path.filename().string())) return "";
  return ". For the run in this folder, pass its name, " + path.filename().string() +
         ", and add --output " + printable_line(shell_quoted(path.parent_path().string()));
}

/// Returns a sentence that suggests up to three runs in `output` with names similar to `name`;
/// empty = none.
std::string similar_runs(const stdfs::path& output, const std::string& name) {
  std::vector<std::pair<int, std::string>> found;
  std::error_code error;
  for (stdfs::directory_iterator it(output, error), end; !error && it != end; it.increment(error)) {
    std::string other = it->path().filename().string();
    const int distance =
        other.starts_with(name) || name.starts_with(other) ? 1 : edit_distance(name, other);
    if (it->is_directory(error) && distance <= std::max(2, int(name.size() / 3)))
      found.emplace_back(distance, other);
  }
  std::sort(found.begin(), found.end());
  std::string text;
  for (size_t i = 0; i < std::min<size_t>(3, found.size()); ++i)
    text += (i ? ", '" : ". Did you mean '") + found[i].second + "'";
  return text.empty() ? text : text + "?";
}

/// Creates `output`, the folder for run folders. Returns the new folders, innermost first.
std::vector<stdfs::path> create_output(const stdfs::path& output) {
  std::vector<stdfs::path> missing;
  std::error_code ignored;
  for (stdfs::path path = stdfs::absolute(output).lexically_normal();
       !stdfs::exists(path, ignored) && path.has_relative_path(); path = path.parent_path())
    missing.push_back(path);
  fs::make_folders(output);
  return missing;
}

/// Creates a run folder and syncs it to disk. Returns false if it already exists.
bool create_run(const stdfs::path& path) {
  if (!fs::make_folder(path)) return false;
  fs::sync_folder(path.parent_path());
  return true;
}

/// Locks `fd` and returns 0 or errno. Retries for a second: if a process is killed while it starts
/// a child (git, for provenance), the child holds the lock until it calls exec.
int lock_file(int fd) {
  for (int tries = 0;; ++tries) {
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
    if (errno != EWOULDBLOCK || tries == 100) return errno;
    ::usleep(10'000);
  }
}

/// Rejects symbolic links, FIFOs and devices in a run folder. A folder may come from someone else,
/// and a run must not write outside it.
void require_plain_files(const stdfs::path& folder) {
  std::error_code error;
  for (stdfs::recursive_directory_iterator it(folder, error), end; !error && it != end;
       it.increment(error)) {
    const stdfs::file_status status = it->symlink_status(error);
    if (error || stdfs::is_regular_file(status) || stdfs::is_directory(status)) continue;
    throw Error(it->path().string() + " is " +
                    (stdfs::is_symlink(status) ? "a symbolic link" : "not a regular file") +
                    ", but a run writes only files inside its folder; remove it, or replace it by "
                    "the file itself (to keep runs on another disk, use --output)",
                ExitCode::usage);
  }
  if (error) throw Error("cannot list " + folder.string() + ": " + error.message());
}

/// Locks `folder`. The kernel releases the lock when this process ends, however it ends.
int take_lock(const stdfs::path& folder) {
  stdfs::path path = folder / "lock";
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd == -1) throw Error("cannot write " + path.string() + ": " + std::strerror(errno));
  if (const int error = lock_file(fd); error != 0) {
    char owner[300] = "";
    ssize_t size = ::pread(fd, owner, sizeof owner - 1, 0);
    ::close(fd);
    if (error != EWOULDBLOCK)
      throw Error("cannot lock " + path.string() + ": " + std::strerror(error));
    throw Error("run '" + folder.filename().string() + "' is in use by " +
                    (size > 0 ? owner : "another process") + "; wait for it to end, or stop it",
                ExitCode::usage);
  }
  // Ignore errors, because the owner only appears in the message above.
  std::string owner = "process " + std::to_string(::getpid()) + " on " + host_name();
  if (::ftruncate(fd, 0) == 0) {
    [[maybe_unused]] ssize_t written = ::pwrite(fd, owner.data(), owner.size(), 0);
  }
  return fd;
}

/// Replaces the content of an existing file without creating another one. Returns whether it could.
bool overwrite(const stdfs::path& path, const std::string& text) {
  const int fd = ::open(path.c_str(), O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
  if (fd < 0) return false;
  const bool written = ::pwrite(fd, text.data(), text.size(), 0) == ssize_t(text.size()) &&
                       ::ftruncate(fd, off_t(text.size())) == 0;
  ::close(fd);
  return written;
}

}  // namespace

std::map<std::string, stdfs::path> stored_tokenizer(const stdfs::path& run) {
  std::map<std::string, stdfs::path> files;
  std::error_code error;
  for (stdfs::directory_iterator it(run / "tokenizer", error), end; !error && it != end;
       it.increment(error))
    if (stdfs::is_regular_file(it->symlink_status()))
      files.emplace(it->path().stem().string(), stdfs::absolute(it->path()));
  return files;
}

Json read_provenance(const stdfs::path& run) {
  const stdfs::path file = run / "provenance.json";
  std::error_code ignored;
  if (!stdfs::exists(file, ignored)) return Json::object();
  try {
    Json content = read_json(file);
    if (content.is_object() && content.value("resumes", Json::array()).is_array()) return content;
    throw Error(file.string() + ": not an object that dsv3 wrote");
  } catch (const Error& error) {
    throw Error(error.what() + std::string("; restore it from a copy, or remove it to lose the "
                                           "record of how the run was started"),
                ExitCode::checkpoint);
  }
}

std::string run_with_tracker_id(const stdfs::path& output, const std::string& id) {
  std::error_code error;
  for (stdfs::directory_iterator run(output, error), end; !error && run != end;
       run.increment(error)) {
    std::error_code none;
    for (stdfs::directory_iterator file(run->path() / "trackers", none);
         !none && file != stdfs::directory_iterator(); file.increment(none)) {
      if (!file->path().native().ends_with(".store.json")) continue;
      const Json store = Json::parse(fs::read(file->path()), nullptr, /*allow_exceptions=*/false);
      if (store.is_object() && store.contains("id") && store["id"] == id)
        return run->path().filename().string();
    }
  }
  return "";
}

std::string plugin_advice(const stdfs::path& run) {
  std::string advice;
  try {
    const Json provenance = read_provenance(run);
    for (const Json& plugin : provenance.value("plugins", Json::array())) {
      const stdfs::path library = plugin.at("path").get<std::string>();
      if (!stdfs::exists(own_prefix() / "lib/dsv3/plugins" / library.filename()))
        advice +=
            (advice.empty() ? "\n  note: the run was trained with other plugins: pass " : " ") +
            ("--plugin-path " + shell_quoted(library.string()));
    }
  } catch (const std::exception&) {
    // A run without a readable provenance.json does not list its plugins.
  }
  return advice;
}

bool is_run_name(const std::string& name) {
  constexpr const char* allowed =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";
  return !name.empty() && name.size() <= 128 && name != "." && name != ".." &&
         name.find_first_not_of(allowed) == std::string::npos;
}

void check_run_name(const std::string& name) {
  if (is_run_name(name)) return;
  // Escape the name as JSON, because it may contain any bytes.
  std::string shown = Json(name).dump(-1, ' ', true, Json::error_handler_t::replace);
  shown.front() = shown.back() = '\'';
  throw Error(shown + " is not a valid run name: use 1 to 128 letters, digits, '.', '_' and '-'" +
                  advice_for_path(name),
              ExitCode::usage);
}

void RunFolder::require_new(const stdfs::path& output, const std::string& name) {
  check_run_name(name);
  std::error_code ignored;
  if (stdfs::exists(output / name, ignored)) fail_existing(output, name);
}

RunFolder RunFolder::create(const stdfs::path& output, const std::string& name,
                            const std::string& experiment) {
  if (!name.empty()) check_run_name(name);
  std::vector<stdfs::path> created = create_output(output);
  const std::string prefix = name_prefix(experiment);
  for (int64_t number = 1;; ++number) {
    const std::string chosen = name.empty() ? prefix + std::to_string(number) : name;
    const stdfs::path path = stdfs::absolute(output) / chosen;
    if (create_run(path)) return RunFolder(path, true, std::move(created));
    if (!name.empty()) fail_existing(output, name);
  }
}

RunFolder RunFolder::open(const stdfs::path& output, const std::string& name) {
  check_run_name(name);
  stdfs::path path = stdfs::absolute(output) / name;
  std::error_code ignored;
  if (!stdfs::is_directory(path, ignored))
    throw Error("run '" + name + "' not found in " + output.string() + similar_runs(output, name),
                ExitCode::usage);
  return RunFolder(path, false, {});
}

RunFolder RunFolder::open_or_create(const stdfs::path& output, const std::string& name) {
  check_run_name(name);
  std::vector<stdfs::path> parents = create_output(output);
  const stdfs::path path = stdfs::absolute(output) / name;
  return RunFolder(path, create_run(path), std::move(parents));
}

RunFolder RunFolder::join(const stdfs::path& path) {
  std::error_code ignored;
  if (!stdfs::is_directory(path, ignored))
    throw Error("run folder " + path.string() + " of the first rank does not exist on " +
                    host_name() + "; choose an output folder on a shared file system",
                ExitCode::usage);
  return RunFolder(path);
}

RunFolder::RunFolder(stdfs::path path, bool created, std::vector<stdfs::path> created_parents)
    : path_(std::move(path)), created_(created), created_parents_(std::move(created_parents)) {
  if (!created_) require_plain_files(path_);
  lock_ = take_lock(path_);
  // The lock keeps other processes from writing here from now on.
  for (const stdfs::path& folder : {path_, trackers(), samples()}) fs::remove_temporaries(folder);
}

RunFolder::~RunFolder() {
  if (lock_ >= 0) ::close(lock_);
}

RunFolder::RunFolder(RunFolder&& other) noexcept
    : path_(std::move(other.path_)),
      created_(other.created_),
      created_parents_(std::move(other.created_parents_)),
      lock_(std::exchange(other.lock_, -1)) {}

bool RunFolder::exists() const {
  if (lock_ < 0) return stdfs::is_directory(path_);
  struct stat opened {
  }, present{};
  return ::fstat(lock_, &opened) == 0 && ::stat((path_ / "lock").c_str(), &present) == 0 &&
         opened.st_dev == present.st_dev && opened.st_ino == present.st_ino;
}

void RunFolder::require_exists() const {
  if (exists()) return;
  throw Error("run folder " + path_.string() +
                  " was removed, moved or replaced while the run used it, so nothing more can be "
                  "saved; restore it and resume the run",
              ExitCode::checkpoint);
}

void RunFolder::remove() {
  fs::remove_all(path_);
  std::error_code not_empty;
  for (const stdfs::path& folder : created_parents_) stdfs::remove(folder, not_empty);
}

void correct_status(const stdfs::path& folder, int exit_code, const std::string& cause) noexcept {
  try {
    const stdfs::path file = folder / "status.json";
    std::error_code ignored;
    if (folder.empty() || !stdfs::is_regular_file(file, ignored)) return;
    Json status = read_json(file);
    if (status.value("state", "") != "running" && status.value("exit_code", 0) == exit_code) return;
    status["state"] = "failed";
    status["exit_code"] = exit_code;
    status["message"] = without_secrets(cause);
    status["time"] = utc_text(wall_seconds()).data();
    fs::write_atomically(file, status.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
  } catch (const std::exception& error) {
    log::warning(std::string("cannot correct status.json: ") + error.what());
  }
}

void RunFolder::write_status(const std::string& state, std::optional<int> exit_code, int64_t step,
                             const std::string& message) const {
  const StatusWriter writer;
  Json status = {{"state", state},
                 {"exit_code", exit_code ? Json(*exit_code) : Json()},
                 {"step", step},
                 {"message", message},
                 {"time", utc_text(wall_seconds()).data()},
                 {"host", host_name()},
                 {"pid", ::getpid()}};
  const std::string text = status.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  try {
    fs::write_atomically(this->status(), text);
  } catch (const Error&) {
    require_exists();
    // A full disk may have no space for a second file, but it has that of the first one.
    if (!overwrite(this->status(), text)) throw;
  }
}

}  // namespace dsv3
