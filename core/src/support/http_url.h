// What http.cpp needs from http_url.cpp.
#pragma once

#include <curl/curl.h>
#include <memory>
#include <string>
#include <string_view>

namespace dsv3::http {

using ParsedUrl = std::unique_ptr<CURLU, void (*)(CURLU*)>;

/// Parses an absolute http or https URL without user and password. Throws dsv3::Error. The client
/// passes the result to libcurl, so that no second parser sees another host.
ParsedUrl parse_url(const std::string& url);

/// A valid URL for messages: escaped, cut, and without query and fragment.
std::string shown_url(const std::string& url);

/// The start of text from outside as one escaped line.
std::string excerpt(std::string_view text);

bool has_control_characters(std::string_view text);

}  // namespace dsv3::http
