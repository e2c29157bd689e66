#include <dsv3/runtime/generate.h>
#include <dsv3/runtime/printable.h>
#include <dsv3/support/json.h>

namespace dsv3 {
namespace {

/// Number of bytes at the end of `text` that may be the start of `stop`.
size_t open_stop(const std::string& text, const std::string& stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length)
    if (text.compare(text.size() - length, length, stop, 0, length) == 0) return length;
  return 0;
}

/// Replaces bytes that are not valid UTF-8, which a model may generate, with U+FFFD.
std::string valid_utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace

TextStream::TextStream(const Tokenizer& tokenizer, std::vector<std::string> stops)
    : tokenizer_(tokenizer), stops_(std::move(stops)) {
  for (const std::string& stop : stops_)
    if (stop.empty()) throw Error("a stop string is empty; omit it", ExitCode::usage);
}

std::string TextStream::add(int32_t id) {
  if (stopped_) return "";
  held_ += tokenizer_.token_bytes(id);
  size_t end = std::string::npos;
  for (const std::string& stop : stops_) end = std::min(end, held_.find(stop));
  if (end != std::string::npos) {
    stopped_ = true;
    held_.resize(end);
    return finish();
  }
  size_t back = incomplete_character(held_);
  for (const std::string& stop : stops_) back = std::max(back, open_stop(held_, stop));
  std::string certain = held_.substr(0, held_.size() - back);
  // Do not split the character before a possible stop string.
  certain.resize(certain.size() - incomplete_character(certain));
  held_.erase(0, certain.size());
  return valid_utf8(certain);
}

std::string TextStream::finish() {
  return valid_utf8(std::exchange(held_, ""));
}

}  // namespace dsv3
