#include "support/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <dsv3/sdk/error.h>

namespace dsv3 {
namespace {

constexpr size_t kMaxBytes = 1000;
constexpr uint32_t kMaxSteps = 1'000'000;  // takes about 10 ms
constexpr uint32_t kMaxHeap = 32 << 10;    // in KiB

[[noreturn]] void fail(const std::string& what) {
  throw Error(what, ExitCode::usage);
}

std::string message(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Regex::Regex(const std::string& expression) {
  if (expression.size() > kMaxBytes) fail("is longer than " + std::to_string(kMaxBytes) + " bytes");
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression.data()),
                                   expression.size(), 0, &error, &at, nullptr);
  if (!code)
    fail("is not a regular expression: " + message(error) + " at byte " + std::to_string(at));
  code_ = std::shared_ptr<const void>(code, [code](const void*) { pcre2_code_free(code); });
}

bool Regex::found_in(std::string_view text) const {
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), pcre2_match_context_free);
  pcre2_set_match_limit(limits.get(), kMaxSteps);
  pcre2_set_heap_limit(limits.get(), kMaxHeap);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> found(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  const int status = pcre2_match(static_cast<const pcre2_code*>(code_.get()),
                                 reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0,
                                 found.get(), limits.get());
  if (status == PCRE2_ERROR_NOMATCH) return false;
  if (status < 0)
    fail("cannot be matched with '" + std::string(text) + "': " + message(status) +
         "; simplify it, such as (a+)+ to a+");
  return true;
}

}  // namespace dsv3
