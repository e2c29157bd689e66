// Shared by the implementations of the evaluations.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/evaluate.h>

namespace dsv3::eval {

/// The model and the limits of an evaluation.
struct Scorer {
  Model& model;
  const Tokenizer* tokenizer;  ///< null: the model has none
  int64_t sequence, batch, limit;

  /// Throws if there is no tokenizer. `what` says what needs one, for the message.
  const Tokenizer& required_tokenizer(const std::string& what) const;
  /// Throws if the model has no such id. `where` describes where the id comes from.
  void check_id(int64_t id, const std::string& where) const;
  bool enough(int64_t done) const { return limit > 0 && done >= limit; }
};

TextScore score_text(const Scorer& scorer, const std::string& path, const TextFormat& format);
TextScore score_shards(const Scorer& scorer, const std::string& path);
ChoiceScore score_choices(const Scorer& scorer, const std::string& file);

}  // namespace dsv3::eval
