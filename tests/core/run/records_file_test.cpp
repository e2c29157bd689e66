// Tests events.jsonl: its lines, what a resumed run repeats, and lines that a crash left behind.
#include <catch2/catch.hpp>

#include <dsv3/runtime/records_file.h>
#include <dsv3/sdk/error.h>

#include "core/support/temporary_folder.h"

using dsv3::Record;
using dsv3::RecordsFile;
namespace record = dsv3::record;

namespace {

Record read_back(const Record::Content& content) {
  const std::string line = dsv3::record_line({7, 3, 1764000000.25, content});
  REQUIRE(line.find('\n') == line.size() - 1);
  return dsv3::parse_record(line.substr(0, line.size() - 1), 7);
}

template <class T>
T content_of(const T& content) {
  const Record result = read_back(content);
  CHECK(result.id == 7);
  CHECK(result.step == 3);
  CHECK(result.time == 1764000000.25);
  return std::get<T>(result.content);
}

int lines_of(const std::filesystem::path& path) {
  const std::string text = get(path);
  return int(std::count(text.begin(), text.end(), '\n'));
}

}  // namespace

TEST_CASE("a record of an earlier version lacks fields") {
  const Record record = dsv3::parse_record(
      R"({"type": "checkpoint", "step": 3, "time": 1.5, "path": "checkpoints/step-3"})", 0);
  const auto& checkpoint = std::get<dsv3::record::Checkpoint>(record.content);
  CHECK(checkpoint.path == "checkpoints/step-3");
  CHECK((checkpoint.metrics.empty() && checkpoint.digest.empty()));
}

TEST_CASE("every type of record is read back as it was written") {
  const record::Values values{{"optimizer.0.lr", "0.02"}, {"empty", ""}, {"odd \"name\"", "a\nb"}};
  CHECK(content_of(record::Parameters{values}).values == values);
  CHECK(content_of(record::Tags{values}).values == values);
  const auto dataset = content_of(record::Dataset{"training", "text", "ab12", "path: corpus"});
  CHECK(dataset.context == "training");
  CHECK(dataset.name == "text");
  CHECK(dataset.digest == "ab12");
  CHECK(dataset.source == "path: corpus");
  CHECK(content_of(record::File{"config.yaml"}).path == "config.yaml");
  const auto checkpoint = content_of(record::Checkpoint{
      "checkpoints/step-3", {{"val/loss", 0.1}, {"infinite", HUGE_VAL}}, "text", "cd34"});
  CHECK(checkpoint.path == "checkpoints/step-3");
  CHECK(checkpoint.metrics.at("val/loss") == 0.1);
  CHECK(checkpoint.metrics.at("infinite") == HUGE_VAL);
  CHECK((checkpoint.dataset == "text" && checkpoint.digest == "cd34"));
  CHECK(content_of(record::CheckpointRemoved{"checkpoints/step-1"}).path == "checkpoints/step-1");
  const auto samples = content_of(record::Samples{{{"The", " caf\xc3\xa9\n"}, {"", ""}}}).samples;
  REQUIRE(samples.size() == 2);
  CHECK(samples[0].prompt == "The");
  CHECK(samples[0].text == " caf\xc3\xa9\n");
  const auto span = content_of(record::Span{"t", "i", "p", "forward", 1.5, 2.5, values});
  CHECK((span.trace == "t" && span.id == "i" && span.parent == "p" && span.name == "forward"));
  CHECK((span.start == 1.5 && span.end == 2.5 && span.attributes == values));
  CHECK(content_of(record::State{"finished"}).name == "finished");
}

TEST_CASE("lines that are not records are rejected with their place") {
  for (const char* line :
       {"", "[]", "{}", "{\"type\": \"state\"}", R"({"type": "unknown", "step": 1, "time": 1})",
        R"({"type": "state", "step": 1, "time": 1, "name": 3})",
        R"({"type": "tags", "step": "x", "time": 1, "values": {}})"})
    CHECK_THROWS_WITH(dsv3::parse_record(line, 4), Catch::StartsWith("events.jsonl:5"));
}

TEST_CASE("a resumed run does not repeat samples and checkpoints") {
  const TemporaryFolder folder;
  const record::Samples samples{{{"The", " cat"}}};
  {
    RecordsFile file(folder / "events.jsonl");
    CHECK(file.append(10, samples)->id == 0);
    CHECK(file.append(10, record::Checkpoint{"checkpoints/step-10", {}})->id == 1);
    CHECK(file.append(20, samples)->id == 2);
    CHECK(file.append(20, record::State{"running"})->id == 3);
  }
  RecordsFile file(folder / "events.jsonl");  // resumes from step 10
  CHECK(file.has_checkpoint(10));
  CHECK_FALSE(file.has_checkpoint(20));
  CHECK(file.append(10, record::State{"resumed"})->id == 4);
  CHECK_FALSE(file.append(20, samples));
  CHECK(file.append(20, record::Checkpoint{"checkpoints/step-20", {}})->id == 5);
  CHECK(file.append(30, samples)->id == 6);
  CHECK(lines_of(folder / "events.jsonl") == 7);
  file.clear();
  CHECK(lines_of(folder / "events.jsonl") == 0);
  CHECK(file.append(10, samples)->id == 0);
}

TEST_CASE("a torn last record is removed when the file is opened again") {
  const TemporaryFolder folder;
  const auto path = folder / "events.jsonl";
  RecordsFile(path).append(1, record::State{"running"});
  const std::string whole = get(path);
  put(path, whole + R"({"type": "state", "step": 2, "ti)" + std::string(100, '\0'));
  RecordsFile file(path);
  CHECK(get(path) == whole);
  CHECK(file.append(3, record::State{"resumed"})->id == 1);
}
