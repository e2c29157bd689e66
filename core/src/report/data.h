// What a report contains about runs, as JSON.
#pragma once

#include <string>
#include <vector>

#include <dsv3/runtime/report.h>

namespace dsv3::report {

/// Returns JSON about everything but the curves: {"name", "state", ..., "samples": [...]}.
/// `sample_bytes` limits the text of the samples.
Json about_run(const ReportRun& run, size_t sample_bytes);

/// Compares the runs' settings: {"common": [[KEY, VALUE]], "differing": [{"key", "values", "of"}]}.
/// "of" has the index in "values" for each run, or -1 if the run has no such setting.
Json settings_of(const std::vector<ReportRun>& runs);

/// Returns JSON with the curves of a run, in at most about `points` points: {"x": [[STEPS]],
/// "metrics": {NAME: [INDEX in x, [VALUES], recorded POINTS]}, "tokens": [[STEPS], [TOKENS]],
/// "time":
/// [[STEPS], [SECONDS]]}. Steps are differences to the previous one. Values have five digits, or
/// are "NaN", "Infinity" and "-Infinity".
std::string curves_of(const RunRecord& run, size_t base);

/// The number of points of all curves if each has at most `base` times its weight.
size_t points_of(const std::vector<ReportRun>& runs, size_t base);

}  // namespace dsv3::report
