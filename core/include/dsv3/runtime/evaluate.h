// Evaluates a stored model: loss and bits per byte on text, accuracy on multiple-choice questions,
// logits.
#pragma once

#include <dsv3/runtime/stored_model.h>
#include <dsv3/support/text_files.h>

namespace dsv3 {

/// Arguments of `dsv3 eval`. If text, shards and choices are all empty, the command evaluates on
/// the validation split of the experiment that trained the model, exactly as training does.
struct EvalRequest {
  LoadRequest model;
  std::vector<std::string> text;     ///< text files or folders of text files; each path gets its
                                     ///< own score
  std::vector<std::string> shards;   ///< token files or folders of token files; each path gets its
                                     ///< own score
  std::vector<std::string> choices;  ///< .jsonl files in HellaSwag's format; each file gets its own
                                     ///< score
  TextFormat format;                 ///< of `text`
  int64_t sequence = 0;              ///< T, maximum input length in tokens; 0 = as in the model's
                                     ///< experiment
  int64_t batch = 8;                 ///< number of rows of T tokens per forward pass
  int64_t limit = 0;                 ///< maximum number of documents or questions from each source;
                                     ///< 0 = all
};

/// Cross-entropy on documents. As in training, a document consists of its tokens followed by the
/// end-of-text id, cut into windows of T predictions. Each window starts with the last token of the
/// previous window, without any earlier context. So every token except a document's first is
/// predicted once, and a document's loss depends only on the document and T. (The validation split
/// is one pass over packed rows, as in training.)
struct TextScore {
  std::string source;
  std::optional<int64_t> documents;  ///< absent if the source consists of packed rows
  int64_t tokens = 0;                ///< predicted tokens, including end-of-text ids
  double nats = 0;                   ///< their cross-entropy
  /// Number of bytes in the predicted text, which is the whole document except its first token.
  /// End-of-text ids have no bytes. Absent without a tokenizer.
  std::optional<int64_t> bytes;
  double text_nats = 0;  ///< cross-entropy of the predicted tokens in nats, without end-of-text ids

  double loss() const { return nats / static_cast<double>(tokens); }  ///< nats per token
  std::optional<double> bits_per_byte() const;  ///< text_nats / ln 2 / bytes; absent if `bytes` is
};

/// A multiple-choice question and the likelihoods of its possible endings.
struct Question {
  int64_t label = 0;
  std::vector<double> log_likelihoods;  ///< log-likelihood of each ending given the context, in
                                        ///< nats
  std::vector<int64_t> bytes;           ///< length of each ending in bytes, without the space
                                        ///< before it
  /// Index of the most likely ending. If `normalised`, compares log-likelihoods per byte.
  size_t choice(bool normalised) const;
};

struct ChoiceScore {
  std::string source;
  std::vector<Question> questions;
  int64_t truncated =
      0;  ///< number of endings whose context was truncated at the start to fit into T tokens
  double accuracy(bool normalised) const;
};

struct Evaluation {
  int64_t step = 0;  ///< of the weights
  std::string device, precision;
  std::optional<TextScore> validation = {};
  std::vector<TextScore> text = {}, shards = {};
  std::vector<ChoiceScore> choices = {};
};

/// Evaluates a model. Throws dsv3::Error: with ExitCode::data for invalid, missing or empty inputs
/// and for ids outside the vocabulary, and with ExitCode::usage if text is given but the model has
/// no tokenizer.
Evaluation evaluate(const EvalRequest& request, Plugins& plugins);

/// Returns the whole evaluation as one JSON object. Non-finite numbers are written as by
/// number_to_json.
Json to_json(const Evaluation& evaluation);

struct LogitsRequest {
  LoadRequest model;             ///< model to evaluate; its tokenizer is not loaded
  std::filesystem::path tokens;  ///< JSON: a list of B lists of T ids
  std::filesystem::path out;     ///< safetensors to write, which may be a device; not atomic
};

/// Writes a model's `logits` fp32 [B, T, V] and, if it has MTP modules, `mtp_logits` fp32 [depth,
/// B, T, V]. Module k's logits at position t predict token t + k + 2. They are NaN at the last k +
/// 1 positions of a row, where the module's input token is unknown. Returns a description of the
/// shapes. Throws dsv3::Error (ExitCode::usage) for ids outside the vocabulary.
std::string write_logits(const LogitsRequest& request, Plugins& plugins);

}  // namespace dsv3
