// What the fake CUDA device (tests/fake_cuda) reports to the checks: waits of the host, accesses to
// device memory by host code, and operators that it cannot run. Without the fake device, there is
// nothing to report.
#pragma once

#include <string>
#include <vector>

namespace dsv3::conformance {

/// While this object exists, waits of the host for the device are recorded with the name of the
/// `phase`, such as "forward". The record is process-wide, because the backward pass waits on
/// autograd's thread.
class WaitRecorder {
 public:
  explicit WaitRecorder(const char* phase);
  ~WaitRecorder();
  WaitRecorder(const WaitRecorder&) = delete;
};

/// Returns a note for each phase and call site with recorded waits, and forgets them.
std::vector<std::string> take_wait_notes();

/// Returns the likely cause of NaN in a result on a device, to be appended to an error: "" unless
/// the device is fake.
std::string nan_hint();

/// Makes the signal handler call `report`, before the process ends, if host code accesses device
/// memory. `report` must not allocate.
void report_faults_to(void (*report)(const char* text));

/// Returns the part of an error `text` that says that the fake device cannot run an operator; "" =
/// none.
std::string untestable_part(const std::string& text);

}  // namespace dsv3::conformance
