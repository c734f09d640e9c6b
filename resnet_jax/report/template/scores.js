// The sections of scores: a table with intervals, differences, and the grid of a sweep.

const NORMAL = 1.96; // 95 % of a normal distribution lie within so many standard errors

/** The score by which a line is judged: of the test split, or else of the validation split. */
const judged = (line) => line.scores.test || line.scores.validation || null;

/** Whether the seeds have shown a variance, from which there is an interval over seeds. */
const varies = (score) => score.interval !== null && score.interval[1] > score.interval[0];

/** The 95 % interval of the mean error in percent: over seeds, or else by the choice of the images. */
function errorInterval(score) {
  if (varies(score)) return score.interval.map(errorPercent).reverse();
  return byImages(score);
}

function byImages(score) {
  const error = errorPercent(score.top1.mean);
  const reach = 100 * NORMAL * score.sampling_error;
  return [Math.max(0, error - reach), error + reach];
}

function showScores(section, state, update) {
  const names = Object.keys(state.report.shown).filter((name) => state.lines.some((line) => line.scores[name]));
  if (state.lines.length < 2 && !names.length) return;
  section.hidden = false;
  const order = { column: -1, down: false };
  const holder = html("div");
  if (state.lines.length > 1) {
    const input = html("input", { type: "search", placeholder: "filter runs, as in width=32", "aria-label": "filter runs", on: { input: () => { state.filter = input.value; update(); } } });
    section.append(html("div", { class: "controls" }, input, html("span", { class: "muted small", id: "matching" })));
  }
  section.append(holder);
  showDifferences(section, state);
  state.redraw.push(() => {
    const rows = state.lines.filter(state.matches);
    const count = document.getElementById("matching");
    if (count) count.textContent = rows.length === state.lines.length ? `${rows.length} lines` : `${rows.length} of ${state.lines.length} lines`;
    const act = (next) => { Object.assign(order, next); update(); };
    holder.replaceChildren(sortedTable(scoreColumns(state, names), rows, { order, act }));
  });
}

function scoreColumns(state, names) {
  const { lines } = state;
  const columns = [
    { text: "run", sort: (line) => line.label, cell: (line) => nameCell(line, lines.length > 1) },
    { text: "seeds", number: true, sort: (line) => line.seeds.length, cell: (line) => String(line.seeds.length) },
    { text: "steps", number: true, sort: (line) => line.steps, cell: (line) => line.steps.toLocaleString("en-US") + (line.finished ? "" : " so far") },
  ];
  if (new Set(lines.map((line) => line.model)).size > 1) columns.splice(1, 0, { text: "model", sort: (line) => line.model, cell: (line) => line.model });
  for (const name of names) {
    columns.push({ text: `${state.report.shown[name]}, %`, number: true, sort: (line) => (line.scores[name] ? errorPercent(line.scores[name].top1.mean) : null), cell: (line) => errorCell(line.scores[name]) });
  }
  if (names.length) {
    const range = forestRange(lines);
    columns.push({ text: "95 % interval", wide: true, cell: (line) => forest(judged(line), range) });
    columns.push({ text: "loss", number: true, sort: (line) => judged(line) && judged(line).loss.mean, cell: (line) => (judged(line) ? significant(judged(line).loss.mean) : "–") });
  }
  if (lines.some((line) => line.params)) {
    columns.push({ text: "parameters", number: true, sort: (line) => line.params, cell: (line) => (line.params ? line.params.toLocaleString("en-US") : "–") });
  }
  columns.push({ text: "time", number: true, sort: (line) => line.wall_s, cell: (line) => (line.wall_s ? duration(line.wall_s) : "–") });
  return columns;
}

function nameCell(line, several) {
  const unsaid = Object.entries(line.differs).filter(([name]) => !line.label.includes(name.split(".").pop()));
  const differs = unsaid.map(([name, value]) => `${name.split(".").pop()} ${value}`).join(", ");
  const text = html("span", {}, line.label, several && differs ? html("small", { text: differs }) : null);
  return html("span", { class: "name" }, several ? swatch(styleOf(line.number), 3) : null, text);
}

function errorCell(score) {
  if (!score) return "–";
  const spread = score.top1.std === null ? "" : ` ± ${(100 * score.top1.std).toFixed(2)}`;
  return html("span", { title: `${score.examples.toLocaleString("en-US")} images` }, errorPercent(score.top1.mean).toFixed(2), html("span", { class: "muted", text: spread }));
}

/** The errors that the small charts of intervals show. */
function forestRange(lines) {
  const scores = lines.map(judged).filter(Boolean);
  return extent(scores.flatMap((score) => [...errorInterval(score), ...byImages(score), ...seedErrors(score)]));
}

const seedErrors = (score) => Object.values(score.values).map(errorPercent);

/** A small chart: the mean, its intervals over seeds and by images, and the seeds. */
function forest(score, range) {
  if (!score) return "–";
  const width = 150;
  const at = (error) => 6 + ((error - range[0]) / (range[1] - range[0] || 1)) * (width - 12);
  const bar = ([low, high], size) => styled(svg("line", { x1: at(low), x2: at(high), y1: 11, y2: 11, "stroke-width": size, "stroke-linecap": "round" }), { stroke: "var(--accent)", opacity: size > 2 ? 0.38 : 0.8 });
  const text = varies(score) ? `over seeds ${intervalText(errorInterval(score))}; by images ${intervalText(byImages(score))}` : `by images ${intervalText(byImages(score))}`;
  const picture = svg("svg", { class: "forest", width, height: 22, role: "img", "aria-label": text }, svg("title", { text }), bar(byImages(score), 1.2));
  if (varies(score)) picture.append(bar(errorInterval(score), 8));
  for (const error of seedErrors(score)) picture.append(styled(svg("circle", { cx: at(error), cy: 11, r: 2 }), { fill: "var(--ink)", opacity: 0.55 }));
  const middle = at(errorPercent(score.top1.mean));
  picture.append(styled(svg("line", { x1: middle, x2: middle, y1: 4, y2: 18, "stroke-width": 2 }), { stroke: "var(--accent)" }));
  return picture;
}

const intervalText = ([low, high]) => `${low.toFixed(2)} … ${high.toFixed(2)} %`;

/** How the error of each line differs from the first line's, and whether that is real. */
function showDifferences(section, state) {
  const compared = state.lines.filter((line) => line.versus);
  if (!compared.length) return;
  const points = (accuracy) => (-100 * accuracy).toFixed(2).replace(/^(?=\d)/, "+").replace("-", "−");
  const about = html("p", { class: "about" });
  about.textContent = `Difference of the error from ${state.lines[0].label}, in points.`;
  if (compared.length >= 3) {
    about.textContent += ` Of ${compared.length} comparisons at 5 %, chance alone makes ${significant(0.05 * compared.length, 2)} seem real.`;
  }
  const holder = html("div");
  section.append(html("h3", { text: "Differences" }), about, holder);
  const order = { column: -1, down: false };
  const versus = (line) => line.versus;
  const columns = [
    { text: "run", sort: (line) => line.label, cell: (line) => line.label },
    { text: "split", cell: (line) => versus(line).split },
    { text: "difference", number: true, sort: (line) => (versus(line).effect === null ? null : -versus(line).effect), cell: (line) => (versus(line).effect === null ? "–" : points(versus(line).effect)) },
    { text: "95 % interval", number: true, cell: (line) => (versus(line).low === null ? "–" : `${points(versus(line).high)} … ${points(versus(line).low)}`) },
    { text: "p", number: true, sort: (line) => versus(line).p, cell: (line) => (versus(line).p === null ? "–" : significant(versus(line).p, 2)) },
    { text: "test", wide: true, cell: (line) => versus(line).test || "–" },
    { text: "verdict", cell: (line) => verdict(versus(line)) },
  ];
  const draw = () => holder.replaceChildren(sortedTable(columns, compared.filter(state.matches), { order, act: (next) => { Object.assign(order, next); draw(); } }));
  state.redraw.push(draw);
}

function verdict({ effect, is_real: isReal, note }) {
  if (effect === null) return note;
  if (!isReal) return html("span", { class: "muted", text: note ? `undecided: ${note}` : "undecided" });
  return html("span", { class: effect > 0 ? "good" : "bad", text: effect > 0 ? "better" : "worse" });
}

/** The grid of a sweep: error over a field, a series for the other fields' values. */
function showGrid(section, state) {
  const { grid, shown } = state.report;
  const names = Object.keys(shown).filter((name) => state.lines.some((line) => line.scores[name]));
  if (!grid.length || !names.length || state.lines.length < 2) return;
  section.hidden = false;
  const isNumeric = (field) => field.values.every((value) => typeof value === "number");
  const rank = (field) => new Set(field.values.map(String)).size + (isNumeric(field) ? 0.5 : 0);
  const longest = grid.reduce((best, field, i) => (rank(field) > rank(grid[best]) ? i : best), 0);
  const view = { x: longest, score: names.includes("test") ? "test" : names[0] };
  const controls = html("div", { class: "controls" });
  const legend = html("div", { class: "legend" });
  const figure = html("figure");
  section.append(controls, figure, legend);
  const draw = () => {
    const change = (name) => (value) => { view[name] = value; draw(); };
    controls.replaceChildren(
      choice("error over", grid.map((field, i) => [i, field.name]), view.x, change("x")),
      choice("scores of", names.map((name) => [name, shown[name]]), view.score, change("score")),
    );
    const lines = state.lines.filter((line) => state.matches(line) && line.scores[view.score]);
    const { series, ticks } = gridSeries(lines, grid, view);
    const title = `${shown[view.score]} error over ${grid[view.x].name}`;
    drawChart(figure, series, { title, xLabel: grid[view.x].name, yLabel: "error (%)", fromZero: true, ticks });
    legend.replaceChildren(...(series.length > 1 ? series.map((one) => html("span", {}, swatch(one), one.label)) : []));
  };
  state.redraw.push(draw);
}

function gridSeries(lines, grid, view) {
  const field = grid[view.x];
  const others = grid.filter((other) => other !== field);
  const short = (name) => name.split(".").pop();
  const key = (line) => others.map((other) => `${short(other.name)} ${other.values[line.number]}`).join(", ");
  const values = [...new Map(lines.map((line) => [String(field.values[line.number]), field.values[line.number]])).values()];
  const isNumeric = values.every((value) => typeof value === "number");
  values.sort((a, b) => (isNumeric ? a - b : String(a).localeCompare(String(b), "en", { numeric: true })));
  const ticks = values.map((value, i) => [i, typeof value === "number" ? significant(value, 6) : String(value)]);
  const groups = new Map();
  for (const line of lines) groups.set(key(line), [...(groups.get(key(line)) || []), line]);
  const series = [...groups].map(([label, of], number) => {
    const place = (line) => values.findIndex((value) => String(value) === String(field.values[line.number]));
    const shift = (number - (groups.size - 1) / 2) * Math.min(0.06, 0.5 / groups.size);
    const sorted = [...of].sort((a, b) => place(a) - place(b));
    const scores = sorted.map((line) => line.scores[view.score]);
    const ends = scores.map(errorInterval);
    return {
      ...styleOf(number), label: label || "error", points: true, width: 1.4,
      x: sorted.map((line) => place(line) + shift), y: scores.map((score) => errorPercent(score.top1.mean)),
      low: ends.map(([low]) => Math.max(0, low)), high: ends.map(([, high]) => high),
    };
  });
  return { series, ticks };
}
