#include "event_file.h"

#include <boost/crc.hpp>

#include <dsv3/sdk/log.h>
#include <dsv3/support/json.h>

namespace tensorboard {
namespace {

constexpr const char* kContent = "content";  // key in the store

template <class T>
std::string little_endian(T value) {
  std::string bytes;
  for (size_t i = 0; i < sizeof value; ++i) bytes += char(value >> 8 * i & 0xff);
  return bytes;
}

/// The checksum of TFRecord files: CRC-32C, masked because it is often computed over data that
/// contains checksums itself.
std::string checksum(const std::string& data) {
  boost::crc_optimal<32, 0x1edc6f41, 0xffffffff, 0xffffffff, true, true> crc;
  crc.process_bytes(data.data(), data.size());
  const uint32_t value = crc.checksum();
  return little_endian((value >> 15 | value << 17) + 0xa282ead8u);
}

/// A record of a TFRecord file: the size, its checksum, the data and its checksum.
std::string framed(const std::string& data) {
  const std::string size = little_endian(uint64_t(data.size()));
  return size + checksum(size) + data + checksum(data);
}

}  // namespace

EventFile::EventFile(std::filesystem::path path, std::shared_ptr<dsv3::TrackerStore> store)
    : path_(std::move(path)), store_(std::move(store)) {
  const std::string stored = store_->get(kContent);
  if (stored.empty()) return;
  const dsv3::Json json = dsv3::parse_json(stored, path_.string());
  content_ = {json.at("events"), json.at("records"), json.at("bytes")};
  std::error_code error;
  const auto size = std::filesystem::file_size(path_, error);
  if (!error && size >= content_.bytes) return;
  dsv3::log::warning(path_.string() +
                     " lacks earlier metrics, because it was removed or shortened; they are in "
                     "metrics.jsonl");
  content_.bytes = 0;
}

void EventFile::append(const std::vector<dsv3::protobuf::Message>& messages, int64_t events,
                       int64_t records) {
  std::string bytes;
  for (const dsv3::protobuf::Message& message : messages) bytes += framed(message.encoded());
  try {
    if (!writer_) open();
    writer_->write(bytes);
    writer_->sync();
    store({events, records, content_.bytes + bytes.size()});
  } catch (...) {
    writer_.reset();  // open() removes what has been written
    throw;
  }
}

void EventFile::open() {
  dsv3::fs::make_folders(path_.parent_path());
  writer_ = std::make_unique<dsv3::fs::Writer>(dsv3::fs::Writer::append(path_));
  std::filesystem::resize_file(path_, content_.bytes);
  dsv3::fs::sync_folder(path_.parent_path());
}

void EventFile::store(const Content& content) {
  store_->set(
      kContent,
      dsv3::Json{{"events", content.events}, {"records", content.records}, {"bytes", content.bytes}}
          .dump());
  content_ = content;
}

}  // namespace tensorboard
