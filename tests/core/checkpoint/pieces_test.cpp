// Reads checkpoints that are stored in pieces, intact and damaged ones.
#include <ATen/ATen.h>
#include <catch2/catch.hpp>

#include <dsv3/runtime/rank_threads.h>
#include <dsv3/runtime/stored_tensors.h>
#include <dsv3/sdk/error.h>

#include "core/checkpoint/shares.h"

using Catch::Contains;
using dsv3::Json;
using dsv3::StoredTensors;

namespace {

/// A checkpoint of two ranks, whose files a test may damage.
struct Stored {
  TemporaryFolder folder;
  std::filesystem::path path = folder / "c/step-1";

  Stored() {
    dsv3::on_ranks(2, [&](const std::shared_ptr<dsv3::Communicator>& ranks) {
      dsv3::CheckpointStore(folder / "c", 1).save(Share(ranks->rank(), 2, 1).content, *ranks);
    });
  }

  /// Rewrites the manifest, with digests that match its content and the files.
  void edit(const std::function<void(Json&)>& change) {
    Json manifest = Json::parse(get(path / "manifest.json"));
    for (Json& file : manifest["files"]) {
      const std::string bytes = get(path / file["name"].get<std::string>());
      file["bytes"] = bytes.size();
      file["sha256"] = dsv3::sha256(bytes);
    }
    change(manifest);
    manifest.erase("sha256");
    manifest["sha256"] = dsv3::sha256(manifest.dump());
    put(path / "manifest.json", manifest.dump());
  }
  void edit_pieces(const std::function<void(Json&)>& change) {
    edit([&](Json& manifest) { change(manifest["pieces"]["model/w"]); });
  }

  /// Writes a file of rank 1 whose digest matches.
  void write_second(const std::string& key, const std::string& dtype, int64_t elements) {
    const std::string bytes(size_t(elements) * dsv3::safetensors::element_size(dtype), 'x');
    dsv3::safetensors::write(path / "rank-00001.safetensors",
                             {{key, {dtype, {elements}, bytes.data(), bytes.size()}}});
    edit([](Json&) {});
  }

  std::string error() const {
    try {
      const StoredTensors tensors(dsv3::verify_checkpoint(path));
    } catch (const dsv3::Error& failure) {
      CHECK(failure.code() == dsv3::ExitCode::checkpoint);
      return failure.what();
    }
    return "";
  }
};

dsv3::Range range_of(std::vector<int64_t> shape, int64_t begin, int64_t end) {
  return {.name = "w",
          .global_shape = shape,
          .box_offset = std::vector<int64_t>(shape.size(), 0),
          .box_shape = shape,
          .begin = begin,
          .end = end};
}

}  // namespace

TEST_CASE("any range of a tensor in pieces can be read") {
  const Stored stored;
  REQUIRE(stored.error() == "");
  const StoredTensors tensors(dsv3::verify_checkpoint(stored.path));
  CHECK(tensors.names() == std::vector<std::string>{"model/own0", "model/own1", "model/w"});
  const at::Tensor expected = at::arange(100, 110, at::kFloat).view({2, 5});
  CHECK(at::equal(tensors.whole("model/w"), expected));
  CHECK(at::equal(tensors.whole("model/own1"), at::tensor({1.0f, 1.0f})));
  for (int64_t begin = 0; begin <= kElements; ++begin)
    for (int64_t end = begin; end <= kElements; ++end) {
      const at::Tensor part = at::full({end - begin}, -1.0);
      tensors.read("model/w", range_of({2, 5}, begin, end), part);
      CHECK(at::equal(part, expected.flatten().slice(0, begin, end)));
    }
  dsv3::Range row = range_of({2, 5}, 1, 4);  // of a slice along the first dimension
  row.box_offset = {1, 0};
  row.box_shape = {1, 5};
  const at::Tensor part = at::empty({3});
  tensors.read("model/w", row, part);
  CHECK(at::equal(part, expected.flatten().slice(0, 6, 9)));
}

TEST_CASE("a tensor that does not fit is rejected") {
  const Stored stored;
  const StoredTensors tensors(dsv3::verify_checkpoint(stored.path));
  const at::Tensor part = at::empty({5});
  CHECK_THROWS_WITH(tensors.read("model/v", part), Contains("no tensor 'model/v'"));
  CHECK_THROWS_WITH(tensors.read("model/w", range_of({5, 2}, 0, 5), part),
                    Contains("'model/w' is F32 [2, 5]") && Contains("needs F32 [5, 2]"));
  CHECK_THROWS_WITH(tensors.read("model/w", range_of({2, 5}, 0, 5), part.to(at::kDouble)),
                    Contains("'model/w' is F32 [2, 5]") && Contains("needs F64 [2, 5]"));
  CHECK_THROWS_WITH(tensors.read("model/w", range_of({2, 5}, 0, 4), part),
                    Contains("has 5 elements"));
  CHECK_THROWS_WITH(tensors.read_value("model/w", range_of({2, 5}, 0, 5), at::empty({})),
                    Contains("'model/w' is F32 [2, 5]") && Contains("needs F32 []"));
  dsv3::Range column = range_of({2, 5}, 0, 2);
  column.box_shape = {2, 1};
  CHECK_THROWS_WITH(tensors.read("model/w", column, at::empty({2})),
                    Contains("slices along the first dimension only"));
}

TEST_CASE("values that are not finite are found in any piece, by one of the ranks") {
  Stored stored;
  float values[] = {1, 2, 3, HUGE_VALF, 5};
  dsv3::safetensors::write(stored.path / "rank-00001.safetensors",
                           {{"model/w/5", {"F32", {5}, values, 20}}});
  stored.edit([](Json&) {});
  const StoredTensors tensors(dsv3::verify_checkpoint(stored.path));
  const auto check = [&](int64_t rank, int64_t ranks) {
    tensors.require_finite("here", dsv3::ExitCode::not_finite, rank, ranks);
  };
  CHECK_THROWS_WITH(check(0, 1), "here: tensor 'model/w' has values that are not finite");
  int failures = 0;
  for (int64_t rank = 0; rank < 3; ++rank) try {
      check(rank, 3);
    } catch (const dsv3::Error&) {
      ++failures;
    }
  CHECK(failures == 1);
}

TEST_CASE("a checkpoint in pieces is rejected if a file is missing, exchanged or damaged") {
  Stored stored;
  const auto first = stored.path / "rank-00000.safetensors";
  const auto second = stored.path / "rank-00001.safetensors";
  const std::string a = get(first), b = get(second);
  std::filesystem::remove(second);
  CHECK_THAT(stored.error(), Contains(second.string() + ": cannot be read"));
  put(first, b);
  put(second, a);
  CHECK_THAT(stored.error(), Contains(first.string() + ": SHA-256 differs"));
  stored.edit([](Json&) {});  // even if the digests are those of the exchanged files
  CHECK_THAT(stored.error(), Contains(first.string() + ": tensor 'model/w/0' is missing"));
}

TEST_CASE("a damaged list of pieces is rejected with the file and the tensor") {
  Stored stored;
  const std::string where = (stored.path / "manifest.json").string() + ": tensor 'model/w': ";
  const auto error = [&](const std::function<void(Json&)>& change) {
    const std::string intact = get(stored.path / "manifest.json");
    stored.edit_pieces(change);
    std::string text = stored.error();
    put(stored.path / "manifest.json", intact);
    REQUIRE(text.starts_with(where));
    return text.substr(where.size());
  };
  const std::string second = "in rank-00001.safetensors,";
  CHECK(error([](Json& list) { list["pieces"][1][1] = 4; }) ==
        "elements 4 to 10, " + second + " overlap with another piece");
  CHECK(error([](Json& list) { list["pieces"][1][1] = 0; }) ==
        "elements 0 to 10, " + second + " overlap with another piece");
  CHECK(error([](Json& list) { list["pieces"][1][1] = 6; }) ==
        "no piece has element 5; the next ones are elements 6 to 10, " + second);
  CHECK(error([](Json& list) { list["pieces"].erase(1); }) == "no piece has element 5");
  CHECK(error([](Json& list) { list["pieces"].clear(); }) == "no piece has element 0");
  CHECK(error([](Json& list) { list["pieces"][1][2] = 11; }) ==
        "elements 5 to 11, " + second + " are outside the 10 of the tensor");
  CHECK(error([](Json& list) { list["pieces"][1][2] = 5; }) ==
        "elements 5 to 5, " + second + " are outside the 10 of the tensor");
  CHECK(error([](Json& list) { list["shape"] = {INT64_MAX, 4}; }) == "its shape is too large");
  for (const Json& name : {"rank-00002.safetensors", "notes.txt", "../rank-00000.safetensors"})
    CHECK(error([&](Json& list) { list["pieces"][0][0] = name; }) ==
          "a piece is in '" + name.get<std::string>() +
              "', which is not a tensor file of this checkpoint");
  for (const Json& number : Json::parse("[-1, 1.5, \"1\", null, 18446744073709551615]"))
    CHECK(error([&](Json& list) { list["pieces"][1][1] = number; }) ==
          "a number in its list of pieces is not a non-negative integer");
  for (const Json& piece : Json::parse("[[], {}, 3, [0, 1, 2], [\"rank-00000.safetensors\", 1]]"))
    CHECK(error([&](Json& list) { list["pieces"][0] = piece; }) ==
          "a piece is not [file, begin, end]");
  for (const Json& wrong : Json::parse("[[], {}, {\"shape\": []}, {\"shape\": 1, \"pieces\": []}]"))
    CHECK(error([&](Json& list) { list = wrong; }) ==
          "its list of pieces has no 'shape' or no 'pieces'");
  stored.edit([](Json& manifest) { manifest["pieces"] = 1; });
  CHECK_THAT(stored.error(), Contains("'pieces' is not an object"));
}

TEST_CASE("files that do not match the list of pieces are rejected with the file and the tensor") {
  Stored stored;
  const std::string where = (stored.path / "rank-00001.safetensors").string() + ": tensor ";
  stored.write_second("model/w/5", "F64", 5);
  CHECK(stored.error() == where + "'model/w/5' is F64, but other pieces are F32");
  stored.write_second("model/w/5", "F32", 4);
  CHECK(stored.error() == where + "'model/w/5' has 4 elements, but the manifest lists 5");
  stored.write_second("model/w/6", "F32", 5);
  CHECK(stored.error() == where + "'model/w/5' is missing, but the manifest lists it");
  stored.write_second("model/w/5", "F32", 5);
  CHECK(stored.error() == "");
  stored.edit([](Json& manifest) { manifest["pieces"]["model/w"]["one_value"] = true; });
  CHECK_THAT(stored.error(), Contains("'model/w/0' has 5 elements, but the manifest lists 1"));
}

TEST_CASE("a tensor that two files have is rejected") {
  Stored stored;
  const std::string bytes(28, 'x');
  dsv3::safetensors::write(stored.path / "rank-00001.safetensors",
                           {{"model/own0", {"F32", {2}, bytes.data(), 8}},
                            {"model/w/5", {"F32", {5}, bytes.data() + 8, 20}}});
  stored.edit([](Json&) {});
  CHECK(stored.error() == (stored.path / "rank-00001.safetensors").string() +
                              ": tensor 'model/own0' is stored a second time");
}
