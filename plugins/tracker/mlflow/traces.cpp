#include "traces.h"

#include <algorithm>
#include <cmath>

#include <dsv3/sdk/log.h>
#include <dsv3/support/protobuf.h>

namespace mlflow {
namespace {

using dsv3::Record;
using dsv3::protobuf::Message;
using dsv3::record::Span;
using Records = std::span<const Record* const>;

constexpr size_t kLargest = 500;  // spans in a request, which a slow database stores in a second
constexpr const char* kTable = "mlflow_experiment_trace_otel_spans";
const std::string kUnityTraces = "/api/4.0/mlflow/traces";
constexpr int kOk = 1, kError = 2;  // status codes of OpenTelemetry

const Span& span_in(const Record& record) {
  return std::get<Span>(record.content);
}

/// Converts hexadecimal digits to bytes.
std::string bytes_of(const std::string& hex) {
  std::string bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return bytes;
}

uint64_t nanoseconds(double seconds) {
  return uint64_t(std::llround(seconds * 1e6)) * 1000;  // doubles have no more digits
}

Message attribute(const std::string& key, const std::string& value) {
  return Message().string(1, key).message(2, Message().string(1, value));
}

Json number_or_text(const std::string& value) {
  const Json number = Json::parse(value, nullptr, /*allow_exceptions=*/false);
  return number.is_number() ? number : Json(value);
}

/// The names under which MLflow shows a span's input and output and finds its trace.
dsv3::record::Values mlflow_attributes(const Span& span) {
  Json inputs = Json::object(), outputs = Json::object();
  for (const auto& [key, value] : span.attributes)
    (key == "step" || key == "run" ? inputs : outputs)[key] = number_or_text(value);
  const auto text = [](const Json& json) {
    return json.dump(-1, ' ', false, Json::error_handler_t::replace);
  };
  dsv3::record::Values values{{"mlflow.spanInputs", text(inputs)}};
  if (!outputs.empty()) values["mlflow.spanOutputs"] = text(outputs);
  if (!span.parent.empty()) return values;
  values["mlflow.spanType"] = "CHAIN";
  values["mlflow.traceTag.mlflow.traceName"] = span.name;
  values["mlflow.traceTag.stage"] = span.name;
  return values;
}

/// A Span of OpenTelemetry's trace.proto.
Message encoded(const Span& span) {
  const auto status = span.attributes.find("status");
  const bool failed = status != span.attributes.end() && status->second == "failed";
  Message message;
  message.bytes(1, bytes_of(span.trace)).bytes(2, bytes_of(span.id));
  if (!span.parent.empty()) message.bytes(4, bytes_of(span.parent));
  message.string(5, span.name).integer(6, 1);
  message.fixed64(7, nanoseconds(span.start)).fixed64(8, nanoseconds(span.end));
  for (const auto& [key, value] : mlflow_attributes(span))
    message.message(9, attribute(key, value));
  for (const auto& [key, value] : span.attributes) message.message(9, attribute(key, value));
  return message.message(15, Message().integer(3, failed ? kError : kOk));
}

/// An ExportTraceServiceRequest.
std::string request_of(Records records) {
  Message scope = Message().message(1, Message().string(1, "dsv3"));
  for (const Record* record : records) scope.message(2, encoded(span_in(*record)));
  const Message resource = Message().message(1, attribute("service.name", "dsv3"));
  const Message spans = Message().message(1, resource).message(2, scope);
  return Message().message(1, spans).encoded();
}

}  // namespace

Traces::Traces(Api& api, dsv3::TrackerStore& store, const RemoteRun& run, std::string catalog,
               std::string warehouse)
    : api_(api),
      store_(store),
      run_(run),
      catalog_(std::move(catalog)),
      warehouse_(std::move(warehouse)) {}

void Traces::send(Records records) {
  if (records.empty()) return;
  if (api_.server().is_databricks && std::ranges::count(catalog_, '.') != 1) return say_why_not();
  while (!records.empty()) {
    const Records part = records.first(std::min(records.size(), kLargest));
    records = records.subspan(part.size());
    if (unsupported_.empty()) post(part);
    if (unsupported_.empty()) continue;
    for (const Record* record : part)
      store_.reject(*record, "span " + span_in(*record).name, unsupported_);
  }
}

void Traces::say_why_not() {
  if (!std::exchange(said_, true))
    dsv3::log::info(
        "traces stay in the run folder, because Databricks stores them in Unity Catalog; set "
        "DATABRICKS_UNITY_CATALOG to CATALOG.SCHEMA");
}

void Traces::post(Records records) {
  const std::string message = request_of(records);
  try {
    if (api_.server().is_databricks) {
      create_tables();
      api_.post_protobuf("/api/2.0/otel/v1/traces", message,
                         {{"X-Databricks-UC-Table-Name", catalog_ + "." + kTable}});
    } else {
      api_.post_protobuf("/v1/traces", message, {{"x-mlflow-experiment-id", run_.experiment_id}});
    }
    for (const Record* record : records) link(span_in(*record));
  } catch (const ApiError& error) {
    unsupported_ = error.what();
  }
}

void Traces::create_tables() {
  if (has_tables_) return;
  const size_t dot = catalog_.find('.');
  const Json schema = {{"catalog_name", catalog_.substr(0, dot)},
                       {"schema_name", catalog_.substr(dot + 1)},
                       {"otel_spans_table_name", kTable}};
  Json location = {{"uc_schema", schema}};
  if (!warehouse_.empty()) location["sql_warehouse_id"] = warehouse_;
  try {
    api_.post_path(kUnityTraces + "/location", location);
  } catch (const ApiError& error) {
    if (error.code != "ALREADY_EXISTS" && error.code != "RESOURCE_ALREADY_EXISTS") throw;
  }
  api_.post_path(kUnityTraces + "/" + run_.experiment_id + "/link-location",
                 {{"experiment_id", run_.experiment_id}, {"uc_schema", schema}});
  has_tables_ = true;
}

void Traces::link(const Span& span) {
  if (!linked_.insert(span.trace).second) return;
  if (api_.server().is_databricks) {
    api_.post_path(kUnityTraces + "/" + catalog_ + "/link-to-run/batchCreate",
                   {{"location_id", catalog_}, {"trace_ids", {span.trace}}, {"run_id", run_.id}});
    return;
  }
  api_.post("traces/link-to-run", {{"trace_ids", {"tr-" + span.trace}}, {"run_id", run_.id}});
}

}  // namespace mlflow
