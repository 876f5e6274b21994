#!/usr/bin/env python3
"""bench/results.py on made-up measurements: what the page says of them, row by row. (TEST DATA: none of these
figures was measured.)  results_test.py ROOT [RAMP]; with the command, also on what it really writes on a CPU."""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = sys.argv[1]
RAMP = sys.argv[2] if len(sys.argv) > 2 else None
spec = importlib.util.spec_from_file_location("results", os.path.join(ROOT, "bench", "results.py"))
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)

CONFIG = "m32_n128_k128_s5_t320"


def row(model, tokens, routing, us, ratio, **other):
    """A row of `ramp bench --json`; ratio None: no peer's figure is known."""
    r = {"device": "TEST DATA", "model": model, "experts": 64, "top_k": 8, "hidden": 2048, "intermediate": 1024,
         "tokens": tokens, "routing": routing, "active": 40, "us": us, "p10_us": us - 1, "p90_us": us + 1,
         "floor_us": us / 2, "ratio": ratio, "peer_us": None if ratio is None else us * ratio,
         "peer": None if ratio is None else "v", "config": CONFIG, "config_requested": "auto", "fit": None}
    r.update(other)
    return r


class Page(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)

    def write(self, name, document):
        with open(os.path.join(self.scratch.name, name + ".json"), "w", encoding="utf-8") as file:
            json.dump(document, file)

    def page(self):
        out = subprocess.run([sys.executable, os.path.join(ROOT, "bench", "results.py"), self.scratch.name],
                             capture_output=True, text=True, check=True)
        self.assertEqual(out.stderr, "")
        return out.stdout

    def cells(self, page, *wanted):
        """Cells of the one table row that begins with these."""
        found = []
        for line in page.splitlines():
            if line.startswith("|"):
                cells = [c.strip() for c in line.strip("|").split("|")]
                if tuple(c.strip("*") for c in cells[:len(wanted)]) == wanted:
                    found.append(cells)
        self.assertEqual(len(found), 1, f"{wanted} in\n{page}")
        return found[0]

    def test_nothing_measured(self):
        page = self.page()
        self.assertEqual(page.count("Not measured in this run."), 4)
        self.assertNotIn("**", page)

    def test_tables_are_well_formed(self):
        self.fill()
        heads = None
        for line in self.page().splitlines():
            if not line.startswith("|"):
                heads = None
            elif heads is None:
                heads = line.count("|")
            else:
                self.assertEqual(line.count("|"), heads, line)

    def fill(self):
        self.write("rule_fp8_olmoe", [row("olmoe", 1, "uniform", 20.0, 2.0), row("olmoe", 8, "uniform", 50.0, 0.5),
                                      row("olmoe", 8, "zipf:1.2", 40.0, 0.98), row("olmoe", 512, "uniform", 1234.5, 1.4),
                                      row("olmoe", 2048, "uniform", 2000.0, None)])
        self.write("rule_bf16_mixtral-8x7b", [row("mixtral-8x7b", 1, "uniform", 100.0, 1.3)])
        self.write("fit_fp8_olmoe", [row("olmoe", 1, "uniform", 10.0, 4.0, fit="f", config="m8_n128_k128_s6_t320"),
                                     row("olmoe", 8, "uniform", 100.0, 0.25, fit="f"),
                                     row("olmoe", 8, "zipf:1.2", 40.0, 0.98, fit=None)])
        point = {"point": "t3_z0.4", "regret": 0.125, "config": CONFIG, "best": "m8_n128_k128_s6_t320"}
        judged = {"mean_regret": 0.5, "max_regret": 0.5, "noise_floor": 0.0021, "speedup_over_single_best": 1.25,
                  "single_best": CONFIG, "speedup_over_default": 0.991,
                  "points": [dict(point, point="t12_z0.9", regret=0.01), point]}
        self.write("regret_olmoe", [{"model": "olmoe", "configs": 140, "seconds": 41.6, "judged": judged}])
        self.write("regret_dsv3", [{"model": "dsv3", "configs": 7, "seconds": 9.4,
                                    "judged": dict(judged, mean_regret=0.004, max_regret=0.07,
                                                   speedup_over_default=1.5)}])
        policies = {"ramp4": {"mean_regret": 0.03, "max_regret": 0.2}, "oracle": {"mean_regret": 0, "max_regret": 0}}
        for cost_model, mean in (("wave", 0.0123), ("step", 0.0234)):
            self.write(f"evaluate_x_{cost_model}",
                       {"overall": {"cost_model": cost_model},
                        "models": {"olmoe": {"dispatcher": {"mean_regret": mean, "max_regret": 0.05},
                                             "policies": policies}}})

    def test_losing_rows_are_bold(self):
        self.fill()
        page = self.page()
        lost = self.cells(page, "OLMoE", "8", "uniform")
        self.assertTrue(all(c.startswith("**") and c.endswith("**") for c in lost), lost)
        for kept in (("OLMoE", "8", "zipf:1.2"), ("OLMoE", "1", "uniform"), ("OLMoE", "2048", "uniform")):
            self.assertFalse(any("**" in c for c in self.cells(page, *kept)), kept)
        self.assertIn("1 of 4 points below 0.98.", page)  # 0.98 itself is not below; one has no peer
        self.assertIn("No point below 0.98.", page)       # bf16

    def test_cells_of_a_point(self):
        self.fill()
        page = self.page()
        self.assertEqual(self.cells(page, "OLMoE", "1", "uniform"),
                         ["OLMoE", "1", "uniform", "20.0", "19.0–21.0", "10.0", "2.00", "40.0v", "2.00", "m32 n128 s5",
                          "10.0", "m8 n128 s6"])
        self.assertEqual(self.cells(page, "OLMoE", "2048", "uniform")[3:],
                         ["2000", "1999–2001", "1000", "2.00", "–", "–", "m32 n128 s5", "–", "–"])
        self.assertIn("Not measured in this run: Qwen3-30B, Mixtral-8x7B, DSv3.", page)

    def test_geometric_means_and_goals(self):
        self.fill()
        rules = self.page().split("With them:")[0]
        # (2 * 0.5 * 0.98) ** (1/3); the goal is 1.27.
        self.assertEqual(self.cells(rules, "1 to 8"), ["1 to 8", "3", "**0.993**", "1.27"])
        self.assertEqual(self.cells(rules, "512"), ["512", "1", "1.400", "1.35"])
        self.assertEqual(self.cells(rules, "1 to 8192")[1:3], ["4", "**1.082**"])
        self.assertNotIn("32 to 128", rules)  # nothing was measured there
        bf16 = self.page().split("## Whole block, bf16")[1]
        self.assertEqual(self.cells(bf16, "1 to 8192"), ["1 to 8192", "1", "1.300", "1.15"])

    def test_worth_of_the_fits(self):
        self.fill()
        page = self.page()
        # 20 -> 10 and 50 -> 100 us; the third row was not chosen by a fit.
        self.assertIn("1.000 times as fast (geometric mean; 0.500 to 2.000)", page)
        self.assertEqual(self.cells(page.split("With them:")[1], "1 to 8"), ["1 to 8", "2", "**1.000**", "1.27"])

    def test_regret(self):
        self.fill()
        table, speedups = self.page().split("## Regret of the choice")[1].split("Speed-up of the choice")
        self.assertEqual(self.cells(table, "OLMoE"),
                         ["OLMoE", "140", "42", "**1.23 / 5.0**", "2.34 / 5.0", "3.00 / 20.0", "–", "–", "–",
                          "0.00 / 0.0", "0.21"])
        # Without an evaluation: what the profile judged.
        self.assertEqual(self.cells(table, "DSv3")[3:6], ["0.40 / 7.0", "–", "–"])
        self.assertEqual(self.cells(speedups, "OLMoE"),
                         ["OLMoE", "1.250 (m32 n128 s5)", "**0.991**", "t3_z0.4: m32 n128 s5, best m8 n128 s6", "12.5"])
        self.assertEqual(self.cells(speedups, "DSv3")[2], "1.500")

    def test_regions(self):
        shape = {"top_k": 8, "hidden": 7168, "intermediate": 2048, "active": 8}
        groups = "m128_n256_k128_s4_t384"

        def timed(model, tokens, us, config, **other):
            return row(model, tokens, "uniform", us, None, config_requested=config, **dict(shape, **other))
        self.write("regions", {"thresholds": {"group_m_lambda_kappa": 1440}})
        self.write("regions_fp8", [timed("x", 64, 100.0, groups + "_g2"), timed("x", 64, 103.0, groups),
                                   timed("x", 4096, 110.0, groups + "_g2"), timed("x", 4096, 100.0, groups),
                                   timed("x", 1, 30.0, "m8_n128_k128_s6_t320"),
                                   timed("x", 1, 33.0, "m24_n128_k128_s6_t320")])
        self.write("regions_few", [timed("x", 1, 20.0, "auto")])
        self.write("regions_bf16", [timed("x", 8, 50.0, "m64_n128_k64_s4_t320"),
                                    timed("x", 8, 51.0, "m64_n256_k64_s4_t576")])
        page = self.page()
        self.assertEqual(self.cells(page, "x", "GROUP_M", "64")[3:], ["off", "100.0", "103.0", "0.971", "held"])
        # 16 * 56 = 896 is not above 1440, and groups gained all the same.
        self.assertEqual(self.cells(page, "x", "GROUP_M", "4096")[3:], ["off", "110.0", "100.0", "1.100", "**missed**"])
        # The better of two stream configs; omega = 8 * 16 / 132 is not below 0.2.
        self.assertEqual(self.cells(page, "x", "split-K", "1")[3:], ["off", "30.0", "20.0", "1.500", "**missed**"])
        self.assertEqual(self.cells(page, "x", "wide tile", "8")[3:], ["off", "50.0", "51.0", "0.980", "held"])

    def test_keys_are_those_of_the_command(self):
        """Every key of a row that the page reads is one that the command writes."""
        with open(os.path.join(ROOT, "cli", "layer_report.cpp"), encoding="utf-8") as file:
            source = file.read()
        for key in row("olmoe", 1, "uniform", 1.0, 1.0):
            self.assertIn('{"' + key + '"', source)

    @unittest.skipIf(RAMP is None, "no command")
    def test_regret_as_the_command_writes_it(self):
        shape = "8,2,64,32"
        out = os.path.join(self.scratch.name, "out")
        command = [RAMP, "profile", "--backend", "cpu", "--model", shape, "--format", "bf16", "--tokens", "1,4", "--layers",
                   "1", "--threads", "2", "--budget", "1", "--repeats", "4", "--judge", "--judge-tokens", "3",
                   "--judge-budget", "1", "-o", out, "--csv", os.path.join(self.scratch.name, "csv"), "--json"]
        cases = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        self.write("regret_tiny", cases)
        directory = os.path.join(self.scratch.name, "csv", os.listdir(os.path.join(self.scratch.name, "csv"))[0])
        command = [RAMP, "evaluate", "--data", directory, "--hardware", "cpu", "--sm-count", "2", "--allow-missing",
                   "--missing-as", "1.5", "--cost-model", "wave", "--json"]
        self.write("evaluate_tiny_wave", json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        models, results.MODELS = results.MODELS, [(shape, "tiny")]
        try:
            table, speedups = "\n".join(results.regret(self.scratch.name)).split("Speed-up of the choice")
        finally:
            results.MODELS = models
        cells = self.cells(table, "tiny")
        self.assertNotIn("–", cells[3], "the choice's own regret")
        for policy, cell in zip(results.POLICIES, cells[5:]):
            self.assertRegex(cell, r"^\d+\.\d\d / \d+\.\d$", policy)
        self.assertRegex(self.cells(speedups, "tiny")[1], r"^\d+\.\d{3} \(.+\)$")


# Stands in for the command under bench/results.sh: made-up figures for whatever is asked. The command itself sees the
# same arguments first, where no GPU is visible: it may refuse for want of one, but not for what they say.
STAND_IN = """#!{python}
import json, os, re, subprocess, sys
args = sys.argv[1:]
real = {ramp!r}
if real:
    code = subprocess.run([real] + args, capture_output=True, env=dict(os.environ, CUDA_VISIBLE_DEVICES="")).returncode
    if code == 2:
        sys.exit("usage: " + " ".join(args))
def option(name, otherwise=""):
    return args[args.index(name) + 1] if name in args else otherwise
print_ = lambda document: print(json.dumps(document))
if args[0] == "bench":
    rows = []
    for model in re.findall("[a-z][^,]*|[0-9]+,[0-9]+,[0-9]+,[0-9]+", option("--model")):
        for tokens in option("--tokens").split(","):
            for routing in option("--routing").split(";"):
                for config in option("--config", "auto").split(","):
                    rows.append(dict(device="TEST DATA", model=model, tokens=int(tokens), routing=routing, us=100.0,
                                     p10_us=99.0, p90_us=101.0, floor_us=50.0, ratio=1.4, peer_us=140.0, peer="v",
                                     config="m8_n128_k128_s6_t320", config_requested=config, top_k=8, hidden=4096,
                                     intermediate=1024, active=8,
                                     fit=None if option("--fit") == "none" else "f"))
    print_(rows)
elif args[0] == "profile":
    model = option("--model")
    directory = os.path.join(option("--csv"), "cuda_" + model)
    os.makedirs(directory, exist_ok=True)
    open(os.path.join(directory, "points.csv"), "w").close()
    print_([dict(model=model, configs=140, seconds=30.0, judged=dict(
        mean_regret=0.005, max_regret=0.05, noise_floor=0.002, speedup_over_single_best=1.2, single_best="m8",
        speedup_over_default=1.1, points=[dict(point="p", regret=0.05, config="m8", best="m16")]))])
elif args[0] == "evaluate":
    model = option("--data").rstrip("/").split("cuda_")[1]
    regret = dict(mean_regret=0.004, max_regret=0.04)
    names = ["ramp4", "static_uniform", "static_skewed", "single_best", "oracle"]
    print_(dict(overall=dict(cost_model=option("--cost-model")),
                models={{model: dict(dispatcher=regret, policies={{n: regret for n in names}})}}))
elif args[0] == "regions":
    print_(dict(thresholds=dict(group_m_lambda_kappa=1440)))
else:
    sys.exit("what is " + args[0])
"""


class Script(unittest.TestCase):
    def test_one_call_makes_a_whole_page(self):
        with tempfile.TemporaryDirectory() as scratch:
            command = os.path.join(scratch, "ramp")
            with open(command, "w", encoding="utf-8") as file:
                file.write(STAND_IN.format(python=sys.executable, ramp=RAMP))
            os.chmod(command, 0o755)
            out = os.path.join(scratch, "out")
            run = subprocess.run(["bash", os.path.join(ROOT, "bench", "results.sh"), out, "300"], capture_output=True,
                                 text=True, check=True, env=dict(os.environ, RAMP=command))
            self.assertNotIn("failed", run.stderr)
            with open(os.path.join(out, "results.md"), encoding="utf-8") as file:
                page = file.read()
        self.assertNotIn("Not measured in this run", page)
        self.assertNotIn("**", page.split("## The regions")[0], "nothing loses here")
        # 56 points of fp8 and 39 of bf16; the wide layer's among the latter.
        fp8, bf16 = page.split("## Regret of the choice")[0].split("## Whole block, bf16")
        self.assertIn("| 1 to 8192 | 56 | 1.400 |", fp8)
        self.assertIn("| 1 to 8192 | 39 | 1.400 |", bf16)
        self.assertEqual(fp8.count("With them:"), 1)
        self.assertEqual(page.count("0.40 / 4.0"), 4 * 7)  # four models: wave, step, five policies
        # Eight shapes: groups at two T, split-K at T = 1, the wide tile at two T.
        self.assertEqual(sum(page.count(f"| {mode} |") for mode in ("GROUP_M", "split-K", "wide tile")), 8 * 5)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
