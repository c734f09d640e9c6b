// The page: its state, header and sections.

function main() {
  const report = JSON.parse(document.getElementById("data").textContent);
  const section = (name) => document.getElementById(name);
  const lines = report.lines.map((line, number) => ({ ...line, number }));
  const state = {
    report,
    lines,
    filter: "",
    visible: new Set(lines.slice(0, 12).map((line) => line.number)),
    redraw: [],
    /** Whether all words of the filter are in the label, model or fields of a line. */
    matches(line) {
      const fields = Object.entries(line.differs).map(([name, value]) => `${name}=${value}`);
      const text = [line.label, line.model, line.data, ...fields].join(" ").toLowerCase();
      return state.filter.toLowerCase().split(/\s+/).every((word) => text.includes(word));
    },
  };
  const update = () => state.redraw.forEach((draw) => draw());
  showHeader(state);
  if (report.notes.length) {
    section("notes").hidden = false;
    section("notes").append(html("ul", {}, ...report.notes.map((text) => html("li", { text }))));
  }
  showScores(section("scores"), state, update);
  showGrid(section("grid"), state);
  showCurves(section("curves"), state, update);
  showExamined({ confusion: section("confusion"), mistakes: section("mistakes") }, state);
  showFields(section("fields"), state);
  showTimes(section("times"), state);
  showMade(section("made"), state);
  for (const one of document.querySelectorAll("main section:not([hidden])")) {
    section("contents").append(html("a", { href: `#${one.id}`, text: one.querySelector("h2").textContent }));
  }
  update();
  let width = document.body.clientWidth;
  window.addEventListener("resize", () => {
    if (document.body.clientWidth === width) return; // on phones, only the address bar moved
    width = document.body.clientWidth;
    update();
  });
}

function showHeader({ report, lines }) {
  const seeds = lines.reduce((sum, line) => sum + line.seeds.length, 0);
  const all = (name) => [...new Set(lines.map((line) => line[name]).filter(Boolean))].join(", ");
  const parts = [[all("model"), all("data")].filter(Boolean).join(" on "), lines.length > 1 ? counted(lines.length, "configuration") : "", counted(seeds, "seed")].filter(Boolean);
  if (report.dates) parts.push(`trained ${report.dates.began} to ${report.dates.ended}`);
  document.getElementById("lead").textContent = parts.join(" · ");
  const facts = document.getElementById("facts");
  const fact = (name, value, more) => facts.append(html("div", {}, html("dt", { text: name }), html("dd", {}, value, html("small", { text: more }))));
  const scored = lines.filter(judged);
  if (scored.length) {
    const best = scored.reduce((a, b) => (judged(b).top1.mean > judged(a).top1.mean ? b : a));
    const score = judged(best);
    const split = best.scores.test ? "test" : "validation";
    const how = varies(score) ? "95 % over seeds" : "95 % by images";
    fact(`${lines.length > 1 ? "lowest " : ""}${split} error`, `${errorPercent(score.top1.mean).toFixed(2)} %`, `${how}: ${intervalText(errorInterval(score))}`);
    if (lines.length > 1) fact(`${split} error is lowest with`, best.label, counted(best.seeds.length, "seed"));
    if (lines.length === 1 && best.params) fact("parameters", best.params.toLocaleString("en-US"), best.model);
  }
  const wall = lines.reduce((sum, line) => sum + (line.wall_s || 0), 0);
  if (wall) fact("training time", duration(wall), "of finished runs, in sum");
  if (report.times.length) {
    const seconds = report.times.flatMap((one) => Object.entries(one.seconds));
    const total = seconds.reduce((sum, [, value]) => sum + value, 0);
    const steps = report.times.reduce((sum, one) => sum + one.share * Object.values(one.seconds).reduce((a, b) => a + b, 0), 0);
    fact("goodput", `${((100 * steps) / (total || 1)).toFixed(1)} %`, counted(report.times.reduce((sum, one) => sum + one.restarts, 0), "restart"));
  }
}

main();
