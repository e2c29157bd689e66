#include <numbers>

#include <ATen/Parallel.h>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/ops.h>
#include <dsv3/sdk/packing.h>

#include "checkpoint/tensor_views.h"
#include "eval/scorer.h"
#include "eval/validation.h"

namespace dsv3 {
namespace {

/// Adds the cross-entropy of a batch's targets and their size in bytes to `score`. Skips
/// end-of-text ids.
void add_bytes(TextScore& score, Model& model, const Tokenizer& tokenizer, const Batch& batch) {
  const at::Tensor targets = shifted_targets(batch.tokens, batch.document_ids, 0);
  const at::Tensor text =
      at::where(targets.ne(tokenizer.eos_id()), targets, at::full({}, -1, targets.options()));
  score.text_nats += model.token_losses(batch, text).to(at::kDouble).sum().item<double>();
  const int64_t* ids = text.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < text.numel(); ++i)
    if (ids[i] >= 0) *score.bytes += std::ssize(tokenizer.token_bytes(int32_t(ids[i])));
}

/// Computes the loss on the run's validation rows, bit-identical to the loss that the run reported.
TextScore score_validation(LoadedModel& loaded, Plugins& plugins) {
  const Experiment& experiment = loaded.experiment;
  if (std::filesystem::exists(loaded.stored.path / "config.json"))
    throw Error(loaded.stored.path.string() +
                    " is a Hugging Face folder, which has no validation split: pass --text, "
                    "--shards or --choices",
                ExitCode::usage);
  const int64_t micro_batch = micro_batch_of(experiment.train, 1);
  const std::unique_ptr<Loader> loader = make_loader(
      experiment, plugins, *loaded.model, Split::validation, micro_batch, loaded.tokenizer);
  TextScore score;
  score.source = experiment.name;
  if (loaded.tokenizer) score.bytes = 0;
  const ValidationSum sum =
      validate(*loaded.model, *loader,
               experiment.validation.batches * (experiment.train.batch / micro_batch),
               [&](const Batch& batch) {
                 if (loaded.tokenizer) add_bytes(score, *loaded.model, *loaded.tokenizer, batch);
                 return true;
               });
  if (sum.targets == 0)
    throw Error("the experiment of " + loaded.stored.path.string() +
                    " has an empty validation split (validation.share is " +
                    c10::str(experiment.validation.share) + "): pass --text, --shards or --choices",
                ExitCode::data);
  score.nats = sum.nats;
  score.tokens = sum.targets;
  return score;
}

Json json_of(const TextScore& score) {
  const std::optional<double> bits = score.bits_per_byte();
  return {{"source", score.source},
          {"documents", score.documents ? Json(*score.documents) : Json()},
          {"tokens", score.tokens},
          {"bytes", score.bytes ? Json(*score.bytes) : Json()},
          {"loss", number_to_json(score.loss())},
          {"bits_per_byte", bits ? number_to_json(*bits) : Json()}};
}

Json json_of(const ChoiceScore& score) {
  Json questions = Json::array();
  for (const Question& question : score.questions) {
    Json likelihoods = Json::array();
    for (const double value : question.log_likelihoods)
      likelihoods.push_back(number_to_json(value));
    questions.push_back({{"label", question.label},
                         {"choice", question.choice(false)},
                         {"choice_norm", question.choice(true)},
                         {"log_likelihoods", likelihoods},
                         {"bytes", question.bytes}});
  }
  return {{"source", score.source},
          {"accuracy", score.accuracy(false)},
          {"acc_norm", score.accuracy(true)},
          {"truncated", score.truncated},
          {"questions", questions}};
}

Json read_lists(const std::filesystem::path& file) try {
  return read_json(file);
} catch (const Error& error) {
  throw Error(error.what(), ExitCode::usage);
}

/// Converts a list of lists of ids below `vocab` to int64 [B, T].
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
        fail(name + " contains " + id.dump() + ", which is outside the model's vocabulary, 0 to " +
             std::to_string(vocab - 1));
      ids[b][t] = id.get<int64_t>();
    }
  }
  return tokens;
}

}  // namespace

std::optional<double> TextScore::bits_per_byte() const {
  if (!bytes || *bytes == 0) return std::nullopt;
  return text_nats / std::numbers::ln2 / double(*bytes);
}

size_t Question::choice(bool normalised) const {
  std::vector<double> values = log_likelihoods;
  for (size_t i = 0; normalised && i < values.size(); ++i) values[i] /= double(bytes[i]);
  return size_t(std::max_element(values.begin(), values.end()) - values.begin());
}

double ChoiceScore::accuracy(bool normalised) const {
  const auto right = std::count_if(questions.begin(), questions.end(), [&](const Question& q) {
    return q.choice(normalised) == size_t(q.label);
  });
  return double(right) / double(questions.size());
}

Evaluation evaluate(const EvalRequest& request, Plugins& plugins) {
  constexpr int64_t kMaxTokens = 1 << 24;  // in memory, and in one forward pass
  LoadedModel loaded = load_model(request.model, plugins);
  const TrainOptions& train = loaded.experiment.train;
  // Use training's thread count and operators, because both affect the order of summation.
  at::set_num_threads(int(train.threads.value()));
  use_reference_ops(train.ops == "reference");
  const eval::Scorer scorer{*loaded.model, loaded.tokenizer.get(),
                            request.sequence > 0 ? request.sequence : train.sequence, request.batch,
                            request.limit};
  const bool from_files =
      !(request.text.empty() && request.shards.empty() && request.choices.empty());
  if (from_files && request.batch > kMaxTokens / scorer.sequence)
    throw Error(c10::str("batch x sequence is ", request.batch, " x ", scorer.sequence,
                         " tokens, but a forward pass can have at most ", kMaxTokens,
                         "; reduce --batch or --sequence"),
                ExitCode::usage);
  if (scorer.sequence > train.sequence)
    log::warning(c10::str("the model was trained with sequence length ", train.sequence,
                          "; its loss may rise beyond that length"));
  Evaluation result{loaded.stored.step, loaded.device.str(), train.precision};
  if (!from_files) result.validation = score_validation(loaded, plugins);
  for (const std::string& path : request.text)
    result.text.push_back(eval::score_text(scorer, path, request.format));
  for (const std::string& path : request.shards)
    result.shards.push_back(eval::score_shards(scorer, path));
  for (const std::string& file : request.choices)
    result.choices.push_back(eval::score_choices(scorer, file));
  return result;
}

Json to_json(const Evaluation& evaluation) {
  Json json{{"step", evaluation.step},           {"device", evaluation.device},
            {"precision", evaluation.precision}, {"text", Json::array()},
            {"shards", Json::array()},           {"choices", Json::array()}};
  if (evaluation.validation) json["validation"] = json_of(*evaluation.validation);
  for (const TextScore& score : evaluation.text) json["text"].push_back(json_of(score));
  for (const TextScore& score : evaluation.shards) json["shards"].push_back(json_of(score));
  for (const ChoiceScore& score : evaluation.choices) json["choices"].push_back(json_of(score));
  return json;
}

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
  safetensors::write(request.out, views);
  return text;
}

}  // namespace dsv3
