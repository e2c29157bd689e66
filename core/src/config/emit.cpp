#include "config/emit.h"

#include <algorithm>

namespace dsv3::config {
namespace {

std::string quote(const std::string& text) {
  constexpr char kHex[] = "0123456789ABCDEF";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\';
    if (c == '\n')
      out += "\\n";
    else if (c == '\t')
      out += "\\t";
    else if (byte < 0x20 || byte == 0x7F)
      out += std::string("\\x") + kHex[byte >> 4] + kHex[byte & 15];
    else
      out += c;
  }
  return out + "\"";
}

class Emitter {
 public:
  explicit Emitter(const Diagnostics* origins) : origins_(origins) {}

  void map(const Node& node, const std::string& indent, bool first_is_inline) {
    for (const Entry& entry : node.entries) {
      if (!first_is_inline) out_ += indent;
      first_is_inline = false;
      out_ += entry.key + ":";
      value(entry.value, indent + "  ");
    }
  }
  std::string take() { return std::move(out_); }

 private:
  void value(const Node& node, const std::string& indent) {
    if (node.is_map() && !node.entries.empty()) {
      out_ += '\n';
      map(node, indent, false);
    } else if (is_block_list(node)) {
      out_ += '\n';
      for (const Node& item : node.items) {
        out_ += indent + "- ";
        map(item, indent + "  ", true);
      }
    } else {
      out_ += ' ' + inline_text(node) + comment(node) + '\n';
    }
  }

  // Components: a list of maps.
  static bool is_block_list(const Node& node) {
    return node.is_list() && !node.items.empty() &&
           std::all_of(node.items.begin(), node.items.end(),
                       [](const Node& item) { return item.is_map() && !item.entries.empty(); });
  }

  std::string comment(const Node& node) const {
    return origins_ ? "  # " + origins_->origin_text(node.at) : "";
  }

  const Diagnostics* origins_;
  std::string out_;
};

}  // namespace

std::string inline_text(const Node& node) {
  if (node.is_scalar()) return node.quoted ? quote(node.text) : node.text;
  if (node.is_null()) return "null";
  if (node.is_map()) return "{}";
  std::string text;
  for (const Node& item : node.items) text += (text.empty() ? "" : ", ") + inline_text(item);
  return "[" + text + "]";
}

std::string emit(const Node& map, const Diagnostics* origins) {
  Emitter emitter(origins);
  emitter.map(map, "", false);
  return emitter.take();
}

}  // namespace dsv3::config
