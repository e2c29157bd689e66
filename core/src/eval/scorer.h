// What the parts of an evaluation share.
#pragma once

#include <ATen/ATen.h>

#include <dsv3/runtime/evaluate.h>

namespace dsv3::eval {

/// The model, and how much it evaluates at a time.
struct Scorer {
  Model& model;
  const Tokenizer* tokenizer;  ///< null: the model has none
  int64_t sequence, batch, limit;

  /// Throws when there is none; `what` needs it.
  const Tokenizer& required_tokenizer(const std::string& what) const;
  /// Throws when the model has no such id; `where` is its source.
  void check_id(int64_t id, const std::string& where) const;
  bool enough(int64_t done) const { return limit > 0 && done >= limit; }
};

TextScore score_text(const Scorer& scorer, const std::string& path, const TextFormat& format);
TextScore score_shards(const Scorer& scorer, const std::string& path);
ChoiceScore score_choices(const Scorer& scorer, const std::string& file);

}  // namespace dsv3::eval
