// Includes a working component, with its registration function renamed to avoid a name clash.
#define dsv3_register_plugin working_tokenizer
#include "../../../tools/templates/plugin/tokenizer/plugin.cpp"
#undef dsv3_register_plugin

#include "faults.h"

namespace faulty {
namespace {

class Faulty final : public dsv3::Tokenizer {
 public:
  using Options = FaultyOptions;
  Faulty(const FaultyOptions& options, const dsv3::TokenizerContext& context)
      : fault_(options), working_(::Options{}, context) {}

  std::vector<int32_t> encode(std::string_view text) const override {
    fault_.work();
    std::vector<int32_t> ids = working_.encode(text);
    if (fault_.is("id_beyond") && !ids.empty()) ids.back() = 100'000;
    return ids;
  }
  std::string decode(std::span<const int32_t> ids) const override {
    std::string text = working_.decode(ids);
    if (fault_.is("decodes_wrong") && !text.empty()) text.back() ^= 1;
    return text;
  }
  std::string token_bytes(int32_t id) const override { return working_.token_bytes(id); }
  int64_t vocab_size() const override {
    return fault_.is("vocabulary_empty") ? 0 : working_.vocab_size();
  }
  int32_t eos_id() const override { return fault_.is("eos_beyond") ? 5000 : working_.eos_id(); }
  std::string digest() const override { return working_.digest(); }

 private:
  mutable Fault fault_;
  Pairs working_;
};

}  // namespace

void register_tokenizer(dsv3::Registrar& registrar) {
  registrar.tokenizer<Faulty>("faulty", "Tokenizer with a configurable fault");
}

}  // namespace faulty
