// Parses YAML text into a Node, with limits that make hostile or broken files harmless.
#include <map>
#include <sstream>
#include <unordered_map>

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include "config/layers.h"

namespace dsv3::config {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxNodes = 10'000;  // keys included
constexpr size_t kMaxAliases = 100;
constexpr size_t kMaxExpandedNodes = 100'000;  // with aliases expanded

// Thrown through yaml-cpp to stop the parser.
struct Stop {
  Position at;
  std::string message;
  std::vector<std::string> notes = {};
};

// Rewords yaml-cpp's message and adds a suggested fix.
std::string plain(const std::string& message) {
  if (message == "end of map flow not found") return "'{' without '}'";
  if (message == "end of sequence flow not found") return "'[' without ']'";
  if (message.starts_with("illegal tab")) return "indented by a tab; use spaces";
  return message;
}

class Builder final : public YAML::EventHandler {
 public:
  Builder(Diagnostics& diagnostics, int source, int shift)
      : diagnostics_(diagnostics), source_(source), shift_(shift) {}

  Node take() { return std::move(root_); }
  Position position(const YAML::Mark& mark) const {
    if (mark.is_null()) return {source_, 1, 1 + shift_};
    return {source_, mark.line + 1, mark.column + 1 + (mark.line == 0 ? shift_ : 0)};
  }

  /// Returns where to report an error. For an unclosed bracket, this is the bracket itself, whereas
  /// yaml-cpp reports a later position.
  Position position_of(const YAML::Exception& error) const {
    const bool unclosed = error.msg.find("flow not found") != std::string::npos;
    return unclosed && !stack_.empty() ? stack_.back().node.at : position(error.mark);
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    if (wants_key()) throw Stop{position(mark), "a key must be a string"};
    Node node = start(mark, Node::Type::null);
    if (!stack_.empty() && stack_.back().node.is_map()) node.at = stack_.back().key_at;
    finish(std::move(node), anchor);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    check_tag(mark, tag);
    if (wants_key()) {
      take_key(mark, value, tag == "!");
      if (anchor) anchors_[anchor] = make_scalar(value, position(mark));
      return;
    }
    Node node = start(mark, Node::Type::scalar);
    node.text = value;
    node.quoted = tag == "!";
    finish(std::move(node), anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    const Position at = position(mark);
    if (wants_key()) throw Stop{at, "a key must be a string, not an alias"};
    if (++aliases_ > kMaxAliases)
      throw Stop{at, "more than " + std::to_string(kMaxAliases) + " aliases"};
    const auto found = anchors_.find(anchor);
    if (found == anchors_.end()) throw Stop{at, "an alias must not contain itself"};
    if (static_cast<int>(stack_.size()) + depth_of(found->second) > kMaxDepth) too_deep(at);
    count(at, 0, count_nodes(found->second));
    attach(Node(found->second));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Type::list);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, Node::Type::map);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    Node node;
    YAML::anchor_t anchor = 0;
    bool has_key = false;  // a key has been read, so the next event is its value
    bool skip = false;     // the key was rejected, so its value must be skipped
    bool is_key = false;   // this list or map is used as a key, which is an error
    std::string key;
    Position key_at;
    std::unordered_map<std::string, Position> keys;
  };

  [[noreturn]] void too_deep(Position at) const {
    throw Stop{at, "nested deeper than " + std::to_string(kMaxDepth) + " levels"};
  }

  void count(Position at, size_t written, size_t expanded) {
    nodes_ += written;
    expanded_ += expanded;
    if (nodes_ > kMaxNodes)
      throw Stop{at, "more than " + std::to_string(kMaxNodes) + " keys and values"};
    if (expanded_ > kMaxExpandedNodes)
      throw Stop{at,
                 "aliases expand to more than " + std::to_string(kMaxExpandedNodes) + " values",
                 {"write the values instead of referring to them by *alias"}};
  }

  void check_tag(const YAML::Mark& mark, const std::string& tag) {
    if (tag.empty() || tag == "!" || tag == "?") return;
    constexpr std::string_view kYaml = "tag:yaml.org,2002:";
    const std::string written = tag.starts_with(kYaml) ? "!!" + tag.substr(kYaml.size()) : tag;
    throw Stop{position(mark), "tags such as '" + written + "' are not supported", {"remove it"}};
  }

  bool wants_key() const {
    return !stack_.empty() && stack_.back().node.is_map() && !stack_.back().has_key;
  }

  Node start(const YAML::Mark& mark, Node::Type type) {
    Node node = make_node(type, position(mark));
    count(node.at, 1, 1);
    return node;
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            Node::Type type) {
    check_tag(mark, tag);
    if (static_cast<int>(stack_.size()) >= kMaxDepth) too_deep(position(mark));
    Frame frame;
    frame.node = start(mark, type);
    frame.anchor = anchor;
    frame.is_key = wants_key();
    stack_.push_back(std::move(frame));
  }

  void close() {
    Frame frame = std::move(stack_.back());
    stack_.pop_back();
    if (!frame.is_key) return finish(std::move(frame.node), frame.anchor);
    // Reported only once the key is complete, because yaml-cpp also treats an unclosed bracket as a
    // key.
    diagnostics_.error(frame.node, "a key must be a string, not a list or a map");
    stack_.back().has_key = stack_.back().skip = true;
  }

  void take_key(const YAML::Mark& mark, const std::string& key, bool quoted) {
    Frame& frame = stack_.back();
    const Position at = position(mark);
    count(at, 1, 1);
    frame.has_key = true;
    frame.key = key;
    frame.key_at = at;
    if (key == "<<" && !quoted) {
      diagnostics_.error(at, 2, "merge keys '<<' are not supported",
                         {"move the shared part to a separate file and list it in 'extends'"});
      frame.skip = true;
      return;
    }
    const auto [first, added] = frame.keys.emplace(key, at);
    frame.skip = !added;
    if (!added)
      diagnostics_.error(at, key.size(), "duplicate key '" + key + "'",
                         {"first given at " + diagnostics_.place(first->second)});
  }

  void finish(Node node, YAML::anchor_t anchor) {
    if (anchor) anchors_[anchor] = node;
    attach(std::move(node));
  }

  void attach(Node node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& frame = stack_.back();
    if (frame.node.is_list()) {
      frame.node.items.push_back(std::move(node));
      return;
    }
    if (!frame.skip) frame.node.add(frame.key, frame.key_at, std::move(node));
    frame.has_key = false;
  }

  Diagnostics& diagnostics_;
  const int source_, shift_;
  Node root_;
  std::vector<Frame> stack_;
  std::map<YAML::anchor_t, Node> anchors_;  // finished ones only
  size_t nodes_ = 0, expanded_ = 0, aliases_ = 0;
};

}  // namespace

std::optional<Node> parse(Diagnostics& diagnostics, int source, size_t begin) {
  const std::string text = diagnostics.text(source).substr(begin);
  if (text.size() > kMaxBytes) {
    diagnostics.error(
        {source, 1, 1}, 1,
        "larger than " + std::to_string(kMaxBytes) + " bytes, the limit for a YAML file",
        {"is this an experiment? Text and token files belong in data.path"});
    return std::nullopt;
  }
  Builder builder(diagnostics, source, static_cast<int>(begin));
  try {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return Node{};
    Node node = builder.take();
    if (parser.HandleNextDocument(builder))
      throw Stop{{source, 1, 1}, "more than one YAML document; only one is allowed"};
    return node;
  } catch (const Stop& stop) {
    diagnostics.error(stop.at, 1, stop.message, stop.notes);
  } catch (const YAML::Exception& error) {
    diagnostics.error(builder.position_of(error), 1, "not valid YAML: " + plain(error.msg));
  }
  return std::nullopt;
}

}  // namespace dsv3::config
