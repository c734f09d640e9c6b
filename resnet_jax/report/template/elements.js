"use strict";
// Elements, numbers and styles. All that comes from runs enters the page as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";
const COLORS = 8;
const DASHES = ["", "6 4", "2 3", "8 3 2 3"];

/** Set attributes ("text" and "on" are special), append children, and return the node. */
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "on") Object.entries(value).forEach(([event, act]) => node.addEventListener(event, act));
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; children are nodes or texts. */
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** An SVG element. */
function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

/** The colour and dashes of a line: colours first, which are easier to tell apart. */
function styleOf(number) {
  return {
    color: `var(--c${number % COLORS})`,
    dash: DASHES[Math.floor(number / COLORS) % DASHES.length],
  };
}

/** A short piece of a line in its style, for legends. */
function swatch({ color, dash }, width = 2.5) {
  const line = svg("line", { x1: 0, x2: 20, y1: 5, y2: 5, "stroke-width": width, "stroke-dasharray": dash });
  line.style.stroke = color;
  return svg("svg", { width: 20, height: 10, "aria-hidden": "true" }, line);
}

/** A number with so many significant digits, without an exponent if it is of ordinary size. */
function significant(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e7) return value.toExponential(Math.max(0, digits - 1));
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

/** A share in 0…1 of the accuracy as an error in percent. */
const errorPercent = (accuracy) => 100 * (1 - accuracy);

/** A duration such as "3 h 12 min" or "45 s". */
function duration(seconds) {
  if (seconds < 60) return `${significant(seconds, 2)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60).toLocaleString("en-US")} h ${minutes % 60} min`;
}

/** A count with the right form of the noun. */
const counted = (count, noun) => `${count.toLocaleString("en-US")} ${noun}${count === 1 ? "" : "s"}`;

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** The standard deviation with n - 1; 0 for a single value. */
function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** A select element; `options` are [value, text]. */
function choice(label, options, chosen, act) {
  const made = html("select", { on: { change: () => act(made.value) } });
  for (const [value, text] of options) {
    made.append(html("option", { value, text, selected: String(value) === String(chosen) }));
  }
  return html("label", {}, label, made);
}

/** A labelled checkbox. */
function tick(label, checked, act) {
  const box = html("input", { type: "checkbox", checked, on: { change: () => act(box.checked) } });
  return html("label", {}, box, label);
}

/** A table whose columns sort by a click: {text, number, sort(row), cell(row)}; null sorts last. */
function sortedTable(columns, rows, { order, act }) {
  const body = html("tbody");
  const kindOfCell = (column) => (column.number ? "number" : column.wide ? "wide" : null);
  const head = columns.map((column, place) => {
    const direction = order.column === place ? (order.down ? "descending" : "ascending") : null;
    const turn = () => act({ column: place, down: order.column === place && !order.down });
    const title = column.sort ? html("button", { type: "button", text: column.text, on: { click: turn } }) : column.text;
    return html("th", { class: kindOfCell(column), scope: "col", "aria-sort": direction }, title);
  });
  const by = columns[order.column];
  const sorted = [...rows];
  if (by && by.sort) sorted.sort((a, b) => compareKeys(by.sort(a), by.sort(b), order.down));
  for (const row of sorted) {
    const cells = columns.map((column, place) => {
      const kind = place === 0 ? "th" : "td";
      return html(kind, { class: kindOfCell(column), scope: kind === "th" ? "row" : null }, column.cell(row));
    });
    body.append(html("tr", {}, ...cells));
  }
  return html("div", { class: "scroll" }, html("table", {}, html("thead", {}, html("tr", {}, ...head)), body));
}

function compareKeys(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const less = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return down ? -less : less;
}
