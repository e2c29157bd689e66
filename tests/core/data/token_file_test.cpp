// Tests token files: writing and reading shards, other formats, and damaged files.
#include <cstring>
#include <functional>

#include <catch2/catch.hpp>

#include <dsv3/runtime/data.h>
#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/token_file.h>

#include "core/support/temporary_folder.h"
#include "support/built_plugins.h"

using dsv3::TokenFile;

namespace {

const std::vector<std::vector<int32_t>> kDocuments{{5, 0, 65535, 9}, {}, {7}, {1, 2, 3, 4, 5, 9}};

std::string write_shard(const TemporaryFolder& folder, uint32_t id_bytes,
                        const std::string& name = "a.tokens") {
  dsv3::TokenHeader header;
  header.id_bytes = id_bytes;
  header.vocab = 70'000;
  header.eos = 9;
  header.tokenizer = std::string(64, 'd');
  dsv3::TokenShard shard(header);
  for (size_t i = 0; i < kDocuments.size(); ++i) shard.add(kDocuments[i], 100 + i);
  shard.write(folder / name);
  return (folder / name).string();
}

std::vector<int64_t> tokens_of(const TokenFile& file, const dsv3::TokenDocument& document) {
  std::vector<int64_t> tokens(document.end - document.begin);
  file.read(document.begin, tokens);
  return tokens;
}

/// Returns the error message from opening a file `name` that contains `bytes`, or "" if it opens.
std::string error_of(const TemporaryFolder& folder, const std::string& bytes,
                     const std::string& name = "damaged.tokens",
                     const std::string& format = "auto") {
  put(folder / name, bytes);
  try {
    TokenFile file((folder / name).string(), format);
    return "";
  } catch (const dsv3::Error& error) {
    CHECK(error.code() == dsv3::ExitCode::data);
    return error.what();
  }
}

template <class T>
std::string with(std::string bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  return bytes;
}

/// Like with(), but also corrects the header checksum, to test the checks that follow it.
template <class T>
std::string resealed(const std::string& bytes, size_t offset, T value) {
  const std::string changed = with(bytes, offset, value);
  return with(changed, 248, dsv3::document_hash(std::string_view(changed).substr(0, 248)));
}

}  // namespace

TEST_CASE("a shard round-trips") {
  TemporaryFolder folder;
  for (const uint32_t id_bytes : {2u, 4u}) {
    const TokenFile file(write_shard(folder, id_bytes), "auto");
    CHECK(file.format() == "dsv3");
    const dsv3::TokenHeader& header = file.header();
    CHECK(header.version == 2);
    CHECK(header.id_bytes == id_bytes);
    CHECK(header.tokens == 11);
    CHECK(header.documents == kDocuments.size());
    CHECK(header.vocab == 70'000);
    CHECK(header.eos == 9);
    CHECK(header.tokenizer == std::string(64, 'd'));
    const auto documents = file.documents(-1);
    REQUIRE(documents.size() == kDocuments.size());
    for (size_t i = 0; i < documents.size(); ++i) {
      CHECK(documents[i].hash == 100 + i);
      CHECK(tokens_of(file, documents[i]) ==
            std::vector<int64_t>(kDocuments[i].begin(), kDocuments[i].end()));
    }
  }
}

TEST_CASE("ids above 65,535 are stored in four bytes and round-trip") {
  TemporaryFolder folder;
  dsv3::TokenHeader header;
  header.id_bytes = 4;
  dsv3::TokenShard shard(header);
  const std::vector<int32_t> ids{65'536, 2'000'000'000};
  shard.add(ids, 1);
  shard.write(folder / "wide.tokens");
  const TokenFile file((folder / "wide.tokens").string(), "dsv3");
  CHECK(tokens_of(file, {0, 2, 0}) == std::vector<int64_t>{65'536, 2'000'000'000});
}

TEST_CASE("any damage to a shard's header is reported") {
  TemporaryFolder folder;
  const std::string bytes = get(write_shard(folder, 2));
  CHECK(error_of(folder, bytes).empty());
  for (size_t i = 0; i < 256; ++i) {
    INFO("byte " << i);
    CHECK_FALSE(error_of(folder, with(bytes, i, char(bytes[i] ^ 1))).empty());
  }
  CHECK_THAT(error_of(folder, resealed(bytes, 8, uint32_t{3})), Catch::Contains("version 3"));
  CHECK_THAT(error_of(folder, resealed(bytes, 12, uint32_t{3})), Catch::Contains("3-byte ids"));
  for (const size_t count : {size_t{16}, size_t{24}})
    for (const uint64_t value : {uint64_t{0}, uint64_t{1} << 62, UINT64_MAX})
      CHECK_THAT(error_of(folder, resealed(bytes, count, value)), Catch::Contains("truncated"));
}

TEST_CASE("a shard with the wrong length is reported") {
  TemporaryFolder folder;
  const std::string bytes = get(write_shard(folder, 2));
  for (size_t size = 0; size < bytes.size(); ++size) {
    INFO("size " << size);
    CHECK_FALSE(error_of(folder, bytes.substr(0, size)).empty());
  }
  CHECK_FALSE(error_of(folder, bytes + '\0').empty());
}

TEST_CASE("a flipped bit anywhere in a shard is reported") {
  TemporaryFolder folder;
  const std::string bytes = get(write_shard(folder, 2));
  for (size_t i = 256; i < bytes.size(); ++i) {
    INFO("byte " << i);
    put(folder / "flipped.tokens", with(bytes, i, char(bytes[i] ^ 1)));
    CHECK_THROWS_AS(TokenFile((folder / "flipped.tokens").string(), "auto").verify(), dsv3::Error);
  }
}

TEST_CASE("only the pieces that are read are compared with their digests") {
  TemporaryFolder folder;
  dsv3::TokenShard shard(dsv3::TokenHeader{});
  const std::vector<int32_t> ids(1'500'000, 3);  // three pieces of 1 MiB
  shard.add(ids, 1);
  shard.write(folder / "long.tokens");
  const std::string bytes = get(folder / "long.tokens");
  put(folder / "long.tokens", with(bytes, 256 + 2 * 600'000, uint16_t{4}));
  const TokenFile file((folder / "long.tokens").string(), "auto");
  std::vector<int64_t> tokens(10);
  CHECK_NOTHROW(file.read(0, tokens));
  CHECK_NOTHROW(file.read(1'499'990, tokens));
  CHECK_THROWS_WITH(file.read(550'000, tokens), Catch::Contains("tokens 524288 to 1048576"));
  CHECK_THROWS_WITH(file.read(524'280, tokens), Catch::Contains("damaged"));
}

TEST_CASE("a shard of version 1 without digests is read") {
  TemporaryFolder folder;
  std::string bytes = get(write_shard(folder, 2)).substr(0, 256 + 24 + kDocuments.size() * 16);
  std::fill(bytes.begin() + 112, bytes.begin() + 248, '\0');
  bytes = resealed(bytes, 8, uint32_t{1});
  CHECK(error_of(folder, bytes).empty());
  const TokenFile file((folder / "damaged.tokens").string(), "auto");
  CHECK_FALSE(file.has_digests());
  CHECK(tokens_of(file, file.documents(-1)[0]) == std::vector<int64_t>{5, 0, 65535, 9});
  // Without a digest, a damaged document table is found where it does not match the tokens.
  const size_t table = bytes.size() - kDocuments.size() * 16;
  CHECK_THAT(error_of(folder, with(bytes, table, uint64_t{12})), Catch::Contains("entry 0"));
  CHECK_THAT(error_of(folder, with(bytes, table + 16, uint64_t{3})), Catch::Contains("entry 1"));
  CHECK_THAT(error_of(folder, with(bytes, table + 48, uint64_t{10})), Catch::Contains("cover"));
}

TEST_CASE("llm.c files and raw id files are split into documents at the end-of-text id") {
  TemporaryFolder folder;
  std::string ids;
  for (const uint16_t id : {3, 4, 9, 5, 9, 6})
    ids.append(reinterpret_cast<const char*>(&id), sizeof id);
  std::string header(1024, '\0');
  header = with(with(with(header, 0, uint32_t{20240520}), 4, uint32_t{1}), 8, uint32_t{6});
  put(folder / "llmc.bin", header + ids);
  put(folder / "raw.bin", ids);
  for (const std::string name : {"llmc", "raw"}) {
    const TokenFile file((folder / (name + ".bin")).string(), "auto");
    CHECK(file.format() == (name == "raw" ? "raw16" : name));
    const auto documents = file.documents(9);
    REQUIRE(documents.size() == 3);
    CHECK(tokens_of(file, documents[0]) == std::vector<int64_t>{3, 4, 9});
    CHECK(tokens_of(file, documents[1]) == std::vector<int64_t>{5, 9});
    CHECK(tokens_of(file, documents[2]) == std::vector<int64_t>{6});
    CHECK(file.documents(-1).size() == 1);
  }
  CHECK_FALSE(error_of(folder, header + ids + "x", "damaged.bin").empty());
  CHECK_FALSE(error_of(folder, with(header, 4, uint32_t{9}) + ids, "damaged.bin").empty());
  CHECK_FALSE(error_of(folder, ids + "x", "damaged.bin").empty());
  CHECK_THAT(error_of(folder, ids, "raw.bin", "parquet"), Catch::Contains("use auto"));
}

TEST_CASE("a folder's token files are read in name order") {
  TemporaryFolder folder;
  write_shard(folder, 2, "b.tokens");
  write_shard(folder, 2, "a.tokens");
  put(folder / "c.txt", "text");
  const auto files = dsv3::token_files_in(folder.path().string());
  CHECK(files ==
        std::vector<std::string>{(folder / "a.tokens").string(), (folder / "b.tokens").string()});
  CHECK_THROWS_AS(dsv3::token_files_in((folder / "missing").string()), dsv3::Error);
}

TEST_CASE("prepared shards contain the text's documents in order") {
  TemporaryFolder folder;
  std::vector<std::string> texts;
  std::string corpus;
  for (int i = 0; i < 50; ++i) {
    texts.push_back("line " + std::to_string(i) + std::string(size_t(i), '-'));
    corpus += texts.back() + "\n";
  }
  put(folder / "corpus.txt", corpus);
  dsv3::PrepareRequest request;
  request.inputs = {(folder / "corpus.txt").string()};
  request.format.documents = "line";
  request.out = folder / "shards";
  request.shard_tokens = 400;
  request.tokenizer = dsv3::test::make_built<dsv3::Tokenizer>(dsv3::Kind::tokenizer, "bytes", {},
                                                              dsv3::TokenizerContext{});
  const dsv3::PrepareResult result = dsv3::prepare_tokens(request);
  CHECK(result.documents == 50);
  CHECK(result.text_bytes + 50 == uint64_t(result.tokens));
  CHECK(result.shards > 3);
  size_t index = 0;
  for (const std::string& path : dsv3::token_files_in(request.out.string())) {
    const TokenFile file(path, "auto");
    for (const dsv3::TokenDocument& document : file.documents(-1)) {
      const auto tokens = tokens_of(file, document);
      const std::vector<int32_t> ids(tokens.begin(), tokens.end() - 1);
      REQUIRE(index < texts.size());
      CHECK(request.tokenizer->decode(ids) == texts[index]);
      CHECK(tokens.back() == request.tokenizer->eos_id());
      CHECK(document.hash == dsv3::document_hash(texts[index++]));
    }
  }
  CHECK(index == texts.size());
  CHECK_THROWS_WITH(dsv3::prepare_tokens(request), Catch::Contains("is not empty"));
}
