#include "track/store.h"

#include <dsv3/runtime/printable.h>
#include <dsv3/sdk/log.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "support/host.h"

namespace dsv3 {

TrackerFiles::TrackerFiles(const std::filesystem::path& folder, const std::string& tracker)
    : tracker_(tracker),
      store_file_(folder / (tracker + ".store.json")),
      rejected_file_(folder / (tracker + ".rejected.jsonl")) {
  if (std::filesystem::exists(store_file_))
    values_ = read_json(store_file_).get<std::map<std::string, std::string>>();
}

std::string TrackerFiles::get(const std::string& key) const {
  const std::scoped_lock lock(mutex_);
  const auto found = values_.find(key);
  return found == values_.end() ? "" : found->second;
}

void TrackerFiles::set(const std::string& key, const std::string& value) {
  const std::scoped_lock lock(mutex_);
  values_[key] = value;
  if (closed_) return;
  fs::make_folders(store_file_.parent_path());
  fs::write_atomically(store_file_, Json(values_).dump(1) + "\n");
}

void TrackerFiles::reject(const Event& event, const std::string& entry, const std::string& reason) {
  reject("metrics.jsonl", event.id, event.step, entry, reason);
}

void TrackerFiles::reject(const Record& record, const std::string& entry,
                          const std::string& reason) {
  reject("events.jsonl", record.id, record.step, entry, reason);
}

void TrackerFiles::reject_line(const std::string& journal, int64_t line,
                               const std::string& reason) {
  reject(journal.c_str(), line, -1, "the whole line", reason);
}

void TrackerFiles::reject(const char* journal, int64_t line, int64_t step, const std::string& entry,
                          const std::string& reason) {
  const std::scoped_lock lock(mutex_);
  if (closed_) return;
  if (rejected_++ == 0)
    log::warning("tracker '" + tracker_ + "' rejected " + entry + " in " + journal + ":" +
                 std::to_string(line + 1) + ": " + reason + " (this and later ones are listed in " +
                 rejected_file_.string() + ")");
  nlohmann::ordered_json content{
      {"time", wall_seconds()}, {"journal", journal}, {"line", line + 1}};
  if (step >= 0) content["step"] = step;
  content["entry"] = without_secrets(entry);
  content["reason"] = without_secrets(reason);
  try {
    fs::make_folders(rejected_file_.parent_path());
    fs::Writer::append(rejected_file_)
        .write(content.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  } catch (const std::exception& error) {
    log::warning(std::string("cannot record a rejected entry: ") + error.what());
  }
}

int64_t TrackerFiles::rejected() const {
  const std::scoped_lock lock(mutex_);
  return rejected_;
}

void TrackerFiles::close() {
  const std::scoped_lock lock(mutex_);
  closed_ = true;
}

}  // namespace dsv3
