// The part of a run's state that is not tensors.
#pragma once

#include <string>

#include <dsv3/runtime/checkpoint.h>

namespace dsv3 {

/// Where a run is. Checkpoint manifests, status.json, trackers and callbacks read it from here.
/// Random numbers need no state, because they depend only on the seed and the step.
struct RunState {
  int64_t step = 0;                ///< number of completed steps
  int64_t tokens = 0;              ///< number of training tokens in these steps, over all ranks
  int64_t updates = 0;             ///< number of these steps that were not skipped
  Json data;                       ///< position in the training data
  std::string init_hash;           ///< SHA-256 of all parameters' initial values
  std::string data_hash;           ///< hash of all rows used for training so far, in order
  int64_t skipped_in_row = 0;      ///< number of updates that were skipped since the last one
  std::string validation_hash;     ///< hash of the validation documents; "" = not known
  Json callbacks = Json::array();  ///< state of each callback, in the experiment's order
  std::string stopped;             ///< why a callback ended the run; empty = it did not
  /// What a signal has cut short after this step, to be repeated when the run resumes:
  /// "validation", "samples", or "" (nothing).
  std::string cut_short;
  /// The step's metrics as [name, number_to_json()], if they could not be recorded because the
  /// validation was cut short.
  Json unrecorded = Json::array();

  /// Returns the `state` entries of a checkpoint manifest. `step` and `tokens` are not among them.
  Json to_json() const;
  /// Reads a checkpoint manifest. Keys that older versions do not write have their defaults.
  /// Throws dsv3::Error (ExitCode::checkpoint) if the numbers contradict each other.
  static RunState from_json(const Json& manifest);
};

/// A hash of the documents that a data component reads, from its state at the start. Does not
/// depend on the seed that orders them, nor on their numbers among all documents.
std::string hash_of_documents(Json initial_state);

}  // namespace dsv3
