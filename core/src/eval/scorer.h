// Declarations shared by the evaluations of text, shards and multiple-choice questions.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/evaluate.h>

namespace dsv3::eval {

/// The model to evaluate, and the evaluation's limits.
struct Scorer {
  Model& model;
  const Tokenizer* tokenizer;  ///< null if the model has none
  int64_t sequence, batch, limit;

  /// Returns the tokenizer. Throws if there is none; `what` is the name of the input that needs it.
  const Tokenizer& required_tokenizer(const std::string& what) const;
  /// Throws if `id` is outside the model's vocabulary. `where` is its source, for the error
  /// message.
  void check_id(int64_t id, const std::string& where) const;
  bool enough(int64_t done) const { return limit > 0 && done >= limit; }
};

TextScore score_text(const Scorer& scorer, const std::string& path, const TextFormat& format);
TextScore score_shards(const Scorer& scorer, const std::string& path);
ChoiceScore score_choices(const Scorer& scorer, const std::string& file);

}  // namespace dsv3::eval
