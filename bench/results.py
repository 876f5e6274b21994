#!/usr/bin/env python3
"""The page of results from what bench/results.sh measured: bench/results.py DIR > PAGE.md, which also draws
DIR/img/results_replay.svg. bench/results.py --join DIR puts together what was judged in several calls.

Reads the JSON files of DIR, measures nothing. A part whose file is missing is named as missing. What is about choosing
is in results_regret.py."""
import glob
import json
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import results_regret as choice  # noqa: E402
from results_regret import bold, geometric_mean, load, short  # noqa: E402

MODELS = [("olmoe", "OLMoE"), ("qwen3-30b", "Qwen3-30B"), ("mixtral-8x7b", "Mixtral-8x7B"), ("dsv3", "DSv3"),
          ("64,4,3584,2560", "64/4/3584/2560")]
FOUR = [key for key, _ in MODELS[:4]]
LEAST = 0.98  # below it a row is lost: the goal says no point may be
GOALS = {"fp8_block": [(1, 8, 1.27), (32, 128, 1.16), (512, 512, 1.35), (2048, 8192, 1.30), (1, 8192, 1.25)],
         "bf16": [(1, 8192, 1.15)]}
POINTS = {"fp8_block": 56, "bf16": 39}
PEERS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "peers_h200.json")


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def title(model):
    return dict(MODELS).get(model, model)


def key_of(row):
    return row["model"], row["tokens"], row["routing"]


def points_table(rows, fitted):
    """fitted: rows of the same points chosen by fits, by key_of; may be empty."""
    heads = ["model", "T", "routing", "us", "p10–p90", "floor us", "× floor", "best open kernel us", "speed-up", "config"]
    if fitted:
        heads += ["by fit us", "by fit config"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        ratio = row["ratio"]
        losing = ratio is not None and ratio < LEAST
        peer = "–" if row["peer_us"] is None else number(row["peer_us"]) + (row["peer"] or "")
        floor = row["floor_us"]
        cells = [title(row["model"]), str(row["tokens"]), row["routing"], number(row["us"]),
                 f"{number(row['p10_us'])}–{number(row['p90_us'])}", number(floor),
                 "–" if not floor else f"{row['us'] / floor:.2f}", peer, "–" if ratio is None else f"{ratio:.2f}",
                 short(row["config"])]
        if fitted:
            other = fitted.get(key_of(row))
            cells += ["–", "–"] if other is None else [number(other["us"]), short(other["config"])]
        lines.append("| " + " | ".join(bold(c, losing) for c in cells) + " |")
    return "\n".join(lines)


def goals_table(rows, fmt):
    compared = [r for r in rows if r["ratio"] is not None]
    lines = ["| T | points | speed-up, geometric mean | fastest tenth of the replays | goal | |", "|---|---|---|---|---|---|"]
    for low, high, goal in GOALS[fmt]:
        band = [r for r in compared if low <= r["tokens"] <= high]
        reached = geometric_mean([r["ratio"] for r in band])
        if reached is None:
            continue
        cool = geometric_mean([r["ratio"] * r["us"] / r["p10_us"] for r in band])
        text = str(low) if low == high else f"{low} to {high}"
        lines.append(f"| {text} | {len(band)} | {bold(f'{reached:.3f}', reached < goal)} | {cool:.3f} | {goal:.2f} | "
                     f"{'missed' if reached < goal else 'met'} |")
    lost = [r for r in compared if r["ratio"] < LEAST]
    lines.append("")
    lines.append(f"{len(lost)} of {len(compared)} points below {LEAST}." if lost else f"No point below {LEAST}.")
    return "\n".join(lines)


def load_all(directory, pattern):
    rows = []
    for path in glob.glob(os.path.join(directory, pattern + ".json")):
        rows += load(directory, os.path.basename(path)[:-5])
    order = [key for key, _ in MODELS]
    rows.sort(key=lambda r: (order.index(r["model"]) if r["model"] in order else len(order)))  # stable: T, routing
    return rows


BANDS = [(1, 8), (32, 128), (512, 512), (2048, 2048), (8192, 8192), (2048, 8192), (1, 8192)]


def in_short(directory):
    """Geometric means by bands of T, each over its goal where there is one."""
    lines = ["| speed-up, geometric mean | T ≤ 8 | 32 and 128 | 512 | 2048 | 8192 | from 2048 on | all | points below 0.98 |",
             "|" + "---|" * 9]
    for fmt, name in (("fp8_block", "fp8"), ("bf16", "bf16")):
        for who, pattern in (("by rules", "rule"), ("by fits", "fit")):
            rows = [r for r in load_all(directory, f"{pattern}_{name}_*") if r["ratio"] is not None
                    and (pattern == "rule" or r["fit"] is not None)]
            if not rows:
                continue
            goals = {(low, high): goal for low, high, goal in GOALS[fmt]}
            cells = [f"{fmt}, {who}, {len(rows)} of {POINTS[fmt]} points"]
            for band in BANDS:
                reached = geometric_mean([r["ratio"] for r in rows if band[0] <= r["tokens"] <= band[1]])
                cells.append("–" if reached is None else bold(f"{reached:.3f}", reached < goals.get(band, 0))
                             + (f" ({goals[band]:.2f})" if band in goals else ""))
            lost = [f"{title(r['model'])} {r['tokens']} {r['routing']} {r['ratio']:.2f}" for r in rows if r["ratio"] < LEAST]
            lines.append("| " + " | ".join(cells + [bold(", ".join(lost), True) if lost else "none"]) + " |")
    if len(lines) == 2:
        return []
    return ["## In short\n", "Against the best open kernel at each point; in brackets the goal, bold where it is missed. By rules: what runs without a "
            "fit. By fits: of the same run.\n", "\n".join(lines) + "\n"]


def draws(sets):
    """How many random histograms there are of each token count and routing: further ones are named _draw2, .. ."""
    names = [p["point"] for s in sets for stats in s.stats.values() for p in stats["points"]]
    numbers = [int(n.rsplit("_draw", 1)[1]) for n in names if "_draw" in n]
    return f"{max(numbers)} draws of each" if numbers else "one draw"


NOT_MEASURED = ("* Widths per expert switched off: see *Against the strongest static policies*.\n"
                "* The selector's own time inside a graph. A routed call without a fit, or with one of model wave, is captured with one kernel and decides nothing on "
                "the device; sets of several candidates, which a fit of model step may ask for, are not timed beside a fixed plan here.\n"
                "* GPUs other than the one named above; formats other than fp8_block and bf16, for which no open pipelines were measured.\n")


def kernels(directory):
    parts = []
    for fmt, name in (("fp8_block", "fp8"), ("bf16", "bf16")):
        rows = load_all(directory, f"rule_{name}_*")
        parts.append(f"## Whole block, {fmt}\n")
        if not rows:
            parts.append("Not measured in this run.\n")
            continue
        missing = [name_ for key, name_ in MODELS if key not in {r["model"] for r in rows}
                   and not (fmt == "bf16" and key == "dsv3") and not (fmt == "fp8_block" and "/" in name_)]
        parts.append(f"{len(rows)} of {POINTS[fmt]} points."
                     + (f" Not measured in this run: {', '.join(missing)}." if missing else "")
                     + " Config chosen by the rules that hold without a fit. Losing rows in bold.\n")
        fitted = {key_of(r): r for r in load_all(directory, f"fit_{name}_*") if r["fit"] is not None}
        parts.append(goals_table(rows, fmt) + "\n")
        parts.append(points_table(rows, fitted) + "\n")
        both = [r for r in rows if key_of(r) in fitted]
        if both:
            gains = [r["us"] / fitted[key_of(r)]["us"] for r in both]
            parts.append("Chosen by the rules above (without a fit), and by the fits that the same run made: these are "
                         f"{geometric_mean(gains):.3f} times as fast (geometric mean; {min(gains):.3f} to {max(gains):.3f}).\n")
            parts.append("With them:\n\n" + goals_table([fitted[key_of(r)] for r in both], fmt) + "\n")
        elif fmt == "fp8_block":
            parts.append("The same points chosen by fits: not measured in this run.\n")
    return parts


def fast(directory):
    parts = ["### Fast mode: rows added up in memory\n"]
    rows = load(directory, "fast_sum") or []
    sums = {key_of(r): r for r in rows if r["config_requested"].endswith("_sum")}
    pairs = [(r, sums[key_of(r)]) for r in rows if not r["config_requested"].endswith("_sum") and key_of(r) in sums]
    if not pairs:
        return parts + ["Not measured in this run.\n"]
    lines = ["| model | T | routing | rows us | sums us | rows / sums |", "|---|---|---|---|---|---|"]
    gains = [off["us"] / on["us"] for off, on in pairs]
    for (off, on), gain in zip(pairs, gains):
        lines.append(f"| {title(off['model'])} | {off['tokens']} | {off['routing']} | {number(off['us'])} | {number(on['us'])} | "
                     f"{bold(f'{gain:.3f}', gain < LEAST)} |")
    parts.append("The prefill kernel storing rows for combine, and the same config adding them up (`_sum`), both in fast mode. Sums are "
                 f"slower at {sum(g < 1 for g in gains)} of {len(gains)} points, geometric mean {geometric_mean(gains):.3f}.\n\n"
                 + "\n".join(lines) + "\n")
    return parts


def prefill_shapes(directory):
    parts = ["### Heights and orders of the prefill kernel\n"]
    points = {}
    for r in load(directory, "prefill_shapes") or []:
        points.setdefault(key_of(r), {})[r["config_requested"]] = r
    shipped = "m128_n256_k128_s4_t384"
    others = sorted({c for p in points.values() for c in p} - {shipped})
    points = {k: p for k, p in points.items() if shipped in p and len(p) > 1}
    if not points:
        return parts + ["Not measured in this run.\n"]
    lines = ["| model | T | routing | as shipped us | " + " | ".join(others) + " |", "|---" * (4 + len(others)) + "|"]
    gains = {c: [] for c in others}
    for p in points.values():
        base = p[shipped]
        cells = []
        for c in others:
            gain = base["us"] / p[c]["us"] if c in p else None
            gains[c] += [gain] if gain else []
            cells.append(bold(f"{number(p[c]['us'])} ({gain:.3f})", gain < LEAST) if gain else "–")
        lines.append(f"| {title(base['model'])} | {base['tokens']} | {base['routing']} | {number(base['us'])} | " + " | ".join(cells) + " |")
    means = "; ".join(f"{c} {geometric_mean(g):.3f}" for c, g in gains.items() if g)
    parts.append("What ships, and row tiles of 192 rows (m192), experts with many rows and with few by turns (`_mix`): µs, and how many times as "
                 f"fast. Geometric means: {means}.\n\n" + "\n".join(lines) + "\n")
    return parts


def regret(directory):
    parts = ["## Choosing\n"]
    judged = choice.read_judged(directory, FOUR, ("few", "many"))
    physical = choice.read_sets(directory, "physical", FOUR, judged)
    half = choice.read_sets(directory, "beta", FOUR, choice.read_judged(directory, FOUR, ("beta",)))
    profiles = {c["model"]: c for m in glob.glob(os.path.join(directory, "profile_*.json"))
                for c in load(directory, os.path.basename(m)[:-5])}
    if not physical and not half:
        return parts + ["Not measured in this run.\n"]
    missing = [title(m) for m in FOUR if m not in {s.model for s in physical}]
    parts.append("Regret: time of the chosen config over the best one's, minus 1, at points that no fit has seen. Every config of the "
                 "space is timed; those that were hopeless at the point or next door are left out (they count as 1.5 times the best). "
                 "Cells: mean / largest, %. live: what a context with the run's fit does by itself, its decision included, timed beside the "
                 "configs (bars 2% and 8%). wave and step: those cost models behind the measured guard, from this step's histogram; "
                 "'by T alone': about what a routed call is captured with by a wave fit, whatever the histogram, which is why it costs a "
                 "replay nothing. ramp4: the published model. static_uniform and static_skewed: the best config at the nearest "
                 "profiled token count, tuned at uniform and at zipf 1.2 routing. single_best: one config for everything. 'profile': all from nothing (kernels where "
                 "the cache was empty, which is the first model; weights, timing, fit); bar 120 s. Bold: above 1% or 8%.\n")
    parts.append(f"### At routing that occurs\n\nT = 3, 12, 48, 96, 200, 700, 1500, 3000, 6000, each with zipf 0.4, 0.9 and 1.6, {draws(physical)}."
                 + (f" Not measured in this run: {', '.join(missing)}." if missing else "") + "\n")
    if physical:
        parts.append(choice.regret_table(physical, title, profiles))
        parts.append("The worst points (wave; no noise given: the best config was timed once there):\n\n" + choice.worst_table(physical, title))
    if judged:
        parts.append("Speed-up of the fit that the run made, geometric means over the same points:\n\n"
                     + choice.default_table(judged, title))
    parts.append("### At normalised entropy 0.5, for comparison with the published method\n")
    if half:
        parts.append("Entropy of the histogram over ln E about 0.5: what one token with 8 of 64 experts gives. In a batch that is nearly all tokens "
                     "choosing the same k experts (`single`, `ddist:x`), at T = 96, 700 and 3000. Published there: 0.93% mean and 10.2% "
                     "largest regret, 1.22 times static dispatch (on the paper's kernels and models).\n")
        parts.append(choice.regret_table(half, title, {}))
        parts.append(choice.static_table(half, title))
    else:
        parts.append("Not measured in this run.\n")
    return parts + statics(physical) + replay(directory, physical)


def statics(physical):
    parts = ["### Against the strongest static policies\n"]
    if not physical:
        return parts + ["Not measured in this run.\n"]
    parts.append("Gain: the static choice's time over ours, geometric mean over the points above. Slower: than the faster of both static choices "
                 "at that point (which no static policy knows), by more than 2% and the noise floor (the first half of the samples' "
                 f"best on the second half). Over all points: {choice.overall(physical)}.\n")
    parts.append(choice.static_table(physical, title))
    parts.append("**Widths per expert, switched off: not measured.** All figures here are with them on, for our choice and for the static ones "
                 "alike, so their part is in no gain above: a tile of the stream kernel takes the width that its expert's rows ask "
                 "for, in steps of 8, whatever config runs. No config has them off: `STEP` of kernels/sm90/stream.cu is 8. It would take a program "
                 "with STEP = WIDTH: its switch over widths with one case, GEMM 1's gather and GEMM 2's packed copy padded to whole tiles, "
                 "and h laid out in tiles of WIDTH rows, which the workspace is not sized for.\n")
    return parts


def replay(directory, physical):
    parts = ["### Graphs replayed with other routing\n"]
    table = choice.replay_table(physical, title)
    if table.count("\n") <= 2:
        return parts + ["Not measured in this run.\n"]
    parts.append("What a graph loses whose config was chosen for other routing than it is replayed with: time over the best config at the replay's "
                 "point, minus 1, mean / largest over T, %. The choice that ships for routed calls does not know the capture's "
                 "routing (last column), so that it has no wrong one. Results are the same bits in either case (`gpu_block_test` replays "
                 "graphs with other routing).\n")
    parts.append(table)
    figure = choice.replay_figure(physical, title)
    if figure:
        os.makedirs(os.path.join(directory, "img"), exist_ok=True)
        with open(os.path.join(directory, "img", "results_replay.svg"), "w", encoding="utf-8") as file:
            file.write(figure)
        parts.append("![replays](img/results_replay.svg)\n")
    return parts


def verdict(predicted, gain, noise=0.02):
    """Whether a mode that is predicted to help (or not) does, beyond what two runs differ by."""
    helps = gain > 1 + noise
    return "held" if helps == predicted else bold("missed", True)


def regions(directory):
    parts = ["## The regions put to the test\n"]
    known = load(directory, "regions")
    fp8 = load(directory, "regions_fp8") or []
    few = load(directory, "regions_few") or []
    wide = load(directory, "regions_bf16") or []
    if not (fp8 or few or wide):
        return parts + ["Not measured in this run.\n"]
    parts.append("The three modes of the published regions, each off and on in our kernels, two layers, uniform routing; gain = "
                 "time off / time on; a mode helps where it gains more than 2%. GROUP_M: the prefill kernel with groups "
                 "of 2 and of 16 row tiles (at T = 64 an expert has one row tile or two, so order changes nothing). "
                 "Split-K: the few-token kernel, which cuts an item's depth, against the better of two stream configs. "
                 "Wide tile: bf16, 256 weight rows per item against 128. λκ and κ as `ramp regions` has them; the "
                 "thresholds are λκ > "
                 + (f"{known['thresholds']['group_m_lambda_kappa']:.0f}" if known else "1440")
                 + ", κ ≥ 48 with ω < 0.2, ω > 1.\n")

    def times(rows):
        table = {}
        for r in rows:
            table[(r["model"], r["tokens"], r["config_requested"])] = r
        return table

    f, w = times(fp8), times(wide)
    lines = ["| model | mode | T | predicted | off us | on us | gain | prediction |", "|---|---|---|---|---|---|---|---|"]

    def add(model, mode, tokens, predicted, off, on):
        if off is None or on is None:
            return
        gain = off / on
        lines.append(f"| {model} | {mode} | {tokens} | {'on' if predicted else 'off'} | {number(off)} | {number(on)} | "
                     f"{gain:.3f} | {verdict(predicted, gain)} |")

    def us(row):
        return None if row is None else row["us"]

    groups = ("m128_n256_k128_s4_t384_g2", "m128_n256_k128_s4_t384")
    streams = ("m8_n128_k128_s6_t320", "m24_n128_k128_s6_t320")
    slices = ("m64_n128_k64_s4_t320", "m64_n256_k64_s4_t576")
    models = []
    for r in fp8 + few + wide:
        if r["model"] not in [m["model"] for m in models]:
            models.append(r)
    for m in models:
        name, n1, hidden = m["model"], 2 * m["intermediate"], m["hidden"]
        lam, kappa = math.ceil(n1 / 256), hidden / 128
        for tokens in (64, 4096):
            add(name, "GROUP_M", tokens, lam * kappa > 1440 and tokens > 64, us(f.get((name, tokens, groups[0]))),
                us(f.get((name, tokens, groups[1]))))
        stream = [us(f.get((name, 1, c))) for c in streams]
        split = next((r["us"] for r in few if r["model"] == name and r["tokens"] == 1), None)
        omega = m["top_k"] * lam / 132  # one tile per active expert
        if None not in stream:
            add(name, "split-K", 1, kappa >= 48 and omega < 0.2, min(stream), split)
        for tokens in (8, 512):
            row = w.get((name, tokens, slices[0]))
            if row is None:
                continue
            tiles = row["active"] * max(1, math.ceil(tokens * row["top_k"] / row["active"] / 64))
            add(name, "wide tile", tokens, tiles * lam / 132 > 1, us(row), us(w.get((name, tokens, slices[1]))))
    rows = lines[2:]
    parts.append("\n".join(lines) + "\n")
    parts.append(f"The prediction held in {sum(r.endswith('| held |') for r in rows)} of {len(rows)} rows. Split-K at prefill is not in the table: the "
                 "kernel that cuts depth takes 16 tokens at most.\n")
    return parts


def machine(directory, rows):
    """What the run was on, from the metadata of a profile that it wrote."""
    device = rows[0]["device"] if rows else None
    for path in sorted(glob.glob(os.path.join(directory, "fits", "*.profile.json"))):
        with open(path, encoding="utf-8") as file:
            m = json.load(file)["metadata"]
        return (f"{m['device']}, driver {m['driver']}, CUDA ({m['cuda']}), SM clock up to {m['sm_clock_mhz']:.0f} MHz, "
                f"{m['date_utc'][:10]}, ramp {m['library_version']}.")
    return f"{device}." if device else None


def protocol(rows):
    with open(PEERS, encoding="utf-8") as file:
        pipelines = json.load(file)["pipelines"]
    letters = ", ".join(f"{k} = {v}" for k, v in pipelines.items() if k)
    layers = {title(r["model"]): r["layers"] for r in rows}
    spread = [r["p90_us"] / r["p10_us"] - 1 for r in rows if r["tokens"] >= 2048]
    clock = ("" if not spread else f"**From T = 2048 on (Mixtral from 512) the clock follows the power limit**: p90 lies {100 * choice.mean(spread):.0f}% "
             f"above p10 on average and {100 * max(spread):.0f}% at most there, and runs differ by as much; 'fastest tenth' takes each "
             "row's p10 for its time.")
    rests = sorted({r["pause_s"] for r in rows if r.get("pause_s")})
    if rests:
        clock += f" Before such a point, and the one behind it, the GPU rests for {', '.join(f'{r:g}' for r in rests)} s."
    return ("The whole block, from (x, ids, router weights) to y, repeatable mode: one CUDA graph of L layers with distinct weights and routing "
            f"({', '.join(f'{m} {n}' for m, n in layers.items())}), median of 20 replays / L in µs, p10 and p90 beside it "
            "([bench/README.md](../bench/README.md)). Floor: the active experts' weight bytes at the measured read bandwidth, or the floating-point work "
            "at the measured ceiling of the format, whichever is longer. Best open kernel: the best of the open pipelines at that point, measured on an "
            f"H200 with the same protocol ({letters}; without a letter, bf16: {pipelines['']}). {clock}".rstrip() + "\n")


def main():
    arguments = sys.argv[1:]
    joining = arguments[:1] == ["--join"]
    directory = arguments[-1] if len(arguments) == 1 + joining else ""
    if not os.path.isdir(directory):
        sys.exit("results: got no directory, expected the one that bench/results.sh wrote; bench/results.py [--join] DIR")
    if joining:
        choice.join(directory)
        return
    rows = load_all(directory, "rule_*")
    parts = ["# Results on the GPU\n",
             "Made by `bench/results.sh` in one call (`bench/results.sh --offline DIR` makes this page again from its files); nothing in it is "
             "written by hand.\n"]
    environment = machine(directory, rows)
    if environment:
        parts.append(environment + "\n")
    parts.append(protocol(rows))
    parts += in_short(directory) + kernels(directory) + prefill_shapes(directory) + fast(directory) + regret(directory) + regions(directory)
    parts += ["## Not measured at all\n", NOT_MEASURED]
    sys.stdout.write("\n".join(parts))


if __name__ == "__main__":
    main()
