#include "signed.h"

#include <algorithm>
#include <fstream>

#include <dsv3/sdk/log.h>

namespace mlflow {
namespace {

namespace http = dsv3::http;
namespace stdfs = std::filesystem;

constexpr const char *kDataLake = "AZURE_ADLS_GEN2_SAS_URI", *kBlob = "AZURE_SAS_URI",
                     *kAmazon = "AWS_PRESIGNED_URL";
constexpr uint64_t kSmallestPart = 5 << 20;  // Amazon rejects smaller ones, except the last
// One answer contains the addresses of all parts. Amazon accepts 10,000, Azure 50,000.
constexpr uint64_t kMostParts = 1000;
constexpr int kAttempts = 3;  // for each part, because a new upload would begin with the first

struct Address {
  std::string url, type;
  std::vector<std::pair<std::string, std::string>> headers;
};

Address checked_address(const Json& answer, const std::string& url, const std::string& type) {
  if (!url.starts_with("https://")) throw BadAnswer("an address of a file without https");
  Address address{url, type, {}};
  for (const Json& header : array_in(answer, "headers"))
    address.headers.emplace_back(text_in(header, "name"), text_in(header, "value"));
  return address;
}

Address signed_address(const Json& info) {
  return checked_address(info, text_in(info, "signed_uri"), text_in(info, "type"));
}

/// A path such as runs/ID/FOLDER/FILE.
struct Place {
  explicit Place(const std::string& path) : is_run(path.starts_with("runs/")) {
    const size_t id = path.find('/') + 1, name = path.find('/', id) + 1;
    owner = path.substr(id, name - id - 1);
    file = path.substr(name);
  }
  bool is_run;  // else a logged model
  std::string owner, file;
};

enum class Direction { upload = 1, download };

Address address_of(Api& api, const Place& place, Direction direction) {
  const bool is_upload = direction == Direction::upload;
  if (place.is_run) {
    const Json answer =
        api.post(is_upload ? "artifacts/credentials-for-write" : "artifacts/credentials-for-read",
                 {{"run_id", place.owner}, {"path", {place.file}}});
    const Json list = array_in(answer, "credential_infos");
    if (list.size() != 1) throw BadAnswer("not one address for a file");
    return signed_address(list[0]);
  }
  const Json answer =
      api.post("logged-models/" + http::escape(place.owner) + "/artifacts/" +
                   (is_upload ? "credentials-for-upload" : "credentials-for-download"),
               {{"paths", {place.file}}});
  const Json list = array_in(answer, "credentials");
  if (list.size() != 1) throw BadAnswer("not one address for a file");
  return signed_address(object_in(list[0], "credential_info"));
}

std::string with_query(const std::string& url, const std::string& query) {
  return url + (url.find('?') == url.npos ? '?' : '&') + query;
}

/// Sends one request without the workspace's credential. The answer may quote the signature.
http::Response send_unsigned(Api& api, http::Request request) {
  http::Response response = api.send_elsewhere(std::move(request));
  if (response.ok()) return response;
  const std::string text =
      response.source + " answered " + std::to_string(response.status) + " to a transfer";
  // Object stores answer 400 to files above their limit, but also to signatures that have expired.
  if (response.status == 413 || response.body.find("EntityTooLarge") != response.body.npos)
    throw ApiError(text + ", because the file is too large", 413, "");
  throw dsv3::Error(text);
}

uint64_t size_of(const http::Request& request) {
  return request.body_file.empty() ? request.body.size() : stdfs::file_size(request.body_file);
}

using Renew = std::function<Address()>;

/// Sends `request` to `address`, with `query` added. An address expires, and transfers break, so
/// failed requests are repeated with addresses from `renew`.
http::Response send_part(Api& api, Address& address, const std::string& query, const Renew& renew,
                         http::Request request) {
  const auto headers = request.headers;
  for (int attempt = 1;; ++attempt) {
    request.url = query.empty() ? address.url : with_query(address.url, query);
    request.headers = address.headers;
    request.headers.insert(request.headers.end(), headers.begin(), headers.end());
    try {
      return send_unsigned(api, request);
    } catch (const dsv3::Error&) {
      if (attempt == kAttempts) throw;
    }
    address = renew();  // throws if the request was stopped
  }
}

uint64_t part_size(const Api& api, uint64_t size) {
  return std::max({api.server().part_bytes, kSmallestPart, (size + kMostParts - 1) / kMostParts});
}

/// Calls `send(first byte, request with the part as its body)` for each part of a file.
void for_each_part(const Api& api, const stdfs::path& file,
                   const std::function<void(uint64_t, http::Request)>& send) {
  const uint64_t size = stdfs::file_size(file), step = part_size(api, size);
  std::ifstream stream(file, std::ios::binary);
  for (uint64_t first = 0; first < size; first += step) {
    http::Request part{.method = "PUT", .url = {}};
    part.body.resize(std::min(step, size - first));
    if (!stream.read(part.body.data(), std::streamsize(part.body.size())))
      throw dsv3::Error("cannot read " + file.string());
    send(first, std::move(part));
  }
}

void abort_multipart(Api& api, const Json& begun) {
  try {
    const Address address = signed_address(object_in(begun, "abort_credential_info"));
    const http::Response response = api.clean_up_elsewhere(
        {.method = "DELETE", .url = address.url, .headers = address.headers});
    if (!response.ok())
      throw dsv3::Error("the storage answered " + std::to_string(response.status));
  } catch (const dsv3::Error& error) {
    dsv3::log::warning(std::string("an incomplete upload remains in the storage: ") + error.what());
  }
}

/// Amazon's multipart upload. For a logged model, MLflow's client sends its id as `run_id`.
void put_multipart(Api& api, const Place& place, const stdfs::path& file) {
  const uint64_t size = stdfs::file_size(file), step = part_size(api, size);
  const uint64_t count = (size + step - 1) / step;
  Json request = {{"run_id", place.owner}, {"path", place.file}, {"num_parts", count}};
  const Json begun = api.post("artifacts/create-multipart-upload", request);
  const std::string id = text_in(begun, "upload_id");
  const Json addresses = array_in(begun, "upload_credential_infos");
  try {
    if (addresses.size() != count) throw BadAnswer("not one address for each part of a file");
    Json etags = Json::array();
    for_each_part(api, file, [&](uint64_t, http::Request part) {
      const size_t index = etags.size();
      const auto renew = [&] {
        const Json answer = api.get("artifacts/get-presigned-upload-part-url",
                                    {{"run_id", place.owner},
                                     {"path", place.file},
                                     {"upload_id", id},
                                     {"part_number", std::to_string(index + 1)}});
        return signed_address(object_in(answer, "upload_credential_info"));
      };
      Address address = signed_address(addresses[index]);
      const http::Response response = send_part(api, address, "", renew, std::move(part));
      etags.push_back({{"part_number", index + 1}, {"etag", response.header("etag")}});
    });
    request.erase("num_parts");
    request["upload_id"] = id;
    request["part_etags"] = etags;
    api.post("artifacts/complete-multipart-upload", request);
  } catch (const dsv3::Error&) {
    // Amazon stores the parts, at a cost, until the upload is completed or aborted.
    abort_multipart(api, begun);
    throw;
  }
}

/// Azure's blobs: blocks with ids of equal length, then a list of them.
void put_blocks(Api& api, Address address, const Renew& renew, const stdfs::path& file) {
  std::string list = "<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>";
  int64_t number = 10'000'000;  // eight digits are valid Base64
  for_each_part(api, file, [&](uint64_t, http::Request part) {
    const std::string id = std::to_string(number++);
    list += "<Uncommitted>" + id + "</Uncommitted>";
    part.headers.emplace_back("x-ms-blob-type", "BlockBlob");
    send_part(api, address, "comp=block&blockid=" + id, renew, std::move(part));
  });
  http::Request commit{.method = "PUT", .url = {}, .body = list + "</BlockList>"};
  send_part(api, address, "comp=blocklist", renew, std::move(commit));
}

/// Azure's Data Lake: create, append, flush.
void put_data_lake(Api& api, Address address, const Renew& renew, const http::Request& content) {
  const auto send = [&](const std::string& query, http::Request part) {
    send_part(api, address, query, renew, std::move(part));
  };
  const auto append = [&](uint64_t first, http::Request part) {
    part.method = "PATCH";
    send("action=append&position=" + std::to_string(first), std::move(part));
  };
  send("resource=file", {.method = "PUT", .url = {}});
  if (!content.body_file.empty())
    for_each_part(api, content.body_file, append);
  else if (!content.body.empty())
    append(0, content);
  send("action=flush&position=" + std::to_string(size_of(content)), {.method = "PATCH", .url = {}});
}

/// Uploads with one request.
void put_whole(Api& api, const Address& address, http::Request request) {
  request.method = "PUT";
  request.url = address.url;
  request.headers = address.headers;
  if (address.type == kBlob) request.headers.emplace_back("x-ms-blob-type", "BlockBlob");
  // Object stores answer 501 to a streamed empty file.
  if (size_of(request) == 0) request.body_file.clear();
  send_unsigned(api, std::move(request));
}

}  // namespace

void put_signed(Api& api, http::Request request, const std::string& path) {
  const Place place(path);
  const auto renew = [&] { return address_of(api, place, Direction::upload); };
  const Address address = renew();
  const bool is_large =
      !request.body_file.empty() && size_of(request) > api.server().largest_request;
  if (address.type == kDataLake)
    put_data_lake(api, address, renew, request);
  else if (address.type == kBlob && is_large)
    put_blocks(api, address, renew, request.body_file);
  else if (address.type == kAmazon && is_large)
    put_multipart(api, place, request.body_file);
  else
    put_whole(api, address, std::move(request));
}

void put_presigned(Api& api, http::Request request, const std::string& path) {
  const Json answer = api.post_path("/api/2.0/fs/create-upload-url", {{"path", path}});
  put_whole(api, checked_address(answer, text_in(answer, "url"), ""), std::move(request));
}

void get_signed(Api& api, http::Request request, const std::string& path) {
  const Address address = address_of(api, Place(path), Direction::download);
  request.url = address.url;
  request.headers = address.headers;
  send_unsigned(api, std::move(request));
}

}  // namespace mlflow
