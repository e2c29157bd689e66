#include <ATen/ATen.h>
#include <c10/util/StringUtil.h>

#include <dsv3/runtime/logits.h>
#include <dsv3/sdk/error.h>
#include <dsv3/support/fs.h>
#include <dsv3/support/json.h>

#include "checkpoint/tensor_views.h"

namespace dsv3 {
namespace {

Json read_lists(const std::filesystem::path& file) try {
  return read_json(file);
} catch (const Error& error) {
  throw Error(error.what(), ExitCode::usage);
}

/// int64 [B, T] from a list of lists of ids below `vocab`.
at::Tensor read_tokens(const std::filesystem::path& file, int64_t vocab) {
  const Json json = read_lists(file);
  const auto fail = [&](const std::string& text) {
    throw Error(file.string() + ": " + text, ExitCode::usage);
  };
  if (!json.is_array() || json.empty() || !json[0].is_array() || json[0].empty())
    fail("expected a list of lists of ids, such as [[1, 2, 3], [4, 5, 6]]");
  const int64_t rows = int64_t(json.size()), length = int64_t(json[0].size());
  at::Tensor tokens = at::empty({rows, length}, at::kLong);
  auto ids = tokens.accessor<int64_t, 2>();
  for (int64_t b = 0; b < rows; ++b) {
    const Json& row = json[size_t(b)];
    const std::string name = "row " + std::to_string(b);
    if (!row.is_array() || int64_t(row.size()) != length)
      fail(name + " is not a list of " + std::to_string(length) +
           " ids; all rows must be as long as the first");
    for (int64_t t = 0; t < length; ++t) {
      const Json& id = row[size_t(t)];
      if (!id.is_number_integer() || id < 0 || id >= vocab)
        fail(name + " contains " + id.dump() + ", which is not one of the model's ids 0 to " +
             std::to_string(vocab - 1));
      ids[b][t] = id.get<int64_t>();
    }
  }
  return tokens;
}

}  // namespace

std::string write_logits(const LogitsRequest& request, Plugins& plugins) {
  LoadRequest load = request.model;
  load.with_tokenizer = false;
  const LoadedModel loaded = load_model(load, plugins);
  const at::Tensor tokens = read_tokens(request.tokens, loaded.model->vocab());
  std::map<std::string, safetensors::View> views;
  std::vector<at::Tensor> hosts{add_view(views, "logits", loaded.model->logits(tokens))};
  std::string text = c10::str("logits ", hosts[0].sizes());
  if (loaded.experiment.mtp.depth > 0) {
    hosts.push_back(add_view(views, "mtp_logits", loaded.model->mtp_logits(tokens)));
    text += c10::str(", mtp_logits ", hosts[1].sizes());
  }
  const std::filesystem::path temporary = fs::temporary_name(request.out);
  try {
    safetensors::write(temporary, views);
    fs::rename(temporary, request.out);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(temporary, ignored);
    throw;
  }
  return text;
}

}  // namespace dsv3
