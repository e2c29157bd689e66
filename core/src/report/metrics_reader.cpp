// Parses metrics.jsonl into one curve per metric.
#include <cmath>
#include <cstring>
#include <fcntl.h>
#include <functional>
#include <memory>
#include <unistd.h>

#include <dsv3/runtime/run_record.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>

namespace dsv3 {
namespace {

namespace stdfs = std::filesystem;

/// Collects the numbers of one line. A parser with events is several times as fast as one that
/// builds an object for each line.
class Line : public nlohmann::json_sax<Json> {
 public:
  /// Returns whether `text` is an object of numbers.
  bool parse(std::string_view text) {
    count_ = 0;
    depth_ = 0;
    return Json::sax_parse(text.begin(), text.end(), this) && count_ > 0;
  }

  size_t size() const { return count_; }
  const std::string& name(size_t index) const { return names_[index]; }
  double value(size_t index) const { return values_[index]; }

  double find(std::string_view name) const {
    for (size_t i = 0; i < count_; ++i)
      if (names_[i] == name) return values_[i];
    return RunRecord::kUnknown;
  }

  bool null() override { return false; }
  bool boolean(bool) override { return false; }
  bool number_integer(int64_t value) override { return add(double(value)); }
  bool number_unsigned(uint64_t value) override { return add(double(value)); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override {
    try {
      return add(number_from_json(value));
    } catch (const Error&) {
      return false;
    }
  }
  bool binary(Json::binary_t&) override { return false; }
  bool start_object(size_t) override { return ++depth_ == 1; }
  bool end_object() override { return true; }
  bool start_array(size_t) override { return false; }
  bool end_array() override { return false; }
  bool parse_error(size_t, const std::string&, const Json::exception&) override { return false; }
  bool key(std::string& name) override {
    if (names_.size() == count_) {
      names_.emplace_back();
      values_.emplace_back();
    }
    names_[count_] = name;
    return true;
  }

 private:
  bool add(double value) {
    if (depth_ != 1) return false;  // the line is a number
    values_[count_++] = value;
    return true;
  }

  std::vector<std::string> names_;  // reused for the next line
  std::vector<double> values_;
  size_t count_ = 0;
  int depth_ = 0;
};

void append(Series& series, double x, double y) {
  while (!series.x.empty() && series.x.back() >= x) {
    series.x.pop_back();
    series.y.pop_back();
  }
  series.x.push_back(x);
  series.y.push_back(y);
}

void append(RunMetrics& metrics, const Line& line) {
  const double step = line.find("step");
  for (size_t i = 0; i < line.size(); ++i) {
    const std::string& name = line.name(i);
    if (name == "step") continue;
    Series& series = name == "tokens" ? metrics.tokens
                     : name == "time" ? metrics.time
                                      : metrics.by_name[name];
    append(series, step, line.value(i));
  }
}

/// Passes the lines of a file to `use`, and whether they end with a newline. With `start` > 0,
/// leaves out the first line, of which the beginning may be missing.
void read_lines(const stdfs::path& path, uint64_t start,
                const std::function<void(std::string_view, bool)>& use) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) throw Error("cannot read " + path.string() + ": " + std::strerror(errno));
  const std::unique_ptr<const int, void (*)(const int*)> closed(&fd,
                                                                [](const int* f) { ::close(*f); });
  std::string buffer;
  std::vector<char> piece(1 << 20);
  bool skipped = start == 0;
  for (off_t at = off_t(start);;) {
    const ssize_t count = ::pread(fd, piece.data(), piece.size(), at);
    if (count < 0) throw Error("cannot read " + path.string() + ": " + std::strerror(errno));
    if (count == 0) break;
    at += count;
    buffer.append(piece.data(), size_t(count));
    size_t begin = 0;
    for (size_t end; (end = buffer.find('\n', begin)) != buffer.npos; begin = end + 1) {
      if (skipped) use(std::string_view(buffer).substr(begin, end - begin), true);
      skipped = true;
    }
    buffer.erase(0, begin);
  }
  if (skipped && !buffer.empty()) use(buffer, false);
}

}  // namespace

double RunMetrics::last(const std::string& name) const {
  const auto found = by_name.find(name);
  return found == by_name.end() || found->second.y.empty() ? RunRecord::kUnknown
                                                           : found->second.y.back();
}

RunMetrics read_metrics(const stdfs::path& run, uint64_t tail) {
  RunMetrics metrics;
  const stdfs::path path = run / "metrics.jsonl";
  std::error_code error;
  const stdfs::file_status status = stdfs::symlink_status(path, error);
  if (status.type() == stdfs::file_type::not_found) return metrics;
  if (!stdfs::is_regular_file(status)) throw Error(path.string() + " is not a regular file");
  const uint64_t size = stdfs::file_size(path, error);
  Line line;
  read_lines(path, !error && size > tail ? size - tail : 0,
             [&](std::string_view text, bool complete) {
               if (line.parse(text) && std::isfinite(line.find("step")))
                 append(metrics, line);
               else if (complete)
                 ++metrics.damaged_lines;
             });
  return metrics;
}

}  // namespace dsv3
