// data/@NAME@: reads text files in which every line is a document. Keeps all tokens in memory.
#include <algorithm>

#include <dsv3/sdk/documents.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/support/text_files.h>

namespace {

struct Options {
  std::string path;
  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("path", &Options::path, "a .txt file or a folder of .txt files").required();
  }
};

class Lines final : public dsv3::Documents {
 public:
  Lines(const Options& options, const dsv3::DataContext& context) {
    if (!context.tokenizer)
      throw dsv3::Error("data/@NAME@ needs a tokenizer: add `tokenizer: {plugin: bytes}` to `data`",
                        dsv3::ExitCode::usage);
    if (context.vocab > 0 && context.tokenizer->vocab_size() > context.vocab)
      throw dsv3::Error("the tokenizer has " + std::to_string(context.tokenizer->vocab_size()) +
                            " ids, but model.vocab is " + std::to_string(context.vocab) +
                            "; raise model.vocab or set it to auto",
                        dsv3::ExitCode::usage);
    const dsv3::TextFiles files({options.path}, {.documents = "line"});
    source_ = files.source();
    uint64_t hash = dsv3::document_hash(context.tokenizer->digest());
    std::string buffer;
    for (const auto& line : files.documents()) {
      // A line's hash decides whether the line is in the held-out set, so adding lines never moves
      // other lines.
      const bool validation = dsv3::held_out(line.hash, context.validation_share);
      if (validation != (context.split == dsv3::Split::validation)) continue;
      hash = dsv3::random_bits({hash, line.hash});
      std::vector<int32_t> ids = context.tokenizer->encode(files.text(line, buffer));
      if (context.tokenizer->eos_id() >= 0) ids.push_back(context.tokenizer->eos_id());
      lines_.push_back(std::move(ids));
    }
    fingerprint_ = std::to_string(hash);
  }

  int64_t count() const override { return static_cast<int64_t>(lines_.size()); }
  int64_t length(int64_t document) override {
    return static_cast<int64_t>(lines_[document].size());
  }
  void read(int64_t document, int64_t offset, std::span<int64_t> out) override {
    std::copy_n(lines_[document].begin() + offset, out.size(), out.begin());
  }
  std::string fingerprint() const override { return fingerprint_; }
  std::string source() const override { return source_; }

 private:
  std::vector<std::vector<int32_t>> lines_;
  std::string fingerprint_, source_;
};

// PackedStream implements packing, document order, splitting rows between ranks, and resuming.
class LineData final : public dsv3::PackedStream {
 public:
  using Options = ::Options;
  LineData(const Options& options, const dsv3::DataContext& context)
      : PackedStream(std::make_shared<Lines>(options, context), context) {}
};

}  // namespace

DSV3_PLUGIN(registrar) {
  registrar.data<LineData>("@NAME@", "@NAME@, based on the data template");
}
