// The run on the MLflow server.
#pragma once

#include "api.h"

namespace mlflow {

/// What identifies a run on the server, and where its files go.
struct RemoteRun {
  std::string id, experiment_id;
  std::string artifacts;  ///< path below /mlflow-artifacts/artifacts/; empty = no uploads
};

/// The experiment that a run belongs to.
struct ExperimentChoice {
  std::string id;    ///< takes precedence
  std::string name;  ///< created if it does not exist
};

/// Finds the experiment by its id or name. With `create`, creates a missing one. Returns its id; ""
/// if it does not exist and is not created. Throws dsv3::Error (ExitCode::usage) for an unknown id
/// and for a deleted experiment.
std::string find_experiment(Api& api, const ExperimentChoice& choice, bool create);

/// Finds the run with the tag dsv3.run_uid, or creates it. `known_id` is tried first, if not empty.
RemoteRun open_run(Api& api, const dsv3::RunInfo& info, const ExperimentChoice& choice,
                   const std::string& parent, const std::string& known_id);

/// The run in an answer of the server.
RemoteRun remote_run(const Json& run);

/// Returns the path below /mlflow-artifacts/artifacts/ of the address of an artifact folder, such
/// as mlflow-artifacts:/1/ID/artifacts; "" if the server does not serve it.
std::string artifact_path(std::string uri);

/// The tags of a run that MLflow's pages know, such as mlflow.source.git.commit.
Json tags_of(const dsv3::RunInfo& info, const std::string& parent);

}  // namespace mlflow
