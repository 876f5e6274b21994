// `ramp demo`: the main job in one go. Makes a small checkpoint in Hugging Face layout, loads it through the
// real loader, runs its expert block at several token counts under even and skewed routing, and checks every
// point against the fp64 reference.
#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>

#include "base/env.hpp"
#include "base/error.hpp"
#include "cli/block_bench.hpp"
#include "cli/command.hpp"
#include "cli/options.hpp"
#include "cli/progress.hpp"
#include "loader/synthetic_checkpoint.hpp"

namespace ramp::cli {
namespace {

struct DemoOptions {
  std::string directory;
  bool keep = false;
  BackendChoice backend;
};

// A fresh directory inside `parent`, removed with everything in it unless kept.
class TemporaryDirectory {
 public:
  TemporaryDirectory(const std::string& parent, bool keep) : keep_(keep) {
    std::string pattern = parent + "/ramp-demo-XXXXXX";
    if (mkdtemp(pattern.data()) == nullptr)
      core::fail_argument("--dir", parent, "a directory that can be written to",
                          std::generic_category().message(errno), RAMP_ERROR_IO);
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!keep_) std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  bool keep_;
};

constexpr int64_t kLayers = 2;
constexpr double kSecondsPerPoint = 0.25;
constexpr double kCheckBudget = 6e7;  // a few tokens per point

core::SyntheticOptions checkpoint_options() {
  core::SyntheticOptions c;
  c.architecture = "olmoe";
  // OLMoE's 64 experts, k = 8 and H = 2 I, at a quarter of its size.
  c.shape = {"olmoe-demo", 64, 8, 1024, 512};
  c.format = RAMP_FORMAT_FP8_BLOCK;
  c.layers = kLayers;
  c.shards = 2;
  c.seed = 1;
  return c;
}

Json describe(const Measurement& m, const core::CheckResult& r) {
  return {{"tokens", m.tokens},
          {"routing", m.routing},
          {"active", m.active},
          {"max_load", m.max_load},
          {"max_over_mean", m.max_over_mean},
          {"normalised_entropy", m.entropy},
          {"config", m.config},
          {"us", m.us.median},
          {"p10_us", m.us.p10},
          {"p90_us", m.us.p90},
          {"gbps", m.gbps()},
          {"gflops", m.tflops() * 1e3},
          {"rel_error", r.relative_error},
          {"bound_ratio", bound_ratio(r)},
          {"checked_rows", r.rows},
          {"passed", r.ok()}};
}

int demo(Io& io, const DemoOptions& o) {
  const InterruptGuard guard;
  const std::string parent = !o.directory.empty() ? o.directory : core::env("TMPDIR").value_or("/tmp");
  const TemporaryDirectory place(parent, o.keep);
  const core::SyntheticOptions options = checkpoint_options();
  const std::string path = place.path() + "/checkpoint";
  {
    Progress progress(io, "making a checkpoint");
    core::write_demo_checkpoint(path, options, [&](double f) { progress.update(f); });
  }
  uint64_t bytes = 0;
  int64_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    bytes += entry.file_size();
    ++files;
  }

  const ContextPtr context = make_context(o.backend, io);
  const ContextFacts facts = facts_of(context.get());
  std::vector<std::unique_ptr<CheckpointSource>> sources;
  std::vector<RunnableLayer> layers;
  for (int64_t l = 0; l < options.layers; ++l) {
    sources.push_back(std::make_unique<CheckpointSource>(path, l, 0, 0));
    layers.push_back(sources.back()->runnable(context.get(), true, io));
  }
  const CheckpointSource& first = *sources.front();
  const core::ModelShape& shape = first.shape();

  const std::vector<int64_t> tokens = {1, 8, 32, 128, 512};
  const std::vector<core::WorkloadSpec> routing = workloads_from({"uniform;zipf:1.2;single"});
  std::vector<Measurement> points;
  {
    BlockBench bench(context.get(), layers, first, RAMP_REPEATABLE, 0);
    Progress progress(io, "running the expert block");
    const auto total = static_cast<double>(tokens.size() * routing.size());
    for (const int64_t t : tokens) {
      for (const core::WorkloadSpec& spec : routing) {
        progress.update(static_cast<double>(points.size()) / total,
                        fmt::format("{} tokens, {}", t, core::workload_name(spec)));
        Sampling sampling;
        sampling.seconds = kSecondsPerPoint;
        points.push_back(bench.measure(spec, t, "auto", sampling, kCheckBudget));
      }
    }
  }
  layers.clear();

  io.print(fmt::format("checkpoint  {} files, {}: {} names, {}, {} layers, E = {}, k = {}, H = {}, I = {}\n",
                       files, bytes_text(static_cast<double>(bytes)), first.info().architecture,
                       core::format_name(first.format()), first.info().num_layers, shape.experts, shape.top_k,
                       shape.hidden, shape.intermediate));
  io.print(fmt::format("backend     {}, {}\n\n", backend_text(facts), facts.device));
  Table table({{"tokens"},
               {"routing", Table::Align::kLeft},
               {"active"},
               {"max/mean"},
               {"entropy"},
               {"config", Table::Align::kLeft},
               {"us"},
               {"GB/s"},
               {"GFLOP/s"},
               {"error"},
               {"of bound"},
               {"check"}});
  Json list = Json::array();
  size_t passed = 0;
  double worst = 0;
  int64_t rows = 0;
  {
    const std::unique_ptr<LayerValues> values = first.values(io);
    Progress progress(io, "checking against fp64");
    for (size_t i = 0; i < points.size(); ++i) {
      const Measurement& m = points[i];
      progress.update(static_cast<double>(i) / static_cast<double>(points.size()));
      const core::CheckResult r =
          check_sample(m.sample, *values->weights,
                       [](int64_t n, const std::function<void(int64_t)>& task) { parallel_for(n, task); });
      table.add({std::to_string(m.tokens), m.routing, count_text(m.active), number(m.max_over_mean),
                 fmt::format("{:.3f}", m.entropy), m.config, number(m.us.median), number(m.gbps()),
                 number(m.tflops() * 1e3), fmt::format("{:.1e}", r.relative_error),
                 fmt::format("{:.2f}", bound_ratio(r)), r.ok() ? "ok" : "FAILED"});
      list.push_back(describe(m, r));
      passed += r.ok() ? 1 : 0;
      worst = std::max(worst, bound_ratio(r));
      rows += r.rows;
    }
  }
  io.print(table.text());
  const bool ok = passed == points.size();
  io.print(fmt::format(
      "\n{}: {} of {} points agree with fp64 within their derived error bounds ({} rows checked, at "
      "most {:.2f} of a bound)\n",
      ok ? "PASSED" : "FAILED", passed, points.size(), rows, worst));
  if (o.keep) io.print(fmt::format("kept: {}\n", path));
  io.emit({{"checkpoint",
            {{"files", files},
             {"bytes", bytes},
             {"architecture", first.info().architecture},
             {"format", core::format_name(first.format())},
             {"layers", first.info().num_layers},
             {"experts", shape.experts},
             {"top_k", shape.top_k},
             {"hidden", shape.hidden},
             {"intermediate", shape.intermediate},
             {"path", o.keep ? Json(path) : Json()}}},
           {"backend", facts.backend},
           {"isa", facts.isa},
           {"device", facts.device},
           {"threads", facts.workers},
           {"points", list},
           {"passed", ok}});
  return ok ? kOk : kFailed;
}

Body setup(CLI::App& app) {
  auto o = std::make_shared<DemoOptions>();
  add_text(app, "--dir", o->directory, "DIR",
           "where the temporary directory is made (default: TMPDIR, else /tmp)");
  add_switch(app, "--keep", o->keep, "keep the checkpoint and say where it is");
  add_backend_options(app, o->backend);
  examples(app,
           {{"ramp demo", "the main job, on a made-up checkpoint of about 200 MB that is removed afterwards"},
            {"ramp demo --keep --dir .", "the same, and the checkpoint stays for 'ramp run --checkpoint'"}});
  return [o](Io& io) { return demo(io, *o); };
}
const Register kRegister{
    {"demo", "make a small checkpoint, load it, run its expert block, check it against fp64", 1, setup}};

}  // namespace
}  // namespace ramp::cli
