// UTF-8 decoding, and the byte alphabet of byte-level BPE.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <dsv3/support/utf8.h>

namespace dsv3::bpe {

/// The first code point of valid `text`.
uint32_t code_point(std::string_view text);
void append_utf8(std::string& text, uint32_t code_point);

/// Unicode's White_Space.
bool is_white_space(uint32_t code_point);

/// The printable character that represents a byte in vocabularies: the byte itself if it is
/// printable in Latin-1, else U+0100 and up in order (GPT-2's bytes_to_unicode).
uint32_t byte_character(uint8_t byte);
/// Converts a vocabulary entry to bytes. Returns false if it contains a character outside the byte
/// alphabet.
bool bytes_of_token(std::string_view token, std::string& bytes);

}  // namespace dsv3::bpe
