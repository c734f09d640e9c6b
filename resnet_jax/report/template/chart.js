// A line chart with error bands, a crosshair and zoom.

const MARGIN = { left: 60, right: 12, top: 8, bottom: 34 };
const LARGEST = 1e100; // values beyond aren't drawn, for axes have no room for them
const NARROWEST = 1e-9; // range of the x axis, relative to its numbers
let clips = 0;

/**
 * Draw a chart into a figure, in place of what it showed.
 *
 * series: [{label, color, dash, width, opacity, x, y, low, high, points}]; `low` and `high` are
 * optional, `points` draws markers with error bars instead of a band.
 * options: {title, xLabel, yLabel, log, fromZero, settled, zoom, onZoom, ticks}; `settled` lets the
 * first quarter of the curves not determine the scale, `ticks` are [position, text] of the x axis.
 */
function drawChart(figure, series, options) {
  const shown = series.filter((one) => one.x.length);
  if (!shown.length) {
    figure.replaceChildren(html("figcaption", { text: options.title }), html("p", { class: "muted", text: "Nothing is chosen." }));
    return;
  }
  const width = Math.max(260, figure.clientWidth || 480);
  const height = Math.round(Math.min(300, Math.max(210, width * 0.58)));
  const x = scale(xRange(shown, options), MARGIN.left, width - MARGIN.right, false);
  const y = scale(yRange(shown, x.domain, options), height - MARGIN.bottom, MARGIN.top, options.log);
  const id = `clip${++clips}`;
  const area = svg("g", { "clip-path": `url(#${id})` });
  const plot = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${options.title}: ${options.yLabel} over ${options.xLabel}` });
  const inner = { x: MARGIN.left, y: 0, width: width - MARGIN.left - MARGIN.right + 6, height: height - MARGIN.bottom + 6 };
  plot.append(svg("defs", {}, svg("clipPath", { id }, svg("rect", inner))));
  drawAxes(plot, x, y, { width, height, ...options });
  for (const one of shown) area.append(...drawSeries(one, x, y));
  plot.append(area);
  figure.replaceChildren(html("figcaption", { text: options.title }), plot);
  follow(figure, plot, shown, x, y, { width, height, ...options });
}

function xRange(series, { zoom, ticks }) {
  if (zoom) return zoom;
  if (ticks) return [-0.5, ticks.length - 0.5];
  const all = series.flatMap((one) => one.x);
  const [low, high] = extent(all);
  return low === high ? [low - 1, high + 1] : [low, high];
}

function yRange(series, [first, last], { log, fromZero, settled }) {
  const start = settled ? first + (last - first) / 4 : first;
  const values = (from) => series.flatMap((one) => one.x.flatMap((x, i) => (x < from || x > last ? [] : ends(one, i))))
    .filter((value) => value !== null && Math.abs(value) < LARGEST && (!log || value > 1 / LARGEST));
  const late = values(start);
  const [low, high] = extent(late.length ? late : values(first));
  if (log && low <= 0) return [0.1, 1]; // nothing to show
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.15, high * 1.15];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [fromZero ? 0 : low - pad, fromZero && high <= 0 ? 1 : high + pad];
}

const ends = (one, i) => (one.low ? [one.low[i], one.high[i], one.y[i]] : [one.y[i]]);

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low > high ? [0, 1] : [low, high];
}

/** A scale from a domain to pixels, with its ticks. */
function scale(domain, start, end, log) {
  const f = log ? Math.log10 : (value) => value;
  const [low, high] = domain.map(f);
  const at = (value) => (log && value <= 0 ? start : start + ((f(value) - low) / (high - low)) * (end - start));
  const back = (pixel) => low + ((pixel - start) / (end - start)) * (high - low);
  return { at, back, domain, ticks: log ? logTicks(domain) : linearTicks(domain, end < start ? (start - end) / 33 : (end - start) / 52) };
}

function linearTicks([low, high], most) {
  const rough = (high - low) / Math.max(2, most);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || rough;
  const [first, last] = [Math.ceil(low / step - 1e-9), Math.floor(high / step + 1e-9)];
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

function logTicks([low, high]) {
  const decades = Math.log10(high / low);
  const factors = decades > 3 ? [1] : decades > 1.2 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    ticks.push(...factors.map((factor) => factor * 10 ** power));
  }
  return ticks.filter((value) => value >= low && value <= high);
}

function drawAxes(plot, x, y, { width, height, xLabel, yLabel, ticks }) {
  const bottom = height - MARGIN.bottom;
  for (const value of y.ticks) {
    const at = y.at(value);
    plot.append(svg("line", { class: "gridline", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
    plot.append(svg("text", { x: MARGIN.left - 7, y: at + 4, "text-anchor": "end", text: significant(value) }));
  }
  const every = ticks ? Math.ceil(Math.max(...ticks.map(([, text]) => text.length)) * ticks.length * 7 / (width - MARGIN.left)) : 1;
  const places = ticks ? ticks.filter((_, i) => i % every === 0) : x.ticks.map((value) => [value, significant(value, 6)]);
  for (const [value, text] of places) {
    plot.append(svg("text", { x: x.at(value), y: bottom + 16, "text-anchor": "middle", text }));
  }
  plot.append(svg("line", { class: "axis", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  plot.append(svg("text", { x: width - MARGIN.right, y: height - 3, "text-anchor": "end", text: xLabel }));
  plot.append(svg("text", { x: 11, y: bottom / 2, transform: `rotate(-90 11 ${bottom / 2})`, "text-anchor": "middle", text: yLabel }));
}

function drawSeries(one, x, y) {
  const drawn = [];
  const there = one.x.map((_, i) => i).filter((i) => one.y[i] !== null);
  if (one.low && !one.points) {
    const upper = there.map((i) => `${x.at(one.x[i]).toFixed(1)} ${y.at(one.high[i]).toFixed(1)}`);
    const lower = there.map((i) => `${x.at(one.x[i]).toFixed(1)} ${y.at(one.low[i]).toFixed(1)}`).reverse();
    drawn.push(styled(svg("path", { d: `M${[...upper, ...lower].join("L")}Z`, opacity: 0.17 }), { fill: one.color }));
  }
  const path = there.map((i) => `${x.at(one.x[i]).toFixed(1)} ${y.at(one.y[i]).toFixed(1)}`).join("L");
  if (there.length > 1) {
    const line = svg("path", { d: `M${path}`, fill: "none", "stroke-width": one.width || 1.8, "stroke-dasharray": one.dash, "stroke-linejoin": "round", opacity: one.opacity });
    drawn.push(styled(line, { stroke: one.color }));
  }
  if (one.points || there.length === 1) {
    for (const i of there) {
      const at = { cx: x.at(one.x[i]), cy: y.at(one.y[i]) };
      if (one.low) {
        const bar = { x1: at.cx, x2: at.cx, y1: y.at(one.low[i]), y2: y.at(one.high[i]), "stroke-width": 1.4 };
        drawn.push(styled(svg("line", bar), { stroke: one.color }));
      }
      drawn.push(styled(svg("circle", { ...at, r: 4 }), { fill: one.color }));
    }
  }
  return drawn;
}

function styled(node, style) {
  Object.assign(node.style, style);
  return node;
}

/** Show the values nearest to the pointer, and zoom where it is dragged. */
function follow(figure, plot, series, x, y, { width, height, xLabel, onZoom, ticks }) {
  const line = svg("line", { class: "crosshair", y1: MARGIN.top, y2: height - MARGIN.bottom, visibility: "hidden" });
  const box = svg("rect", { class: "zoom", y: MARGIN.top, height: height - MARGIN.bottom - MARGIN.top, visibility: "hidden" });
  const tip = html("div", { class: "tooltip", hidden: true });
  plot.append(line, box);
  figure.append(tip);
  let from = null;
  const pixel = (event) => {
    const frame = plot.getBoundingClientRect();
    return Math.min(width - MARGIN.right, Math.max(MARGIN.left, ((event.clientX - frame.left) / frame.width) * width));
  };
  const show = (event) => {
    const value = x.back(pixel(event));
    const near = series.map((one) => ({ one, i: nearest(one.x, value) }));
    const best = nearest(near.map(({ one, i }) => one.x[i]), value);
    if (!near.length) return;
    const at = near[best].one.x[near[best].i];
    const places = near.filter(({ one, i }) => one.x[i] === at && one.y[i] !== null && one.label).slice(0, 12);
    fill(line, { x1: x.at(at), x2: x.at(at), visibility: "visible" }, []);
    const name = ticks ? ticks[Math.round(at)][1] : significant(at, 6);
    tip.replaceChildren(html("div", { class: "muted", text: `${xLabel} ${name}` }));
    for (const { one, i } of places) {
      const spread = one.low ? ` (${significant(one.low[i])} … ${significant(one.high[i])})` : "";
      tip.append(html("div", {}, swatch(one), html("span", { text: one.label }), html("b", { text: significant(one.y[i], 4) + spread })));
    }
    tip.hidden = false;
    const share = x.at(at) / width;
    const room = figure.clientWidth;
    const left = share < 0.5 ? share * room + 12 : share * room - tip.offsetWidth - 12;
    tip.style.left = `${Math.max(0, Math.min(left, room - tip.offsetWidth))}px`;
    tip.style.top = "30px";
    if (from !== null) {
      const now = pixel(event);
      fill(box, { x: Math.min(from, now), width: Math.abs(now - from), visibility: "visible" }, []);
    }
  };
  const hide = () => {
    tip.hidden = true;
    line.setAttribute("visibility", "hidden");
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerleave", hide);
  if (!onZoom) return;
  plot.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button !== 0) return;
    from = pixel(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const chosen = [from, pixel(event)].sort((a, b) => a - b);
    from = null;
    box.setAttribute("visibility", "hidden");
    const [low, high] = chosen.map(x.back);
    if (chosen[1] - chosen[0] > 8 && high - low > Math.abs(high) * NARROWEST) onZoom([low, high]);
  });
  plot.addEventListener("dblclick", () => onZoom(null));
}

/** The index of the value that is nearest to another one; 0 for none. */
function nearest(values, to) {
  let best = 0;
  values.forEach((value, i) => {
    if (Math.abs(value - to) < Math.abs(values[best] - to)) best = i;
  });
  return best;
}
