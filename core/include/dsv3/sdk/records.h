// What a run records besides metrics: the lines of events.jsonl.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace dsv3 {

namespace record {

using Values = std::map<std::string, std::string>;

/// Resolved values of the experiment, by path: "optimizer.0.lr" -> "0.02". Recorded when a run
/// starts; when it resumes, the values that the resumed run has changed.
struct Parameters {
  Values values;
};

/// Tags from the experiment and the command line. A later value replaces an earlier one.
struct Tags {
  Values values;
};

/// Documents that the run reads.
struct Dataset {
  std::string context;  ///< "training" or "validation"
  std::string name;     ///< the data plugin
  std::string digest;   ///< of the documents, hexadecimal; equal for equal documents
  std::string source;   ///< the data plugin's options, as YAML on one line
};

/// A file in the run folder has been written, or written again.
struct File {
  std::string path;  ///< relative to the run folder: "config.yaml"
};

struct Checkpoint {
  std::string path;  ///< relative to the run folder: "checkpoints/step-0000100"
  std::map<std::string, double> metrics;  ///< of its step, such as val/loss; may be empty
  std::string dataset = {}, digest = {};  ///< name and digest of the Dataset of val/loss
};

/// A checkpoint has been removed, because better or newer ones replace it.
struct CheckpointRemoved {
  std::string path;  ///< relative to the run folder
};

struct Sample {
  std::string prompt, text;  ///< UTF-8; `text` without the prompt
};
/// Generated text, one sample for each prompt.
struct Samples {
  std::vector<Sample> samples;
};

/// The time that a part of a run took. Spans form a tree for each stage: data, train, eval. A span
/// with the id of an earlier one replaces it.
struct Span {
  std::string trace, id, parent;  ///< hexadecimal, 32, 16 and 16 digits; `parent` is empty = root
  std::string name;
  double start = 0, end = 0;  ///< seconds since the epoch
  Values attributes;
};

/// The run has changed its state.
struct State {
  std::string name;  ///< running, resumed, finished, failed, preempted or interrupted
};

}  // namespace record

/// One line of events.jsonl. Records are delivered in order. `id` counts from 0 over the whole run,
/// including resumes.
struct Record {
  using Content = std::variant<record::Parameters, record::Tags, record::Dataset, record::File,
                               record::Checkpoint, record::CheckpointRemoved, record::Samples,
                               record::Span, record::State>;
  int64_t id = 0, step = 0;
  double time = 0;  ///< seconds since the epoch
  Content content;
};

}  // namespace dsv3
