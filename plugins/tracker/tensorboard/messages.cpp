#include "messages.h"

#include <cctype>
#include <charconv>
#include <cmath>

namespace tensorboard {
namespace {

using dsv3::protobuf::Message;

constexpr int kFloat = 1, kString = 7;     // enum DataType
constexpr int kTensorClass = 2;            // enum DataClass
constexpr int kSuccess = 1, kFailure = 2;  // enum Status

Message event(double time, int64_t step, const Message& summary) {
  return Message().float64(1, time).integer(2, step).message(5, summary);
}

Message shape(std::initializer_list<int64_t> sizes) {
  Message message;
  for (const int64_t size : sizes) message.message(2, Message().integer(1, size));
  return message;
}

/// Value of a summary for a plugin of TensorBoard. `content` is the plugin's message.
Message value(const std::string& tag, const std::string& plugin, const Message& content,
              const Message& tensor) {
  const Message plugin_data = Message().string(1, plugin).message(2, content);
  return Message()
      .string(1, tag)
      .message(9, Message().message(1, plugin_data).integer(4, kTensorClass))
      .message(8, tensor);
}

/// The hparams plugin stores its data as metadata of tensors without elements.
Message session_event(const std::string& tag, int field, const Message& session, double time) {
  const Message empty = Message().integer(1, kFloat).message(2, shape({0}));
  return event(time, 0,
               Message().message(1, value("_hparams_/" + tag, "hparams",
                                          Message().message(field, session), empty)));
}

/// google.protobuf.Value
Message typed(const std::string& text) {
  if (text == "true" || text == "false") return Message().integer(4, text == "true");
  double number = 0;
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  if (parsed.ec == std::errc() && parsed.ptr == end && std::isfinite(number))
    return Message().float64(2, number);
  return Message().string(3, text);
}

}  // namespace

Message file_version(double time) {
  return Message().float64(1, time).string(3, "brain.Event:2");
}

Message scalars(const dsv3::Event& metrics) {
  Message summary;
  for (const auto& [name, number] : metrics.metrics)
    summary.message(1, Message().string(1, name).float32(2, float(number)));
  return event(metrics.time, metrics.step, summary);
}

Message samples_table(const dsv3::Record& record, const dsv3::record::Samples& samples) {
  Message tensor;
  tensor.integer(1, kString).message(2, shape({std::ssize(samples.samples) + 1, 2}));
  tensor.string(8, "<strong>prompt</strong>").string(8, "<strong>text</strong>");
  for (const dsv3::record::Sample& sample : samples.samples)
    tensor.string(8, markdown(sample.prompt)).string(8, markdown(sample.text));
  return event(record.time, record.step,
               Message().message(1, value("samples", "text", Message(), tensor)));
}

Message session_start(const dsv3::record::Values& parameters, double time) {
  Message session;
  for (const auto& [key, text] : parameters)
    session.message(1, Message().string(1, key).message(2, typed(text)));
  return session_event("session_start_info", 3, session.float64(5, time), time);
}

Message session_end(dsv3::RunStatus status, double time) {
  const int code = status == dsv3::RunStatus::finished ? kSuccess : kFailure;
  return session_event("session_end_info", 4, Message().integer(1, code).float64(2, time), time);
}

std::string markdown(std::string_view text) {
  std::string out;
  char previous = '\n';
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const auto code = static_cast<unsigned char>(c);
    if (c == '\n')
      out += "<br>";
    else if (c == '\t')
      out += "&nbsp;&nbsp;&nbsp;&nbsp;";
    else if (c == ' ')
      out += previous == ' ' || previous == '\n' ? "&nbsp;" : " ";  // HTML would drop it
    else if (code < 0x20 || code == 0x7f)
      out += "&#" + std::to_string(0x2400 + (code == 0x7f ? 0x21 : code)) + ";";  // its picture
    else if (code < 0x80 && std::ispunct(code))
      out += "&#" + std::to_string(code) + ";";
    else
      out += c;
    previous = c;
  }
  return out;
}

}  // namespace tensorboard
