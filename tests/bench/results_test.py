#!/usr/bin/env python3
"""bench/results.py on made-up measurements: what the page says of them, row by row. (TEST DATA: none of these
figures was measured.)  results_test.py ROOT [RAMP]; with the command, also on what it really writes on a CPU."""
import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

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
         "peer": None if ratio is None else "v", "config": CONFIG, "config_requested": "auto", "fit": None, "layers": 5}
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
        # Two formats, fast mode, choosing, the regions.
        self.assertEqual(page.count("Not measured in this run."), 6)
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
        self.write("profile_olmoe", [{"model": "olmoe", "configs": 140, "seconds": 141.6}])
        self.write("fast_sum", [row("dsv3", 2048, "uniform", 100.0, None, config_requested="m128"),
                                row("dsv3", 2048, "uniform", 110.0, None, config_requested="m128_sum"),
                                row("dsv3", 8192, "uniform", 100.0, None, config_requested="m128")])
        self.write("prefill_shapes", [row("dsv3", 2048, "zipf:1.2", 120.0, None, config_requested="m128_n256_k128_s4_t384"),
                                      row("dsv3", 2048, "zipf:1.2", 100.0, None, config_requested="m192"),
                                      row("dsv3", 8192, "zipf:1.2", 100.0, None, config_requested="m128_n256_k128_s4_t384"),
                                      row("dsv3", 8192, "zipf:1.2", 110.0, None, config_requested="m192"),
                                      row("olmoe", 8192, "zipf:1.2", 110.0, None, config_requested="m192")])
        judged = {"point": "t3_zipf:0.4", "us": 100.0, "single_best_us": 125.0, "default_us": 50.0, "noise": 0.001,
                  "live_us": 101.5}
        other = dict(judged, point="t3_zipf:1.6", default_us=None, noise=None, live_us=None)
        self.write("judge_few_olmoe", [{"model": "olmoe", "judged": {"points": [judged, other]}}])
        self.write("judge_many_olmoe", [{"model": "olmoe", "judged": {"points": [
            dict(judged, point="t700_zipf:0.4", default_us=200.0)]}}])
        for cost_model, us in (("wave", 112.5), ("step", 101.0)):
            self.evaluation("physical", "olmoe", cost_model,
                            [self.judged_point("t3_zipf:0.4", 3, us, best=100.0, noise=0.001),
                             self.judged_point("t3_zipf:1.6", 3, 100.0, best=100.0, noise=None)])
        self.evaluation("beta", "dsv3", "wave", [self.judged_point("t96_single", 96, 100.5, best=100.0, noise=0.0)])
        os.makedirs(os.path.join(self.scratch.name, "data", "physical", "x_olmoe"))
        with open(os.path.join(self.scratch.name, "data", "physical", "x_olmoe", "timings.csv"), "w",
                  encoding="utf-8") as file:
            file.write(f"point,config,us,us_repeat\nt3_zipf:1.6,{CONFIG},130,\n")

    def judged_point(self, name, tokens, us, best, noise):
        """Our choice takes `us`, every other one 100."""
        ours = CONFIG if us > best else "m8_n128_k128_s6_t320"
        choices = {p: {"config": "m8_n128_k128_s6_t320", "us": 100.0} for p in results.choice.POLICIES + ["by_tokens"]}
        choices["dispatcher"] = {"config": ours, "us": us}
        return {"point": name, "tokens": tokens, "normalised_entropy": 0.7, "best": "m8_n128_k128_s6_t320", "best_us": best,
                "noise": noise, "choices": choices}

    def evaluation(self, name, model, cost_model, points):
        regrets = [p["choices"]["dispatcher"]["us"] / p["best_us"] - 1 for p in points]
        policies = {"ramp4": {"mean_regret": 0.03, "max_regret": 0.2}, "oracle": {"mean_regret": 0, "max_regret": 0},
                    "by_tokens": {"mean_regret": 0.0034, "max_regret": 0.0345}}
        self.write(f"evaluate_{name}_x_{model}_{cost_model}",
                   {"overall": {"cost_model": cost_model},
                    "models": {model: {"dispatcher": {"mean_regret": sum(regrets) / len(regrets), "max_regret": max(regrets)},
                                       "policies": policies, "points": points}}})

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
        self.assertEqual(self.cells(rules, "1 to 8"), ["1 to 8", "3", "**0.993**", "1.026", "1.27", "missed"])
        self.assertEqual(self.cells(rules, "512"), ["512", "1", "1.400", "1.401", "1.35", "met"])
        self.assertEqual(self.cells(rules, "1 to 8192")[1:3], ["4", "**1.082**"])
        self.assertNotIn("32 to 128", rules)  # nothing was measured there
        bf16 = self.page().split("## Whole block, bf16")[1]
        self.assertEqual(self.cells(bf16, "1 to 8192"), ["1 to 8192", "1", "1.300", "1.313", "1.15", "met"])

    def test_in_short(self):
        self.fill()
        table = self.page().split("## In short")[1].split("## ")[0]
        self.assertEqual(self.cells(table, "fp8_block, by rules, 4 of 56 points"),
                         ["fp8_block, by rules, 4 of 56 points", "**0.993** (1.27)", "–", "1.400 (1.35)", "–", "–", "–",
                          "**1.082** (1.25)", "**OLMoE 8 uniform 0.50**"])
        # The third row was not chosen by a fit.
        self.assertEqual(self.cells(table, "fp8_block, by fits, 2 of 56 points")[1:3], ["**1.000** (1.27)", "–"])
        self.assertEqual(self.cells(table, "bf16, by rules, 1 of 39 points")[-2:], ["1.300 (1.15)", "none"])

    def test_worth_of_the_fits(self):
        self.fill()
        page = self.page()
        # 20 -> 10 and 50 -> 100 us; the third row was not chosen by a fit.
        self.assertIn("1.000 times as fast (geometric mean; 0.500 to 2.000)", page)
        self.assertEqual(self.cells(page.split("With them:")[1], "1 to 8"), ["1 to 8", "2", "**1.000**", "1.059", "1.27", "missed"])

    def test_regret(self):
        self.fill()
        page = self.page().split("## Choosing")[1].split("## The regions")[0]
        physical, half = page.split("### At normalised entropy 0.5")
        table, worst, speedups = physical.replace("The worst points", "Speed-up of the fit").split("Speed-up of the fit")
        # 141.6 s are above the bar of 120; 12.5% above that of 8%.
        self.assertEqual(self.cells(table, "OLMoE"),
                         ["OLMoE", "2", "0.70–0.70", "**142**", "1.50 / 1.5", "**6.25 / 12.5**", "0.50 / 1.0", "0.34 / 3.5",
                          "3.00 / 20.0", "–", "–", "–", "0.00 / 0.0", "0.10"])
        self.assertEqual(self.cells(worst, "OLMoE", "t3_zipf:0.4")[2:],
                         ["m32 n128 s5", "112.5", "m8 n128 s6", "100.0", "**12.5**", "0.1"])
        self.assertEqual(self.cells(worst, "OLMoE", "t3_zipf:1.6")[6:], ["0.0", "–"])
        # Both halves of what was judged: 0.5 and 2 times the default, once it was not timed.
        self.assertEqual(self.cells(speedups, "OLMoE"), ["OLMoE", "1.250", "1.000", "3"])
        self.assertIn("Not measured in this run: Qwen3-30B, Mixtral-8x7B, DSv3.", physical)
        self.assertEqual(self.cells(half.split("| who chooses")[0], "DSv3")[:6],
                         ["DSv3", "1", "0.70–0.70", "–", "–", "0.50 / 0.5"])

    def test_static_policies(self):
        self.fill()
        table = self.page().split("### Against the strongest static policies")[1].split("###")[0]
        # (100 / 112.5) ** 0.5; 12.5% is more than 2% and the noise floor of 0.1%.
        self.assertEqual(self.cells(table, "OLMoE", "wave"),
                         ["OLMoE", "wave", "**0.943**", "**0.943**", "**1 of 2**", "t3_zipf:0.4", "1.125"])
        self.assertEqual(self.cells(table, "OLMoE", "step")[4:], ["0 of 2", "t3_zipf:0.4", "1.010"])
        self.assertEqual(self.cells(table, "OLMoE", "wave, by T alone")[2:5], ["1.000", "1.000", "0 of 2"])
        # Live at the one point where it was timed: within 2% and the noise.
        self.assertEqual(self.cells(table, "OLMoE", "live"), ["OLMoE", "live", "**0.985**", "**0.985**", "0 of 1", "t3_zipf:0.4", "1.015"])
        self.assertIn("wave: 0.943 over static_uniform, 0.943 over static_skewed, slower at 1 of 2", table)
        self.assertIn("Widths per expert, switched off: not measured", table)

    def test_replays(self):
        self.fill()
        page = self.page()
        table = page.split("### Graphs replayed with other routing")[1].split("##")[0]
        # The choice for zipf 0.4 takes 130 us at zipf 1.6, where the best takes 100. The other way round: nothing is
        # known of m8 at zipf 0.4 in timings.csv, which counts as 1.5 times the best.
        self.assertEqual(self.cells(table, "OLMoE", "zipf:0.4")[2:], ["zipf:1.6", "30.00 / 30.0", "0.00 / 0.0", "0.00 / 0.0"])
        self.assertEqual(self.cells(table, "OLMoE", "zipf:1.6")[2:], ["zipf:0.4", "50.00 / 50.0", "12.50 / 12.5", "0.00 / 0.0"])
        with open(os.path.join(self.scratch.name, "img", "results_replay.svg"), encoding="utf-8") as file:
            figure = xml.dom.minidom.parseString(file.read())
        self.assertEqual(len(figure.getElementsByTagName("polyline")), 3)

    def test_fast_mode(self):
        self.fill()
        table = self.page().split("### Fast mode")[1].split("## ")[0]
        self.assertEqual(self.cells(table, "DSv3"), ["DSv3", "2048", "uniform", "100.0", "110.0", "**0.909**"])

    def test_heights_and_orders(self):
        self.fill()
        table = self.page().split("### Heights and orders")[1].split("## ")[0]
        self.assertIn("m192 1.044", table)  # of 1.2 and 1 / 1.1
        self.assertIn("| DSv3 | 2048 | zipf:1.2 | 120.0 | 100.0 (1.200) |", table)
        self.assertIn("| DSv3 | 8192 | zipf:1.2 | 100.0 | **110.0 (0.909)** |", table)
        self.assertNotIn("OLMoE", table)

    def test_join(self):
        directory = self.scratch.name

        def dataset(part, points, timings, configs=("m8",)):
            place = os.path.join(directory, "csv", part, "cuda_x")
            os.makedirs(place)
            for name, lines in (("points", ["point,model,split,histogram"] + points),
                                ("timings", ["point,config,us,us_repeat"] + timings),
                                ("configs", ["config,tile_m"] + [f"{c},8" for c in configs])):
                with open(os.path.join(place, name + ".csv"), "w", encoding="utf-8") as file:
                    file.write("\n".join(lines) + "\n")
        # The profile was finished between the two: the later call has more training points.
        dataset("few", ['t1,"8,2,256,128",train,1 0', 't3,"8,2,256,128",test,1 2'], ["t1,m8,1,1", "t3,m8,3,"])
        dataset("many", ['t1,"8,2,256,128",train,1 0', 't2,"8,2,256,128",train,2 0', 't700,"8,2,256,128",test,1 2'],
                ["t1,m8,1,1", "t2,m8,2,2", "t700,m8,4,9"])
        dataset("beta", ['t1,"8,2,256,128",train,1 0', 't96,"8,2,256,128",test,96 0'], ["t1,m8,1,1", "t96,m8,9,"])
        self.join()

        def rows(name, table):
            with open(os.path.join(directory, "data", name, "cuda_x", table + ".csv"), encoding="utf-8", newline="") as file:
                return list(csv.reader(file))
        self.assertEqual([r[0] for r in rows("physical", "points")], ["point", "t1", "t2", "t700", "t3"])
        self.assertEqual(rows("physical", "points")[4][1], "8,2,256,128")
        self.assertEqual(rows("physical", "timings")[1:],
                         [["t1", "m8", "1.0000", "1"], ["t2", "m8", "2.0000", "2"], ["t700", "m8", "6.0000", "9"], ["t3", "m8", "3", ""]])
        self.assertEqual([r[0] for r in rows("beta", "points")], ["point", "t1", "t96"])
        # Again, with a half of another run: left out, and said so.
        with open(os.path.join(directory, "csv", "few", "cuda_x", "configs.csv"), "a", encoding="utf-8") as file:
            file.write("m16,16\n")
        self.assertIn("other configs", self.join())
        self.assertEqual([r[0] for r in rows("physical", "points")], ["point", "t1", "t2", "t700"])

    def join(self):
        return subprocess.run([sys.executable, os.path.join(ROOT, "bench", "results.py"), "--join", self.scratch.name],
                              capture_output=True, text=True, check=True).stderr

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
        self.write("judge_few_" + shape, cases)
        os.rename(os.path.join(self.scratch.name, "csv"), os.path.join(self.scratch.name, "few"))
        os.makedirs(os.path.join(self.scratch.name, "csv"))
        os.rename(os.path.join(self.scratch.name, "few"), os.path.join(self.scratch.name, "csv", "few"))
        self.assertEqual(self.join(), "")
        stem = os.listdir(os.path.join(self.scratch.name, "data", "physical"))[0]
        for cost_model in ("wave", "step"):
            command = [RAMP, "evaluate", "--data", os.path.join(self.scratch.name, "data", "physical", stem), "--hardware",
                       "cpu", "--sm-count", "2", "--allow-missing", "--missing-as", "1.5", "--cost-model", cost_model, "--json"]
            self.write(f"evaluate_physical_{stem}_{cost_model}",
                       json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
        models, results.MODELS = results.MODELS, [(shape, "tiny")]
        four, results.FOUR = results.FOUR, [shape]
        try:
            page = "\n".join(results.regret(self.scratch.name))
        finally:
            results.MODELS, results.FOUR = models, four
        table, rest = page.split("The worst points")
        cells = self.cells(table, "tiny")
        for cell in cells[5:-1]:  # behind what runs live, which is timed on a GPU
            self.assertRegex(cell.strip("*"), r"^\d+\.\d\d / \d+\.\d$")
        self.assertEqual(cells[1], "3")
        statics = page.split("### Against the strongest static policies")[1]
        self.assertRegex(self.cells(statics, "tiny", "wave")[4].strip("*"), r"^\d of 3$")
        self.assertRegex(self.cells(rest.split("### At norm")[0].split("Speed-up")[1], "tiny")[1].strip("*"), r"^\d+\.\d{3}$")


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
                                     intermediate=1024, active=8, layers=5,
                                     fit=None if option("--fit") == "none" else "f"))
    print_(rows)
elif args[0] == "profile":
    model = option("--model")
    case = dict(model=model, configs=140, seconds=30.0)
    if "--judge" in args:
        directory = os.path.join(option("--csv"), "cuda_" + model)
        os.makedirs(directory, exist_ok=True)
        points = [(t, r) for t in option("--judge-tokens").split(",") for r in option("--judge-routing").split(";")]
        for name, lines in (("points", ["point,split"] + ["t%s_%s,test" % p for p in points]),
                            ("timings", ["point,config,us,us_repeat"] + ["t%s_%s,m8,100,100" % p for p in points]),
                            ("configs", ["config", "m8"])):
            with open(os.path.join(directory, name + ".csv"), "w") as file:
                file.write("\\n".join(lines) + "\\n")
        case["judged"] = dict(points=[dict(point="t%s_%s" % p, us=100.0, single_best_us=120.0, default_us=110.0, noise=0.002,
                                           live_us=100.0) for p in points])
    print_([case])
elif args[0] == "evaluate":
    model = option("--data").rstrip("/").split("cuda_")[1]
    regret = dict(mean_regret=0.004, max_regret=0.04)
    names = ["by_tokens", "ramp4", "static_uniform", "static_skewed", "single_best", "oracle"]
    with open(os.path.join(option("--data"), "points.csv")) as file:
        points = [line.split(",")[0] for line in file.read().splitlines()[1:]]
    points = [dict(point=p, tokens=int(p[1:].split("_")[0]), normalised_entropy=0.7, best="m8", best_us=100.0, noise=0.002,
                   choices={{n: dict(config="m8", us=100.0) for n in names + ["dispatcher"]}}) for p in points]
    print_(dict(overall=dict(cost_model=option("--cost-model")),
                models={{model: dict(dispatcher=regret, policies={{n: regret for n in names}}, points=points)}}))
elif args[0] == "regions":
    print_(dict(thresholds=dict(group_m_lambda_kappa=1440)))
else:
    sys.exit("what is " + args[0])
"""


class Script(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.command = os.path.join(self.scratch.name, "ramp")
        self.out = os.path.join(self.scratch.name, "out")
        with open(self.command, "w", encoding="utf-8") as file:
            file.write(STAND_IN.format(python=sys.executable, ramp=RAMP))
        os.chmod(self.command, 0o755)

    def run_script(self, script, *arguments, **environment):
        return subprocess.run(["bash", os.path.join(ROOT, "bench", script), *arguments], capture_output=True, text=True,
                              check=True, env=dict(os.environ, RAMP=self.command, **environment))

    def page(self):
        with open(os.path.join(self.out, "results.md"), encoding="utf-8") as file:
            return file.read()

    def test_one_call_makes_a_whole_page(self):
        run = self.run_script("results.sh", self.out, "300")
        self.assertNotIn("failed", run.stderr)
        page = self.page()
        self.assertNotIn("Not measured in this run", page)
        before, statics = page.split("**Widths per expert")
        self.assertNotIn("**", before.replace("**From T", "").replace("limit**", ""), "nothing loses here")
        # 56 points of fp8 and 39 of bf16; the wide layer's among the latter.
        fp8, bf16 = page.split("### Heights and orders")[0].split("## Whole block, bf16")
        self.assertIn("| 1 to 8192 | 56 | 1.400 |", fp8)
        self.assertIn("| 1 to 8192 | 39 | 1.400 |", bf16)
        self.assertEqual(fp8.count("With them:"), 1)
        self.assertEqual(page.count("0.40 / 4.0"), 4 * 8 + 4 * 8)  # four models, two sets: three of ours, five policies
        self.assertEqual(page.count(" | 0.00 / 0.0 | 0.40 / 4.0 | "), 8)  # live
        self.assertEqual(page.count("| 27 | 0.70"), 4)             # nine token counts, three routings
        # Eight shapes: groups at two T, split-K at T = 1, the wide tile at two T.
        self.assertEqual(sum(page.count(f"| {mode} |") for mode in ("GROUP_M", "split-K", "wide tile")), 8 * 5)
        # Without a GPU, from the files: the same page.
        os.remove(os.path.join(self.out, "results.md"))
        for name in os.listdir(self.out):
            if name.startswith("evaluate_"):
                os.remove(os.path.join(self.out, name))
        self.run_script("results.sh", "--offline", self.out)
        self.assertEqual(self.page(), page)

    def test_what_there_was_no_time_for_is_missing(self):
        run = self.run_script("results.sh", self.out, "0")
        self.assertIn("no time left for rule_fp8_olmoe", run.stderr)
        self.assertEqual(self.page().count("Not measured in this run."), 6)

    def test_profiles_one_after_the_other(self):
        run = self.run_script("profiles.sh", self.out, "60", "olmoe", "dsv3-ep8")
        self.assertRegex(run.stderr, r"profiles: olmoe \d+ s")
        self.assertIn("2 of 2 models", run.stderr)
        # What has its fit is left alone, what has only a profile is gone on from.
        for shape, kinds in (("64x8x2048x1024", ("profile", "fit")), ("32x8x7168x2048", ("profile",))):
            for kind in kinds:
                open(os.path.join(self.out, f"cuda_{shape}_fp8_block_silu_and_mul_sm90_w132.{kind}.json"), "w").close()
        run = self.run_script("profiles.sh", self.out, "60", "olmoe", "dsv3-ep8")
        self.assertIn("profiles: olmoe is complete", run.stderr)
        self.assertRegex(run.stderr, r"profiles: dsv3-ep8 \d+ s")
        run = self.run_script("profiles.sh", self.out, "0")
        self.assertIn("profiles: no time left for dsv3", run.stderr)
        self.assertIn("1 of 12 models", run.stderr)

    def test_shapes_that_name_the_files_are_those_of_the_models(self):
        with open(os.path.join(ROOT, "bench", "profiles.sh"), encoding="utf-8") as file:
            shapes = dict(re.findall(r"\[([a-z0-9.-]+)\]=([0-9x]+)", file.read()))
        with open(os.path.join(ROOT, "src", "geometry", "model.cpp"), encoding="utf-8") as file:
            models = re.findall(r'\{"([a-z0-9.-]+)", (\d+), (\d+), (\d+), (\d+)\}', file.read())
        self.assertEqual(len(shapes), 12)
        self.assertEqual(shapes, {m[0]: "x".join(m[1:]) for m in models if m[0] in shapes})


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
