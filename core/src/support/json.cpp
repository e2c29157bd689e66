#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <boost/iterator/transform_iterator.hpp>

#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>
#include <dsv3/support/utf8.h>

namespace dsv3 {
namespace {

constexpr size_t kMaxDepth = 64;

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

/// Builds a value from the parser's events in linear time. nlohmann's parser with a callback takes
/// quadratic time in the number of an object's members.
class Builder final : public nlohmann::json_sax<Json> {
 public:
  Builder(std::string_view text, const std::string& origin) : text_(text), origin_(origin) {}

  Json parse() {
    const auto count = [this](const char& byte) {
      reached_ = static_cast<size_t>(&byte - text_.data()) + 1;
      return byte;
    };
    Json::sax_parse(boost::make_transform_iterator(text_.data(), count),
                    boost::make_transform_iterator(text_.data() + text_.size(), count), this);
    return std::move(root_);
  }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(int64_t value) override { return add(value); }
  bool number_unsigned(uint64_t value) override { return add(value); }
  bool number_float(double value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(Json::binary_t& value) override { return add(std::move(value)); }
  bool start_object(size_t) override { return open(Json::object()); }
  bool end_object() override { return close(); }
  bool start_array(size_t) override { return open(Json::array()); }
  bool end_array() override { return close(); }

  bool key(std::string& name) override {
    const auto [member, is_new] = open_.back()->emplace(name, nullptr);
    if (!is_new)
      fail(text_, start_of_string(text_, reached_), origin_,
           "invalid JSON: duplicate key " + Json(name).dump());
    member_ = &*member;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) override {
    fail(text_, position > 0 ? position - 1 : 0, origin_, cause(error.what()));
  }

 private:
  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json value) {
    if (open_.size() >= kMaxDepth)
      fail(text_, reached_ - 1, origin_,
           "invalid JSON: nested deeper than " + std::to_string(kMaxDepth) + " levels");
    open_.push_back(&place(std::move(value)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json& place(Json value) {
    if (open_.empty()) return root_ = std::move(value);
    if (open_.back()->is_object()) return *member_ = std::move(value);
    open_.back()->push_back(std::move(value));
    return open_.back()->back();
  }

  std::string_view text_;
  const std::string& origin_;
  size_t reached_ = 0;  // the parser's position, which is not passed to events
  Json root_;
  std::vector<Json*> open_;  // from the outermost to the innermost
  Json* member_ = nullptr;   // where the next value of an object goes
};

}  // namespace

Json parse_json(std::string_view text, const std::string& origin) {
  // The parser treats a zero byte as the end of the text.
  if (size_t zero = text.find('\0'); zero != std::string_view::npos)
    fail(text, zero, origin, "invalid JSON: zero byte");
  // Checked here, because the parser's message would contain the invalid bytes.
  if (const size_t valid = valid_prefix(text); valid < text.size())
    fail(text, valid, origin, "invalid JSON: not UTF-8");
  return Builder(text, origin).parse();
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
