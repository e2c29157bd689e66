// Tests what text from outside passes through before it is shown.
#include <catch2/catch.hpp>

#include <dsv3/runtime/printable.h>

using namespace dsv3;

TEST_CASE("characters that control a terminal or mislead its user are escaped") {
  CHECK(printable("a\n\tb \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80") ==
        "a\n\tb \xc3\xa9 \xe4\xb8\xad \xf0\x9f\x98\x80");
  CHECK(printable(std::string_view("\0\x1b[2J\r\x7f", 7)) == "\\u0000\\u001b[2J\\u000d\\u007f");
  CHECK(printable("\xc2\x80\xc2\x9f\xc2\xa0") == "\\u0080\\u009f\xc2\xa0");  // C1, then a space
  CHECK(printable("\xe2\x80\xae\xe2\x81\xa6\xe2\x80\x8b\xef\xbb\xbf") ==
        "\\u202e\\u2066\\u200b\\ufeff");
  CHECK(printable_line("a\n\tb") == "a\\n\\tb");
}

TEST_CASE("bytes that are not UTF-8 are escaped one by one") {
  CHECK(printable("\xff\x80") == "\\xff\\x80");
  CHECK(printable("\xc0\xaf") == "\\xc0\\xaf");                    // overlong
  CHECK(printable("\xe0\x82\x9b") == "\\xe0\\x82\\x9b");           // an overlong control character
  CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");           // a surrogate
  CHECK(printable("\xf4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
  CHECK(printable("a\xe4\xb8") == "a\\xe4\\xb8");                  // cut off
}

TEST_CASE("incomplete_character() counts the bytes of a character that is cut off") {
  CHECK(incomplete_character("") == 0);
  CHECK(incomplete_character("a\xc3\xa9") == 0);
  CHECK(incomplete_character("a\xc3") == 1);
  CHECK(incomplete_character("a\xf0\x9f\x98") == 3);
  CHECK(incomplete_character("\x80\x80\x80\x80") == 0);
}

TEST_CASE("lines after the first are indented") {
  CHECK(indented("a\nb\n  c\n\n d") == "a\n  b\n  c\n\n   d");
}

TEST_CASE("hidden values are replaced, the longest first") {
  hide_value("PRINTABLE_TOKEN", "hunter2secret");
  hide_value("PRINTABLE_PART", "hunter2s");
  hide_value("PRINTABLE_PIN", "quux");
  CHECK(printable("x=hunter2secret&y=hunter2s;") ==
        "x=${env:PRINTABLE_TOKEN}&y=${env:PRINTABLE_PART};");
  CHECK(without_secrets("prehunter2secretpost") == "pre${env:PRINTABLE_TOKEN}post");
  // A short value is replaced where it is a word.
  CHECK(without_secrets("quux/quuxes, quux") ==
        "${env:PRINTABLE_PIN}/quuxes, ${env:PRINTABLE_PIN}");
  CHECK(escaped("hunter2secret") == "hunter2secret");
}

TEST_CASE("values that look like other text stay visible") {
  for (const char* value : {"", "mha", "true", "false", "4096", "1.0e-3"}) {
    hide_value("PRINTABLE_WORD", value);
    CHECK(without_secrets(value) == value);
  }
  hide_value("PRINTABLE_NUMBER", "123456789");
  CHECK(without_secrets("123456789") == "${env:PRINTABLE_NUMBER}");
}
