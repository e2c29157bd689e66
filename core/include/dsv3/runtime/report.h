// Writes a self-contained HTML file that shows runs: curves, samples, settings and provenance.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <dsv3/runtime/run_record.h>

namespace dsv3 {

/// Returns at most about `limit` points of a curve (limit >= 8): its first and last point, and the
/// minimum, the maximum and the first value that is not finite of each of equally wide ranges of x.
/// Peaks and gaps therefore remain, and every point is one that was recorded. A curve of at most
/// `limit` points is returned as it is.
Series downsample(const Series& series, size_t limit);

/// A run in a report. What is not in its folder is known from its experiment.
struct ReportRun {
  RunRecord record;
  std::optional<double> parameters, flops_per_token;
};

struct ReportOptions {
  std::string title = "Training runs";
  /// Bytes that the page should not exceed. Long curves and samples are shortened to fit.
  size_t limit = 1'000'000;
};

/// Returns the page. Text from run folders is data in it, never markup or code, and the page's
/// Content-Security-Policy allows only its own script and style, and no network access.
std::string report_html(const std::vector<ReportRun>& runs, const ReportOptions& options);

}  // namespace dsv3
