#include <openssl/evp.h>
#include <openssl/sha.h>

#include "report/data.h"
#include "report/page.h"
#include "support/host.h"

namespace dsv3 {
namespace {

using report::kBody, report::kScript, report::kStyle;

/// The source 'sha256-...' of a Content-Security-Policy, which allows exactly this text.
std::string policy_source(std::string_view text) {
  unsigned char digest[SHA256_DIGEST_LENGTH], encoded[64];
  ::SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  ::EVP_EncodeBlock(encoded, digest, sizeof digest);
  return "'sha256-" + std::string(reinterpret_cast<const char*>(encoded)) + "'";
}

/// Escapes JSON for a <script> element, which HTML ends only at a '<'.
std::string inside_script(const std::string& json) {
  std::string text;
  for (const char c : json)
    if (c == '<')
      text += "\\u003c";
    else
      text += c;
  return text;
}

std::string escaped_html(const std::string& text) {
  std::string result;
  for (const char c : text) switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  return result;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// The data of the page, with curves of `base` points times their weight.
std::string data_of(const std::vector<ReportRun>& runs, const std::vector<std::string>& about,
                    const std::string& head, size_t base) {
  std::string text = head + ",\"runs\":[";
  for (size_t i = 0; i < runs.size(); ++i)
    text += (i ? ",{" : "{") + std::string("\"about\":") + about[i] +
            ",\"curves\":" + report::curves_of(runs[i].record, base) + "}";
  return inside_script(text + "]}");
}

/// The largest number of points per weight with at most `points` points in all curves.
size_t base_for(const std::vector<ReportRun>& runs, size_t points) {
  size_t low = 1, high = 2000;
  while (low < high) {
    const size_t middle = (low + high + 1) / 2;
    if (report::points_of(runs, middle) <= points)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace

std::string report_html(const std::vector<ReportRun>& runs, const ReportOptions& options) {
  const std::string page_start =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src " +
      policy_source(kStyle) + "; script-src " + policy_source(kScript) +
      "; base-uri 'none'; form-action 'none'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n<title>" +
      escaped_html(options.title) + "</title>\n<style>" + std::string(kStyle) +
      "</style>\n</head>\n<body>\n" + std::string(kBody) +
      "<script type=\"application/json\" id=\"data\">";
  const std::string page_end =
      "</script>\n<script>" + std::string(kScript) + "</script>\n</body>\n</html>\n";

  const std::string head = "{\"title\":" + dump(options.title) + ",\"written\":\"" +
                           utc_text(wall_seconds()).data() +
                           "\",\"settings\":" + dump(report::settings_of(runs));
  const size_t count = std::max<size_t>(1, runs.size());
  const size_t sample_bytes = std::min<size_t>(20'000, options.limit / 8 / count);
  std::vector<std::string> about;
  size_t used = page_start.size() + page_end.size() + head.size();
  for (const ReportRun& run : runs) {
    about.push_back(dump(report::about_run(run, sample_bytes)));
    used += inside_script(about.back()).size();
  }
  // A point takes about 11 bytes. If that was too few, the next attempt has fewer points.
  double bytes_per_point = 11;
  std::string data;
  for (int attempt = 0; attempt < 4; ++attempt) {
    const size_t space = options.limit > used ? options.limit - used : 0;
    const size_t base = base_for(runs, size_t(double(space) / bytes_per_point));
    data = data_of(runs, about, head, base);
    if (page_start.size() + data.size() + page_end.size() <= options.limit || base == 1) break;
    bytes_per_point *=
        1.1 * double(page_start.size() + data.size() + page_end.size()) / double(options.limit);
  }
  return page_start + data + page_end;
}

}  // namespace dsv3
