#include "normalizer.h"

#include <algorithm>
#include <cstdlib>
#include <utf8proc.h>

#include <dsv3/sdk/error.h>

namespace dsv3::bpe {
namespace {

int options_of(Form form) {
  const bool composed = form == Form::nfc || form == Form::nfkc;
  const bool compatible = form == Form::nfkc || form == Form::nfkd;
  return UTF8PROC_STABLE | (composed ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE) |
         (compatible ? UTF8PROC_COMPAT : 0);
}

/// Returns true only if the normalisation form leaves `text` unchanged. NFC leaves characters below
/// U+0300 (CC 80 in UTF-8) unchanged and never combines them with the preceding character. For the
/// other forms, this holds for ASCII only.
bool is_normal(std::string_view text, Form form) {
  const unsigned char limit = form == Form::nfc ? 0xCC : 0x80;
  return std::all_of(text.begin(), text.end(),
                     [limit](char c) { return static_cast<unsigned char>(c) < limit; });
}

}  // namespace

std::string_view Normalizer::operator()(std::string_view text, std::string& buffer) const {
  for (Form form : forms) {
    if (is_normal(text, form)) continue;
    utf8proc_uint8_t* normalized = nullptr;
    const utf8proc_ssize_t size =
        utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                     static_cast<utf8proc_ssize_t>(text.size()), &normalized,
                     static_cast<utf8proc_option_t>(options_of(form)));
    if (size < 0)
      throw Error(std::string("cannot normalise text: ") + utf8proc_errmsg(size), ExitCode::data);
    std::string result(reinterpret_cast<const char*>(normalized), static_cast<size_t>(size));
    std::free(normalized);
    buffer = std::move(result);
    text = buffer;
  }
  return text;
}

}  // namespace dsv3::bpe
