// How good a stored model is: loss and bits per byte on text, accuracy on multiple choice.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/stored_model.h>
#include <dsv3/support/json.h>
#include <dsv3/support/text_files.h>

namespace dsv3 {

/// What `dsv3 eval` is asked for. With no text, shards and choices: the validation split of the
/// experiment that the model was trained by, as training itself validates.
struct EvalRequest {
  LoadRequest model;
  std::vector<std::string> text;     ///< files and folders, a score each
  std::vector<std::string> shards;   ///< token files and folders of them, a score each
  std::vector<std::string> choices;  ///< .jsonl files in HellaSwag's format, a score each
  TextFormat format;                 ///< of `text`
  int64_t sequence = 0;              ///< T, longest input in tokens; 0 = the experiment's
  int64_t batch = 8;                 ///< rows of T tokens in a forward
  int64_t limit = 0;                 ///< documents or questions of each source; 0 = all
};

/// Cross-entropy on documents. A document is its tokens with the end-of-text id behind them, as in
/// training, cut into windows of T predictions; each window starts with the last token of the one
/// before and sees nothing else of it. So every token after a document's first is predicted once,
/// and a document's loss depends on nothing but itself and T. (Of the validation split: packed rows
/// as in training, one pass.)
struct TextScore {
  std::string source;
  std::optional<int64_t> documents;  ///< absent: of packed rows they are not counted
  int64_t tokens = 0;                ///< predicted, end-of-text ids included
  double nats = 0;                   ///< their cross-entropy
  /// Bytes of the text that was predicted, of a document all but the first token's; end-of-text ids
  /// have none. Absent without a tokenizer.
  std::optional<int64_t> bytes;
  double text_nats = 0;  ///< cross-entropy of predicted tokens that are text: no end-of-text ids

  double loss() const { return nats / static_cast<double>(tokens); }  ///< nats a token
  std::optional<double> bits_per_byte() const;  ///< text_nats / ln 2 / bytes; absent without bytes
};

/// One question and what the model makes of its answers.
struct Question {
  int64_t label = 0;
  std::vector<double> log_likelihoods;  ///< nats, of each ending behind the context
  std::vector<int64_t> bytes;           ///< of each ending, without the space before it
  /// The most likely ending; `normalised`: by log-likelihood over bytes. The first of equals.
  size_t choice(bool normalised) const;
};

struct ChoiceScore {
  std::string source;
  std::vector<Question> questions;
  int64_t truncated = 0;  ///< endings whose context lost its start, to fit T tokens
  double accuracy(bool normalised) const;
};

struct Evaluation {
  int64_t step = 0;  ///< of the weights
  std::string device, precision;
  std::optional<TextScore> validation;
  std::vector<TextScore> text, shards;
  std::vector<ChoiceScore> choices;
};

/// Throws dsv3::Error: ExitCode::data for broken, missing or empty inputs and ids that the model
/// does not have, ExitCode::usage when text is given and the model has no tokenizer.
Evaluation evaluate(const EvalRequest& request, Plugins& plugins);

/// One object with all of it; numbers that are not finite as in number_to_json.
Json to_json(const Evaluation& evaluation);

}  // namespace dsv3
