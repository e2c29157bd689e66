// Tests reading weight files in Hugging Face folders, and checking a stored model's conventions.
#include "format/folder.h"

#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/stored_model.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/json.h>
#include <dsv3/support/safetensors.h>

#include "core/support/temporary_folder.h"

using dsv3::FolderTensors;
using dsv3::Json;

namespace {

/// Writes a safetensors file with one scalar per name.
void put_tensors(const std::filesystem::path& file, const std::vector<std::string>& names) {
  static const float one = 1;
  std::map<std::string, dsv3::safetensors::View> views;
  for (const std::string& name : names) views[name] = {"F32", {1}, &one, sizeof one};
  dsv3::safetensors::write(file, views);
}

void put_index(const TemporaryFolder& folder, const Json& map) {
  put(folder / "model.safetensors.index.json", Json{{"weight_map", map}}.dump());
}

/// Returns the error message from opening the folder, without the folder's path, or "" if it opens.
std::string error_of(const TemporaryFolder& folder) {
  try {
    FolderTensors tensors(folder.path());
    return "";
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::checkpoint);
    const std::string text = error.what();
    CHECK(text.starts_with(folder.path().string()));
    return text.substr(folder.path().string().size());
  }
}

dsv3::StoredModel stored_with(const std::filesystem::path& path,
                              std::map<std::string, std::string> conventions) {
  dsv3::StoredModel stored;
  stored.path = path;
  stored.conventions = std::move(conventions);
  return stored;
}

std::string conventions_error(const dsv3::StoredModel& stored, const dsv3::Experiment& experiment) {
  try {
    require_conventions(stored, experiment, false);
    return "";
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::checkpoint);
    return error.what();
  }
}

}  // namespace

TEST_CASE("weights are read from one file, or from shards with an index") {
  TemporaryFolder folder;
  CHECK_THAT(error_of(folder), Catch::Contains("neither model.safetensors nor"));
  put_tensors(folder / "model.safetensors", {"a"});
  CHECK(FolderTensors(folder.path()).tensors().size() == 1);
  put_tensors(folder / "one.safetensors", {"a", "b"});
  put_tensors(folder / "two.safetensors", {"c"});
  put_index(folder, {{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}});
  const FolderTensors sharded(folder.path());
  CHECK(sharded.tensors().size() == 3);
  CHECK(sharded.tensors().at("c").dtype == "F32");
}

TEST_CASE("an index that does not match the files is rejected") {
  TemporaryFolder folder;
  put_tensors(folder / "one.safetensors", {"a", "b"});
  put(folder / "model.safetensors.index.json", "{}");
  CHECK_THAT(error_of(folder), Catch::Contains("has no \"weight_map\""));
  put(folder / "model.safetensors.index.json", "[1]");
  CHECK_THAT(error_of(folder), Catch::Contains("is not a JSON object"));
  put(folder / "model.safetensors.index.json", "{");
  CHECK_THAT(error_of(folder), Catch::Contains("invalid JSON"));
  put_index(folder, {{"a", "one.safetensors"}});
  CHECK_THAT(error_of(folder), Catch::Contains("only one of the two lists b"));
  put_index(folder, {{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}});
  CHECK(error_of(folder).starts_with("/two.safetensors: is missing"));
  put_tensors(folder / "two.safetensors", {"a"});
  put_index(folder, {{"a", "one.safetensors"}, {"b", "one.safetensors"}});
  CHECK(error_of(folder).empty());
  for (const char* name : {"../one.safetensors", "/etc/passwd", ""}) {
    put_index(folder, {{"a", name}});
    CHECK_THAT(error_of(folder), Catch::Contains("must be a plain file name"));
  }
  put_index(folder, {{"a", 3}});
  CHECK_THAT(error_of(folder), Catch::Contains("must be a plain file name"));
}

TEST_CASE("row_index() and select_rows() select a parameter's rows in a stored tensor") {
  dsv3::TensorPlace place;
  place.first_row = 4;
  CHECK_FALSE(dsv3::row_index(place).defined());
  place.rows = {0, 2, 1};
  CHECK(at::equal(dsv3::row_index(place), at::tensor({4, 6, 5}, at::kLong)));
  const at::Tensor source = at::arange(8).view({8, 1});
  CHECK(at::equal(dsv3::select_rows(source, place, 3).flatten(), at::tensor({4, 6, 5}, at::kLong)));
  place.rows.clear();
  CHECK(at::equal(dsv3::select_rows(source, place, 3).flatten(), at::tensor({4, 5, 6}, at::kLong)));
}

TEST_CASE("a model with different conventions is rejected, and the error states what to set") {
  TemporaryFolder folder;
  dsv3::Experiment experiment;
  experiment.conventions = {{"position.rope.layout", "half"}, {"model.mtp.input", "normed"}};
  CHECK(conventions_error(stored_with(folder.path(), experiment.conventions), experiment).empty());
  const std::string text =
      conventions_error(stored_with(folder.path(), {{"position.rope.layout", "interleaved"},
                                                    {"model.mtp.input", "raw"},
                                                    {"attention.mla.muon_split", "whole"}}),
                        experiment);
  CHECK(text ==
        (folder / "config.json").string() +
            " has other conventions:"
            "\n  model.mtp.input: raw in the checkpoint, normed in this experiment; set "
            "model.mtp.input: raw"
            "\n  position.rope.layout: interleaved in the checkpoint, half in this experiment; set "
            "model.position.layout: interleaved"
            "\n  attention.mla.muon_split: whole in the checkpoint, absent in this experiment"
            "\nSet these options and plugins as in the checkpoint, or start without it");
}

TEST_CASE("weights can be used with a different optimizer") {
  TemporaryFolder folder;
  dsv3::Experiment experiment;
  experiment.conventions = {{"optimizer.muon.scale", "original"}};
  CHECK(conventions_error(stored_with(folder.path(), {}), experiment).empty());
  CHECK_THROWS_AS(require_conventions(stored_with(folder.path(), {}), experiment, true),
                  dsv3::Error);
}
