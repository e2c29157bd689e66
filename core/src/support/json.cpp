#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include <boost/iterator/transform_iterator.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

namespace dsv3 {
namespace {

constexpr int kMaxDepth = 64;

[[noreturn]] void fail(std::string_view text, size_t offset, const std::string& origin,
                       const std::string& what) {
  std::string_view before = text.substr(0, std::min(offset, text.size()));
  auto line = std::count(before.begin(), before.end(), '\n') + 1;
  size_t column = before.size() - (before.rfind('\n') + 1) + 1;  // npos + 1 is 0 on the first line
  throw Error(origin + ":" + std::to_string(line) + ":" + std::to_string(column) + ": " + what);
}

/// Returns the start offset of the string whose closing quote is the byte before `end`.
size_t start_of_string(std::string_view text, size_t end) {
  size_t quote = end - 1;
  while (quote > 0) {
    quote = text.rfind('"', quote - 1);
    size_t slashes = 0;
    while (slashes < quote && text[quote - 1 - slashes] == '\\') ++slashes;
    if (slashes % 2 == 0) return quote;
  }
  return quote;
}

/// nlohmann's message without "[json.exception...] parse error at line 1, column 2: ", because
/// fail() adds the position.
std::string cause(const std::string& what) {
  size_t start = what.find("column ");
  start = start == std::string::npos ? what.find("] ") : what.find(": ", start);
  return "invalid JSON: " + (start == std::string::npos ? what : what.substr(start + 2));
}

}  // namespace

Json parse_json(std::string_view text, const std::string& origin) {
  // The parser treats a zero byte as the end of the text.
  if (size_t zero = text.find('\0'); zero != std::string_view::npos)
    fail(text, zero, origin, "invalid JSON: zero byte");
  const char* reached = text.data();  // the parser's position, which is not passed to callbacks
  const auto count = [&](const char& byte) {
    reached = &byte + 1;
    return byte;
  };
  const char* end = text.data() + text.size();
  auto offset = [&] { return static_cast<size_t>(reached - text.data()); };
  std::vector<std::set<std::string>> keys;  // keys of the open objects
  auto callback = [&](int depth, Json::parse_event_t event, Json& value) {
    using Event = Json::parse_event_t;
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMaxDepth)
      fail(text, offset() - 1, origin,
           "invalid JSON: nested deeper than " + std::to_string(kMaxDepth) + " levels");
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get_ref<const std::string&>()).second)
      fail(text, start_of_string(text, offset()), origin,
           "invalid JSON: duplicate key " + value.dump());
    return true;
  };
  try {
    return Json::parse(boost::make_transform_iterator(text.data(), count),
                       boost::make_transform_iterator(end, count), callback);
  } catch (const Json::parse_error& error) {
    fail(text, error.byte > 0 ? error.byte - 1 : 0, origin, cause(error.what()));
  } catch (const Json::exception& error) {
    fail(text, offset() > 0 ? offset() - 1 : 0, origin, cause(error.what()));
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(fs::read(path, uint64_t{256} << 20), path.string());
}

Json number_to_json(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  return value;
}

double number_from_json(const Json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "NaN") return std::numeric_limits<double>::quiet_NaN();
  if (value == "Infinity") return std::numeric_limits<double>::infinity();
  if (value == "-Infinity") return -std::numeric_limits<double>::infinity();
  throw Error("not a number in JSON: " +
              value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace dsv3
