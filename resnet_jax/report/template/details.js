// The sections of mistakes, config, time and versions.

const PHASES = {
  step: 2, compile: 4, evaluation: 0, save: 3, data_wait: 1, restore: 5, start_up: 7, lost: 6,
};

function showExamined(sections, state) {
  const examined = state.lines.filter((line) => line.examined);
  if (!examined.length) return;
  const holders = { confusion: html("div"), mistakes: html("div") };
  let chosen = examined[0].number;
  const draw = () => {
    const line = state.lines[chosen];
    for (const [name, show] of [["confusion", confusionTable], ["mistakes", gallery]]) {
      const pick = choice("network of", examined.map(({ number, label }) => [number, label]), chosen, (value) => { chosen = Number(value); draw(); });
      holders[name].replaceChildren(...(examined.length > 1 ? [html("div", { class: "controls" }, pick)] : []), ...show(line.examined, examined.length > 1 ? line.label : ""));
    }
  };
  for (const [name, holder] of Object.entries(holders)) {
    sections[name].append(holder);
    sections[name].hidden = false;
  }
  draw();
}

function source({ networks, examples, split }, label) {
  const what = networks === 1 ? "the last checkpoint" : `the last checkpoints of ${networks} seeds`;
  return `${label ? `${label}, ` : ""}${what} on ${counted(examples, "image")} of the ${split} split`;
}

function confusionTable(examined, label) {
  const { classes, confusion, pairs, networks } = examined;
  const about = html("p", { class: "about", text: `Of ${source(examined, label)}${networks === 1 ? "" : ", summed over the seeds"}. Rows are true classes, columns predictions; colours are shares of the true class.` });
  if (!classes.length) {
    about.textContent = `Of ${source(examined, label)}: the most frequent confusions.`;
    return [about, simpleTable(["true class", "predicted", "images"], pairs, "pairs")];
  }
  const upright = classes.some((name) => name.length > 4);
  const head = html("tr", {}, html("th"), ...classes.map((name) => html("th", { class: upright ? "upright" : null, scope: "col", title: name }, html("span", { text: name }))));
  const rows = confusion.map((counts, i) => {
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    const cells = counts.map((count, j) => {
      const share = count / total;
      const cell = html("td", { text: count || "", title: `${classes[i]} → ${classes[j]}: ${count} of ${total}` });
      if (count) cell.style.background = `color-mix(in srgb, var(--${i === j ? "c0" : "c1"}) ${Math.round(14 + 86 * Math.sqrt(share))}%, var(--paper))`;
      if (share > 0.3) cell.style.color = "var(--paper)";
      return cell;
    });
    return html("tr", {}, html("th", { scope: "row", text: classes[i] }), ...cells);
  });
  return [about, html("div", { class: "scroll" }, html("table", { class: "matrix" }, html("thead", {}, head), html("tbody", {}, ...rows)))];
}

function simpleTable(head, rows, kind = null) {
  const cells = (name, row) => html("tr", {}, ...row.map((cell) => html(name, { text: String(cell) })));
  return html("div", { class: "scroll" }, html("table", { class: kind }, html("thead", {}, cells("th", head)), html("tbody", {}, ...rows.map((row) => cells("td", row)))));
}

function gallery(examined, label) {
  const { mistakes, networks } = examined;
  const text = mistakes.length
    ? `Of ${source(examined, label)}, the wrong predictions with the highest ${networks === 1 ? "" : "mean "}probability.`
    : `Of ${source(examined, label)}, none is classified wrongly.`;
  const about = html("p", { class: "about", text });
  const holder = html("div", { class: "gallery" });
  const classes = [...new Set(mistakes.map((one) => one.true))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const draw = (only) => holder.replaceChildren(...mistakes.filter((one) => !only || one.true === only).map(mistakeFigure));
  draw("");
  const pick = choice("true class", [["", "all"], ...classes.map((name) => [name, name])], "", draw);
  return [about, ...(classes.length > 1 ? [html("div", { class: "controls" }, pick)] : []), holder];
}

function mistakeFigure(one) {
  const percent = (share) => (share < 1e-4 ? "<\u00a00.01" : (100 * share).toFixed(share > 0.9995 || share < 0.1 ? 2 : 1)) + "\u00a0%";
  const image = html("img", { src: one.image, width: one.width, height: one.height, alt: `image ${one.index} of the split`, class: one.width < 100 ? "pixels" : null });
  const caption = html("p", {}, html("b", { class: "bad", text: one.predicted }), ` ${percent(one.of_predicted)}`, html("br"), html("span", { class: "muted", text: `is ${one.true}, ${percent(one.of_true)}` }));
  return html("figure", { title: `image ${one.index}` }, image, caption);
}

function showFields(section, state) {
  const { fields } = state.report;
  if (!fields.length) return;
  section.hidden = false;
  const view = { all: false, filter: "" };
  const holder = html("div");
  const input = html("input", { type: "search", placeholder: "filter fields", "aria-label": "filter fields", on: { input: () => { view.filter = input.value.toLowerCase(); draw(); } } });
  const differing = fields.filter((field) => field.differs).length;
  const about = state.lines.length > 1
    ? `${counted(differing, "field")} ${differing === 1 ? "differs" : "differ"} between the lines. Of the others, those that aren't defaults are shown.`
    : "The fields that aren't defaults.";
  section.append(html("p", { class: "about", text: about }), html("div", { class: "controls" }, input, tick("all fields", false, (all) => { view.all = all; draw(); })), holder);
  const draw = () => {
    const shown = fields.filter((field) => (view.all || field.differs || !field.is_default) && field.name.includes(view.filter));
    const tables = [];
    const wide = shown.filter((field) => field.differs);
    if (wide.length) {
      const lines = state.lines.filter(state.matches);
      tables.push(simpleTable(["run", ...wide.map((field) => field.name)], lines.map((line) => [line.label, ...wide.map((field) => valueOf(field, line))])));
    }
    const shared = shown.filter((field) => !field.differs);
    if (shared.length) tables.push(simpleTable(["field", "value"], shared.map((field) => [field.name, [...new Set(field.values)].join(" or ")]), "pairs"));
    holder.replaceChildren(...tables, ...(tables.length ? [] : [html("p", { class: "muted", text: "No field." })]));
  };
  state.redraw.push(draw);
}

const valueOf = (field, line) => field.values[field.values.length > 1 ? line.number : 0];

function showTimes(section, state) {
  const { times } = state.report;
  if (!times.length) return;
  section.hidden = false;
  const known = Object.keys(PHASES);
  const phases = [...known, ...new Set(times.flatMap((one) => Object.keys(one.seconds)).filter((name) => !known.includes(name)))]
    .filter((phase) => times.some((one) => one.seconds[phase] > 0));
  const color = (phase) => `var(--c${PHASES[phase] ?? 7})`;
  const legend = phases.map((phase) => html("span", {}, styled(html("i"), { background: color(phase) }), phase.replace("_", " ")));
  const rows = [...times];
  const total = (one) => Object.values(one.seconds).reduce((sum, value) => sum + value, 0) || 1;
  const bar = (one) => html("div", { class: "bar" }, ...phases.map((phase) => {
    const seconds = one.seconds[phase] || 0;
    return styled(html("i", { title: `${phase}: ${duration(seconds)}` }), { width: `${(100 * seconds) / total(one)}%`, background: color(phase) });
  }));
  const columns = [
    { text: "run", sort: (one) => one.run, cell: (one) => one.run },
    { text: "goodput", number: true, sort: (one) => one.share, cell: (one) => `${(100 * one.share).toFixed(1)} %` },
    { text: "wall time", number: true, sort: total, cell: (one) => duration(total(one)) },
    { text: "restarts", number: true, sort: (one) => one.restarts, cell: (one) => String(one.restarts) },
    { text: "where it went", cell: bar },
  ];
  const holder = html("div");
  const order = { column: -1, down: false };
  const draw = () => holder.replaceChildren(sortedTable(columns, rows, { order, act: (next) => { Object.assign(order, next); draw(); } }));
  section.append(html("div", { class: "legend" }, ...legend), holder);
  draw();
}

function showMade(section, state) {
  const { made_by: made } = state.report;
  if (!made.length) return;
  section.hidden = false;
  for (const one of made) {
    const list = html("dl", { class: "facts" });
    const add = (name, ...texts) => texts.length && list.append(html("dt", { text: name }), html("dd", {}, ...texts));
    if (made.length > 1) add("runs", one.runs.join(", "));
    const pairs = (value) => (typeof value === "string" ? value : Object.entries(value).map(([name, text]) => `${name.replace("_", " ")} ${text}`).join(" · "));
    for (const name of ["hardware", "versions", "convolutions"]) if (one[name]) add(name, pairs(one[name]));
    add("commit", html("code", { text: one.commit || "unknown" }));
    add(one.commands.length === 1 ? "command" : "commands", ...one.commands.flatMap((command) => [html("code", { text: typeof command === "string" ? command : pairs(command) }), html("br")]));
    section.append(list);
  }
}
