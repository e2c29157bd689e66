// Tests how records and files reach trackers.
#include <thread>

#include <catch2/catch.hpp>

#include <dsv3/support/fs.h>

#include "core/track/scripted_run.h"

TEST_CASE("records are delivered before metrics, and have their own offset") {
  Run run;
  run.append(3);
  run.record(dsv3::record::Tags{{{"team", "language"}}});
  run.record(dsv3::record::State{"running"});
  run.tracker->on_deliver = [&](int, std::span<const Event>) {
    CHECK(run.tracker->recorded.size() == 2);
  };
  run.sender()->finish(RunStatus::finished);
  REQUIRE(run.tracker->recorded.size() == 2);
  CHECK(std::get<dsv3::record::Tags>(run.tracker->recorded[0].content).values.at("team") ==
        "language");
  run.record(dsv3::record::State{"finished"});
  run.sender()->finish(RunStatus::finished);
  REQUIRE(run.tracker->recorded.size() == 3);
  CHECK(run.tracker->recorded[2].id == 2);
}

TEST_CASE("an upload that hangs does not delay metrics, and is stopped at the end") {
  Run run;
  dsv3::fs::write_atomically(run.folder() / "config.yaml", "dsv3: 1\n");
  run.record(dsv3::record::File{"config.yaml"});
  NamedTracker named{"first", run.tracker};
  std::atomic<bool> stopped = false;
  run.tracker->on_upload = [&](const std::string&) {
    while (!named.stop.stop_requested()) std::this_thread::yield();
    stopped = true;
    throw std::runtime_error("stopped");
  };
  auto sender = run.sender({named});
  run.append(300);
  sender->notify();
  while (run.tracker->received < 300) std::this_thread::yield();
  CHECK_FALSE(sender->finish(RunStatus::finished));
  CHECK(stopped);
  CHECK((run.tracker->finished == std::vector{RunStatus::finished}));
  CHECK(take_log().find("has not received everything") != std::string::npos);
  run.tracker->on_upload = [](const std::string&) {};
  CHECK(run.sender()->finish(RunStatus::finished));
  CHECK(run.tracker->uploaded == std::vector<std::string>{"config.yaml"});
}

TEST_CASE("files outside the run folder are not uploaded") {
  Run run;
  for (const char* path : {"../outside", "/etc/hostname", "a/../../outside", "missing"})
    run.record(dsv3::record::File{path});
  dsv3::fs::write_atomically(run.folder().parent_path() / "outside", "secret");
  run.tracker->on_upload = [](const std::string&) {};
  CHECK(run.sender()->finish(RunStatus::finished));
  CHECK(run.tracker->uploaded.empty());
  std::filesystem::remove(run.folder().parent_path() / "outside");
}

TEST_CASE("a checkpoint is uploaded even if the run has removed it in the meantime") {
  Run run;
  const auto folder = run.folder() / "checkpoints/step-0000010";
  dsv3::fs::make_folders(folder);
  dsv3::fs::write_atomically(folder / "manifest.json", "{}");
  run.tracker->on_upload = [](const std::string&) {};
  run.clock->flow();
  run.tracker->on_start = fails(1);
  dsv3::Record record{.step = 10,
                      .content = dsv3::record::Checkpoint{"checkpoints/step-0000010", {}}};
  auto sender = run.sender();
  sender->keep_for_upload(record);
  dsv3::fs::remove_all(folder);
  run.record(record.content);
  sender->notify();
  CHECK(sender->finish(RunStatus::finished));
  CHECK(run.tracker->uploaded == std::vector<std::string>{"step-0000010/manifest.json"});
  CHECK_FALSE(exists(run.folder() / "trackers/first.uploads/step-0000010"));
  CHECK(take_log() == "tracker 'first' cannot start, retrying: the server is down\n");
}
