// Sends runs to an MLflow tracking server.
#include <cmath>
#include <functional>

#include <dsv3/sdk/log.h>
#include <dsv3/sdk/plugin.h>
#include <dsv3/sdk/tracker.h>

#include "batch.h"
#include "checkpoints.h"
#include "download.h"
#include "names.h"
#include "run.h"
#include "server.h"
#include "traces.h"
#include "unity.h"

namespace mlflow {
namespace {

using dsv3::Event;
using dsv3::Record;
namespace record = dsv3::record;

constexpr size_t kLongestParameter = 6000, kLongestTag = 8000;
constexpr size_t kLongestSource = 65'535, kLongestName = 500;

struct Options {
  std::string uri, experiment, parent, checkpoints = "none", model;
  bool artifacts = true;

  static void describe(dsv3::OptionSchema<Options>& s) {
    s.add("uri", &Options::uri,
          "address of the tracking server, such as http://localhost:5000, or databricks, or "
          "databricks://PROFILE; empty = that of "
          "MLFLOW_TRACKING_URI in the environment or .env, or of tracking_uri in config.yaml");
    s.add("experiment", &Options::experiment,
          "name of the MLflow experiment, unless MLFLOW_EXPERIMENT_ID is set; empty = that of "
          "MLFLOW_EXPERIMENT_NAME, or of "
          "experiment_name in config.yaml, or else 'dsv3'");
    s.add("parent", &Options::parent,
          "MLflow id of a run that contains this one; empty = the run that it was branched from");
    s.add("artifacts", &Options::artifacts,
          "upload the run folder's files: configuration, provenance, log, journals and samples");
    s.add("checkpoints", &Options::checkpoints,
          "which checkpoints to upload as logged models: none, each new best by val/loss, or each "
          "new "
          "last; earlier ones stay on the server")
        .choices({"none", "best", "last"});
    s.add("model", &Options::model,
          "name of a registered model that gets each uploaded checkpoint as a version; empty = "
          "none");
    s.check([](const Options& o) {
      return o.model.empty() || o.checkpoints != "none"
                 ? ""
                 : "model needs checkpoints: best or last, because these become its versions";
    });
  }
};

int64_t milliseconds(double seconds) {
  return int64_t(std::floor(seconds * 1000));
}

Entry metric(const std::string& key, double value, const Event& event) {
  return {Entry::Kind::metric,
          {{"key", key},
           {"value", number(value)},
           {"timestamp", milliseconds(event.time)},
           {"step", event.step}}};
}

/// Whether the server rejects the content of a request, so that repeating it is of no use.
bool is_unacceptable(const ApiError& error) {
  return error.status == 400 || error.status == 404 || error.status == 413 || error.status == 501;
}

class MlflowTracker final : public dsv3::Tracker {
 public:
  using Options = mlflow::Options;
  MlflowTracker(const Options& options, const dsv3::RunContext& context)
      : options_(options), context_(context) {
    auto [server, missing] = find_server(options.uri, context.settings);
    server_ = server;
    missing_ = missing;
    registered_ = options.model;
    if (server_ && server_->is_databricks && !registered_.empty())
      registered_ = unity_name(options.model, catalog());
    experiment_.id = find_setting(context.settings, "MLFLOW_EXPERIMENT_ID");
    experiment_.name = options.experiment;
    if (experiment_.name.empty())
      experiment_.name = find_setting(context.settings, "MLFLOW_EXPERIMENT_NAME");
    if (experiment_.name.empty()) experiment_.name = "dsv3";
    if (server_) api_.emplace(*server_, context.stop), uploader_.emplace(*server_, context.stop);
  }

  std::string inactive() const override {
    return server_ ? ""
           : !missing_.empty()
               ? missing_ + "; metrics stay in the run folder, and `dsv3 sync` can send them later"
               : "no MLflow server is set, so metrics stay in the run folder; set "
                 "MLFLOW_TRACKING_URI, or start a server with `tools/dev mlflow`, and send "
                 "them with `dsv3 sync`";
  }

  void check(const dsv3::RunInfo&) override {
    if (experiment_.name.size() > kLongestName)
      throw dsv3::Error("the name of the MLflow experiment is longer than " +
                            std::to_string(kLongestName) + " bytes; shorten it",
                        dsv3::ExitCode::usage);
    Api api(*server_, context_.stop);
    dsv3::http::Timeouts timeouts;
    timeouts.connect = std::chrono::milliseconds(2'000);
    timeouts.total = std::chrono::milliseconds(2'500);
    api.set_timeouts(timeouts);
    // A server that is away or overloaded may recover. The sender then reports it.
    try {
      find_experiment(api, experiment_, /*create=*/false);
    } catch (const ApiError& error) {
      if (error.status < 500) throw dsv3::Error(error.what(), dsv3::ExitCode::usage);
    } catch (const BadAnswer& error) {
      throw dsv3::Error(no_server(error), dsv3::ExitCode::usage);
    } catch (const dsv3::http::Failure& failure) {
      using Kind = dsv3::http::Failure::Kind;
      if (failure.kind() == Kind::invalid || failure.kind() == Kind::too_large)
        throw dsv3::Error(no_server(failure), dsv3::ExitCode::usage);
      if (failure.kind() == Kind::tls)
        throw dsv3::Error(std::string(failure.what()) +
                              "; set MLFLOW_TRACKING_SERVER_CERT_PATH, in the place that sets the "
                              "address, to the certificate of the authority that signed the "
                              "server's, or correct the address",
                          dsv3::ExitCode::usage);
    } catch (const dsv3::Error& error) {
      if (error.code() == dsv3::ExitCode::usage) throw;
    }
  }

  void start(const dsv3::RunInfo& info) override {
    if (const std::string changed = context_.store->get("names"); !changed.empty())
      names_.learn(Json::parse(changed).get<std::map<std::string, std::string>>());
    if (const std::string steps = context_.store->get("received"); !steps.empty())
      received_ = Json::parse(steps);
    run_ = open_run(*api_, info, experiment_, options_.parent, context_.store->get("id"));
    if (context_.store->get("id") != run_.id) {
      context_.store->set("id", run_.id);
      dsv3::log::info("MLflow run " + server_->url +
                      (server_->is_databricks ? "/ml/experiments/" : "/#/experiments/") +
                      run_.experiment_id + "/runs/" + run_.id);
    }
    api_->post("runs/update", {{"run_id", run_.id}, {"status", "RUNNING"}});
    traces_.emplace(*api_, *context_.store, run_, catalog(),
                    find_setting(context_.settings, "MLFLOW_TRACING_SQL_WAREHOUSE_ID"));
    if (run_.artifacts.empty() && options_.artifacts)
      dsv3::log::warning(
          "files are not uploaded to MLflow, because the server does not serve its artifact store; "
          "start it with --serve-artifacts");
  }

  void deliver(std::span<const Event> events) override {
    std::vector<Entry> entries;
    std::vector<std::pair<const Event*, std::string>> sources;
    for (const Event& event : events)
      for (const auto& [name, value] : event.metrics) {
        const std::string key = mapped(name);
        if (event.step <= received_.value(key, int64_t{-1})) continue;
        entries.push_back(metric(key, value, event));
        sources.emplace_back(&event, name);
      }
    log_batch(*api_, run_.id, entries, [&](size_t index, const std::string& reason) {
      context_.store->reject(*sources[index].first, sources[index].second, reason);
    });
  }

  void record(std::span<const Record> records) override {
    std::vector<const Record*> spans;
    for (const Record& record : records) {
      if (const auto* parameters = std::get_if<record::Parameters>(&record.content))
        send(record, *parameters);
      else if (const auto* tags = std::get_if<record::Tags>(&record.content))
        send_tags(record, tags->values);
      else if (const auto* dataset = std::get_if<record::Dataset>(&record.content))
        send(record, *dataset);
      else if (std::holds_alternative<record::State>(record.content))
        end_time_ = record.time;
      else if (std::holds_alternative<record::Span>(record.content))
        spans.push_back(&record);
    }
    traces_->send(spans);
  }

  void finish(dsv3::RunStatus status) override {
    const char* const name = status == dsv3::RunStatus::finished ? "FINISHED"
                             : status == dsv3::RunStatus::failed ? "FAILED"
                                                                 : "KILLED";
    Json update = {{"run_id", run_.id}, {"status", name}};
    if (end_time_ > 0) update["end_time"] = milliseconds(end_time_);
    api_->post("runs/update", update);
  }

  bool uploads() const override {
    return server_ && (options_.artifacts || options_.checkpoints != "none");
  }
  void upload(const std::filesystem::path& file, const Record& record) override {
    if (!options_.artifacts || run_.artifacts.empty()) return;
    const std::string& name = std::get<record::File>(record.content).path;
    reject_unstorable(record, name,
                      [&] { uploader_->put_file(run_.artifacts + "/" + name, file); });
  }
  bool uploads_checkpoint(const Record& checkpoint) const override {
    return is_chosen(options_.checkpoints, checkpoint, *context_.store);
  }
  void upload_checkpoint(const std::filesystem::path& folder, const Record& checkpoint) override {
    if (!is_chosen(options_.checkpoints, checkpoint, *context_.store)) return;
    reject_unstorable(checkpoint, std::get<record::Checkpoint>(checkpoint.content).path, [&] {
      upload_model({*uploader_, *context_.store, run_, options_.checkpoints, registered_}, folder,
                   checkpoint);
    });
  }

  std::string download(const std::string& id, const std::filesystem::path& folder) override {
    return download_run(*api_, id, folder, *context_.store);
  }

 private:
  std::string no_server(const dsv3::Error& error) const {
    return server_->url + " is not the address of an MLflow server: " + error.what() +
           "; correct the address";
  }

  /// CATALOG.SCHEMA; may be empty.
  std::string catalog() const {
    return find_setting(context_.settings, "DATABRICKS_UNITY_CATALOG");
  }

  /// Runs `upload`, and rejects the file or checkpoint `name` if the server will never store it. It
  /// would otherwise keep all later ones waiting.
  void reject_unstorable(const Record& record, const std::string& name,
                         const std::function<void()>& upload) {
    try {
      upload();
    } catch (const ApiError& error) {
      if (error.status != 400 && error.status != 413) throw;
      context_.store->reject(record, name, error.what());
    }
  }

  std::string mapped(const std::string& name) {
    const size_t before = names_.changed().size();
    const std::string result = names_(name);
    if (names_.changed().size() > before)
      context_.store->set("names", Json(names_.changed()).dump());
    return result;
  }

  /// MLflow's parameters cannot change. Those of a resumed run that differ become tags.
  void send(const Record& record, const record::Parameters& parameters) {
    std::vector<Entry> entries;
    std::vector<std::string> keys;
    record::Values changed;
    const std::map<std::string, std::string> stored = stored_parameters();
    for (const auto& [key, value] : parameters.values) {
      const std::string name = mapped(key), text = shortened(record, name, value);
      if (const auto found = stored.find(name); found != stored.end()) {
        if (found->second != text) changed["dsv3.changed." + name] = value;
        continue;
      }
      entries.push_back({Entry::Kind::parameter, {{"key", name}, {"value", text}}});
      keys.push_back(key);
    }
    log_batch(*api_, run_.id, entries, [&](size_t index, const std::string& reason) {
      context_.store->reject(record, keys[index], reason);
    });
    send_tags(record, changed);
  }

  /// The parameters that the server has, by name.
  std::map<std::string, std::string> stored_parameters() {
    const Json answer = api_->get("runs/get", {{"run_id", run_.id}});
    const Json parameters = array_in(object_in(object_in(answer, "run"), "data"), "params");
    std::map<std::string, std::string> stored;
    for (const Json& entry : parameters) stored[text_in(entry, "key")] = text_in(entry, "value");
    return stored;
  }

  /// The server would cut a longer value silently. The whole value becomes a file.
  std::string shortened(const Record& record, const std::string& name, const std::string& value) {
    if (value.size() <= kLongestParameter) return value;
    const std::string file = "parameters/" + name + ".txt";
    if (run_.artifacts.empty())
      context_.store->reject(record, name, "longer than 6000 characters");
    else
      reject_unstorable(record, file, [&] { api_->put_text(run_.artifacts + "/" + file, value); });
    return "see " + file;
  }

  void send_tags(const Record& record, const record::Values& tags) {
    std::vector<Entry> entries;
    std::vector<std::string> keys;
    for (const auto& [key, value] : tags) {
      if (value.size() > kLongestTag) {
        context_.store->reject(record, key, "longer than 8000 characters");
        continue;
      }
      entries.push_back({Entry::Kind::tag, {{"key", mapped(key)}, {"value", value}}});
      keys.push_back(key);
    }
    log_batch(*api_, run_.id, entries, [&](size_t index, const std::string& reason) {
      context_.store->reject(record, keys[index], reason);
    });
  }

  void send(const Record& record, const record::Dataset& dataset) {
    const Json source = {{"description", dataset.source.substr(0, kLongestSource / 2)}};
    const Json input = {
        {"tags", {{{"key", "mlflow.data.context"}, {"value", dataset.context}}}},
        {"dataset",
         {{"name", dataset.name},
          {"digest", dataset.digest.substr(0, kLongestDigest)},
          {"source_type", "dsv3"},
          {"source", source.dump(-1, ' ', false, Json::error_handler_t::replace)}}}};
    try {
      api_->post("runs/log-inputs", {{"run_id", run_.id}, {"datasets", {input}}});
    } catch (const ApiError& error) {
      if (!is_unacceptable(error)) throw;
      context_.store->reject(record, "dataset " + dataset.name, error.what());
    }
  }

  const Options options_;
  const dsv3::RunContext context_;
  std::optional<Server> server_;
  std::string registered_;  // the full name of the registered model
  std::string missing_;     // ServerChoice::missing
  ExperimentChoice experiment_;
  std::optional<Api> api_, uploader_;  // of the two threads that call this object
  RemoteRun run_;
  std::optional<Traces> traces_;  // after start()
  Names names_;
  Json received_ = Json::object();  // last step of each metric that the server had at a download
  double end_time_ = 0;
};

}  // namespace
}  // namespace mlflow

DSV3_PLUGIN(registrar) {
  registrar.tracker<mlflow::MlflowTracker>("mlflow", "Runs on an MLflow tracking server");
}
