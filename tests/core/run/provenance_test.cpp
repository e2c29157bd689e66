#include <cstdlib>

#include <catch2/catch.hpp>

#include <dsv3/runtime/run_folder.h>

#include "core/support/temporary_folder.h"
#include "support/host.h"

TEST_CASE("provenance records which program started a run and on which machine") {
  TemporaryFolder folder;
  dsv3::Json json = dsv3::provenance({"dsv3-run", "a b.yaml"}, folder.path());
  REQUIRE(json["command"] == dsv3::Json{"dsv3-run", "a b.yaml"});
  REQUIRE(json["git"].is_null());
  REQUIRE(json["libtorch"].get<std::string>().rfind("2.", 0) == 0);
  REQUIRE(json["threads"] >= 1);
  REQUIRE(json["cpu"]["cores"] >= 1);
  for (const char* key : {"model", "capability"}) {
    REQUIRE_FALSE(json["cpu"][key].get<std::string>().empty());
  }
  REQUIRE_NOTHROW(json.dump());
}

TEST_CASE("provenance records the commit and whether tracked files differ from it") {
  if (std::system("git --version > /dev/null 2>&1") != 0) return;
  TemporaryFolder folder;
  auto git = [&](const std::string& arguments) {
    std::string command = "git -C '" + folder.path().string() +
                          "' -c user.name=n -c user.email=e@e " + arguments + " > /dev/null 2>&1";
    REQUIRE(std::system(command.c_str()) == 0);
  };
  git("init");
  REQUIRE(dsv3::provenance({}, folder.path())["git"].is_null());  // no commit yet
  put(folder / "a", "1");
  git("add a");
  git("commit -m one");
  put(folder / "untracked", "1");
  dsv3::Json clean = dsv3::provenance({}, folder.path())["git"];
  REQUIRE(clean["dirty"] == false);
  std::string head = get(folder / ".git/HEAD");  // ref: refs/heads/...
  std::string commit = get(folder / (".git/" + head.substr(5, head.size() - 6)));
  REQUIRE(clean["commit"].get<std::string>() + "\n" == commit);
  put(folder / "a", "22");
  REQUIRE(dsv3::provenance({}, folder.path())["git"]["dirty"] == true);
}

TEST_CASE("times are formatted as UTC strings") {
  REQUIRE(std::string(dsv3::utc_text(0).data()) == "1970-01-01T00:00:00Z");
  REQUIRE(std::string(dsv3::utc_text(1709210096.9).data()) == "2024-02-29T12:34:56Z");
}
