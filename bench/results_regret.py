"""The part of the page of results that is about choosing (bench/results.py): regret, gains over static policies, and
graphs replayed with other routing than they were captured for.

Everything comes from the judged timings (csv/) and from what `ramp evaluate` says of them (evaluate_*.json). Sets:
"physical", routing that occurs (zipf 0.4, 0.9, 1.6), and "beta", normalised entropy about 0.5."""
import csv
import glob
import json
import math
import os
import shutil
import sys

STATIC = ("static_uniform", "static_skewed")
POLICIES = ["ramp4", "static_uniform", "static_skewed", "single_best", "oracle"]
MISSING_AS = 1.5  # as bench/results.sh gives it to `ramp evaluate`
MARGIN = 0.02     # what the bar allows beyond the noise floor
MEAN_BAR, MAX_BAR = 0.01, 0.08
LIVE_BAR = 0.02   # of the mean, with the selector's own cost
WHO = [("wave", "dispatcher", "wave"), ("step", "dispatcher", "step"), ("wave", "by_tokens", "wave, by T alone")]


def geometric_mean(values):
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else None


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def bold(text, losing):
    return f"**{text}**" if losing else text


def short(config):
    """m32_n128_k128_s5_t320 -> m32 n128 s5; whatever else a name has stays."""
    return " ".join(part for part in config.split("_") if not part.startswith(("k1", "k6", "t")))


def load(directory, name):
    path = os.path.join(directory, name + ".json")
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def write_rows(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


# --- joining what was judged in several calls

def join(directory):
    """csv/few and csv/many of a model are one dataset, data/physical; csv/beta is data/beta."""
    shutil.rmtree(os.path.join(directory, "data"), ignore_errors=True)
    for name, parts in (("physical", ("many", "few")), ("beta", ("beta",))):
        found = {}
        for part in parts:
            for path in sorted(glob.glob(os.path.join(directory, "csv", part, "*", "timings.csv"))):
                found.setdefault(os.path.basename(os.path.dirname(path)), []).append(os.path.dirname(path))
        for stem, sources in found.items():
            join_into(os.path.join(directory, "data", name, stem), sources)


def join_into(target, sources):
    """The first source's training points; everybody's test points. Both halves of the samples become one time, as in
    `ramp profile`, of which `us_repeat` is the second half still."""
    os.makedirs(target)
    first = sources[0]
    configs = rows_of(os.path.join(first, "configs.csv"))
    points, timings = rows_of(os.path.join(first, "points.csv")), rows_of(os.path.join(first, "timings.csv"))
    split = points[0].index("split")
    for source in sources[1:]:
        if rows_of(os.path.join(source, "configs.csv")) != configs:
            sys.stderr.write(f"results: {source} has other configs than {first}: left out\n")
            continue
        more = [p for p in rows_of(os.path.join(source, "points.csv"))[1:] if p[split] == "test"]
        names = {p[0] for p in more}
        points += more
        timings += [t for t in rows_of(os.path.join(source, "timings.csv"))[1:] if t[0] in names]
    for t in timings[1:]:
        if len(t) > 3 and t[3]:
            t[2] = f"{math.sqrt(float(t[2]) * float(t[3])):.4f}"
    for name, rows in (("configs", configs), ("points", points), ("timings", timings)):
        write_rows(os.path.join(target, name + ".csv"), rows)


# --- reading

class Set:
    """What is known of one model's points of one set."""

    def __init__(self, model):
        self.model = model
        self.stats = {}    # cost model -> what `ramp evaluate` says of it
        self.timings = {}  # (point, config) -> us
        self.live = {}     # point -> us of what a context with the run's fit does by itself, the decision included
        self.noise = {}    # point -> the first half's best on the second half, over the best there, minus 1

    def floor(self):
        return mean(self.noise.values())

    def points(self):
        return next(iter(self.stats.values()))["points"]


def read_judged(directory, models, parts):
    """Points of `ramp profile --judge`, by model."""
    judged = {}
    for model in models:
        for part in parts:
            for case in load(directory, f"judge_{part}_{model}") or []:
                judged.setdefault(case["model"], []).extend(case.get("judged", {}).get("points", []))
    return judged


def read_sets(directory, name, order, judged):
    """Sets by model, in the order of `order` (others behind)."""
    sets = {}
    for path in sorted(glob.glob(os.path.join(directory, f"evaluate_{name}_*.json"))):
        document = load(directory, os.path.basename(path)[:-5])
        cost_model = document["overall"]["cost_model"]
        stem = os.path.basename(path)[len(f"evaluate_{name}_"):-len(f"_{cost_model}.json")]
        for model, stats in document["models"].items():
            entry = sets.setdefault(model, Set(model))
            entry.stats[cost_model] = stats
            table = os.path.join(directory, "data", name, stem, "timings.csv")
            if not entry.timings and os.path.exists(table):
                entry.timings = {(t[0], t[1]): float(t[2]) for t in rows_of(table)[1:] if t[2]}
            for p in judged.get(model, []):
                if p.get("live_us") is not None:
                    entry.live[p["point"]] = p["live_us"]
                if p.get("noise") is not None:
                    entry.noise[p["point"]] = p["noise"]
    place = {key: i for i, key in enumerate(order)}
    return sorted(sets.values(), key=lambda s: (place.get(s.model, len(place)), s.model))


def percent(stats):
    return "–" if stats is None else f"{100 * stats['mean_regret']:.2f} / {100 * stats['max_regret']:.1f}"


# --- tables

def regret_table(sets, title, profiles):
    lines = ["| model | points | entropy | profile, s | live | " + " | ".join(name for _, _, name in WHO) + " | " +
             " | ".join(POLICIES) + " | noise floor |", "|" + "---|" * (6 + len(WHO) + len(POLICIES))]
    for s in sets:
        any_stats = next(iter(s.stats.values()))
        profile = profiles.get(s.model)
        entropy = [p["normalised_entropy"] for p in any_stats["points"]]
        cells = [title(s.model), str(len(entropy)), f"{min(entropy):.2f}–{max(entropy):.2f}" if entropy else "–",
                 "–" if profile is None else bold(f"{profile['seconds']:.0f}", profile["seconds"] > 120)]
        live = [s.live[p["point"]] / p["best_us"] - 1 for p in s.points() if p["point"] in s.live]
        cells.append("–" if not live else bold(f"{100 * mean(live):.2f} / {100 * max(live):.1f}",
                                               mean(live) > LIVE_BAR or max(live) > MAX_BAR))
        for cost_model, policy, _ in WHO:
            stats = s.stats.get(cost_model)
            own = None if stats is None else stats["dispatcher"] if policy == "dispatcher" else stats["policies"][policy]
            cells.append(bold(percent(own), own is not None and
                              (own["mean_regret"] > MEAN_BAR or own["max_regret"] > MAX_BAR)))
        cells += [percent(any_stats["policies"].get(p)) for p in POLICIES]
        noise = s.floor()
        cells.append("–" if noise is None else f"{100 * noise:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def choosers(s):
    """(name, [(point as `ramp evaluate` has it, our us)]) for everybody who chooses."""
    found = []
    if s.live:
        found.append(("live", [(p, s.live[p["point"]]) for p in s.points() if p["point"] in s.live]))
    for cost_model, policy, name in WHO:
        if cost_model in s.stats:
            found.append((name, [(p, p["choices"][policy]["us"]) for p in s.stats[cost_model]["points"]]))
    return [(name, points) for name, points in found if points and all(p in points[0][0]["choices"] for p in STATIC)]


def static_table(sets, title):
    lines = ["| model | who chooses | over static_uniform | over static_skewed | slower by more than 2% + noise | worst point | "
             "its time over the faster static choice |", "|" + "---|" * 7]
    for s in sets:
        allowed = 1 + MARGIN + max(s.floor() or 0, 0)
        for name, points in choosers(s):
            gains = [geometric_mean([at["choices"][p]["us"] / us for at, us in points]) for p in STATIC]
            ratio = [(us / min(at["choices"][p]["us"] for p in STATIC), at["point"]) for at, us in points]
            slower, worst = sum(r > allowed for r, _ in ratio), max(ratio)
            lines.append(f"| {title(s.model)} | {name} | " + " | ".join(bold(f"{g:.3f}", g < 1) for g in gains) +
                         f" | {bold(f'{slower} of {len(ratio)}', slower > 0)} | {worst[1]} | {worst[0]:.3f} |")
    return "\n".join(lines) + "\n"


def overall(sets):
    """A line per chooser: geometric means over all points of all models, and how many of them are slower."""
    rows = {}
    for s in sets:
        allowed = 1 + MARGIN + max(s.floor() or 0, 0)
        for name, points in choosers(s):
            entry = rows.setdefault(name, [[], [], 0])
            for at, us in points:
                for i, p in enumerate(STATIC):
                    entry[i].append(at["choices"][p]["us"] / us)
                entry[2] += us / min(at["choices"][p]["us"] for p in STATIC) > allowed
    return "; ".join(f"{name}: {geometric_mean(u):.3f} over static_uniform, {geometric_mean(k):.3f} over static_skewed, slower at "
                     f"{slower} of {len(u)}" for name, (u, k, slower) in rows.items())


def worst_table(sets, title, count=3):
    lines = ["| model | point | chosen | us | best | us | regret, % | noise there, % |", "|" + "---|" * 8]
    for s in sets:
        stats = s.stats.get("wave")
        if stats is None:
            continue
        ours = sorted(stats["points"], key=lambda p: -p["choices"]["dispatcher"]["us"] / p["best_us"])
        for p in ours[:count]:
            mine = p["choices"]["dispatcher"]
            regret = mine["us"] / p["best_us"] - 1
            noise = "–" if p["point"] not in s.noise else f"{100 * s.noise[p['point']]:.1f}"
            lines.append(f"| {title(s.model)} | {p['point']} | {short(mine['config'])} | {mine['us']:.1f} | "
                         f"{short(p['best'])} | {p['best_us']:.1f} | {bold(f'{100 * regret:.1f}', regret > MAX_BAR)} | {noise} |")
    return "\n".join(lines) + "\n"


def default_table(judged, title):
    """judged: model -> points of `ramp profile --judge`."""
    lines = ["| model | against the single best config | against what runs without a fit | points |", "|---|---|---|---|"]
    for model, points in judged.items():
        cells = [title(model)]
        for key in ("single_best_us", "default_us"):
            gain = geometric_mean([p[key] / p["us"] for p in points if p.get(key) is not None])
            cells.append("–" if gain is None else bold(f"{gain:.3f}", gain < 1))
        lines.append("| " + " | ".join(cells + [str(len(points))]) + " |")
    return "\n".join(lines) + "\n"


# --- graphs replayed with other routing

def replays(s, captured, replayed):
    """[(T, loss of the choice for `captured`, loss of the choice for `replayed`, loss of the choice by T alone)] at the
    points of `replayed`; loss: time over the best there, minus 1."""
    stats = s.stats.get("wave")
    by_name = {} if stats is None else {p["point"]: p for p in stats["points"]}
    found = []
    for name, at in by_name.items():
        if not name.endswith("_" + replayed):
            continue
        other = by_name.get(f"t{at['tokens']}_{captured}")
        if other is None:
            continue
        config = other["choices"]["dispatcher"]["config"]
        us = s.timings.get((name, config), MISSING_AS * at["best_us"])
        found.append((at["tokens"], us / at["best_us"] - 1, at["choices"]["dispatcher"]["us"] / at["best_us"] - 1,
                      at["choices"]["by_tokens"]["us"] / at["best_us"] - 1))
    return sorted(found)


def replay_table(sets, title):
    lines = ["| model | captured for | replayed with | choice for the capture's routing | choice for the replay's | choice by T "
             "alone (about what is captured) |", "|---|---|---|---|---|---|"]
    for s in sets:
        for captured, replayed in (("zipf:0.4", "zipf:1.6"), ("zipf:1.6", "zipf:0.4")):
            found = replays(s, captured, replayed)
            if not found:
                continue
            cells = [f"{100 * mean(f[i] for f in found):.2f} / {100 * max(f[i] for f in found):.1f}" for i in (1, 2, 3)]
            lines.append(f"| {title(s.model)} | {captured} | {replayed} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def replay_figure(sets, title):
    """An SVG: loss of a graph captured for zipf 0.4 and replayed with zipf 1.6, over T, one panel per model."""
    width, height, left, top = 300, 200, 46, 34
    shown = [(s, replays(s, "zipf:0.4", "zipf:1.6")) for s in sets]
    shown = [(s, found) for s, found in shown if found]
    if not shown:
        return None
    highest = max(1.0, max(100 * max(f[1:]) for _, found in shown for f in found))
    curves = [(1, "#c0392b", "chosen for zipf 0.4"), (2, "#2471a3", "chosen for zipf 1.6"), (3, "#1e8449", "chosen by T alone")]
    full = left + len(shown) * (width + left)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{full}" height="{height + 100}" font-family="sans-serif" '
           'font-size="12"><rect width="100%" height="100%" fill="#fff"/>']
    for i, (s, found) in enumerate(shown):
        x0 = left + i * (width + left)
        most = math.log(max(f[0] for f in found) / found[0][0]) or 1
        out.append(f'<text x="{x0}" y="{top - 12}" font-weight="bold">{title(s.model)}</text>')
        for step in range(5):
            value, y = highest * step / 4, top + height * (1 - step / 4)
            out.append(f'<line x1="{x0}" y1="{y:.1f}" x2="{x0 + width}" y2="{y:.1f}" stroke="#ddd"/>'
                       f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        place = [x0 + width * math.log(f[0] / found[0][0]) / most for f in found]
        for x, f in zip(place, found):
            out.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="end" '
                       f'transform="rotate(-45 {x:.1f} {top + height + 16})">{f[0]}</text>')
        for column, colour, _ in curves:
            at = [f"{x:.1f},{top + height * (1 - 100 * f[column] / highest):.1f}" for x, f in zip(place, found)]
            out.append(f'<polyline points="{" ".join(at)}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [f'<circle cx="{a.split(",")[0]}" cy="{a.split(",")[1]}" r="3" fill="{colour}"/>' for a in at]
    for j, (_, colour, text) in enumerate(curves):
        out.append(f'<rect x="{left + 190 * j}" y="{height + 78}" width="12" height="12" fill="{colour}"/>'
                   f'<text x="{left + 190 * j + 18}" y="{height + 88}">{text}</text>')
    out.append(f'<text x="{full - 10}" y="{height + 88}" text-anchor="end">time over the best at zipf 1.6, minus 1, %; T</text></svg>')
    return "\n".join(out) + "\n"
