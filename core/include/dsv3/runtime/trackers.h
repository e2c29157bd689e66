// Trackers that outlive their run.
#pragma once

namespace dsv3 {

/// Whether a tracker was still busy when its run ended. Its thread still runs then, so the process
/// must end with _exit().
bool has_busy_trackers();

}  // namespace dsv3
