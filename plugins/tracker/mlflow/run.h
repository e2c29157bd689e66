// The run on the MLflow server.
#pragma once

#include "api.h"

namespace mlflow {

/// What identifies a run on the server, and where its files go.
struct RemoteRun {
  std::string id, experiment_id;
  std::string artifacts;  ///< where files go, for Api::put_file(); empty = no uploads
};

/// The experiment that a run belongs to.
struct ExperimentChoice {
  std::string id;    ///< takes precedence
  std::string name;  ///< created if it does not exist
};

/// The path for uploads to `uri`: on Databricks, `signed_path`. Empty for a store that this client
/// cannot write to.
std::string artifact_path(const Server& server, const std::string& uri,
                          const std::string& signed_path);

/// Finds the experiment by its id or name. With `create`, creates a missing one. Returns its id; ""
/// if it does not exist and is not created. Throws dsv3::Error (ExitCode::usage) for an unknown id
/// and for a deleted experiment.
std::string find_experiment(Api& api, const ExperimentChoice& choice, bool create);

/// The run in an answer of the server. `expected` is the id that was asked for; empty = any. Throws
/// BadAnswer, or dsv3::Error if the run was deleted.
RemoteRun remote_run(const Api& api, const Json& answer, const std::string& expected = "");

/// Finds the run with the tag dsv3.run_uid, or creates it. `known_id` is tried first, if not empty.
RemoteRun open_run(Api& api, const dsv3::RunInfo& info, const ExperimentChoice& choice,
                   const std::string& parent, const std::string& known_id);

/// The tags of a run that MLflow's pages know, such as mlflow.source.git.commit.
Json tags_of(const dsv3::RunInfo& info, const std::string& parent);

}  // namespace mlflow
