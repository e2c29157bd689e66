// The spans of a run, as OpenTelemetry traces.
#pragma once

#include <set>
#include <span>

#include "run.h"

namespace mlflow {

/// Sends spans to MLflow, or to tables in Databricks' Unity Catalog. Spans that are sent again
/// replace the earlier ones.
class Traces {
 public:
  /// `catalog`: CATALOG.SCHEMA on Databricks, where traces need it. `warehouse`: id of the SQL
  /// warehouse that creates the tables; may be empty. The references must outlive this object.
  Traces(Api& api, dsv3::TrackerStore& store, const RemoteRun& run, std::string catalog,
         std::string warehouse);
  /// `records` contain spans. A server without traces rejects them.
  void send(std::span<const dsv3::Record* const> records);

 private:
  void post(std::span<const dsv3::Record* const> records);
  void say_why_not();
  void create_tables();
  /// Connects the span's trace to the run, also before the trace is complete.
  void link(const dsv3::record::Span& span);

  Api& api_;
  dsv3::TrackerStore& store_;
  const RemoteRun& run_;
  const std::string catalog_, warehouse_;
  std::string unsupported_;  // why the server takes no traces; empty = it does
  bool has_tables_ = false, said_ = false;
  std::set<std::string> linked_;
};

}  // namespace mlflow
