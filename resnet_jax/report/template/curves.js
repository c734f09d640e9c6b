// The section of curves: loss, error, learning rate and gradient norm.

const KINDS = {
  train_raw: { text: "training", style: 0 },
  validation_raw: { text: "validation", style: 1 },
  validation_ema: { text: "validation, moving averages", style: 2 },
  test_raw: { text: "test", style: 6 },
  test_ema: { text: "test, moving averages", style: 3 },
};
const PANELS = [
  { metric: "loss", title: "Loss", yLabel: "cross-entropy (nats)", log: true },
  { metric: "top1", title: "Top-1 error", yLabel: "error (%)", fromZero: true, settled: true, turn: errorPercent },
  { metric: "lr", title: "Learning rate", yLabel: "learning rate", fromZero: true },
  { metric: "grad_norm", title: "Gradient norm", yLabel: "norm", log: true },
];

function showCurves(section, state, update) {
  const lines = state.lines.filter((line) => line.curves.length);
  if (!lines.length) return;
  const kinds = Object.keys(KINDS).filter((kind) => lines.some((line) => line.curves.some((curve) => kindOf(curve) === kind)));
  const view = { hidden: new Set(), seeds: false, log: true, x: "epochs", zoom: null };
  const controls = html("div", { class: "controls" });
  const legend = html("div", { class: "controls" });
  const panels = PANELS.filter(({ metric }) => lines.some((line) => line.curves.some((curve) => curve.values[metric])));
  const figures = panels.map(() => html("figure"));
  section.append(controls, legend, html("div", { class: "charts" }, ...figures));
  const thinned = lines.flatMap((line) => line.curves).filter((curve) => curve.recorded > curve.steps.length);
  if (thinned.length) {
    const most = Math.max(...thinned.map((curve) => curve.recorded));
    section.append(html("p", { class: "about", text: `Of up to ${most.toLocaleString("en-US")} recorded points of a curve, ${thinned[0].steps.length} evenly spaced ones are drawn.` }));
  }
  section.hidden = false;

  const draw = () => {
    const change = (change) => { Object.assign(view, change); draw(); };
    controls.replaceChildren(
      ...kinds.map((kind) => chip(KINDS[kind].text, lines.length === 1 ? styleOfKind(kind) : null, !view.hidden.has(kind), () => { toggle(view.hidden, kind); draw(); })),
      choice("x axis", [["epochs", "epochs"], ["steps", "steps"]], view.x, (x) => change({ x, zoom: null })),
      tick("logarithmic loss", view.log, (log) => change({ log })),
      lines.some(hasSeeds) ? tick("each seed", view.seeds, (seeds) => change({ seeds })) : "",
      view.zoom ? html("button", { type: "button", class: "chip", text: "show all", on: { click: () => change({ zoom: null }) } }) : "",
    );
    const matching = lines.filter(state.matches);
    legend.replaceChildren(...(lines.length === 1 ? [] : matching.map((line) => chip(line.label, styleOf(line.number), state.visible.has(line.number), () => { toggle(state.visible, line.number); update(); }))));
    const shown = matching.filter((line) => state.visible.has(line.number));
    panels.forEach((panel, i) => {
      const series = shown.flatMap((line) => seriesOf(line, panel, view, lines.length === 1));
      const log = panel.log && (panel.metric !== "loss" || view.log);
      drawChart(figures[i], series, { ...panel, log, xLabel: view.x === "epochs" ? "epoch" : "step", zoom: view.zoom, onZoom: (zoom) => change({ zoom }) });
    });
  };
  state.redraw.push(draw);
}

const kindOf = (curve) => `${curve.split}_${curve.weights}`;
const hasSeeds = (line) => line.curves.some((curve) => curve.values.loss && curve.values.loss.length > 1);

function styleOfKind(kind) {
  return { ...styleOf(KINDS[kind].style), dash: kind.endsWith("_ema") ? DASHES[1] : "" };
}

function chip(text, style, pressed, act) {
  return html("button", { type: "button", class: "chip", "aria-pressed": String(pressed), on: { click: act } }, style ? swatch(style) : null, text);
}

function toggle(set, value) {
  if (!set.delete(value)) set.add(value);
}

/** The series of a line in a panel: a curve for each split, or for each seed. */
function seriesOf(line, panel, view, alone) {
  const turn = panel.turn || ((value) => value);
  return line.curves.flatMap((curve) => {
    const kind = kindOf(curve);
    const values = curve.values[panel.metric];
    if (!values || view.hidden.has(kind)) return [];
    const isTraining = curve.split === "train";
    const style = alone ? styleOfKind(kind) : styleOf(line.number);
    const only = panel.metric === "lr" || panel.metric === "grad_norm";
    const what = alone ? KINDS[kind].text : `${line.label}, ${KINDS[kind].text}`;
    const label = only && !alone ? line.label : what;
    const common = { ...style, label, x: curve[view.x], width: isTraining && !only ? 1.1 : 1.9, opacity: isTraining && !alone && !only ? 0.55 : 1 };
    const seeds = values.map((of) => of.map((value) => (value === null ? null : turn(value))));
    if (view.seeds && seeds.length > 1) {
      return seeds.map((y, i) => ({ ...common, y, label: `${label}, seed ${line.seeds[i]}`, width: 1, opacity: 0.75 }));
    }
    return [{ ...common, ...spread(seeds) }];
  });
}

/** The mean over seeds at each point, and of several seeds ± one standard deviation. */
function spread(seeds) {
  const points = seeds[0].map((_, i) => seeds.map((of) => of[i])).map((of) => (of.includes(null) ? null : of));
  const y = points.map((of) => of && mean(of));
  if (seeds.length === 1) return { y };
  const ends = (sign) => points.map((of) => of && mean(of) + sign * deviation(of));
  return { y, low: ends(-1), high: ends(1) };
}
