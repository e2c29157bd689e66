#include "pattern.h"

#include <dsv3/sdk/error.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace dsv3::bpe {
namespace {

constexpr size_t kJitStackStart = 32 << 10, kJitStackMaximum = 4 << 20;

std::string message(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

struct MatchScratch::Parts {
  // One pair of offsets is enough, because only the whole match is used.
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackMaximum, nullptr);

  Parts() { pcre2_jit_stack_assign(context, nullptr, stack); }
  ~Parts() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    pcre2_jit_stack_free(stack);
  }
};

MatchScratch::MatchScratch() : parts_(std::make_unique<Parts>()) {}
MatchScratch::~MatchScratch() = default;

struct Pattern::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string where;
  ~Code() { pcre2_code_free(code); }
};

Pattern::Pattern(const std::string& expression, const std::string& where) {
  auto code = std::make_shared<Code>();
  code->where = where;
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  code->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()), expression.size(),
                             PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, context);
  pcre2_compile_context_free(context);
  if (!code->code)
    throw Error(where + ": PCRE2 rejects the regular expression " + expression + " at byte " +
                    std::to_string(at) + ": " + message(error),
                ExitCode::data);
  uint32_t matches_empty = 0;
  pcre2_pattern_info(code->code, PCRE2_INFO_MATCHEMPTY, &matches_empty);
  if (matches_empty)
    throw Error(where + ": the regular expression " + expression +
                    " can match the empty string, which is not supported",
                ExitCode::data);
  code->jit = pcre2_jit_compile(code->code, PCRE2_JIT_COMPLETE) == 0;
  code_ = std::move(code);
}

Pattern Pattern::literal(const std::string& text, const std::string& where) {
  std::string expression;
  for (char c : text) {
    if (c >= 0 && !std::isalnum(static_cast<unsigned char>(c))) {
      if (c == '\0') {
        expression += "\\x00";
        continue;
      }
      expression += '\\';
    }
    expression += c;
  }
  return Pattern(expression, where);
}

bool Pattern::find(std::string_view text, size_t from, Span& match, MatchScratch& scratch) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  MatchScratch::Parts& parts = *scratch.parts_;
  int status = PCRE2_ERROR_JIT_STACKLIMIT;
  if (code_->jit)
    status = pcre2_jit_match(code_->code, subject, text.size(), from, 0, parts.data, parts.context);
  if (status == PCRE2_ERROR_JIT_STACKLIMIT)
    status = pcre2_match(code_->code, subject, text.size(), from, PCRE2_NO_JIT | PCRE2_NO_UTF_CHECK,
                         parts.data, parts.context);
  if (status == PCRE2_ERROR_NOMATCH) return false;
  if (status < 0)
    throw Error(code_->where + ": matching the regular expression failed: " + message(status),
                ExitCode::data);
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(parts.data);
  match = {offsets[0], offsets[1]};
  return true;
}

}  // namespace dsv3::bpe
